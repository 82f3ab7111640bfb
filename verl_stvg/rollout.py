"""The agent loop of video grounding: verl's single turn, with pixels made once and failures that name the sample.

verl runs the Hugging Face processor up to three times for each of the n rollouts of a prompt, on the same frames;
here the pixels of a video are made by the first call and shared by the others.

An exception in verl's agent loop ends, far from its cause, as "no materializable trajectories"; the sample's uid, its
video and what went wrong must be in the message itself.
"""

from transformers import BatchFeature
from verl.experimental.agent_loop.agent_loop import register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from verl_stvg.video.once import Once

AGENT_NAME = "video_grounding"


class RolloutError(RuntimeError):
    """One sample could not be rolled out; names its uid, its videos and the cause."""


class SharedVideoProcessor:
    """A video processor that answers a second call for the same frames from memory.

    Frames are the same if they are the same memory, which `verl_stvg.dataset.read_video` hands out for one video and
    plan; an entry keeps its frames alive, so the memory cannot be another video's.

    Args:
        inner: the video processor of a Hugging Face processor; every other attribute is its own.
        max_bytes: of pixels kept.
    """

    def __init__(self, inner, max_bytes: int = 512 * 2**20):
        self._inner = inner
        self._pixels = Once(max_bytes, size=lambda entry: entry[0]["pixel_values_videos"].nbytes)

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def __call__(self, videos, **kwargs) -> BatchFeature:
        key = (tuple((v.data_ptr(), v.shape, v.stride(), v.dtype) for v in videos), repr(sorted(kwargs.items())))
        features, _ = self._pixels.get(key, lambda: (self._inner(videos=videos, **kwargs), videos))
        return BatchFeature(dict(features))


@register(AGENT_NAME)
class VideoGroundingAgentLoop(SingleTurnAgentLoop):
    """One prompt with videos, one answer (``rollout.agent.default_agent_loop=video_grounding``)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        video_processor = getattr(self.processor, "video_processor", None)
        if video_processor is not None and not isinstance(video_processor, SharedVideoProcessor):
            self.processor.video_processor = SharedVideoProcessor(video_processor)

    async def run(self, sampling_params, **kwargs):
        try:
            return await super().run(sampling_params, **kwargs)
        except Exception as error:
            extra = kwargs.get("extra_info") or {}
            videos = ", ".join(_videos(kwargs["raw_prompt"])) or "no video"
            raise RolloutError(f"sample {extra.get('uid', kwargs.get('index'))} with {videos}: {error}") from error


def _videos(messages) -> list[str]:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [str(part.get("video")) for part in parts if part.get("type") == "video"]
