"""What ended runs leave is found and removed; what somebody uses, or is not theirs, never."""

import mmap
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from verl_stvg.launch import doctor, leftovers

MEMORY = ("psm_0123abcd", "sem.mp-4cs_rd2x", "torch_123_4567_0", "verl_weights_00ff", "VLLM_OBJECT_STORAGE_BUFFER")
FILES = ("ckpt_03c7d91d.lock", "0" * 64 + "org-model.lock", "rl-colocate-zmq-01000000-ab-replica-0-rank-0.sock")
OTHERS = ("psm_notes.txt", "sem.mine", "uv-setuptools-03c7d91d.lock", "ckpt_03c7d91d", "train.lock", "plasma", "x.sock")


@pytest.fixture
def places() -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Folders like those of shared memory and of temporary files, with what runs leave and other programs' files."""
    with tempfile.TemporaryDirectory(prefix="left-", dir="/tmp") as root:  # names of sockets have to be short
        found = Path(root, "shm"), (Path(root, "tmp"), Path(root, "tmp"))
        for folder, names in ((found[0], MEMORY), (found[1][0], FILES)):
            folder.mkdir()
            for name in (*names, *OTHERS):
                (folder / name).write_bytes(b"x" * 1000)
        yield found


@pytest.fixture
def later(monkeypatch):
    """An hour from now, as far as the search can tell."""
    now = time.time
    monkeypatch.setattr(leftovers.time, "time", lambda: now() + 3600)


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_what_nobody_uses_is_found_and_removed(places, later):
    found = leftovers.left(*places)
    assert sorted(names(found)) == sorted([*MEMORY, *FILES]) and leftovers.size(found) == 1000 * len(found)
    assert leftovers.remove(found) == found and leftovers.left(*places) == []
    assert leftovers.size(found) == 0 and leftovers.remove(found) == []
    for folder in (places[0], places[1][0]):
        assert sorted(os.listdir(folder)) == sorted(OTHERS)


def test_what_was_touched_in_the_last_minute_is_not_left(places):
    assert leftovers.left(*places) == []


USE = """
import mmap, sys
paths = sys.argv[1:]
held = open(paths[0], "r+b")
with open(paths[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
print("held", flush=True)
sys.stdin.readline()
"""


def test_what_a_living_process_uses_is_kept(places, later):
    memory, (temporary, _) = places
    bound = temporary / FILES[2]
    bound.unlink()
    used = [temporary / FILES[0], memory / MEMORY[0]]
    command = [sys.executable, "-c", USE, *map(str, used)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(bound))
        assert other.stdout.readline() == "held\n"
        found = leftovers.left(*places)
        assert sorted(names(found)) == sorted([*MEMORY[1:], FILES[1]])
        assert leftovers.remove([*used, bound]) == [] and all(path.exists() for path in (*used, bound))
        other.kill()
    assert sorted(names(leftovers.left(*places))) == sorted([*MEMORY, *FILES])  # the socket was never unlinked


def test_what_belongs_to_another_user_is_kept(places, later, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert leftovers.left(*places) == []


def test_links_and_folders_are_no_leftovers(places, later):
    memory, _ = places
    for path in memory.iterdir():
        path.unlink()
    (memory / "psm_00000000").symlink_to(memory)
    (memory / "psm_11111111").mkdir()
    assert not {"psm_00000000", "psm_11111111"} & set(names(leftovers.left(*places)))


def test_shared_memory_of_a_killed_python_is_a_leftover(later):
    """The real thing: a segment whose owner does not come to unlink it."""
    code = (
        "import os, signal\n"
        "from multiprocessing import resource_tracker, shared_memory\n"
        "resource_tracker.register = lambda *_: None\n"
        "segment = shared_memory.SharedMemory(create=True, size=4096)\n"
        "print(segment.name, flush=True)\n"
        "input()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as owner:
        path = leftovers.SHARED_MEMORY / owner.stdout.readline().strip()
        assert path.is_file() and path not in leftovers.left()
        owner.communicate("\n")
    assert path in leftovers.left()
    assert leftovers.remove([path]) == [path] and not path.exists()


def test_the_doctor_names_them_and_removes_them_when_told(places, later, monkeypatch, caplog):
    stock = leftovers.left
    monkeypatch.setattr(leftovers, "left", lambda: stock(*places))
    row = doctor._leftover_files()
    assert row.good and row.found.startswith("0 MiB in 8: ") and MEMORY[0] in row.found
    assert "verl-stvg doctor --remove-leftovers" in row.remedy
    with caplog.at_level("INFO"):
        doctor.remove_leftovers()
    assert "8 files of ended runs removed, 0 MiB" in caplog.text and MEMORY[0] in caplog.text
    assert doctor._leftover_files().found == "none"


def test_a_mapping_of_this_process_counts(places, later):
    path = places[0] / MEMORY[3]
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    assert path not in leftovers.left(*places)
    mapped.close()
    assert path in leftovers.left(*places)
