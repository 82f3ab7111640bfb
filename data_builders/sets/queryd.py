"""QuerYD: spoken descriptions of YouTube videos, made for people who cannot see them, with their times."""

from pathlib import Path
from typing import Any

from verl_stvg.data_builders.read import AnnotationError, plain_pickle, text_lines
from verl_stvg.data_builders.records import Entries, Problem, record
from verl_stvg.data_builders.sets import AnnotationSet, Source
from verl_stvg.data_builders.sets.activitynet import known_durations

PREFIX = 6
"""Characters, ``video-``, before the YouTube id."""


def read(files: tuple[Path, Path, Path, Path | None], split: str) -> Entries:
    """A list of ids, one a line, and two pickles with sentences (lists of words) and times ([s, e]) of every id.

    Pitfalls: the pickles hold all splits, the list says which ids are meant; ids have a prefix that neither the video
    nor ``durations.json`` has; a pickle is a program, and one that holds more than plain data is refused. VideoMind
    leaves out videos without a duration; here they stay, without one. Assumed: times are plain numbers, not arrays.
    """
    listing, captions, times, durations = files
    sentences, spans = _by_id(captions), _by_id(times)
    known = known_durations(durations)
    seen = set()
    for number, name in text_lines(listing):
        where = f"line {number} ({name})"
        if wrong := _fault(name, seen, sentences, spans):
            yield Problem(where, wrong)
            continue
        seen.add(name)
        video = name[PREFIX:]
        for k, (words, span) in enumerate(zip(sentences[name], spans[name], strict=True)):
            if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
                yield Problem(f"{where}, sentence {k}", f"caption: should be a list of words, found {words!r:.60}")
                continue
            yield record(
                f"{where}, sentence {k}",
                {"query": f"captions[{k}]", "intervals.0": f"times[{k}]"},
                key=f"{video}/{k}",
                video=f"{video}.mp4",
                query=" ".join(words),
                intervals=(span,),
                duration=known.get(video),
            )


def _by_id(path: Path) -> dict[str, Any]:
    found = plain_pickle(path)
    if not isinstance(found, dict):
        raise AnnotationError(f"{path}: holds no dictionary by video id; download or export the file again")
    return found


def _fault(name: str, seen: set[str], sentences: dict[str, Any], spans: dict[str, Any]) -> str | None:
    if len(name) <= PREFIX:
        return f"id: has no name after its prefix of {PREFIX} characters"
    if name in seen:
        return "id: is in the list twice"
    for kind, by_id in (("captions", sentences), ("times", spans)):
        if not isinstance(by_id.get(name), list | tuple):
            return f"{kind}: should be a list, found {by_id.get(name)!r:.60}"
    if len(sentences[name]) != len(spans[name]):
        return f"{len(spans[name])} times for {len(sentences[name])} captions"
    return None


SETS = (
    AnnotationSet(
        "queryd",
        "QuerYD: 33 thousand training descriptions in YouTube videos, 19 thousand where the video is still there",
        "QuerYD release, version 2; videos and durations: yeliudev/VideoMind-Dataset",
        {
            "train": (
                Source(("train_list.txt",)),
                Source(("raw_captions_combined_filtered-v2.pkl",)),
                Source(("times_captions_combined_filtered-v2.pkl",)),
                Source(("durations.json",), required=False),
            )
        },
        read,
        "videotg_r1",
    ),
)
