"""kill -9 at random moments over build, select, eval, track and train: nothing is lost, and nothing is left over.

Every command runs once undisturbed. Then it is started again in the same empty folder, ended by SIGKILL at a random
moment, and started again; all files must have the bytes of the undisturbed run. What remains besides them counts too:
temporary files, locks, processes. Of two starts at once into one folder both end well, or one is refused by name.

A moment is counted from the first change that the command makes in its folder, because half of a short command is the
start of Python; one in five lies anywhere after the start. One kill in four takes the launching process alone, the
others all of its processes; one in four is followed by a second one in the next start. Material is synthetic: rows,
videos and the tiny model; objects are found by their colours, in place of models of gigabytes.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from benchmarks import Options, Row
from verl_stvg.base import python
from verl_stvg.data_builders.sets import synthetic

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"build": 35, "select": 25, "eval": 20, "track": 17, "train": 3}
"""Of 100 moments, by command. Build takes 8 s of processor time for each, train minutes, because the engine starts."""
ANYWHERE, LAUNCHER, AGAIN = 0.2, 0.25, 0.25
"""Shares of moments that lie anywhere after the start, of kills of the launcher alone, and of second kills."""
_TRIES = 8  # starts that may end before their moment comes
_GONE_SECONDS = 20.0  # in which processes end whose launcher was killed
_MARK = "VERL_STVG_KILLS"  # environment variable that every process of a trial inherits

LEFT_OUT = {
    "train/run.json": "times of starts, and the step a start went on from",
    "train/run.*.json": "record of a start that was killed",
    "train/train.log": "the log of the last start",
    "train/train.*.log": "log of a start that was killed",
    "train/metrics.*.jsonl": "lines of steps that were repeated",
}
"""Files whose bytes, or whose being there, differ by right, with the reason."""
TIMINGS = ("timing_s/", "timing_per_token_ms/", "perf/", "video/seconds", "cache/")
"""Beginnings of names of training metrics that measure the machine."""


@dataclass(frozen=True)
class Variant:
    """Commands of ``verl-stvg`` that are run one after another, as a script would, and that a script starts again.

    Attributes:
        command: of `SHARES`.
        name: of the variant.
        steps: arguments of each command, given the folder of the trial.
        prepare: what is there before; given the folder.
        environment: beside the process's own.
        content: of a file, as it is compared.
        weight: share of the command's moments, relative to its other variants.
    """

    command: str
    name: str
    steps: Callable[[Path], list[list[str]]]
    prepare: Callable[[Path], None] = lambda folder: None
    environment: dict[str, str] = field(default_factory=dict)
    content: Callable[[Path], bytes] = Path.read_bytes
    weight: int = 1


@dataclass
class Trial:
    """What became of one moment: when it was, how the process was ended, and what is wrong; nothing, if all is well."""

    variant: Variant
    moment: str = ""
    wrong: list[str] = field(default_factory=list)


# --- material ---------------------------------------------------------------------------------------------------------


def material(folder: Path, model: Path | None) -> list[Variant]:
    """Write what the commands read, and return all variants; those that ask a model, only with one."""
    clips = synthetic.build(folder / "clips", 12, 8, seed=5, progress=False)
    annotations = folder / "hc_stvg"
    annotations.mkdir()
    for name in ("train", "val"):
        (annotations / f"{name}_v2.json").write_bytes((clips / f"annotations_{name}.json").read_bytes())
    captions = folder / "captions"
    captions.mkdir()
    entries = {
        f"v_{k:05d}": {"duration": 30.0, "timestamps": [[2.0, 7.0]], "sentences": [f"Somebody opens door {k}."]}
        for k in range(3000)
    }
    (captions / "train.json").write_text(json.dumps(entries))
    return [
        *_builds(captions, annotations, clips),
        *_selections(clips, model),
        *(_evaluations(clips, model) if model else ()),
        *_objects(annotations, clips),
        *(_training(clips, model) if model else ()),
    ]


def _builds(captions: Path, annotations: Path, clips: Path) -> Iterator[Variant]:
    def captioned(folder: Path) -> list[list[str]]:
        return [["build", "activitynet", "--annotations", str(captions), "--out", str(folder / "rows")]]

    def looked_into(folder: Path) -> list[list[str]]:
        given = ["--annotations", str(annotations), "--videos", str(clips / "videos"), "--template", "time_r1"]
        return [["build", "hc_stvg_v2", *given, "--out", str(folder / "rows"), "--workers", "2"]]

    def drawn(folder: Path) -> list[list[str]]:
        return [["build", "synthetic", "--out", str(folder / "set"), "--train", "8", "--val", "4"]]

    yield Variant("build", "annotations", captioned)
    yield Variant("build", "annotations and videos, 2 workers", looked_into)
    yield Variant("build", "synthetic clips", drawn)


def _selections(clips: Path, model: Path | None) -> Iterator[Variant]:
    rows = str(clips / "train.parquet")

    def answered(folder: Path) -> None:
        answers = folder / "difficulty/answers/all"
        answers.mkdir(parents=True)
        lines = []
        for row in pq.read_table(rows).to_pylist():
            truth = row["reward_model"]["ground_truth"]
            said = f"<think>So it is.</think><answer>Target ID: {truth['object_id']}, Time range: 0.5 to 1.5</answer>"
            lines.append(json.dumps({"uid": row["extra_info"]["uid"], "texts": [said]}) + "\n")
        (answers / "predictions.jsonl").write_text("".join(lines))
        (answers / "run.json").write_text(json.dumps({"model": "m", "weights": "w", "sampling": {"samples": 1}}))

    def judged(folder: Path) -> list[list[str]]:
        out = str(folder / "difficulty")
        choice = ["--difficulty", out, "--share", "0.5", "--out", str(folder / "chosen")]
        page = [out, str(folder / "chosen"), "--out", str(folder / "page")]
        return [
            ["select", "difficulty", rows, "--out", out],
            ["select", "subset", rows, *choice],
            ["select", "report", *page],
        ]

    yield Variant("select", "answers there, difficulty, subset, report", judged, answered, weight=4)
    if model:

        def asked(folder: Path) -> list[list[str]]:
            out = str(folder / "difficulty")
            return [["select", "difficulty", rows, "--out", out, *_asking(model, folder), "--samples", "2"]]

        yield Variant("select", "answers asked, difficulty", asked)


def _asking(model: Path, folder: Path) -> list[str]:
    given = ["--model", str(model), "--engine", "transformers", "--cache", str(folder / "frames")]
    return [*given, "--dtype", "float32", "--max-tokens", "48", "--temperature", "1.0", "--batch", "2"]


def _evaluations(clips: Path, model: Path) -> Iterator[Variant]:
    def evaluated(folder: Path) -> list[list[str]]:
        out = str(folder / "evaluation")
        return [["eval", str(clips / "val.parquet"), "--out", out, *_asking(model, folder)]]

    yield Variant("eval", "answers of the tiny model, scores", evaluated)


def _objects(annotations: Path, clips: Path) -> Iterator[Variant]:
    videos = ["--videos", str(clips / "videos")]
    models = [
        "--detector",
        "tests.support.colours:detector",
        "--segmenter",
        "tests.support.colours:segmenter",
        "--classes",
        "all",
    ]
    names = [f"train_{k:05d}.mp4" for k in range(6)]

    def tracked(folder: Path) -> list[list[str]]:
        return [["objects", "track", *names, *videos, *models, "--out", str(folder / "tracks")]]

    def assigned(folder: Path) -> list[list[str]]:
        tracks, shown = str(folder / "tracks"), str(folder / "shown")
        given = ["--annotations", str(annotations), *videos, "--split", "train"]
        return [
            ["objects", "track", *names, *videos, *models, "--out", tracks, "--workers", "2"],
            ["objects", "filter", "--tracks", tracks, "--out", shown],
            ["objects", "assign", "hc_stvg_v2", *given, "--tracks", shown, "--out", str(folder / "targets.jsonl")],
        ]

    environment = {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    yield Variant("track", "track", tracked, environment=environment)
    yield Variant("track", "track with 2 workers, filter, assign", assigned, environment=environment)


def _training(clips: Path, model: Path) -> Iterator[Variant]:
    def trained(folder: Path) -> list[list[str]]:
        given = {
            "data.train_files": f"{clips}/train.parquet",
            "data.val_files": f"{clips}/val.parquet",
            "data.video_cache.folder": f"{folder}/frames",
            "data.train_batch_size": 4,
            "actor_rollout_ref.model.path": str(model),
            "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 8,
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 16,
            "actor_rollout_ref.actor.optim.lr_warmup_steps": 0,
            "actor_rollout_ref.rollout.n": 4,
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 16,
            "actor_rollout_ref.rollout.full_determinism": "true",
            "trainer.total_training_steps": 3,
            "trainer.save_freq": 1,
            "trainer.max_actor_ckpt_to_keep": 1,
            "trainer.test_freq": -1,
            "trainer.val_before_train": "false",
        }
        run = ["train", "--recipe", "stvg_r1", "--run-dir", str(folder / "train"), "+variant=tiny"]
        return [[*run, *(f"{key}={value}" for key, value in given.items())]]

    yield Variant("train", "3 steps, a checkpoint after each", trained, content=_trained)


def _trained(path: Path) -> bytes:
    """A file of a training run without what measures the machine: tensors, steps, or the bytes."""
    if path.suffix == ".pt":
        return json.dumps({name: _digest(value) for name, value in tensors(path).items()}, sort_keys=True).encode()
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [[line["step"], {k: v for k, v in line["data"].items() if not k.startswith(TIMINGS)}] for line in lines]
        return json.dumps(kept, sort_keys=True).encode()
    return path.read_bytes()


def tensors(path: Path) -> dict[str, Any]:
    """Tensors of a saved state by name, and its other values; without generators, which verl seeds from nothing."""
    import torch

    found: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, one in value.items():
                if f"{name}/{key}" != "/rng":
                    walk(f"{name}/{key}", one)
        elif isinstance(value, list | tuple):
            for place, one in enumerate(value):
                walk(f"{name}/{place}", one)
        else:
            found[name] = getattr(value, "_local_tensor", value)

    walk("", torch.load(path, weights_only=False))
    return found


def _digest(value: Any) -> str:
    """Hash of a tensor's bytes; of another value, how it is written."""
    import torch

    if not isinstance(value, torch.Tensor):
        return repr(value)
    return hashlib.sha256(value.detach().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


# --- starts -----------------------------------------------------------------------------------------------------------


class Started:
    """A command that runs in a session of its own, with its output in a file; all of it carries a mark."""

    def __init__(self, arguments: list[str], variant: Variant, folder: Path, mark: str):
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # a pipe would wait for what outlives the command
        self.begun = time.monotonic()
        command = python.code("import sys; sys.argv[0] = 'verl-stvg'; from verl_stvg.cli.app import main; main()")
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), _MARK: mark, **variant.environment}
        self.process = subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait()

    def said(self) -> str:
        """What it has printed."""
        self._said.seek(0)
        return self._said.read()

    def kill(self, alone: bool) -> None:
        """SIGKILL to the launching process, and to everything it has started unless it is to die alone."""
        family = [] if alone else psutil.Process(self.process.pid).children(recursive=True)
        os.kill(self.process.pid, signal.SIGKILL)
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.wait()


def marked(mark: str) -> list[str]:
    """Command lines of running processes that carry a mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == mark:
                found.append(" ".join(process.cmdline())[:150])
    return found


def listing(folder: Path) -> set[tuple[str, int, int]]:
    """Path, size and time of everything below a folder; of a moment, while it changes."""
    found, waiting = set(), [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    state = entry.stat(follow_symlinks=False)
                    found.add((entry.path, state.st_size, state.st_mtime_ns))
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return found


def first_change(folder: Path, before: set, process: subprocess.Popen) -> float | None:
    """When a process first changes something below a folder; None if it ends without."""
    while process.poll() is None:
        if listing(folder) != before:
            return time.monotonic()
        time.sleep(0.003)
    return None


def contents(folder: Path, variant: Variant) -> dict[str, str]:
    """Hash of what is in each file below a folder, and a dash for each empty folder; without `LEFT_OUT`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(name.match(pattern) for pattern in LEFT_OUT) or name.parts[0] in ("cache", "frames"):
            continue
        if path.is_file():
            found[name.as_posix()] = hashlib.sha256(variant.content(path)).hexdigest()
        elif not any(path.iterdir()):
            found[name.as_posix()] = "-"
    return found


def temporary(folder: Path) -> list[str]:
    """Unfinished files of the caches below a folder, whose finished ones may differ and be deleted."""
    found = [path for name in ("cache", "frames") for path in (folder / name).rglob("*") if path.is_file()]
    finished = (".timeline", ".frames", ".lock")
    return [path.relative_to(folder).as_posix() for path in found if path.suffix not in finished and not _is_hash(path)]


def _is_hash(path: Path) -> bool:
    return len(path.name) == 32 and path.stat().st_size == 32  # of a video's bytes


# --- the undisturbed run, and its trials ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: hashes by file; of each step the seconds to its first change, and from there to its end."""

    contents: dict[str, str]
    seconds: list[tuple[float, float]]


class Kills:
    """Trials of variants in one folder, which is emptied before each, so that paths within files agree."""

    def __init__(self, folder: Path, rng: random.Random):
        self.folder, self.rng = folder, rng
        self._count = 0

    def _fresh(self, variant: Variant) -> str:
        if self.folder.exists():
            self.folder.rename(self.folder.with_name(f"done-{self._count}"))
            subprocess.run(["rm", "-rf", str(self.folder.with_name(f"done-{self._count}"))], check=True)
        self.folder.mkdir(parents=True)
        variant.prepare(self.folder)
        self._count += 1
        return f"{os.getpid()}-{self._count}"

    def whole(self, variant: Variant) -> Whole:
        """Run a variant undisturbed.

        Raises:
            RuntimeError: it fails.
        """
        mark, seconds = self._fresh(variant), []
        for arguments in variant.steps(self.folder):
            before = listing(self.folder)
            one = Started(arguments, variant, self.folder, mark)
            changed = first_change(self.folder, before, one.process)
            if one.wait():
                raise RuntimeError(f"{' '.join(arguments)} failed undisturbed:\n{one.said()[-3000:]}")
            changed = changed or time.monotonic()
            seconds.append((changed - one.begun, time.monotonic() - changed))
        return Whole(contents(self.folder, variant), seconds)

    def trial(self, variant: Variant, whole: Whole) -> Trial:
        """Kill a variant at a random moment, maybe twice, start it again, and compare."""
        trial = Trial(variant)
        for _ in range(_TRIES):
            mark = self._fresh(variant)
            if self._killed(variant, whole, mark, trial):
                break
        else:
            trial.wrong.append(f"ended before its moment {_TRIES} times")
            return trial
        if self.rng.random() < AGAIN:
            self._killed(variant, whole, mark, trial)
        for arguments in variant.steps(self.folder):
            one = Started(arguments, variant, self.folder, mark)
            if status := one.wait():
                trial.wrong.append(f"`{' '.join(arguments[:2])}` ends with {status}: {one.said()[-1000:].strip()}")
                return trial
        self._compare(trial, whole, mark)
        return trial

    def _killed(self, variant: Variant, whole: Whole, mark: str, trial: Trial) -> bool:
        """Start the steps and kill one of them; False if it ends before."""
        steps = variant.steps(self.folder)
        anywhere = self.rng.random() < ANYWHERE
        spans = [sum(one) if anywhere else one[1] for one in whole.seconds]
        step = self.rng.choices(range(len(steps)), spans)[0]
        delay, alone = self.rng.random() * spans[step], self.rng.random() < LAUNCHER
        for arguments in steps[:step]:
            Started(arguments, variant, self.folder, mark).wait()
        before = listing(self.folder)
        one = Started(steps[step], variant, self.folder, mark)
        begin = one.begun if anywhere else first_change(self.folder, before, one.process)
        if begin is None:
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0.0, begin + delay - time.monotonic()))
        if one.process.poll() is not None:
            return False
        one.kill(alone)
        after = "the start" if anywhere else "its first change"
        said = f"`{' '.join(steps[step][:2])}` {delay:.3f} s after {after}{', the launcher alone' * alone}"
        trial.moment = f"{trial.moment}, then {said}" if trial.moment else said
        return True

    def _compare(self, trial: Trial, whole: Whole, mark: str) -> None:
        found = contents(self.folder, trial.variant)
        trial.wrong += [f"{name} is missing" for name in sorted(whole.contents.keys() - found.keys())]
        trial.wrong += [f"{name} is left over" for name in sorted(found.keys() - whole.contents.keys())]
        both = sorted(found.keys() & whole.contents.keys())
        trial.wrong += [f"{name} has other bytes" for name in both if found[name] != whole.contents[name]]
        trial.wrong += [f"{name} is left over" for name in temporary(self.folder)]
        begin = time.monotonic()
        while (running := marked(mark)) and time.monotonic() - begin < _GONE_SECONDS:
            time.sleep(0.2)
        trial.wrong += [f"a process is left over: {one}" for one in running]
        for process in psutil.process_iter() if running else ():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == mark:
                    process.kill()

    def both(self, variant: Variant, whole: Whole) -> Trial:
        """Start each step of a variant twice at once, and compare."""
        mark, trial = self._fresh(variant), Trial(variant, "two at once")
        for arguments in variant.steps(self.folder):
            pair = [Started(arguments, variant, self.folder, mark) for _ in range(2)]
            statuses = [one.wait() for one in pair]
            for status, one in zip(statuses, pair, strict=True):
                refused = "another process is writing into this folder" in one.said() and str(self.folder) in one.said()
                if status and not refused:
                    trial.wrong.append(f"`{' '.join(arguments[:2])}` ends with {status}: {one.said()[-1000:].strip()}")
            if all(statuses):
                trial.wrong.append(f"`{' '.join(arguments[:2])}`: both were refused")
        self._compare(trial, whole, mark)
        return trial


def counts(moments: int, commands: Iterable[str]) -> dict[str, int]:
    """How many of the moments each command gets."""
    chosen = {name: SHARES[name] for name in SHARES if name in commands}
    return dict(zip(chosen, parts(moments, list(chosen.values())), strict=True))


def parts(number: int, weights: list[int]) -> list[int]:
    """A number in whole parts, as near to the weights as they can be, and at least 1 each."""
    edges = [round(number * sum(weights[:k]) / sum(weights)) for k in range(len(weights) + 1)]
    return [max(1, stop - start) for start, stop in zip(edges, edges[1:], strict=False)]


def chosen(options: Options, folder: Path) -> Iterator[tuple[Variant, int]]:
    """Variants of the commands that are asked for, each with its number of moments."""
    commands = options.only or list(SHARES)
    model = None
    if options.model or {"eval", "train"} & set(commands):
        from verl_stvg.data_builders.testing import tiny_model

        model = tiny_model.make(options.model or folder / "model", progress=False)
    variants = material(folder, model)
    for command, number in counts(options.moments, commands).items():
        mine = [one for one in variants if one.command == command]
        yield from zip(mine, parts(number, [one.weight for one in mine]), strict=True)


def measure(options: Options) -> Iterable[Row]:
    """Yield a row for each moment at which something is wrong, and one for each variant of a command."""
    with tempfile.TemporaryDirectory() as name:
        for variant, number in chosen(options, Path(name)):
            kills = Kills(Path(name, "trial"), random.Random(f"{options.seed} {variant.command} {variant.name}"))
            whole, good = kills.whole(variant), 0
            said = f"{variant.command}: {variant.name}"
            for place in range(number + 1):
                trial = kills.trial(variant, whole) if place < number else kills.both(variant, whole)
                good += not trial.wrong
                if trial.wrong:
                    yield Row(f"{said}: {trial.moment}", "; ".join(trial.wrong), None, None, "nothing", False)
            said += (
                f"; of {number} moments of kill -9 and two starts at once, those with the undisturbed run's files alone"
            )
            yield Row(said, good, number + 1, None, "all", good == number + 1)
