"""``verl-stvg build``, ``check``, ``show``, ``tiny-model``: sets to rows, rows to findings, rows to a page; a model."""

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from verl_stvg.base import status
from verl_stvg.cli.options import Annotations, Fit, MarkerStyle, Ray, Rows, Splits, Task, VideoRoot, Workers, in_folder
from verl_stvg.data_builders import sets, templates


class Sets(TyperGroup):
    """The help of each annotation set is what its module says."""

    def get_command(self, ctx, cmd_name: str):
        """The command of that name."""
        command = super().get_command(ctx, cmd_name)
        if command and cmd_name in sets.NAMES:
            source = sets.find(cmd_name)
            command.help, command.short_help = _as_it_is(sets.described(source)), source.title
        return command


build_app = typer.Typer(
    cls=Sets,
    no_args_is_help=True,
    help="Make rows for training and evaluation from the annotations of a data set, or from synthetic clips.",
)
logger = logging.getLogger(__name__)
_SHOWN = 20
PAGE = "rows.html"


@build_app.command()
def synthetic(
    out: Annotated[Path, typer.Option(help="Folder of the data set.")],
    train_clips: Annotated[int, typer.Option("--train")] = 512,
    val_clips: Annotated[int, typer.Option("--val")] = 96,
    seed: int = 0,
    task: Task = "stvg_r1",
    twice: Annotated[
        float, typer.Option(help="Share of training clips in which the event happens twice and is annotated once.")
    ] = 0.0,
) -> None:
    """Synthetic clips of moving shapes: mp4 files, masks, annotations, and verl's rows."""
    from verl_stvg.data_builders.sets import synthetic as builder

    builder.build(out, train_clips, val_clips, seed, task=task, twice=twice)


TemplateName = Enum("TemplateName", {name: name for name in templates.TEMPLATES}, type=str)
Pixels = Annotated[int | None, typer.Option(min=1, help="Of a frame; default: the paper's.")]
_SHOWN_BY = ("fps", "min_pixels", "max_pixels", "total_pixels", "min_frames", "max_frames")


def _options_of_a_set(
    *,
    annotations: Annotations,
    out: Annotated[Path, typer.Option(help="Folder that is made.")],
    videos: Annotated[Path | None, typer.Option(help="Root of the videos; without it nothing is looked into.")] = None,
    split: Splits = None,
    template: Annotated[TemplateName | None, typer.Option(help="Of the prompts, by paper; default: the set's.")] = None,
    rule: Annotated[
        Literal["grid", "adaptive_grid", "qwen_vl_utils"] | None,
        typer.Option(help="How frames are sampled; default: the paper's."),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second; default: 2.")] = None,
    min_pixels: Pixels = None,
    max_pixels: Pixels = None,
    total_pixels: Annotated[
        int | None, typer.Option(min=1, help="Of a video at most, two frames sharing each token.")
    ] = None,
    min_frames: Annotated[int | None, typer.Option(min=1, help="Of a video at least.")] = None,
    max_frames: Annotated[int | None, typer.Option(min=2, help="Of a video at most.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or hub name: videos are shown within the limits of its processor, by adaptive_grid."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, help="With --model: visual tokens of a video; default: a quarter of its positions."),
    ] = None,
    targets: Annotated[
        Path | None, typer.Option(help="JSON lines {uid, object_id} for templates that ask who.")
    ] = None,
    tracks: Annotated[Path | None, typer.Option(help="Folder of track files whose IDs are drawn on frames.")] = None,
    marker_style: Annotated[MarkerStyle | None, typer.Option(help="Of the IDs that are drawn.")] = None,
    reversed_intervals: Annotated[
        Literal["drop", "swap", "keep"],
        typer.Option(help="Intervals that end before they start; training only, as those below."),
    ] = "drop",
    past_end: Annotated[
        Literal["keep", "clip", "drop"] | None,
        typer.Option(help="Intervals that end after the video; default: the paper's choice."),
    ] = None,
    empty_intervals: Annotated[Literal["drop", "keep"], typer.Option(help="Intervals without a length.")] = "drop",
    several_intervals: Annotated[
        Literal["drop", "split", "first", "hull"], typer.Option(help="Several intervals, where the reward knows one.")
    ] = "drop",
    duration_from: Annotated[
        Literal["annotation", "file"], typer.Option(help="annotation: else the file.")
    ] = "annotation",
    bad_entries: Annotated[
        Literal["error", "drop"], typer.Option(help="drop: and count; unknown videos too.")
    ] = "error",
    unusable_truth: Annotated[
        Literal["keep", "drop"], typer.Option(help="Val and test rows that cannot be scored.")
    ] = "keep",
    raw_eval_queries: Annotated[bool, typer.Option(help="Do not normalise val and test, as some papers.")] = False,
    probe: Annotated[bool, typer.Option(help="Look into every video: frames, rate, size, hash.")] = True,
    workers: Workers = None,
    ray: Ray = False,
) -> None: ...


def _build(name: str, **given: Any) -> None:
    """Build the rows of a set from the options of its command, see `_options_of_a_set`."""
    from rich.progress import Progress, TaskID

    from verl_stvg.data_builders import build
    from verl_stvg.data_builders.make_row import Policies

    template, shown = given["template"], {key: given[key] for key in _SHOWN_BY if given[key] is not None}
    chosen = templates.find(template.value if template else sets.find(name).template)
    job = build.Job(
        source=sets.find(name),
        splits=tuple(given["split"] or ()),
        template=chosen,
        shown=_shown(chosen.videos, given["model"], given["tokens"], shown),
        policies=Policies(**{one.name: given[one.name] for one in dataclasses.fields(Policies)}),
        workers=given["workers"] or len(os.sched_getaffinity(0)),
        on_ray=given["ray"],
        **{
            key: given[key]
            for key in ("annotations", "out", "videos", "rule", "targets", "tracks", "marker_style", "probe")
        },
    )
    with Progress() as bar:
        steps: dict[str, TaskID] = {}

        def progress(step: str, done: int, total: int) -> None:
            if step not in steps:
                steps[step] = bar.add_task(step, total=total or None)
            bar.update(steps[step], completed=done)

        manifest = build.build(job, progress)
    for part, counts in manifest["splits"].items():
        logger.info("%s: %d rows on %d videos", job.out / f"{part}.parquet", counts["rows"], counts["videos"])
        if "without_truth" in counts:
            logger.warning("  %d rows %s", counts["without_truth"], build.WITHOUT_TRUTH)
        if "past_end" in counts:
            remedy = "; --past-end clip cuts them there, drop leaves them out" if part == "train" else ""
            found = counts["past_end"]
            logger.warning("  %d rows %s%s: %s", found["rows"], build.PAST_END, remedy, found["first"])
        for reason, count in counts["dropped"].items():
            logger.warning("  %d left out: %s", count, reason)
    for path, reason in list(manifest["unusable_videos"].items())[:_SHOWN]:
        logger.warning("  unusable: %s: %s", path, reason)


def _command(name: str) -> Callable[..., None]:
    command = functools.partial(_build, name)
    return functools.wraps(_options_of_a_set)(lambda **given: command(**given))


def _shown(paper: Mapping[str, Any], model: str | None, tokens: int | None, given: dict[str, Any]) -> dict[str, Any]:
    """How videos are shown, in place of the paper's way: within a model's limits, and by what is given over these."""
    from verl_stvg.rows.fit import checked, of_model

    if model is None:
        if tokens is not None:
            raise ValueError("--tokens is the budget of a model: give --model, or --total-pixels in place of it")
        checked(given)
        return given
    fit = of_model(model, tokens)
    if tokens is None and "total_pixels" in paper:
        fit["total_pixels"] = min(fit["total_pixels"], paper["total_pixels"])
    return checked(fit | given)


def _as_it_is(text: str) -> str:
    """Keep the line ends of the paragraphs that have an indented line; the help wraps all others."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(f"\b\n{one}" if re.search("^ ", one, re.MULTILINE) else one for one in paragraphs)


for _name in sets.NAMES:
    build_app.command(_name)(_command(_name))


def check(
    rows: Rows,
    video_root: VideoRoot = None,
    decode: Annotated[bool, typer.Option(help="Decode every planned frame, not only the header.")] = True,
    workers: Workers = None,
    ray: Ray = False,
    videos: Annotated[
        bool, typer.Option("--videos/--no-videos", help="Look into the videos, or check the rows alone.")
    ] = True,
    report: Annotated[Path | None, typer.Option(help="All findings as JSON lines.")] = None,
    fit: Fit = None,
) -> None:
    """Check rows before a GPU is rented: videos exist, decode and cover their intervals, ground truths earn the maximum
    of their own reward, nothing is there twice or shared by training and evaluation. Exit status 1 if something is.
    """
    from rich.progress import Progress

    from verl_stvg.data_builders import check as checks
    from verl_stvg.rows.fit import checked, parse

    with Progress() as bar:
        task = bar.add_task("checking", total=None)
        findings, counts = checks.check(
            rows,
            video_root,
            decode,
            workers or len(os.sched_getaffinity(0)),
            ray,
            lambda done, total: bar.update(task, completed=done, total=total),
            videos,
            checked(parse(fit or ())),
        )
    logger.info("%d rows in %d files on %d videos", counts.rows, len(rows), counts.videos)
    for finding in sorted(findings, key=lambda finding: not finding.serious)[:_SHOWN]:
        logger.warning("  %s", finding)
    if len(findings) > _SHOWN:
        logger.warning("  and %d more", len(findings) - _SHOWN)
    for problem, count in checks.tally(findings).items():
        logger.warning("%d x %s", count, problem)
    if report:
        checks.write(findings, report)
    if any(finding.serious for finding in findings):
        raise typer.Exit(status.FINDINGS)
    logger.info("nothing found that would spoil training")


def show(
    rows: Rows,
    out: Annotated[Path, typer.Option(help=f"Folder in which the page, {PAGE}, is made.")] = Path(),
    video_root: VideoRoot = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows on the page, spread evenly over the files.")] = 100,
    findings: Annotated[
        Path | None, typer.Option(help="What `check --report` wrote, to be shown beside the rows.")
    ] = None,
) -> None:
    """One self-contained page of rows: thumbnails on a time line with interval and boxes, query, problems, filters."""
    from verl_stvg.data_builders import show as page

    path = in_folder(out, PAGE)
    logger.info("%d rows: %s", page.write(rows, path, video_root, limit, findings), path)


def tiny_model(
    out: Annotated[Path, typer.Option(help="Folder of the model.")],
    seed: int = 0,
    task: Task = "stvg_r1",
    rare_share: Annotated[
        float | None,
        typer.Option(
            help="How rare half of the colours are in its supervised pass; the less, the harder. By default as the "
            "demo and docs/learning.md have it."
        ),
    ] = None,
) -> None:
    """Make the tiny Qwen2.5-VL: a real architecture of about 1 M parameters, warm-started on synthetic answers."""
    from verl_stvg.data_builders.testing import tiny_model as maker

    config = maker.TinyConfig(task=task)
    config = config if rare_share is None else dataclasses.replace(config, rare_share=rare_share)
    maker.make(out, seed=seed, config=config)
