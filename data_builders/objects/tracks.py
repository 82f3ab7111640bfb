from verl_stvg.video.tracks import *  # noqa: F403
from verl_stvg.video.tracks import TrackError  # noqa: F401
