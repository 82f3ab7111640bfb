"""InternVid-VTime: clips of YouTube videos with queries that a language model made of their captions."""

from pathlib import Path

from verl_stvg.data_builders.records import Entries
from verl_stvg.data_builders.sets import AnnotationSet, Source
from verl_stvg.data_builders.sets.cosmo_cap import spans


def read(files: tuple[Path], split: str) -> Entries:
    """JSON lines ``{vid, query, span: [s, e], duration}``, whose videos are ``<vid>.mp4``.

    Pitfalls: the videos are cropped already (``videos_crop_3fps_480_noaudio/<vid>.mp4``), spans and durations are those
    of the crop, and so there is no clip; VideoMind leaves out rows whose video is not on its disk, here all are read.
    """
    yield from spans(files[0])


SETS = (
    AnnotationSet(
        "internvid_vtime",
        "InternVid-VTime: 54 thousand training queries on cropped YouTube videos",
        "yeliudev/VideoMind-Dataset",
        {"train": (Source(("anno_internvid_vtime_query_gpt4o_mini.jsonl",)),)},
        read,
        "videotg_r1",
    ),
)
