"""The launcher ends what a run started, however the run ends, and says why it failed."""

import os
import signal
import subprocess
import sys
import time

import psutil

from verl_stvg import launch

# starts a grandchild that detaches itself as Ray and vLLM do, and tells its id
DETACHED = """
import os, subprocess, sys, time
inner = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", inner], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
{ending}
"""


def gone(path) -> bool:
    pid = int(path.read_text())
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_failed_run_leaves_nothing_and_says_why(tmp_path, caplog):
    code = DETACHED.format(ending="raise ValueError('clip 7 is broken; encode it again')")
    status = launch.supervise([sys.executable, "-c", code, str(tmp_path / "pid")], tmp_path / "log")
    assert status == 1
    assert gone(tmp_path / "pid")
    assert "ValueError: clip 7 is broken; encode it again" in caplog.text


def test_run_that_succeeds_but_forgets_a_process(tmp_path):
    code = DETACHED.format(ending="print('done')")
    assert launch.supervise([sys.executable, "-c", code, str(tmp_path / "pid")], tmp_path / "log") == 0
    assert gone(tmp_path / "pid")
    assert (tmp_path / "log").read_text() == "done\n"


def test_interrupt_and_termination(tmp_path):
    outer = (
        "import sys; from pathlib import Path; from verl_stvg import launch\n"
        "sys.exit(launch.supervise([sys.executable, '-c', sys.argv[1], sys.argv[2]], Path(sys.argv[3])))"
    )
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        pid, log = tmp_path / f"pid{expected}", tmp_path / f"log{expected}"
        code = DETACHED.format(ending="time.sleep(600)")
        process = subprocess.Popen(
            [sys.executable, "-c", outer, code, str(pid), str(log)],
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
        )
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(60) == expected
        assert gone(pid)


def test_progress_is_read_from_the_metrics(tmp_path, caplog):
    caplog.set_level("INFO")
    metrics = tmp_path / "metrics.jsonl"
    code = (
        "import sys; open(sys.argv[1], 'w').write("
        '\'{"step": 3, "data": {"critic/score/mean": 1.5, "val-aux/verl_stvg/synthetic/id_match/mean@1": 0.25}}\\n\')'
    )
    launch.supervise([sys.executable, "-c", code, str(metrics)], tmp_path / "log", metrics)
    assert "step 3  reward 1.5  held-out id_match 0.250" in caplog.text


def test_the_message_of_a_failure_in_the_rollout(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "noise\n"
        "\x1b[36m(AgentLoopWorker pid=1)\x1b[0m verl_stvg.rollout.RolloutError: sample u7 with /v/7.mp4: no frame\n"
        "Traceback (most recent call last):\n"
        "RuntimeError: Sync replay buffer selected terminal groups with no materializable trajectories.\n"
    )
    assert launch.failure(log) == "verl_stvg.rollout.RolloutError: sample u7 with /v/7.mp4: no frame"


def test_failure_without_an_exception_shows_the_end_of_the_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {k}\n" for k in range(100)))
    assert launch.failure(log).splitlines()[-1] == "line 99"


def test_environment_reaches_the_run(tmp_path):
    code = "import os; print(os.environ['SPECIAL'], os.environ['PATH'] != '')"
    assert launch.supervise([sys.executable, "-c", code], tmp_path / "log", None, {"SPECIAL": "yes"}) == 0
    assert (tmp_path / "log").read_text() == "yes True\n"
    assert "SPECIAL" not in os.environ
