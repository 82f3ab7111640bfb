"""Tests end by the processor time they use, not by the clock: `tests.support.limits`, tried by a pytest of its own."""

import os
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.support import limits

CONFTEST = """
from tests.support import limits

def pytest_addoption(parser):
    limits.add_options(parser)

def pytest_configure(config):
    config.addinivalue_line("markers", "processor_limit(seconds): of a test")
    limits.GRACE = 1.0
    config.pluginmanager.register(limits.Limits(config))
"""
BURN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass"


@pytest.fixture
def run_tests(tmp_path):
    """Run test code under given limits in a fresh pytest; returns its status and what it printed."""

    def run(code: str, **settings: float) -> tuple[int, str]:
        settings = {"processor_limit": 1000, "idle_limit": 1000, "wall_limit": 1000} | settings
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_it.py").write_text(code)
        options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", *options]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        command += ["-c", os.devnull, str(tmp_path)]
        environment = {**os.environ, "PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        return done.returncode, done.stdout + done.stderr

    return run


def per_two_cores(seconds: float) -> float:
    """What to set for a limit of some processor seconds on this machine."""
    return seconds / max(1.0, (os.cpu_count() or 1) / 2)


@pytest.mark.parametrize(
    "work",
    [
        BURN.format(seconds=100),
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN.format(seconds=100)!r}])",
        "import subprocess, sys\nfor _ in range(100): "
        f"subprocess.run([sys.executable, '-c', {BURN.format(seconds=0.5)!r}])",
    ],
    ids=["itself", "a child", "many children"],
)
def test_who_uses_too_much_is_ended_and_the_next_test_runs(run_tests, work):
    code = "def test_long():\n" + "\n".join(f"    {line}" for line in work.splitlines())
    status, said = run_tests(code + "\n\ndef test_next():\n    pass\n", processor_limit=per_two_cores(3))
    assert status == 1 and "1 failed, 1 passed" in said
    assert "processor seconds, and processor_limit is 3" in said and "--- MainThread" in said and "test_long" in said


def test_who_waits_long_while_the_machine_works_is_not_ended(run_tests):
    """As on a busy machine: much of the clock, little of the processor."""
    code = "import time\n\ndef test_late():\n"
    code += "    for _ in range(60):\n        time.sleep(0.1)\n        end = time.process_time() + 0.02\n"
    code += "        while time.process_time() < end: pass\n"
    status, said = run_tests(code, processor_limit=per_two_cores(10), idle_limit=3)
    assert status == 0 and "1 passed" in said


def test_who_waits_for_ever_is_ended(run_tests):
    code = "import subprocess\n\ndef test_hangs():\n    try:\n        subprocess.run(['sleep', '1000'])\n"
    code += "    except Exception:\n        pass\n\ndef test_next():\n    pass\n"
    status, said = run_tests(code, idle_limit=2)
    assert status == 1 and "1 failed, 1 passed" in said and "used no processor for" in said


def test_who_takes_too_long_by_the_clock_is_ended_in_the_end(run_tests):
    code = "import time\n\ndef test_polls():\n    while True: time.sleep(0.001)\n"
    status, said = run_tests(code, wall_limit=3)
    assert status == 1 and "and wall_limit is 3" in said


def test_fixtures_count_and_are_torn_down_after_the_end(run_tests, tmp_path):
    code = "import pathlib, pytest, time\n\n@pytest.fixture\ndef slow():\n    yield\n"
    code += f"    pathlib.Path({str(tmp_path / 'torn')!r}).touch()\n\n"
    code += "@pytest.fixture\ndef slower(slow):\n    time.sleep(1000)\n\ndef test_it(slower):\n    pass\n"
    status, said = run_tests(code, idle_limit=2)
    assert status == 1 and "1 error" in said and (tmp_path / "torn").exists()


def test_a_main_thread_that_is_not_in_python_ends_the_process(run_tests):
    # the signal arrives while every signal is blocked, as in a library that never returns to Python
    code = "import signal, time\n\ndef test_stuck():\n    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\n"
    code += "    time.sleep(1000)\n"
    status, said = run_tests(code, idle_limit=2)
    assert status == 1 and "cannot be interrupted" in said and "in test_stuck" in said


def test_a_test_may_ask_for_more(run_tests):
    code = "import pytest, time\n\n@pytest.mark.processor_limit(1000)\ndef test_long():\n"
    code += "    end = time.process_time() + 3\n    while time.process_time() < end: pass\n"
    status, said = run_tests(code, processor_limit=per_two_cores(1))
    assert status == 0, said


def test_processor_seconds_are_those_of_all_descendants():
    """Of children that run, of those that have ended, and of theirs."""
    grandchild = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN.format(seconds=0.5)!r}])"
    before = limits.processor_seconds()
    subprocess.run([sys.executable, "-c", grandchild], check=True)
    assert limits.processor_seconds() - before >= 0.5
    before = limits.processor_seconds()
    waits = f"{BURN.format(seconds=0.5)}\nprint(flush=True)\ntime.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        used = limits.processor_seconds() - before
        child.kill()
    assert used >= 0.5


def test_time_that_leaves_with_a_process_is_no_time_given_back(monkeypatch):
    seconds = iter([100.0, 110.0, 40.0, 45.0])
    monkeypatch.setattr(limits, "processor_seconds", lambda: next(seconds))
    meter = limits.Meter(14.0, 1000.0, 1000.0)
    assert meter.over() is None and meter.over() is None
    assert "used 15 processor seconds" in meter.over()


def test_waiting_is_judged_by_the_share_of_a_processor(monkeypatch):
    used, now = [0.0], [0.0]
    monkeypatch.setattr(limits, "processor_seconds", lambda: used[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    meter = limits.Meter(1e9, 100.0, 1e9)
    for _ in range(20):
        now[0] += 60.0
        used[0] += 1.0
        assert meter.over() is None
    now[0] += 60.0
    assert meter.over() is None
    now[0] += 60.0
    assert meter.over().startswith("used no processor for 120 seconds")
