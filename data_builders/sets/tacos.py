"""TACoS: sentences on cooking videos of several minutes, recorded by a fixed camera."""

from collections import Counter
from pathlib import Path

from verl_stvg.data_builders.read import json_entries, json_lines
from verl_stvg.data_builders.records import NUMBER, Entries, Problem, chosen, fault, is_number, record
from verl_stvg.data_builders.sets import AnnotationSet, Source


def read(files: tuple[Path], split: str) -> Entries:
    """JSON lines of VideoMind, ``{vid, query, duration, relevant_windows: [[s, e]]}`` with exactly one window.

    Or, in a file that ends in ``.json``, JSON of 2D-TAN, ``{"<vid>.avi": {timestamps: [[first, last], ...], sentences,
    fps, num_frames}}`` with timestamps in frames.

    Pitfalls of both: the video of an id is that of one camera of several, ``<id>-cam-002.mp4``; sentences occur more
    than once in a video, with other times. The two hold different selections of sentences, so the same number within
    a video may be another sentence.
    """
    (path,) = files
    yield from _of_videos(path) if path.suffix == ".json" else _of_lines(path)


def _of_lines(path: Path) -> Entries:
    """``{vid, query, duration, relevant_windows: [[s, e]]}``, the form of QVHighlights with exactly one window."""
    wanted = {"vid": str, "query": str, "duration": NUMBER, "relevant_windows": list}
    counts: Counter[str] = Counter()
    for number, entry in json_lines(path):
        if wrong := fault(entry, wanted):
            yield Problem(f"line {number}", wrong)
            continue
        vid, windows = entry["vid"], entry["relevant_windows"]
        where = f"line {number} ({vid})"
        counts[vid] += 1
        if len(windows) != 1:
            yield Problem(where, f"relevant_windows: should be one window, found {len(windows)}")
            continue
        yield record(
            where,
            {"intervals": "relevant_windows"},
            key=f"{vid}/{counts[vid] - 1}",
            video=f"{vid}-cam-002.mp4",
            query=entry["query"],
            intervals=windows,
            duration=entry["duration"],
            extra=chosen(entry, "qid"),
        )


def _of_videos(path: Path) -> Entries:
    """``{"<vid>.avi": {timestamps: [[first, last], ...], sentences, fps, num_frames}}``, timestamps in frames.

    Frames become seconds with the file's own ``fps`` (29.4), as 2D-TAN reads them. That is the nominal rate of the
    recordings; the duration is ``num_frames`` at this rate.
    """
    wanted = {"timestamps": list, "sentences": list, "fps": NUMBER, "num_frames": NUMBER}
    for name, entry in json_entries(path):
        where, vid = f"video {name}", name.removesuffix(".avi")
        if wrong := fault(entry, wanted):
            yield Problem(where, wrong)
            continue
        spans, sentences, rate = entry["timestamps"], entry["sentences"], entry["fps"]
        if len(spans) != len(sentences) or not rate > 0:
            what = f"timestamps: {len(spans)} for {len(sentences)} sentences, fps {rate!r:.60}"
            yield Problem(where, f"{what}; there has to be one of each, and a rate above 0")
            continue
        for k, (span, sentence) in enumerate(zip(spans, sentences, strict=True)):
            numbers = isinstance(span, list) and all(map(is_number, span))
            yield record(
                f"{where}, sentence {k}",
                {"query": f"sentences[{k}]", "intervals.0": f"timestamps[{k}]"},
                key=f"{vid}/{k}",
                video=f"{vid}-cam-002.mp4",
                query=sentence,
                intervals=([frame / rate for frame in span] if numbers else span,),
                duration=entry["num_frames"] / rate,
            )


SETS = (
    AnnotationSet(
        "tacos",
        "TACoS: 10,146 training, 4,589 validation and 4,083 test sentences on 127 cooking videos (2D-TAN: 9,790, 4,436 "
        "and 4,001)",
        "yeliudev/VideoMind-Dataset; microsoft/VideoX (2D-TAN/data/TACoS)",
        {split: (Source((f"{split}.jsonl", f"{split}.json")),) for split in ("train", "val", "test")},
        read,
        "videotg_r1",
    ),
)
