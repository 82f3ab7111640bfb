"""Two processes that write into one place: one waits or is refused by name, and what stands there is whole."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from verl_stvg.base.lock import NAME, FolderInUse, alone, clear, finished, replacing, turn, whole, write_whole
from verl_stvg.data_builders import check
from verl_stvg.data_builders.objects import pipeline
from verl_stvg.data_builders.selection import difficulty, folder
from verl_stvg.data_builders.sets import synthetic
from verl_stvg.inference import checkpoint
from verl_stvg.video.tracks import Tracks, save

HOLD = """
import sys, time
from pathlib import Path
from verl_stvg.base.lock import alone, replacing, whole
how, folder = sys.argv[1], Path(sys.argv[2])
with {"alone": alone, "whole": whole, "replacing": replacing}[how](folder) as work:
    if work:
        (work / "theirs" if work.is_dir() else work).write_text("theirs")
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextlib.contextmanager
def held_by_another(how: str, folder: Path):
    """Another process stands in the block of `alone`, `whole` or `replacing` until this one ends."""
    command = [sys.executable, "-c", HOLD, how, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            if other.poll() is None:
                other.stdin.write("\n")
                other.stdin.close()
                other.stdin = None
    assert other.returncode in (0, -9)


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_where_files_cannot_be_locked_work_goes_on(tmp_path, monkeypatch, caplog):
    def no_locks(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("verl_stvg.base.lock.fcntl.lockf", no_locks)
    monkeypatch.setattr("verl_stvg.base.lock.fcntl.flock", no_locks)
    with alone(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert "files cannot be locked there" in caplog.text
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "file").read_text() == "one" and hidden(tmp_path) == []


# --- the lock ---------------------------------------------------------------------------------------------------------


def test_a_folder_in_use_is_refused_by_name_and_free_when_its_holder_is_killed(tmp_path):
    folder = tmp_path / "a/b"
    with held_by_another("alone", folder) as other:
        with pytest.raises(FolderInUse, match=f"{folder}: another process is writing"), alone(folder):
            pass
        other.kill()
        other.wait()
    with alone(folder):
        pass


def test_a_lock_whose_file_was_replaced_holds_nobody_up(tmp_path, monkeypatch):
    """Between opening the file and locking it, its holder may have renamed or removed the folder."""
    stock, seen = fcntl.lockf, []

    def lockf(file, how):
        stock(file, how)
        seen.append(os.fstat(file.fileno()).st_ino)
        if len(seen) == 1:
            (tmp_path / "work").rename(tmp_path / "out")
        if len(seen) == 2:
            (tmp_path / "work" / NAME).unlink()

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with alone(tmp_path / "work"):
        assert len(seen) == 3 and os.stat(tmp_path / "work" / NAME).st_ino == seen[-1]


def test_who_waits_goes_on_when_the_other_has_left(tmp_path):
    with held_by_another("alone", tmp_path / ".file.unfinished") as other:
        other.stdin.write("\n")
        other.stdin.flush()
        with turn(tmp_path / "file"):
            assert other.wait() == 0
            (tmp_path / "file").write_text("mine")
    assert hashes(tmp_path).keys() == {"file"} and hidden(tmp_path) == []


# --- what appears as a whole ------------------------------------------------------------------------------------------


def test_a_folder_appears_at_the_end_without_its_lock(tmp_path):
    with whole(tmp_path / "out") as work:
        (work / "file").write_text("a")
        assert not (tmp_path / "out").exists()
    assert sorted(os.listdir(tmp_path)) == ["out"] and os.listdir(tmp_path / "out") == ["file"]
    with whole(tmp_path / "out") as work:
        (work / "file").write_text("b")
    assert (tmp_path / "out/file").read_text() == "a" and sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize("keep", [False, True])
def test_what_an_error_leaves(tmp_path, keep):
    for number in (1, 2):
        with pytest.raises(ZeroDivisionError), whole(tmp_path / "out", keep) as work:
            assert (work / "known").exists() == (keep and number == 2)
            (work / "known").write_text("a")
            (work / "folder").mkdir(exist_ok=True)
            1 / 0  # noqa: B018
    assert hidden(tmp_path) == ([".out.unfinished"] if keep else [])
    with whole(tmp_path / "out", keep) as work:
        clear(work, "known")
    assert os.listdir(tmp_path / "out") == (["known"] if keep else [])


def test_the_second_of_two_folders_at_once_is_refused_by_name(tmp_path):
    with held_by_another("whole", tmp_path / "out"):
        with pytest.raises(FolderInUse, match="out.unfinished: another process is writing"), whole(tmp_path / "out"):
            pass
    assert hashes(tmp_path).keys() == {"out/theirs"}


def test_a_text_file_is_there_whole_or_as_before(tmp_path):
    path = tmp_path / "new/file"
    write_whole(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\udc80")
    assert path.read_bytes() == "é\n".encode() and os.listdir(path.parent) == ["file"]


def test_two_who_replace_one_file_do_so_in_turn(tmp_path):
    """What the first has begun is not the second's to write into; the second waits, and its bytes are there."""
    path = tmp_path / "file"
    with held_by_another("replacing", path) as other:
        second = threading.Thread(target=write_whole, args=(path, "mine"))
        second.start()
        second.join(0.5)
        assert second.is_alive() and (tmp_path / ".file.partial").read_text() == "theirs"
        other.communicate("\n")
        second.join()
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["file"]


def test_threads_that_replace_one_file_do_so_in_turn(tmp_path):
    texts = [str(number) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=write_whole, args=(tmp_path / "file", text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in texts and os.listdir(tmp_path) == ["file"]


def test_what_replaces_a_file_is_overwritten_when_its_writer_was_killed(tmp_path):
    path = tmp_path / "file"
    with held_by_another("replacing", path) as other:
        other.kill()
        other.wait()
    assert os.listdir(tmp_path) == [".file.partial"]
    write_whole(path, "mine")
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["file"]


def test_links_and_pipes_are_written_where_they_are(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere/file")
    write_whole(tmp_path / "link", "mine")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere/file").read_text() == "mine"
    done = subprocess.run(
        [sys.executable, "-c", "from pathlib import Path; from verl_stvg.base.lock import write_whole\n"
         "write_whole(Path('/dev/stdout'), 'said')"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert done.stdout == "said"


# --- killed -----------------------------------------------------------------------------------------------------------

KILLED_BEHIND = """
import os, signal, sys
from pathlib import Path
from verl_stvg.base import lock
how, out, unlinks = sys.argv[1], Path(sys.argv[2]), 0

def unlink(self, missing_ok=False):  # the lock is the last file that goes
    os.kill(os.getpid(), signal.SIGKILL)

if how == "whole":
    with lock.whole(out) as work:
        (work / "file").write_text("theirs")
        Path.unlink = unlink
else:
    with lock.turn(out):
        lock.write_whole(out, "theirs")
        Path.unlink = unlink
"""


def test_a_process_does_not_take_its_own_lock_for_a_leftover(tmp_path):
    path = tmp_path / "file"
    with turn(path):
        path.write_text("mine")
        assert finished(path)
        assert hidden(tmp_path) == [".file.unfinished"]
    assert hidden(tmp_path) == []
    with alone(path.with_name("folder")):
        assert finished(path.with_name("folder")) and (tmp_path / "folder" / NAME).is_file()


@pytest.mark.parametrize("how", ["whole", "turn"])
def test_what_a_kill_behind_the_last_step_leaves_goes(tmp_path, how):
    out = tmp_path / "out"
    assert not finished(out)
    ended = subprocess.run([sys.executable, "-c", KILLED_BEHIND, how, str(out)], cwd=ROOT)
    left = out / NAME if how == "whole" else tmp_path / ".out.unfinished" / NAME
    assert ended.returncode == -signal.SIGKILL and left.is_file()
    with held_by_another("alone", left.parent):
        assert finished(out) and left.is_file()  # somebody is at work there
    assert finished(out) and hidden(tmp_path) == []
    assert hashes(tmp_path).keys() == {"out/file" if how == "whole" else "out"}


def test_a_filter_that_was_killed_behind_its_last_step_leaves_nothing(tmp_path):
    save(Tracks(24, 24, 8, 8.0), tmp_path / "tracks/a.mp4.tracks.json.gz")

    def states():
        return [done.state for done in pipeline.filter_all(tmp_path / "tracks", tmp_path / "shown", 1 / 3, False, 0.0)]

    assert states() == ["made"]
    left = tmp_path / "shown/.a.mp4.tracks.json.gz.unfinished"
    left.mkdir()
    (left / NAME).touch()
    assert states() == ["present"] and os.listdir(tmp_path / "shown") == ["a.mp4.tracks.json.gz"]


def left_by_a_kill(out: Path) -> None:
    """A folder that was being written when its process was killed."""
    work = out.with_name(f".{out.name}.unfinished")
    work.mkdir(parents=True)
    (work / NAME).touch()
    (work / "half").write_bytes(b"half")


def test_a_synthetic_set_that_was_killed_leaves_nothing(tmp_path):
    left_by_a_kill(tmp_path / "set")
    synthetic.build(tmp_path / "set", 1, 1, seed=0, progress=False)
    assert hidden(tmp_path) == [] and not (tmp_path / "set/half").exists()


def test_a_model_that_is_outdated_is_replaced_whatever_a_kill_has_left(tmp_path, monkeypatch):
    """Before it is replaced it is never there in part, which the next start would refuse."""
    from verl_stvg.data_builders.testing import tiny_model

    out, made = tmp_path / "model", []

    def write(work, key, seed, config, progress):
        assert os.listdir(work) == [NAME]
        (work / "warm_start.json").write_text(json.dumps({"key": key, "weights": "0"}))
        made.append(seed)

    monkeypatch.setattr(tiny_model, "_write", write)
    left_by_a_kill(out)
    for seed in (0, 0, 1):
        tiny_model.make(out, seed)
        assert os.listdir(out) == ["warm_start.json"] and os.listdir(tmp_path) == ["model"]

    def rmtree(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", rmtree)  # ended while the old one goes
    with pytest.raises(KeyboardInterrupt):
        tiny_model.make(out, 2)
    monkeypatch.undo()
    monkeypatch.setattr(tiny_model, "_write", write)
    assert not out.exists()
    tiny_model.make(out, 2)
    assert made == [0, 1, 2, 2] and os.listdir(tmp_path) == ["model"]


def test_shards_that_were_being_merged_at_a_kill_are_merged_again(tmp_path, monkeypatch):
    (tmp_path / "fsdp_config.json").write_text('{"world_size": 1}')
    shard, merges = tmp_path / "model_world_size_1_rank_0.pt", []

    def merge(actor, work):
        assert os.listdir(work) == [NAME]
        (work / "config.json").write_text("{}")
        merges.append(actor)

    monkeypatch.setattr(checkpoint, "_merge", merge)
    left_by_a_kill(tmp_path / "merged")
    for content in (b"a", b"a", b"bb"):
        shard.write_bytes(content)
        os.utime(shard, ns=(1, len(content)))
        folder = checkpoint._merged(tmp_path)
        assert sorted(os.listdir(folder)) == ["config.json", "merged_from.json"] and hidden(tmp_path) == []
    assert len(merges) == 2


def test_rows_that_were_being_frozen_at_a_kill_are_frozen_again(tmp_path):
    rows = synthetic.build(tmp_path / "set", 1, 1, seed=0, progress=False) / "train.parquet"
    out = tmp_path / "out"
    out.mkdir()
    (out / ".rows.parquet.partial").write_bytes(b"half")
    folder.prepare(difficulty.stage(), [rows], out)
    assert sorted(os.listdir(out)) == [NAME, "manifest.json", "rows.parquet"]


def test_a_report_of_findings_stays_as_it_was_where_a_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "findings.jsonl"
    check.write([], path)

    def full(self, text, **given):
        with self.open("w") as file:
            file.write(text[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    path.write_text("earlier\n")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        check.write([check.Finding("rows.parquet", 0, "uid", "problem", "said")], path)
    assert path.read_text() == "earlier\n" and os.listdir(tmp_path) == ["findings.jsonl"]


WORKERS = """
import os, sys, time
from verl_stvg.workers import work

def told(jobs):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    list(work(told, list(range(8)), workers=2))
"""


def ends(pid: int) -> bool:
    """Whether a process ends within a minute."""
    begin = time.monotonic()
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() - begin > 60:
            return False
        time.sleep(0.05)
    return True


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKERS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    assert all(map(ends, workers))


def test_a_run_ends_with_a_launcher_that_is_killed(tmp_path, monkeypatch):
    (tmp_path / "sleeps.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    launcher = "import subprocess; from verl_stvg.base import python\n"
    launcher += "subprocess.run(python.module('sleeps', attached=True), env=python.environment())"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    with subprocess.Popen([sys.executable, "-c", launcher], stdout=subprocess.PIPE, text=True, env=environment) as one:
        run = int(one.stdout.readline())
        one.kill()
    assert ends(run)


# --- commands, two at once --------------------------------------------------------------------------------------------

SLOW = """
import sys, time
import pyarrow.parquet as pq
stock = pq.ParquetWriter.write_table
def write_table(self, *args, **kwargs):
    time.sleep(0.3)
    return stock(self, *args, **kwargs)
pq.ParquetWriter.write_table = write_table
from verl_stvg.cli.app import main
sys.argv[0] = "verl-stvg"
print("begun", flush=True)
sys.stdin.readline()
main()
"""


def at_once(*commands: list[str]) -> list[tuple[int, str]]:
    """Status and output of commands of `verl-stvg` that begin together, each slowed while it writes its tables."""
    run = [sys.executable, "-c", SLOW]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen([*run, *command], cwd=ROOT, **pipes) for command in commands]
    for process in processes:
        assert process.stdout.readline() == "begun\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    done = [process.communicate()[0] for process in processes]
    return [(process.returncode, said) for process, said in zip(processes, done, strict=True)]


@pytest.fixture
def annotation(tmp_path) -> Path:
    """ActivityNet Captions with 2,000 rows in its training file."""
    folder = tmp_path / "annotation"
    folder.mkdir()
    entry = {"duration": 30.0, "timestamps": [[2.0, 7.0]]}
    entries = {f"v_{k:05d}": entry | {"sentences": [f"Somebody opens door {k}."]} for k in range(2000)}
    (folder / "train.json").write_text(json.dumps(entries))
    return folder


def check_refused_or_kept(ended: list[tuple[int, str]], name: str) -> None:
    """One is done; the other was refused by name, or came so late that it found the finished folder."""
    statuses = sorted(status for status, _ in ended)
    assert statuses[0] == 0, ended
    for status, said in ended:
        assert status == 0 or (f"{name}.unfinished: another process is writing into this folder" in said), said


def test_two_builds_into_one_folder(tmp_path, annotation):
    def build(name):
        return ["build", "activitynet", "--annotations", str(annotation), "--out", str(tmp_path / name)]

    alone_, *both = at_once(build("alone"), build("out"), build("out"))
    assert alone_[0] == 0
    check_refused_or_kept(both, "out")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone") and hidden(tmp_path) == []


def test_two_different_builds_into_one_folder_leave_one_of_them(tmp_path, annotation):
    def build(name, *more):
        return ["build", "activitynet", "--annotations", str(annotation), "--out", str(tmp_path / name), *more]

    other = ("--template", "temporal_r1", "--rule", "grid")
    first, second, *ended = at_once(build("a"), build("b", *other), build("out"), build("out", *other))
    assert (first[0], second[0]) == (0, 0) and sorted(bool(status) for status, _ in ended) == [False, True]
    refused = next(said for status, said in ended if status)
    assert "another process is writing" in refused or "was built from something else" in refused
    assert hashes(tmp_path / "out") in (hashes(tmp_path / "a"), hashes(tmp_path / "b")) and hidden(tmp_path) == []


def test_a_build_that_was_killed_leaves_nothing_of_other_splits_in_the_next(tmp_path, annotation):
    left = tmp_path / ".out.unfinished"
    left.mkdir()
    (left / "val.parquet").write_bytes(b"half")
    (left / NAME).touch()
    begin = ["build", "activitynet", "--annotations", str(annotation), "--out"]
    ended = at_once(*([*begin, str(tmp_path / name)] for name in ("out", "alone")))
    assert [status for status, _ in ended] == [0, 0], ended
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone") and hidden(tmp_path) == []


def test_two_subsets_into_one_folder(tmp_path, annotation):
    rows = tmp_path / "rows"
    assert at_once(["build", "activitynet", "--annotations", str(annotation), "--out", str(rows)])[0][0] == 0

    def subset(name, *more):
        return ["select", "subset", str(rows / "train.parquet"), "--out", str(tmp_path / name), "--share", "0.9", *more]

    alone_, *both = at_once(subset("alone"), subset("out"), subset("out"))
    assert alone_[0] == 0
    check_refused_or_kept(both, "out")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone") and hidden(tmp_path) == []


def test_two_synthetic_sets_into_one_folder(tmp_path):
    def build(name):
        return ["build", "synthetic", "--out", str(tmp_path / name), "--train", "3", "--val", "2"]

    ended = at_once(build("out"), build("out"), build("alone"))
    assert [status for status, _ in ended] == [0, 0, 0], ended
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone") and hidden(tmp_path) == []


TARGETS = """
import sys
from pathlib import Path
from verl_stvg.data_builders.objects.pipeline import write_targets
number = int(sys.argv[1])
good = [{"uid": f"{number}/{k}", "object_id": number} for k in range(2000)]
bad = [{"uid": f"{number}/{k}", "reason": "none"} for k in range(2000)]
print("begun", flush=True)
sys.stdin.readline()
for _ in range(10):
    write_targets(good + bad, Path(sys.argv[2]))
"""


def test_targets_and_those_without_one_are_of_one_run(tmp_path):
    path = tmp_path / "targets.jsonl"
    given = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    run = [sys.executable, "-c", TARGETS]
    both = [subprocess.Popen([*run, str(number), str(path)], **given) for number in (1, 2)]
    for process in both:
        assert process.stdout.readline() == "begun\n"
    for process in both:
        process.communicate("\n")
        assert process.returncode == 0
    uids = [
        {json.loads(line)["uid"].split("/")[0] for line in file.read_text().splitlines()}
        for file in (path, tmp_path / "targets.rejected.jsonl")
    ]
    assert uids[0] == uids[1] and len(uids[0]) == 1 and hidden(tmp_path) == []


TRACK = """
import sys, time
from pathlib import Path
from verl_stvg.data_builders.objects import pipeline
from verl_stvg.video.tracks import Tracks
root, out, calls = map(Path, sys.argv[1:])


def track(video, detector, segmenter, options):  # in place of models of gigabytes
    with calls.open("a") as file:
        file.write("tracked ")
    time.sleep(0.5)
    return Tracks(24, 24, 8, 8.0)


pipeline.track, pipeline._detector, pipeline._segmenter = track, lambda models: None, lambda models: None
print("begun", flush=True)
sys.stdin.readline()
ask = (["a.mp4", "b.mp4"], out, pipeline.Models(), pipeline.Options())
print(" ".join(one.state for part in pipeline.track_all(root, *ask) for one in part))
"""


def test_a_video_is_tracked_once_however_many_commands_ask(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    given = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    run = [sys.executable, "-c", TRACK, str(tmp_path), str(tmp_path / "tracks"), str(tmp_path / "calls")]
    both = [subprocess.Popen(run, **given) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "begun\n"
    said = " ".join(process.communicate("\n")[0].strip() for process in both)
    assert sorted(said.split()) == ["made", "made", "present", "present"]
    assert (tmp_path / "calls").read_text() == "tracked tracked "
    assert hashes(tmp_path / "tracks").keys() == {"a.mp4.tracks.json.gz", "b.mp4.tracks.json.gz"}


def test_tracking_that_is_killed_goes_on_behind_what_it_has_done(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    tracks, calls = tmp_path / "tracks", tmp_path / "calls"
    given = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    run = [sys.executable, "-c", TRACK, str(tmp_path), str(tracks), str(calls)]
    with subprocess.Popen(run, **given) as first:
        first.stdin.write("\n")
        first.stdin.flush()
        while not (calls.exists() and calls.read_text().count("tracked") == 2):
            assert first.poll() is None
            time.sleep(0.01)
        first.kill()
    assert [path.name for path in tracks.glob("*.gz")] == ["a.mp4.tracks.json.gz"]
    done = subprocess.run(run, input="\n", capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["begun", "present", "made"]
    assert sorted(os.listdir(tracks)) == ["a.mp4.tracks.json.gz", "b.mp4.tracks.json.gz"]
