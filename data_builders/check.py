"""What is wrong with rows, found before a GPU is rented.

Each finding is one that spoils a run without stopping it: an interval that the video does not reach can never be
answered, a ground truth that earns nothing gives no gradient, and a video that is in training and in a benchmark makes
the benchmark worthless. What a row says is looked at in `check_rows`, what its videos say in `check_videos`, and rows
beside other rows in `check_pairs`.
"""

import dataclasses
import functools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from verl_stvg.base.lock import write_whole
from verl_stvg.data_builders.check_pairs import leaks, twins
from verl_stvg.data_builders.check_rows import row_problems
from verl_stvg.data_builders.check_videos import Looks, Seen, look, remember, video_problems
from verl_stvg.moved import names_of
from verl_stvg.rows.files import read_rows, root_of
from verl_stvg.rows.shape import row_shape_problems
from verl_stvg.workers import work

__getattr__ = names_of(
    __name__,
    {
        **dict.fromkeys(("DRIFT", "SLACK", "drift"), "verl_stvg.data_builders.check_videos"),
        "COLUMNS": "verl_stvg.rows.files",
        "read_entries": "verl_stvg.rows.row",
    },
)


@dataclass(frozen=True)
class Finding:
    """Something wrong.

    Attributes:
        file: parquet file, as given.
        row: position in it; None for the file as a whole.
        uid: of the row.
        problem: kind, the same words for the same kind.
        detail: what it is here.
        serious: spoils training or a benchmark; otherwise worth knowing.
    """

    file: str
    row: int | None
    uid: str
    problem: str
    detail: str
    serious: bool = True

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file} row {self.row} ({self.uid})"
        return f"{where}: {self.problem}: {self.detail}"


@dataclass(frozen=True)
class Counts:
    """What was looked at."""

    rows: int
    videos: int


def check(
    files: list[Path],
    video_root: Path | None = None,
    decode: bool = True,
    workers: int = 1,
    on_ray: bool = False,
    progress: Callable[[int, int], None] = lambda *_: None,
    videos: bool = True,
    fit: Mapping[str, float | str] | None = None,
) -> tuple[list[Finding], Counts]:
    """Look for everything that `Finding` can be, in the order of files and rows.

    A row that is none (`row_shape_problems`) is a finding, and nothing more is asked of it. Where none of the videos
    of a file is there, that is one finding, too.

    Args:
        files: parquet files; those of training and evaluation together, so that they can be compared.
        video_root: see `verl_stvg.rows.files.root_of`.
        decode: every planned frame, not only the header.
        workers: see `verl_stvg.workers.work`.
        on_ray: see `verl_stvg.workers.work`.
        progress: called with videos done and their number.
        videos: look into them; else only what the rows say is looked at.
        fit: keys of the plan in place of those of the rows, see `verl_stvg.rows.fit`.

    Raises:
        ValueError: a file that is missing or has no rows of ours.
    """
    findings: list[Finding] = []
    seen: list[Seen] = []
    lost: set[str] = set()
    malformed = 0
    for number, file in enumerate(files):
        found, of_file, wrong = _rows_of(file, number, video_root, fit)
        findings += found
        malformed += wrong
        seen += of_file
        named = dict.fromkeys(one.video for one in of_file if one.video)
        if videos and named and _none_is_there(named, root := root_of(file, video_root)):
            detail = (
                f"none of the {len(named):,} videos of these rows is there, such as {next(iter(named))}; correct "
                f"--video-root (it is {root}), or check the rows alone, with --no-videos"
            )
            findings.append(Finding(str(file), None, "", "videos", detail))
            lost.update(named)
    plans: dict[str, list[tuple]] = defaultdict(list)
    for one in seen if videos else ():
        if one.video and one.video not in lost and one.plan not in plans[one.video]:
            plans[one.video].append(one.plan)
    looks: Looks = {}
    for looked in work(functools.partial(look, decode), list(plans.items()), workers, on_ray):
        looks.update(looked)
        progress(len(looks), len(plans))
    told = [(one, *problem) for one in seen for problem in video_problems(one, looks)]
    told += (*twins(files, seen, looks), *leaks(files, seen, looks))
    findings += (Finding(str(files[one.file]), one.row, one.uid, *problem) for one, *problem in told)
    order = {str(file): k for k, file in enumerate(files)}
    findings.sort(key=lambda finding: (order[finding.file], -1 if finding.row is None else finding.row))
    return findings, Counts(malformed + sum(not one.place for one in seen), len(plans))


def _rows_of(
    file: Path, number: int, video_root: Path | None, fit: Mapping[str, float | str] | None
) -> tuple[list[Finding], list[Seen], int]:
    """Of a file: what is wrong with its rows as far as they say, what is remembered of them, and how many are none."""
    findings, seen, malformed = [], [], 0
    for position, row in enumerate(read_rows(file, video_root, fit=fit)):
        if wrong := row_shape_problems(row):
            findings += (Finding(str(file), position, row.name, "row", text) for text in wrong)
            malformed += 1
            continue
        findings += (Finding(str(file), position, row.name, *found) for found in row_problems(row))
        seen += remember(row, number, position)
    return findings, seen, malformed


def _none_is_there(videos: Iterable[str], root: Path) -> bool:
    """Whether all videos of a file are missing because nobody put them there; one alone may just be lost."""
    found = list(videos)
    return (len(found) > 1 or not root.is_dir()) and not any(map(os.path.isfile, found))


def tally(findings: list[Finding]) -> dict[str, int]:
    """How often each kind of problem was found, the most frequent first."""
    return dict(Counter(finding.problem for finding in findings).most_common())


def write(findings: list[Finding], path: Path) -> None:
    """Write findings as JSON lines."""
    write_whole(path, "".join(json.dumps(dataclasses.asdict(finding)) + "\n" for finding in findings))
