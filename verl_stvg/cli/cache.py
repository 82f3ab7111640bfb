"""The commands `verl-stvg cache ...`: fill the cache of decoded frames, check it, look at it, make room in it."""

import logging
import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from verl_stvg.base import status
from verl_stvg.cli.options import Decoder, Fit, Ray, Rows, VideoRoot, Workers, parse_size, size_text

logger = logging.getLogger(__name__)

app = typer.Typer(no_args_is_help=True, help="Fill and look after the cache of decoded frames.")

_SHOWN = 5

Folder = Annotated[Path, typer.Option("--cache", exists=True, file_okay=False, help="Folder of the cache.")]
Bound = Annotated[
    int | None, typer.Option(parser=parse_size, metavar="SIZE", help="Bound of the cache, e.g. 200G; default: none.")
]


@app.command()
def build(
    rows: Rows,
    cache: Annotated[Path, typer.Option(help="Folder of the cache; made if it is not there.")],
    max_bytes: Bound = None,
    workers: Workers = None,
    ray: Ray = False,
    video_root: VideoRoot = None,
    decoder: Decoder = "pyav",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a video, beside those for its length.")] = 60.0,
    patch: Annotated[int, typer.Option(help="Of the model: 14 for Qwen2.5-VL, 16 for Qwen3-VL.")] = 14,
    fit: Fit = None,
) -> None:
    """Decode every video and plan of the rows into the cache, once; what is there is skipped. Exit status 1 if a video
    cannot be used: quarantine.jsonl in the cache names it and the reason.
    """
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from verl_stvg.rows import cache_fill as builder
    from verl_stvg.rows.fit import checked, parse
    from verl_stvg.video.store import FrameStore

    store = FrameStore(str(cache), max_bytes, decoder, timeout)
    jobs = builder.read_jobs(rows, video_root, patch, checked(parse(fit or ())))
    outcomes: list[builder.Outcome] = []
    columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns) as progress:
            bar = progress.add_task("decoding", total=len(jobs))
            for done in builder.build(jobs, store, workers or len(os.sched_getaffinity(0)), ray):
                outcomes += done
                progress.advance(bar, len(done))
    finally:
        quarantine = builder.note_failures(cache, outcomes)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    built = sum(outcome.state == "built" for outcome in outcomes)
    held = sum(outcome.bytes for outcome in outcomes)
    logger.info(
        "%d videos with their plans: %d decoded, %d already there, %d failed; frames of %s",
        *(len(outcomes), built, len(outcomes) - built - len(failed), len(failed), size_text(held)),
    )
    if max_bytes is not None and held > max_bytes:
        logger.warning("they do not fit in %s: the first ones were removed again; raise it", size_text(max_bytes))
    for outcome in failed[:_SHOWN]:
        logger.warning("  %s", outcome.reason)
    if refused := [outcome for outcome in failed if outcome.job.refused]:
        logger.warning("rows whose videos cannot be read: %d; `verl-stvg check` lists them all", len(refused))
    if len(failed) > len(refused):
        logger.warning("all %d videos with their reasons: %s", len(failed) - len(refused), quarantine)
    if failed:
        raise typer.Exit(status.FINDINGS)


@app.command()
def verify(
    cache: Folder,
    remove: Annotated[bool, typer.Option("--remove", help="Delete damaged entries; they are decoded again.")] = False,
) -> None:
    """Read every entry and its checksum; exit status 1 if one is damaged."""
    from rich.progress import track

    from verl_stvg.video.cache import FrameCache

    damaged = FrameCache(cache).verify(remove, lambda entries: track(entries, "reading"))
    for path, reason in damaged:
        logger.warning("%s %s", path, reason)
    if damaged:
        logger.warning("%d damaged, %s", len(damaged), "removed" if remove else "kept; remove them with --remove")
        raise typer.Exit(status.FINDINGS)
    logger.info("every entry is whole")


@app.command()
def stats(cache: Folder) -> None:
    """How many entries, videos and bytes there are, and when they were used."""
    from rich.console import Console
    from rich.table import Table

    from verl_stvg.video.cache import FrameCache

    found = FrameCache(cache).stats()
    table = Table("", "", title=str(cache), title_justify="left", show_header=False)
    table.add_row("entries", f"{found.entries:,}")
    table.add_row("size", f"{size_text(found.bytes)} ({found.bytes:,} bytes)")
    table.add_row("videos", f"{found.videos:,}")
    table.add_row("least recently used", _time(found.oldest))
    table.add_row("most recently used", _time(found.newest))
    table.add_row("temporary files", f"{found.temp_files:,}")
    Console().print(table)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else datetime.fromtimestamp(seconds).isoformat(" ", "seconds")


@app.command()
def gc(cache: Folder, max_bytes: Bound = None) -> None:
    """Remove what killed builders left behind and, with a bound, the least recently used entries."""
    from verl_stvg.video.cache import FrameCache

    removed = FrameCache(cache).gc(max_bytes)
    logger.info(
        "removed %d entries (%s) and %d temporary files", removed.entries, size_text(removed.bytes), removed.temp_files
    )
