"""``verl-stvg objects``: from raw videos to numbered objects, targets and rows; stage by stage, or all with ``run``."""

import dataclasses
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from verl_stvg.base import status
from verl_stvg.base.lock import replacing
from verl_stvg.cli.options import Annotations, MarkerStyle, Ray, Splits, in_folder

app = typer.Typer(no_args_is_help=True, help="Objects in videos: detect, track, number, find the target.")
logger = logging.getLogger(__name__)
_SHOWN = 10
DETECTIONS, TARGETS = "detections.jsonl", "targets.jsonl"

VideoFolder = Annotated[Path, typer.Option(help="Root of the videos.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="[VIDEO...]", help="Relative to the root; default: all.")]
DetectorName = Annotated[
    str, typer.Option(help="rtdetr, huggingface:MODEL, grounding-dino:a.b, yolo:FILE, module:function.")
]
SegmenterName = Annotated[
    str, typer.Option(help="SAM 2 model on the Hugging Face hub, CONFIG=CHECKPOINT, module:function.")
]
Classes = Annotated[str, typer.Option(help="person, non-person, all, or class names joined by commas.")]
Confidence = Annotated[float | None, typer.Option(help="Least score of a detection.")]
Step = Annotated[int, typer.Option(min=1, help="Frames from one detection to the next.")]
Faithful = Annotated[bool, typer.Option(help="STVG-R1's released algorithm, forwards only.")]
Bidirectional = Annotated[bool, typer.Option(help="Follow new objects backwards too.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes, each with its own models.")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of each Ray worker.")]
Ratio = Annotated[float, typer.Option(min=0, max=1, help="Of the largest object's pixels, to be displayed.")]
PerLabel = Annotated[bool, typer.Option(help="Compare sizes within a class only.")]
Hysteresis = Annotated[float, typer.Option(min=0, max=1, help="0: as STVG-R1; more: numbers flicker less.")]
MinShare = Annotated[
    float, typer.Option(min=0, max=1, help="Least share of the tube's frames that vote for the target.")
]
MinIoU = Annotated[float, typer.Option(min=0, max=1, help="Least mean IoU of target and tube.")]
AssignFaithful = Annotated[bool, typer.Option(help="As released: one frame late, a pixel added to boxes.")]


@app.command()
def detect(
    videos: VideoFolder,
    out: Annotated[Path, typer.Option(help=f"Folder of {DETECTIONS}: video, frame, box, label, score.")],
    names: Names = None,
    detector: DetectorName = "rtdetr",
    classes: Classes = "person",
    confidence: Confidence = None,
    step: Step = 15,
) -> None:
    """Detections of keyframes alone, to try a detector. Exit status 1 if a video cannot be used; the rest goes on."""
    from verl_stvg.data_builders.objects import pipeline
    from verl_stvg.data_builders.objects.track import Options
    from verl_stvg.video.film import VideoError

    models, options = pipeline.Models(detector, confidence=confidence), Options(step=step, mode=_mode(classes))
    failed = 0
    with replacing(in_folder(out, DETECTIONS)) as partial, partial.open("w", encoding="utf-8") as file:
        for video in _names(videos, names):
            try:
                lines = list(pipeline.detections(videos, video, models, options))
            except VideoError as error:
                failed += 1
                logger.warning("  %s", error)
                continue
            file.writelines(json.dumps(line) + "\n" for line in lines)
            logger.info("%s: %d detections", video, len(lines))
    if failed:
        raise typer.Exit(status.FINDINGS)


@app.command()
def track(
    videos: VideoFolder,
    out: Annotated[Path, typer.Option(help="Folder of track files.")],
    names: Names = None,
    detector: DetectorName = "rtdetr",
    segmenter: SegmenterName = "facebook/sam2.1-hiera-large",
    classes: Classes = "person",
    confidence: Confidence = None,
    step: Step = 15,
    bidirectional: Bidirectional = True,
    faithful: Faithful = False,
    workers: Workers = 1,
    ray: Ray = False,
    gpus: Gpus = 0,
) -> None:
    """Find and follow the objects of videos with SAM 2; what is there is skipped. Exit status 1 if a video failed."""
    from verl_stvg.data_builders.objects import pipeline
    from verl_stvg.data_builders.objects.track import Options

    models = pipeline.Models(detector, segmenter, confidence)
    options = Options(step=step, mode=_mode(classes), bidirectional=bidirectional, faithful=faithful)
    found = _names(videos, names)
    failed = _follow(pipeline.track_all(videos, found, out, models, options, workers, ray, gpus), len(found))
    if failed:
        raise typer.Exit(status.FINDINGS)


@app.command(name="filter")
def filter_(
    tracks: Annotated[Path, typer.Option(help="Folder of track files.")],
    out: Annotated[Path, typer.Option(help="Another folder, for the objects whose number is displayed.")],
    ratio: Ratio = 1 / 3,
    per_label: PerLabel = False,
    hysteresis: Hysteresis = 0.0,
) -> None:
    """Hide objects in frames in which they are small beside the largest. Exit status 1 if a track file is damaged."""
    if _filter(tracks, out, ratio, per_label, hysteresis):
        raise typer.Exit(status.FINDINGS)


def _filter(tracks: Path, out: Path, ratio: float, per_label: bool, hysteresis: float) -> int:
    from verl_stvg.data_builders.objects import pipeline

    steps = ([done] for done in pipeline.filter_all(tracks, out, ratio, per_label, hysteresis))
    return _follow(steps, len(pipeline.track_files(tracks)))


@app.command()
def render(
    videos: VideoFolder,
    tracks: Annotated[Path, typer.Option(help="Folder of track files, of the displayed objects.")],
    out: Annotated[Path, typer.Option(help="Folder of the numbered videos.")],
    names: Names = None,
    marker_style: Annotated[MarkerStyle, typer.Option(help="Of the IDs that are drawn.")] = "stvg_r1",
) -> None:
    """Videos with the IDs drawn on every frame, as STVG-R1 makes them. Training needs none: see `build --tracks`.
    Exit status 1 if a video cannot be used; the rest goes on.
    """
    from verl_stvg.data_builders.objects import draw
    from verl_stvg.data_builders.objects.write import find_numbered
    from verl_stvg.video.film import VideoError
    from verl_stvg.video.tracks import find_track, load

    failed = 0
    for video in _names(videos, names):
        target = find_numbered(out, video, videos)
        if not target.is_file():
            try:
                draw.render(videos / video, load(find_track(tracks, video, videos)), target, marker_style)
            except VideoError as error:
                failed += 1
                logger.warning("  %s", error)
                continue
        logger.info("%s", target)
    if failed:
        raise typer.Exit(status.FINDINGS)


@app.command()
def assign(
    dataset: Annotated[str, typer.Argument(metavar="SET", help="Annotation set, as in `verl-stvg build`.")],
    annotations: Annotations,
    videos: VideoFolder,
    tracks: Annotated[Path, typer.Option(help="Folder of track files, of the displayed objects.")],
    out: Annotated[
        Path, typer.Option(help=f"Folder of {TARGETS}, for `build --targets`, and of a file of those without a target.")
    ],
    split: Splits = None,
    min_share: MinShare = 0.0,
    min_iou: MinIoU = 0.0,
    faithful: AssignFaithful = False,
) -> None:
    """Which ID is the target of each annotated tube, or which IDs those of annotated masks."""
    from verl_stvg.data_builders import build
    from verl_stvg.data_builders.objects import pipeline
    from verl_stvg.data_builders.sets import find
    from verl_stvg.data_builders.videos import VideoRoot

    job, lines = build.Job(find(dataset), annotations, out, videos, tuple(split or ())), []
    rule, root = pipeline.Rule(min_share, min_iou, faithful=faithful), VideoRoot(videos)
    for part, files in build.files_of(job).items():
        lines += pipeline.assign(dataset, part, job.source.read(files, part), root, tracks, rule)
    path = in_folder(out, TARGETS)
    counts = pipeline.write_targets(lines, path)
    logger.info("%s: %d targets, %d without", path, counts["targets"], counts["no target"])
    for line in [line for line in lines if "reason" in line][:_SHOWN]:
        logger.warning("  %s: %s", line["uid"], line["reason"])


@app.command()
def show(
    video: Annotated[Path, typer.Argument(help="The file.")],
    tracks: Annotated[Path, typer.Option(help="Its track file.")],
    out: Annotated[Path, typer.Option(help="Folder of NAME.objects.mp4 with masks, boxes and IDs.")],
    sheet: Annotated[Path | None, typer.Option(help="jpg file with pictures of it; default: in the folder.")] = None,
) -> None:
    """A video with its objects in colours, and a contact sheet."""
    from verl_stvg.data_builders.objects import draw
    from verl_stvg.video.tracks import load

    path = in_folder(out, f"{video.stem}.objects.mp4")
    draw.show(video, load(tracks), path, sheet or path.with_suffix(".jpg"))
    logger.info("%s, %s", path, sheet or path.with_suffix(".jpg"))


@app.command()
def run(
    dataset: Annotated[str, typer.Argument(metavar="SET", help="Annotation set with tubes or masks.")],
    annotations: Annotations,
    videos: VideoFolder,
    out: Annotated[Path, typer.Option(help="Folder of tracks, shown, targets.jsonl and rows.")],
    split: Splits = None,
    detector: DetectorName = "rtdetr",
    segmenter: SegmenterName = "facebook/sam2.1-hiera-large",
    classes: Classes = "person",
    confidence: Confidence = None,
    step: Step = 15,
    bidirectional: Bidirectional = True,
    faithful: Faithful = False,
    ratio: Ratio = 1 / 3,
    per_label: PerLabel = False,
    hysteresis: Hysteresis = 0.0,
    min_share: MinShare = 0.0,
    min_iou: MinIoU = 0.0,
    workers: Workers = 1,
    ray: Ray = False,
    gpus: Gpus = 0,
) -> None:
    """All stages: track the videos of a set, hide small objects, find the targets, build the rows. Each is resumed.
    Exit status 1 if a video failed; the rows are those of the others.
    """
    from verl_stvg.data_builders import build
    from verl_stvg.data_builders.objects import pipeline
    from verl_stvg.data_builders.objects.track import Options
    from verl_stvg.data_builders.sets import find

    source = find(dataset)
    job = build.Job(source, annotations, out / "rows", videos, tuple(split or ()), workers=workers, on_ray=ray)
    names = sorted({path for path in build.videos_of(job).values() if path})
    models = pipeline.Models(detector, segmenter, confidence)
    options = Options(step=step, mode=_mode(classes), bidirectional=bidirectional, faithful=faithful)
    failed = _follow(pipeline.track_all(videos, names, out / "tracks", models, options, workers, ray, gpus), len(names))
    failed += _filter(out / "tracks", out / "shown", ratio, per_label, hysteresis)
    assign(dataset, annotations, videos, out / "shown", out, split, min_share, min_iou, faithful)
    manifest = build.build(dataclasses.replace(job, targets=out / TARGETS, tracks=out / "shown"))
    for part, counts in manifest["splits"].items():
        logger.info("%s: %d rows", out / "rows" / f"{part}.parquet", counts["rows"])
        for reason, count in counts["dropped"].items():
            logger.warning("  %d left out: %s", count, reason)
    if failed:
        raise typer.Exit(status.FINDINGS)


def _mode(classes: str) -> str | tuple[str, ...]:
    from verl_stvg.data_builders.objects.detector import MODES

    return classes if classes in MODES else tuple(name.strip() for name in classes.split(","))


def _names(videos: Path, names: list[str] | None) -> list[str]:
    from verl_stvg.data_builders.videos import VideoRoot

    root = VideoRoot(videos)
    return [root.find(name) for name in names] if names else root.all()


def _follow(steps: Iterable[list], total: int) -> int:
    """Log what became of each video; returns how many failed."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    done, failed = [], []
    with Progress(*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task("videos", total=total)
        for some in steps:
            done += some
            failed += [one for one in some if one.state == "failed"]
            progress.advance(bar, len(some))
    made, objects = sum(one.state == "made" for one in done), sum(one.objects for one in done)
    logger.info(
        "%d videos made, %d there already, %d failed; %d objects",
        made,
        len(done) - made - len(failed),
        len(failed),
        objects,
    )
    for one in failed[:_SHOWN]:
        logger.warning("  %s: %s", one.video, one.reason)
    for one in [one for one in done if one.state == "made" and one.reason][:_SHOWN]:
        logger.warning("  %s: made again: %s", one.video, one.reason)
    return len(failed)
