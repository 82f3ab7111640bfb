"""From a folder of videos to numbered objects and targets: the stages one after another, each of which can be resumed.

    tracks/   every object of every video      `track_all`
    shown/    those whose number is displayed  `filter_all`
    targets.jsonl  ID of every annotated target    `assign`

A stage skips what is there already, and a video that cannot be used costs one line in ``quarantine.jsonl``.
"""

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_stvg.base.lock import finished, turn, write_whole
from verl_stvg.data_builders.numbering import counted, hull, misnumbered
from verl_stvg.data_builders.objects.boxes import TurnedBoxes, annotated_size, scaled
from verl_stvg.data_builders.objects.detector import Detector, wanted
from verl_stvg.data_builders.objects.frames import VideoFrames
from verl_stvg.data_builders.objects.target import match_masks, match_tube, size_filter
from verl_stvg.data_builders.objects.track import Options, Segmenter, track
from verl_stvg.data_builders.records import Entries, Problem, Record, once
from verl_stvg.data_builders.videos import UnknownVideo, VideoRoot
from verl_stvg.video.cache import hash_file
from verl_stvg.video.child import shared_decoder
from verl_stvg.video.clock import FrameClock
from verl_stvg.video.film import VideoError, VideoInfo
from verl_stvg.video.quarantine import Quarantine
from verl_stvg.video.rle import MaskError
from verl_stvg.video.tracks import TrackError, Tracks, find_track, load, save
from verl_stvg.workers import work

QUARANTINE = "quarantine.jsonl"
_SLACK = 2  # frames by which a tube may be longer than its video, as rounding makes it


@dataclass(frozen=True)
class Done:
    """What became of a video: ``made``, ``present`` or ``failed`` with a reason; how many objects it has.

    A video that was ``made`` again because its track file is damaged has a reason, too.
    """

    video: str
    state: str
    objects: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Models:
    """What finds and follows objects, by name, so that each process makes them once.

    Attributes:
        detector: see `verl_stvg.data_builders.objects.detect.detector`.
        segmenter: see `verl_stvg.data_builders.objects.segment.segmenter`.
        confidence: least score of a detection; None is the detector's default.
        nms: largest IoU of two boxes of a class; None is the detector's default.
        device: None is a GPU if there is one.
    """

    detector: str = "rtdetr"
    segmenter: str = "facebook/sam2.1-hiera-large"
    confidence: float | None = None
    nms: float | None = None
    device: str | None = None


def track_all(
    root: Path,
    videos: list[str],
    out: Path,
    models: Models,
    options: Options,
    workers: int = 1,
    on_ray: bool = False,
    gpus: float = 0,
) -> Iterator[list[Done]]:
    """Track videos into ``out/<video>.tracks.json.gz``; those that are there are skipped, damaged ones made again.

    Args:
        root: of the videos.
        videos: paths relative to the root.
        out: folder of the track files.
        models: what finds and follows objects.
        options: how.
        workers: see `verl_stvg.workers.work`; each holds its models in memory.
        on_ray: see `verl_stvg.workers.work`.
        gpus: of each Ray worker.
    """
    task = functools.partial(_track_some, root=root, out=out, models=models, options=options)
    yield from work(task, videos, workers, on_ray, gpus)


def _track_some(videos: list[str], root: Path, out: Path, models: Models, options: Options) -> list[Done]:
    return [_track_one(video, root, out, models, options) for video in videos]


def _track_one(video: str, root: Path, out: Path, models: Models, options: Options) -> Done:
    path = find_track(out, video, root)
    done, _ = _present(video, root, path, models, options)
    if done is not None:
        return done
    detector, segmenter = _detector(models), _segmenter(models)  # before anything is made in the folder
    with turn(path):  # another process may be tracking it
        done, reason = _present(video, root, path, models, options)
        if done is not None:
            return done
        quarantine = Quarantine(out / QUARANTINE)
        try:
            content = hash_file(str(root / video))
            tracks = track(root / video, detector, segmenter, options)
        except (ValueError, OSError) as error:
            quarantine.add(root / video, error, "track")
            return Done(video, "failed", reason=str(error))
        made_by = {**tracks.made_by, **_made_by(models, options), "content": content}
        save(dataclasses.replace(tracks, made_by=made_by), path)
        quarantine.clear(root / video)
    return Done(video, "made", len(tracks.tracks), reason)


def _present(video: str, root: Path, path: Path, models: Models, options: Options) -> tuple[Done | None, str]:
    """What is known of a video whose track file is there; else None, and why a file that is there will not do."""
    if not finished(path):
        return None, ""
    try:
        there = load(path)
    except TrackError as error:
        return None, str(error)
    if other := [key for key, value in _made_by(models, options).items() if there.made_by.get(key) != value]:
        raise TrackError(f"{path}: made with other {' and '.join(other)}; choose another folder or remove the file")
    return (None, "") if _outdated(there, path, root / video) else (Done(video, "present", len(there.tracks)), "")


def _outdated(tracks: Tracks, path: Path, video: Path) -> bool:
    """Whether a video has to be tracked again: it was replaced, or an older version numbered its frames otherwise.

    A video is read for that only if it changed after its track file was written.
    """
    if not video.is_file():
        return False
    content = tracks.made_by.get("content")
    if content is not None:
        return video.stat().st_ctime_ns > path.stat().st_mtime_ns and hash_file(str(video)) != content
    try:
        tracks.check(shared_decoder().probe(video))
    except (TrackError, VideoError):
        return True
    return False


def _made_by(models: Models, options: Options) -> dict[str, Any]:
    """What the tracks of a video depend on, as it stands in a track file."""
    asked = {key: value for key, value in dataclasses.asdict(models).items() if key != "device"}
    return {"models": asked, "options": options.as_json()}


@functools.cache
def _detector(models: Models) -> Detector:
    from verl_stvg.data_builders.objects.detect import detector

    given = {"confidence": models.confidence, "nms": models.nms, "device": models.device}
    return detector(models.detector, **{name: value for name, value in given.items() if value is not None})


@functools.cache
def _segmenter(models: Models) -> Segmenter:
    from verl_stvg.data_builders.objects.segment import segmenter

    return segmenter(models.segmenter, models.device)


def filter_all(tracks: Path, out: Path, ratio: float, per_label: bool, hysteresis: float) -> Iterator[Done]:
    """Write the objects of each track file whose number is displayed.

    `verl_stvg.data_builders.objects.target.size_filter` says which these are.

    Args:
        tracks: folder of track files.
        out: another folder.
        ratio: see `size_filter`.
        per_label: see `size_filter`.
        hysteresis: see `size_filter`.

    A track file that cannot be read has failed, and the rest goes on.

    Raises:
        ValueError: the two folders are one.
    """
    if tracks.resolve() == out.resolve():
        raise ValueError(f"{out}: the displayed objects need a folder of their own, all objects are needed later")
    for path in track_files(tracks):
        name, target = path.relative_to(tracks).as_posix(), out / path.relative_to(tracks)
        reason = ""
        if finished(target) and target.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            wanted = {"ratio": ratio, "per_label": per_label, "hysteresis": hysteresis}
            try:
                made = load(target)
                if made.made_by.get("filter") == wanted:
                    yield Done(name, "present", len(made.tracks))
                    continue
            except TrackError as error:
                reason = str(error)
        try:
            shown = size_filter(load(path), ratio, per_label, hysteresis)
        except TrackError as error:
            yield Done(name, "failed", reason=str(error))
            continue
        with turn(target):
            save(shown, target)
        yield Done(name, "made", len(shown.tracks), reason)


def track_files(folder: Path) -> list[Path]:
    """Track files below a folder, sorted.

    Raises:
        TrackError: there are none.
    """
    found = sorted(path for path in folder.rglob("*.tracks.json.gz") if not path.name.startswith("."))
    if not found:
        raise TrackError(f"{folder}: holds no track files; run `verl-stvg objects track` first")
    return found


@dataclass(frozen=True)
class Rule:
    """When an object is the target, see `match_tube` and `match_masks`."""

    min_share: float = 0.0
    min_iou: float = 0.0
    mask_share: float = 0.5
    faithful: bool = False


def assign(
    dataset: str, split: str, entries: Entries, root: VideoRoot, tracks: Path, rule: Rule
) -> Iterator[dict[str, Any]]:
    """What is known of the target of each record that has a tube or masks, as lines for ``verl-stvg build --targets``.

    A line has ``uid`` and either ``object_id``, ``share``, ``mean_iou``, ``votes`` and ``fragments`` (of a tube), or
    ``object_ids`` and ``shares`` (of masks), with ``visible``, the intervals in seconds of what is shown in which the
    target's number is displayed; or ``reason``, where there is no target: tracks that are damaged or not about the
    video as players show it, malformed masks, and boxes that are annotated on a turned picture, are such reasons.

    Args:
        dataset: name of the set.
        split: of the entries.
        entries: of the set's reader.
        root: of the videos.
        tracks: folder of track files, of those objects that the model sees.
        rule: when an object is the target.
    """
    for entry in once(entries):
        if isinstance(entry, Problem):
            yield {"uid": None, "reason": f"{entry.where}: {entry.what}"}
            continue
        uid = f"{dataset}/{split}/{entry.key}"
        try:
            video = root.find(entry.video)
            objects, info = _loaded(str(find_track(tracks, video, root.root))), _info(str(root.root / video))
            objects.check(info)
            found = _target(entry, objects, rule, info.clock)
        except (UnknownVideo, VideoError, TrackError, MaskError, TurnedBoxes) as error:
            found = {"reason": str(error)}
        yield {"uid": uid, **found}


@functools.lru_cache(maxsize=4)
def _loaded(path: str) -> Tracks:
    return load(Path(path))


@functools.lru_cache(maxsize=1024)
def _info(path: str) -> VideoInfo:
    return shared_decoder().probe(path)


def _target(record: Record, tracks: Tracks, rule: Rule, clock: FrameClock | None = None) -> dict[str, Any]:
    """The line of a record, without its uid; `clock` is the video's, where it may know more than the tracks.

    Raises:
        TurnedBoxes: see `verl_stvg.data_builders.objects.boxes.scales`.
    """
    clock = clock or tracks.clock
    if reason := _misnumbered(record, clock):
        return {"reason": reason}
    if record.tube is not None:
        boxes = scaled(record.tube.boxes, annotated_size(record.extra), (tracks.width, tracks.height))
        last = record.tube.first_frame + len(boxes) - 1
        if last >= clock.num_frames + _SLACK:
            had = f"the tube reaches frame {last}, the tracked video has {clock.num_frames} frames"
            return {"reason": f"{had}; track the video at the rate it was annotated at"}
        found = match_tube(tracks, record.tube.first_frame, boxes, rule.min_share, rule.min_iou, rule.faithful)
        if found is None:
            return {"reason": "no object overlaps the tube, or not enough"}
        record_of = {"object_id": found.object_id, "share": round(found.share, 6), "mean_iou": round(found.mean_iou, 6)}
        more = {"votes": {str(k): v for k, v in found.votes.items()}, "fragments": [list(f) for f in found.fragments]}
        return {**record_of, **more, "visible": _visible(tracks, {found.object_id}, record, clock)}
    if record.masks is not None:
        shares = match_masks(tracks, record.masks, 0, rule.mask_share)
        if not shares:
            return {"reason": "no object lies within the masks"}
        return {
            "object_ids": list(shares),
            "shares": [round(share, 6) for share in shares.values()],
            "visible": _visible(tracks, set(shares), record, clock),
        }
    return {"reason": "no tube and no masks"}


def _misnumbered(record: Record, clock: FrameClock) -> str | None:
    """Why the annotated frames cannot be those of the file, see `verl_stvg.data_builders.numbering.misnumbered`."""
    tube = record.tube and (record.tube.first_frame, record.tube.first_frame + len(record.tube.boxes))
    begin = _seconds(record.clip[0], record.unit, clock) if record.clip else 0.0
    seconds = hull(record.intervals, begin) if record.unit == "seconds" else None
    wrong = misnumbered(clock, tube, seconds, counted(record.extra))
    return wrong and f"{wrong[0]}: {wrong[1]}"


def _visible(tracks: Tracks, ids: set[int], record: Record, clock: FrameClock | None = None) -> list[list[float]]:
    """Intervals in which any of the objects is seen, in seconds of what is shown."""
    clock = clock or tracks.clock
    frames = sorted({frame for track in tracks.tracks if track.object_id in ids for frame in track.masks})
    begin = _seconds(record.clip[0], record.unit, clock) if record.clip else 0.0
    spans: list[list[int]] = []
    for frame in frames:
        if spans and frame == spans[-1][1]:
            spans[-1][1] = frame + 1
        else:
            spans.append([frame, frame + 1])
    times = [(clock.seconds(first), clock.seconds(stop)) for first, stop in spans]
    return [[max(0.0, start - begin), end - begin] for start, end in times if end > begin]


def _seconds(value: float, unit: str, clock: FrameClock) -> float:
    """Seconds of the file that a record's time is."""
    if unit == "frames":
        return clock.seconds(value)
    return value if unit == "seconds" else value * clock.duration


def write_targets(lines: list[dict[str, Any]], path: Path) -> Counter[str]:
    """Write targets as JSON lines, and beside them ``<name>.rejected.jsonl``; returns how many and the reasons."""
    counts: Counter[str] = Counter()
    rejected = path.with_name(f"{path.stem}.rejected.jsonl")
    good = [line for line in lines if "reason" not in line]
    bad = [line for line in lines if "reason" in line]
    with turn(path):
        for target, kept in ((path, good), (rejected, bad)):
            write_whole(target, "".join(json.dumps(line) + "\n" for line in kept))
    counts["targets"] = len(good)
    counts.update("no target" for _ in bad)
    return counts


def detections(root: Path, video: str, models: Models, options: Options) -> Iterator[dict[str, Any]]:
    """Detections of a video's keyframes, one line for each: frame, box xyxy, label, score.

    Args:
        root: of the videos.
        video: relative to the root.
        models: of which the detector is taken.
        options: of which the distance of keyframes, in frames, and the classes that count are taken.
    """
    frames = VideoFrames(root / video)
    for frame in range(0, frames.num_frames, options.step):
        for one in wanted(_detector(models).detect(frames.read(frame, frame + 1)[0]), options.mode):
            yield {"video": video, "frame": frame, **dataclasses.asdict(one)}
