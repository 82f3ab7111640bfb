"""From an annotation set to verl's rows: one command, the same bytes from the same input, wrong annotations said aloud.

Two passes over the annotation, so that memory does not grow with the rows: the first checks every entry and collects
the videos, the second writes. Nothing is dropped without a reason and a count, in the manifest and in the data card.
The folder appears when all of it is written; until then what was found out about videos is kept beside it.
"""

import functools
import json
import logging
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from verl_stvg.base.digest import sha256
from verl_stvg.base.lock import clear, finished, whole
from verl_stvg.data_builders import job as job_files
from verl_stvg.data_builders.check_videos import SLACK
from verl_stvg.data_builders.job import Job, files_of
from verl_stvg.data_builders.make_row import Drop, RowMaker, Video
from verl_stvg.data_builders.read import AnnotationError
from verl_stvg.data_builders.records import Entries, Problem, once
from verl_stvg.data_builders.row_schema import ROW_SCHEMA
from verl_stvg.data_builders.templates import TEMPLATES, Template
from verl_stvg.data_builders.videos import Facts, UnknownVideo, VideoRoot, check_name, probe_all
from verl_stvg.moved import names_of

__getattr__ = names_of(__name__, {"SPLITS": "verl_stvg.data_builders.job"})
logger = logging.getLogger(__name__)

FORMAT_VERSION = 3  # raise it whenever the same arguments would give other files
MANIFEST = "manifest.json"
DURATIONS = "durations.json"
PAST_END = "have an interval that ends over a second after the video does"
WITHOUT_TRUTH = "have no public ground truth; they can be answered, but not scored here"
_SHOWN = 5
_BATCH = 1000  # rows per row group


def build(job: Job, progress: Callable[[str, int, int], None] = lambda *_: None) -> dict:
    """Write the rows of a set and return the manifest.

    Files: a parquet file for each split, ``manifest.json``, and ``README.md``, the data card. A folder that holds the
    same already is kept.

    Args:
        job: what to build.
        progress: called with the step's name, how much is done and of how much.

    Raises:
        AnnotationError: a file that cannot be read, entries that cannot be used, unknown videos.
        FolderInUse: another process is building the folder.
        ValueError: arguments that do not fit together, or a folder that holds something else.
    """
    template = job.template or TEMPLATES[job.source.template]
    job_files.check(job, template)
    files = files_of(job)
    manifest = _manifest(job, template, files)
    if finished(job.out):
        return _kept(job.out, manifest)
    targets = job_files.targets_of(job.targets) if job.targets else {}
    names = _first_pass(job, files, progress)
    with whole(job.out, keep=True) as work:
        if job.out.exists():  # another process has just finished it
            return _kept(job.out, manifest)
        journal = work / "videos.jsonl"
        clear(work, journal.name)
        videos, unusable = _look_into(job, names, journal, progress)
        for split, paths in files.items():
            maker = RowMaker(
                job.source.name,
                split,
                template,
                job.policies,
                job.rule,
                targets,
                job_files.tracks_of(job),
                job.marker_style,
                job.videos,
                next((name for source in job.source.splits[split] for name in source.names if name == DURATIONS), None),
                job.shown,
            )
            path = work / f"{split}.parquet"
            counts = _write(path, maker, once(job.source.read(paths, split)), videos, unusable, progress)
            manifest["splits"][split].update(counts, sha256=sha256(path))
        manifest["unusable_videos"] = unusable
        journal.unlink(missing_ok=True)
        _write_text(work / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        _write_text(work / "README.md", card(manifest))
    return manifest


def videos_of(job: Job) -> dict[str, str]:
    """Every video that the annotation names, by name, with its path below the root; empty where it is unknown.

    Raises:
        AnnotationError: entries that cannot be used, unknown videos; see `Policies.bad_entries`.
    """
    return _first_pass(job, files_of(job), lambda *_: None)


# --- first pass: entries and videos -----------------------------------------------------------------------------------


def _first_pass(job: Job, files: dict[str, tuple[Path | None, ...]], progress) -> dict[str, str]:
    """Every video that is named, by name, with its path; refuses what the policies do not drop."""
    root = VideoRoot(job.videos) if job.videos else None
    paths: dict[str, str] = {}
    wrong: list[str] = []
    count = 0
    for split, sources in files.items():
        before = count
        for entry in once(job.source.read(sources, split)):
            count += 1
            if count % _BATCH == 0:
                progress("reading", count, 0)
            if isinstance(entry, Problem):
                wrong.append(f"{sources[0]}: {entry.where}: {entry.what}")
                continue
            if entry.video not in paths:
                try:
                    paths[entry.video] = _path(entry.video, root)
                except UnknownVideo as error:
                    wrong.append(f"{sources[0]}: {entry.where}: {error}")
                    paths[entry.video] = ""
        if count == before:
            raise AnnotationError(f"{sources[0]}: no entries; correct the file, or download it again")
    if wrong and job.policies.bad_entries == "error":
        shown = "\n".join(f"  {line}" for line in wrong[:_SHOWN])
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise AnnotationError(
            f"{len(wrong)} entries of {job.source.name} cannot be used; mend them, or drop and count them with "
            f"--bad-entries drop\n{shown}{more}"
        )
    return paths


def _path(name: str, root: VideoRoot | None) -> str:
    if root:
        return root.find(name)
    check_name(name)
    return name if PurePosixPath(name).suffix else f"{name}.mp4"


def _look_into(
    job: Job, names: dict[str, str], journal: Path, progress
) -> tuple[dict[str, Video | str], dict[str, str]]:
    """Each name's video, or why it cannot be used; and the unusable ones by path."""
    paths = sorted({path for path in names.values() if path})
    facts: dict[str, Facts | str] = {}
    if job.videos and job.probe:
        for found in probe_all(job.videos, paths, journal, job.workers, job.on_ray):
            facts.update(found)
            progress("looking into videos", len(facts), len(paths))
    root = f"{job.videos}/" if job.videos else ""
    unusable = {path: why.replace(root, "") for path in paths if isinstance(why := facts.get(path), str)}
    videos: dict[str, Video | str] = {}
    for name, path in names.items():
        known = facts.get(path)
        if not path:
            videos[name] = "unknown video"
        elif isinstance(known, str):
            videos[name] = "unusable video"
        else:
            videos[name] = Video(path, known)
    return videos, unusable


# --- second pass: rows ------------------------------------------------------------------------------------------------


def _write(path: Path, maker: RowMaker, entries: Entries, videos: dict, unusable: Mapping[str, str], progress) -> dict:
    """Write the rows of a split and return its counts."""
    drops: Counter[str] = Counter()
    used: set[str] = set()
    count = without_truth = 0
    past: list[str] = []
    with pq.ParquetWriter(path, ROW_SCHEMA, compression="zstd") as writer:
        batch: list[dict] = []
        for row in _rows(maker, entries, videos, drops):
            row["extra_info"]["index"] = count
            used.add(row["videos"][0]["video"])
            truth = row["reward_model"]["ground_truth"]
            without_truth += all(truth.get(name) is None for name in ("start", "answer", "object_id", "object_ids"))
            past += _past_end(row)
            batch.append(row)
            count += 1
            if len(batch) == _BATCH:
                writer.write_table(pa.Table.from_pylist(batch, ROW_SCHEMA))
                batch = []
                progress(f"writing {maker.split}", count, 0)
        writer.write_table(pa.Table.from_pylist(batch, ROW_SCHEMA))
    if not count:
        path.unlink()
        reasons = ", ".join(f"{reason}: {number}" for reason, number in drops.most_common())
        hint = _hint(drops.most_common(1)[0][0], unusable) if drops else ""
        raise AnnotationError(f"{maker.dataset} {maker.split}: no row is left ({reasons}){hint}")
    found = {"rows": count, "videos": len(used), "dropped": dict(sorted(drops.items()))}
    if without_truth:
        found["without_truth"] = without_truth
    if past:
        found["past_end"] = {"rows": len(past), "first": past[0]}
    return found


def _past_end(row: dict) -> list[str]:
    """Where and by how much the interval of a row ends after what is shown of its video, if by over a second."""
    truth, extra, entry = row["reward_model"]["ground_truth"], row["extra_info"], row["videos"][0]
    lasts = truth["duration"]
    if extra["num_frames"]:
        file = extra["file_end"] or extra["num_frames"] / extra["source_fps"]
        lasts = min(file, entry["video_end"] or file) - (entry["video_start"] or 0.0)
    end = max((end for _, end in truth["intervals"] or ()), default=0.0)
    if end <= lasts + SLACK:
        return []
    return [f"{truth['uid']}: the interval ends at {end:.2f} s and the video at {lasts:.2f} s"]


_HINTS = {
    "needs options": "--template videotg_r1 or time_r1 asks for times only",
    "needs a tube": "--template time_r1 asks for times only",
    "no target ID": "--targets names the targets by uid, and --template stvg_boxes asks for boxes instead",
    "no track file": "--tracks is the folder that `verl-stvg objects track` wrote for these videos",
    "several intervals": "--several-intervals split makes a row of each",
    "reversed interval": "--reversed-intervals swap turns them round",
    "interval past the end": "--past-end clip cuts them at the end",
    "min_pixels=": "--min-pixels, --max-pixels and --total-pixels leave no size for a frame",
    "too short or too long": "choose --fps and --max-frames, or --rule adaptive_grid",
    "no ground truth": "name the file val.jsonl or test.jsonl if it is for evaluation",
}
"""What helps where nearly all records are left out for one reason, by a part of the reason."""


def _hint(reason: str, unusable: Mapping[str, str]) -> str:
    if reason == "unusable video":
        return "; the first is {}: {}".format(*next(iter(unusable.items())))
    return next((f"; {hint}" for part, hint in _HINTS.items() if part in reason), "")


def _rows(maker: RowMaker, entries: Entries, videos: dict, drops: Counter) -> Iterator[dict]:
    for entry in entries:
        if isinstance(entry, Problem):
            drops["malformed entry"] += 1
            continue
        video = videos[entry.video]
        if isinstance(video, str):
            drops[video] += 1
            continue
        try:
            yield from maker.rows(entry, video)
        except Drop as reason:
            drops[str(reason)] += 1


# --- manifest and card ------------------------------------------------------------------------------------------------


def _manifest(job: Job, template: Template, files: dict[str, tuple[Path | None, ...]]) -> dict:
    policies = asdict(job.policies) | {"past_end": job.policies.past_end or template.past_end}
    digest = functools.cache(sha256)  # splits share folders
    return {
        "format_version": FORMAT_VERSION,
        "dataset": job.source.name,
        "title": job.source.title,
        "home": job.source.home,
        "template": template.id,
        "recipe": template.recipe,
        "rule": job.videos_like(template)["rule"],
        "shown": dict(job.shown) or None,
        "policies": policies,
        "video_root": os.path.relpath(job.videos, job.out) if job.videos else None,
        "probed": bool(job.videos and job.probe),
        "targets": sha256(job.targets) if job.targets else None,
        "tracks": (job_files.tracks_of(job) or (None, None))[1],
        "marker_style": job.marker_style,
        "versions": {"verl_stvg": version("verl-stvg"), "pyarrow": pa.__version__, "python": platform.python_version()},
        "splits": {
            split: {"annotations": {p.name: digest(p) for p in (*paths, *job.source.named(paths)) if p is not None}}
            for split, paths in files.items()
        },
    }


def _kept(out: Path, manifest: dict) -> dict:
    """The manifest of a folder that holds the same already."""
    path = out / MANIFEST
    if not path.is_file():
        raise ValueError(f"{out} holds something else; choose another --out")
    found = json.loads(path.read_text(encoding="utf-8"))
    same = {key: value for key, value in manifest.items() if key != "splits"}
    differs = [key for key, value in same.items() if found.get(key) != value]
    for split, part in manifest["splits"].items():
        if found["splits"].get(split, {}).get("annotations") != part["annotations"]:
            differs.append(split)
    differs += [split for split in found["splits"] if split not in manifest["splits"]]
    if differs:
        raise ValueError(
            f"{out} was built from something else ({', '.join(differs)}); remove it, or choose another --out"
        )
    for split, part in found["splits"].items():
        if sha256(out / f"{split}.parquet") != part["sha256"]:
            raise ValueError(f"{out / split}.parquet is damaged; remove {out} and build again")
    logger.info("%s: complete already", out)
    return found


def card(manifest: dict) -> str:
    """The data card: what is in the folder, where it came from and what was left out, in words."""
    lines = [
        f"# {manifest['dataset']}",
        "",
        f"{manifest['title']}.",
        "",
        f"Annotations: {manifest['home']}. Prompt template `{manifest['template']}`, reward `{manifest['recipe']}`, "
        f"frames by rule `{manifest['rule']}`.",
        "",
        "| split | rows | videos | left out |",
        "|---|---|---|---|",
    ]
    for split, part in manifest["splits"].items():
        left = "; ".join(f"{reason}: {count}" for reason, count in part["dropped"].items()) or "nothing"
        lines.append(f"| {split} | {part['rows']:,} | {part['videos']:,} | {left} |")
    for split, part in manifest["splits"].items():
        if "without_truth" in part:
            lines += ["", f"{split}: {part['without_truth']:,} rows {WITHOUT_TRUTH}."]
        if "past_end" in part:
            lines += ["", f"{split}: {part['past_end']['rows']:,} rows {PAST_END}."]
    if manifest["shown"]:
        lines += ["", "Videos are shown by " + ", ".join(f"`{k}={v}`" for k, v in manifest["shown"].items()) + "."]
    lines += ["", "What was done with annotations that cannot be right (training only):", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in manifest["policies"].items()]
    if manifest["unusable_videos"]:
        lines += ["", "Videos that cannot be used:", ""]
        lines += [f"- `{path}`: {reason}" for path, reason in manifest["unusable_videos"].items()]
    root = manifest["video_root"]
    lines += [
        "",
        f"Paths of videos start from `{root}`." if root else "Paths of videos start from a root of yours.",
        "",
    ]
    return "\n".join(lines)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
