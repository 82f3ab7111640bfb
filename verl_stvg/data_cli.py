"""``verl-stvg build``, ``check`` and ``show``: annotation sets to rows, rows to findings, rows to a page to look at."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from data_builders.sets import NAMES
from verl_stvg import status
from verl_stvg.lock import turn

build_app = typer.Typer(no_args_is_help=True, help="Build rows for training.")
logger = logging.getLogger(__name__)
_SHOWN = 20

Rows = Annotated[list[Path], typer.Argument(metavar="ROWS.parquet...", help="Rows as a recipe trains on them.")]
VideoRootOption = Annotated[
    Path | None,
    typer.Option(help="Folder that paths in the rows start from; default: what manifest.json beside them says."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; default: one per processor.")]


@build_app.command()
def synthetic(
    out: Annotated[Path, typer.Argument(help="Folder of the data set.")],
    train_clips: Annotated[int, typer.Option("--train")] = 512,
    val_clips: Annotated[int, typer.Option("--val")] = 96,
    seed: int = 0,
    task: Annotated[str, typer.Option(help="What is asked: stvg_r1, temporal_r1, time_r1 or videotg_r1.")] = "stvg_r1",
    twice: Annotated[
        float, typer.Option(help="Share of training clips in which the event happens twice and is annotated once.")
    ] = 0.0,
) -> None:
    """Synthetic clips of moving shapes: mp4 files, masks, annotations, and verl's rows."""
    from data_builders import synthetic as builder

    with turn(out):
        builder.build(out, train_clips, val_clips, seed, task=task, twice=twice)


def _command(name: str) -> Callable[..., None]:
    def command(
        annotations: Annotated[Path, typer.Option(help="Folder of the published files, or one of them with --split.")],
        out: Annotated[Path, typer.Option(help="Folder that is made.")],
        videos: Annotated[
            Path | None, typer.Option(help="Root of the videos; without it nothing is looked into.")
        ] = None,
        split: Annotated[
            list[str] | None, typer.Option(help="train, val, test; default: all whose files are there.")
        ] = None,
        template: Annotated[str | None, typer.Option(help="Of the prompts, by paper; default: the set's.")] = None,
        rule: Annotated[str | None, typer.Option(help="Frames by grid or qwen_vl_utils; default: the paper's.")] = None,
        targets: Annotated[
            Path | None, typer.Option(help="JSON lines {uid, object_id} for templates that ask who.")
        ] = None,
        tracks: Annotated[
            Path | None, typer.Option(help="Folder of track files whose IDs are drawn on frames.")
        ] = None,
        marker_style: Annotated[str | None, typer.Option(help="stvg_r1 (default) or centred.")] = None,
        reversed_intervals: Annotated[
            str, typer.Option(help="drop, swap or keep; training only, as those below.")
        ] = "drop",
        past_end: Annotated[str | None, typer.Option(help="keep, clip or drop; default: the paper's choice.")] = None,
        empty_intervals: Annotated[str, typer.Option(help="drop or keep.")] = "drop",
        several_intervals: Annotated[str, typer.Option(help="drop, split, first or hull.")] = "drop",
        duration_from: Annotated[str, typer.Option(help="annotation (else the file), or file.")] = "annotation",
        bad_entries: Annotated[str, typer.Option(help="error, or drop and count; unknown videos too.")] = "error",
        unusable_truth: Annotated[
            str, typer.Option(help="keep or drop val and test rows that cannot be scored.")
        ] = "keep",
        raw_eval_queries: Annotated[bool, typer.Option(help="Do not normalise val and test, as some papers.")] = False,
        probe: Annotated[bool, typer.Option(help="Look into every video: frames, rate, size, hash.")] = True,
        workers: Workers = None,
        ray: Annotated[bool, typer.Option("--ray", help="Look into videos on every node of the Ray cluster.")] = False,
    ) -> None:
        from rich.progress import Progress

        from data_builders import build
        from data_builders.row import Policies
        from data_builders.sets import find as find_set
        from data_builders.templates import find

        policies = Policies(
            reversed_intervals=reversed_intervals,
            past_end=past_end,
            empty_intervals=empty_intervals,
            several_intervals=several_intervals,
            duration_from=duration_from,
            bad_entries=bad_entries,
            unusable_truth=unusable_truth,
            raw_eval_queries=raw_eval_queries,
        )
        job = build.Job(
            source=find_set(name),
            annotations=annotations,
            out=out,
            videos=videos,
            splits=tuple(split or ()),
            template=find(template) if template else None,
            rule=rule,
            policies=policies,
            targets=targets,
            tracks=tracks,
            marker_style=marker_style,
            probe=probe,
            workers=workers or len(os.sched_getaffinity(0)),
            on_ray=ray,
        )
        with Progress() as bar:
            steps: dict[str, int] = {}

            def progress(step: str, done: int, total: int) -> None:
                if step not in steps:
                    steps[step] = bar.add_task(step, total=total or None)
                bar.update(steps[step], completed=done)

            manifest = build.build(job, progress)
        for part, counts in manifest["splits"].items():
            logger.info("%s: %d rows on %d videos", out / f"{part}.parquet", counts["rows"], counts["videos"])
            if "without_truth" in counts:
                logger.warning("  %d rows %s", counts["without_truth"], build.WITHOUT_TRUTH)
            for reason, count in counts["dropped"].items():
                logger.warning("  %d left out: %s", count, reason)
        for path, reason in list(manifest["unusable_videos"].items())[:_SHOWN]:
            logger.warning("  unusable: %s: %s", path, reason)

    command.__doc__ = f"Rows of {name}; the data card says what was left out and why."
    return command


for _name in NAMES:
    build_app.command(_name)(_command(_name))


def check(
    rows: Rows,
    video_root: VideoRootOption = None,
    decode: Annotated[bool, typer.Option(help="Decode every planned frame, not only the header.")] = True,
    workers: Workers = None,
    ray: Annotated[bool, typer.Option("--ray", help="Work on every node of the running Ray cluster.")] = False,
    videos: Annotated[
        bool, typer.Option("--videos/--no-videos", help="Look into the videos, or check the rows alone.")
    ] = True,
    report: Annotated[Path | None, typer.Option(help="All findings as JSON lines.")] = None,
) -> None:
    """Check rows before a GPU is rented: videos exist, decode and cover their intervals, ground truths earn the maximum
    of their own reward, nothing is there twice or shared by training and evaluation. Exit status 1 if something is.
    """
    from rich.progress import Progress

    from data_builders import check as checks

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
    out: Annotated[Path, typer.Option(help="The page.")] = Path("rows.html"),
    video_root: VideoRootOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows on the page, spread evenly over the files.")] = 100,
    findings: Annotated[
        Path | None, typer.Option(help="What `check --report` wrote, to be shown beside the rows.")
    ] = None,
) -> None:
    """One self-contained page of rows: thumbnails on a time line with interval and boxes, query, problems, filters."""
    from data_builders import show as page

    logger.info("%d rows: %s", page.write(rows, out, video_root, limit, findings), out)
