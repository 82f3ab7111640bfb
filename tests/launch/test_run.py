"""The launcher ends what a run started, however the run ends, and says why it failed."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from reward_fns import RECIPES
from verl_stvg.base import recipe_names
from verl_stvg.launch import run
from verl_stvg.training import held_out

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
    status = run.supervise([sys.executable, "-c", code, str(tmp_path / "pid")], tmp_path / "log")
    assert status == 1
    assert gone(tmp_path / "pid")
    assert "ValueError: clip 7 is broken; encode it again" in caplog.text


def test_run_that_succeeds_but_forgets_a_process(tmp_path):
    code = DETACHED.format(ending="print('done')")
    assert run.supervise([sys.executable, "-c", code, str(tmp_path / "pid")], tmp_path / "log") == 0
    assert gone(tmp_path / "pid")
    assert (tmp_path / "log").read_text() == "done\n"


def heard() -> None:
    """Let signals through that a background job, or `nohup`, ignores for all that it starts."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def test_interrupt_and_termination(tmp_path):
    outer = (
        "import sys; from pathlib import Path; from verl_stvg.launch import run as launch\n"
        "sys.exit(launch.supervise([sys.executable, '-c', sys.argv[1], sys.argv[2]], Path(sys.argv[3])))"
    )
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        pid, log = tmp_path / f"pid{expected}", tmp_path / f"log{expected}"
        code = DETACHED.format(ending="time.sleep(600)")
        process = subprocess.Popen(
            [sys.executable, "-c", outer, code, str(pid), str(log)],
            preexec_fn=heard,
        )
        while not (pid.exists() and pid.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(number)
        assert process.wait(600) == expected
        assert gone(pid)


def test_progress_is_read_from_the_metrics(tmp_path, caplog):
    caplog.set_level("INFO")
    metrics = tmp_path / "metrics.jsonl"
    code = (
        "import sys; open(sys.argv[1], 'w').write("
        '\'{"step": 3, "data": {"critic/score/mean": 1.5, "val-aux/verl_stvg/synthetic/id_match/mean@1": 0.25}}\\n\')'
    )
    run.supervise([sys.executable, "-c", code, str(metrics)], tmp_path / "log", metrics)
    assert "step 3  reward 1.5  held-out id_match 0.250" in caplog.text


def test_the_message_of_a_failure_in_the_rollout(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "noise\n"
        "\x1b[36m(AgentLoopWorker pid=1)\x1b[0m "
        "verl_stvg.training.agent_loop.RolloutError: sample u7 with /v/7.mp4: no frame\n"
        "Traceback (most recent call last):\n"
        "RuntimeError: Sync replay buffer selected terminal groups with no materializable trajectories.\n"
    )
    assert run.failure(log) == "verl_stvg.training.agent_loop.RolloutError: sample u7 with /v/7.mp4: no frame"


def test_failure_without_an_exception_shows_the_end_of_the_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {k}\n" for k in range(100)))
    assert run.failure(log).splitlines()[-1] == "line 99"


def test_environment_reaches_the_run(tmp_path):
    code = "import os; print(os.environ['SPECIAL'], os.environ['PATH'] != '')"
    assert run.supervise([sys.executable, "-c", code], tmp_path / "log", None, {"SPECIAL": "yes"}) == 0
    assert (tmp_path / "log").read_text() == "yes True\n"
    assert "SPECIAL" not in os.environ


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def test_progress_waits_for_whole_lines_and_reads_only_what_is_new(tmp_path, caplog):
    caplog.set_level("INFO")
    metrics = tmp_path / "metrics.jsonl"
    assert run.report_progress(metrics, 0) == 0  # not there yet
    first = (
        '{"step": 1, "data": {"critic/score/mean": 1, "note": "a\u2028b\x85c"}}\n'.encode()
    )  # one line, as JSON goes
    metrics.write_bytes(first + b'{"step": 2, "da')
    seen = run.report_progress(metrics, 0)
    assert seen == len(first) and told(caplog) == ["step 1  reward 1"]
    assert run.report_progress(metrics, seen) == seen and len(told(caplog)) == 1
    with metrics.open("ab") as file:
        file.write(b'ta": {"critic/score/mean": 2}}\n')
    seen = run.report_progress(metrics, seen)
    assert seen == metrics.stat().st_size and told(caplog)[1:] == ["step 2  reward 2"]
    # the bytes before `seen` are not looked at again
    metrics.write_bytes(b"x" * seen + b'{"step": 3, "data": {}}\n')
    assert run.report_progress(metrics, seen) == metrics.stat().st_size and told(caplog)[2:] == ["step 3  "]
    metrics.write_bytes(first)  # begun anew
    assert run.report_progress(metrics, 10 * seen) == len(first) and told(caplog)[3:] == ["step 1  reward 1"]


@pytest.mark.parametrize(
    "line", ["x", "[1]", '{"step": 1}', '{"step": 1, "data": {"critic/score/mean": "high"}}', "\0\0"]
)
def test_a_line_that_is_no_step_is_told_and_ends_nothing(tmp_path, caplog, line):
    metrics = tmp_path / "metrics.jsonl"
    code = "import sys; open(sys.argv[1], 'w').write(sys.argv[2].replace('@', chr(0)) + chr(10) + '{\"step\": 2, \"d')"
    command = [sys.executable, "-c", code, str(metrics), line.replace("\0", "@")]
    assert run.supervise(command, tmp_path / "log", metrics) == 0
    assert "metrics.jsonl: a line is not a step's metrics" in caplog.text
    assert "metrics.jsonl is half-written" in caplog.text


def test_what_is_not_a_number_is_called_so():
    data = {"critic/score/mean": 2.0, "actor/kl_loss": None, "val-aux/a/format/mean@1": float("nan")}
    assert run.summary(data) == "reward 2  kl not a number  held-out format not a number"


def test_held_out_sets_are_named_where_there_are_several():
    one = {"held_out/a/b/reward/mean": 1.5, "held_out/a/b/score/mean": 1.5, "held_out/a/b/id_match/mean": 0.5}
    one |= {"held_out/a/b/prompts": 4, "held_out/a/b/unanswered": 1, "held_out/a/b/asked": 8, "held_out/a/b/missing": 3}
    verl = {"val-core/a/b/reward/mean@2": 2.0}  # over the answers that came
    assert run.summary({**verl, **one}) == "held-out reward 1.500  id_match 0.500  missing 3 of 8 answers"
    two = {"val-core/a/b/reward/mean@8": 1.0, "val-core/a/b/reward/mean@5": 9.0, "val-core/c/reward/mean@1": 0.5}
    assert run.summary(two) == "held-out a/b: reward 1.000  held-out c: reward 0.500"
    assert run.summary({"rollout/missing": 2}) == "missing 2 answers"


@pytest.mark.parametrize("recipe", RECIPES)
def test_steps_of_every_recipe_show_its_own_parts(recipe):
    """In the recipe's order, by the names of the parts; the reward once, however often it is logged."""
    parts = {part: k / 10 for k, part in enumerate(RECIPES[recipe].parts, start=1)}
    scored = {"score": 1.5, **parts}
    data = {"critic/score/mean": 1.5, "critic/rewards/mean": 1.5, "actor/kl_loss": 0.25, "timing_s/step": 12.0}
    for name, value in scored.items():  # as `verl_stvg.training.metrics.reward_metrics` logs them
        data |= {f"reward/{name}/mean": value, f"reward/{name}/std": 0.1}
    data |= {"reward/zero_variance_groups": 0.5, "reward/groups_of_one": 0.0}
    shown = "  ".join(f"{part} {value:.3g}" for part, value in parts.items())
    assert run.summary(data) == f"reward 1.5  {shown}  kl 0.25  s 12"
    columns = {name: [value] for name, value in {"reward": 1.5, **scored}.items()}
    logged = held_out.metrics(["a/b"], ["u"], columns, {("a/b", "u"): 1})
    verl = {f"val-aux/a/b/{name}/mean@1": values[0] for name, values in columns.items()}
    shown = "  ".join(f"{part} {value:.3f}" for part, value in parts.items())
    for validated in (logged, verl, {**verl, **logged}):
        assert run.summary(validated) == f"held-out reward 1.500  {shown}"


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    outer = (
        "import signal, sys; from pathlib import Path; from verl_stvg.launch import run as launch\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does\n"
        "sys.exit(launch.supervise([sys.executable, '-c', sys.argv[1], sys.argv[2]], Path(sys.argv[3])))"
    )
    inner = "import sys, time; open(sys.argv[1], 'w').write('1'); time.sleep(3)"
    started = tmp_path / "started"
    process = subprocess.Popen([sys.executable, "-c", outer, inner, str(started), str(tmp_path / "log")])
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(600) == 0


def test_a_closed_terminal_ends_the_run(tmp_path):
    """A real terminal whose other side goes away: the kernel sends SIGHUP, and nothing more can be written."""
    outer = (
        "import logging, sys; from pathlib import Path; from verl_stvg.launch import run as launch\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "status = launch.supervise([sys.executable, '-c', sys.argv[1], sys.argv[2]], Path(sys.argv[3]))\n"
        "Path(sys.argv[4]).write_text(str(status))"
    )
    pid, status = tmp_path / "pid", tmp_path / "status"
    arguments = [DETACHED.format(ending="time.sleep(600)"), str(pid), str(tmp_path / "log"), str(status)]
    terminal, end = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n" + outer, *arguments],
        stdin=end,
        stdout=end,
        stderr=end,
        start_new_session=True,
        preexec_fn=heard,
    )
    os.close(end)
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    os.close(terminal)
    process.wait(600)
    assert status.read_text() == "129" and gone(pid)


# --- the folder of a run ----------------------------------------------------------------------------------------------


STEP = """
import json, os, sys
with open(os.environ["VERL_FILE_LOGGER_PATH"], "a" if os.environ.get("VERL_STVG_APPEND_METRICS") else "w") as file:
    for step in sys.argv[1].split(","):
        file.write(json.dumps({"step": int(step), "data": {"critic/score/mean": 1.0}}) + chr(10))
print("made steps", sys.argv[1])
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A function that starts `launch.train` in one folder, with a command in verl's place that logs the given steps."""
    folder = tmp_path / "run"

    def start(*arguments, steps="1,2", status=0, saved=None):
        monkeypatch.setattr(run.python, "module", lambda *_, **__: [sys.executable, "-c", STEP, steps, str(status)])
        found = run.train(list(arguments), folder)
        if saved is not None:
            (folder / "checkpoints").mkdir(exist_ok=True)
            (folder / "checkpoints/latest_checkpointed_iteration.txt").write_text(str(saved))
        return found

    start.folder = folder
    return start


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def test_an_earlier_run_that_is_begun_anew_is_kept_with_a_number(trained):
    folder = trained.folder
    assert trained("a=1") == 0
    (folder / "validation").mkdir()
    (folder / "validation/2.jsonl").write_text("{}\n")
    first = contents(folder)
    assert trained("+variant=misspelt", steps="7", status=1) == 1
    now = contents(folder)
    for name, kept in (("train.log", "train.1.log"), ("run.json", "run.1.json"), ("metrics.jsonl", "metrics.1.jsonl")):
        assert now[kept] == first[name] and now[name] != first[name]
    assert (folder / "validation.1/2.jsonl").is_file() and not (folder / "validation").exists()
    assert trained("a=1", steps="9") == 0
    assert contents(folder)["metrics.2.jsonl"] == now["metrics.jsonl"]
    assert contents(folder)["metrics.1.jsonl"] == first["metrics.jsonl"]


def test_a_resumed_run_keeps_what_stays_true_and_numbers_the_rest(trained):
    folder = trained.folder
    assert trained("a=1", steps="1,2,3,4", status=1, saved=2) == 1
    (folder / "validation").mkdir()
    for step in (0, 2, 4):
        (folder / f"validation/{step}.jsonl").write_text("{}\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "da')
    (folder / "parity.jsonl").write_text('{"step": 1}\n{"step": 4}\n')
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"fit": {"fps": 1.0}}))  # as the run has written it
    assert trained("a=1", steps="3,4,5", status=1) == 1
    assert json.loads((folder / "run.json").read_text())["fit"] == {"fps": 1.0}  # of the checkpoints that are there
    assert (folder / "parity.jsonl").read_text() == '{"step": 1}\n'
    assert (folder / "parity.1.jsonl").read_text() == '{"step": 4}\n'
    assert steps_in(folder / "metrics.jsonl") == [1, 2, 3, 4, 5]
    assert (folder / "metrics.1.jsonl").read_text().endswith('{"step": 5, "da')
    assert {path.name for path in (folder / "validation").iterdir()} == {"0.jsonl", "2.jsonl"}
    assert [path.name for path in (folder / "validation.1").iterdir()] == ["4.jsonl"]
    assert (folder / "train.1.log").read_text() == "made steps 1,2,3,4\n"
    assert json.loads((folder / "run.json").read_text())["resumed_from"] == 2
    assert json.loads((folder / "run.1.json").read_text())["resumed_from"] is None


def test_a_finished_run_is_left_as_it_is(trained, caplog):
    caplog.set_level("INFO")
    assert trained("trainer.total_training_steps=4", steps="1,2,3,4", saved=4) == 0
    before = contents(trained.folder)
    for arguments in (("trainer.total_training_steps=4", "a=2"), ("trainer.total_training_steps=3",)):
        caplog.clear()
        assert trained(*arguments) == 0
        assert contents(trained.folder) == before and "has come to its last step, 4; nothing to do" in caplog.text
    for arguments in (
        ("trainer.total_training_steps=6",),
        ("trainer.total_training_steps=6", "trainer.val_only=true"),
        ("trainer.total_training_steps=6", "trainer.resume_mode=disable"),
    ):
        before = contents(trained.folder)
        assert trained(*arguments, steps="5,6", saved=6) == 0
        assert contents(trained.folder) != before


def test_a_finished_run_is_known_by_its_arguments_where_no_number_of_steps_is_given(trained):
    assert trained("trainer.total_epochs=1", saved=2) == 0
    before = contents(trained.folder)
    assert trained("trainer.total_epochs=1") == 0 and contents(trained.folder) == before
    assert trained("trainer.total_epochs=2", steps="3") == 0 and contents(trained.folder) != before


def test_a_finished_run_whose_rows_were_built_again_goes_on(trained, tmp_path):
    rows = tmp_path / "train.parquet"
    rows.write_text("rows")
    assert trained(f"data.train_files={rows}", saved=2) == 0
    before = contents(trained.folder)
    assert trained(f"data.train_files={rows}") == 0 and contents(trained.folder) == before
    later = (trained.folder / "run.json").stat().st_mtime + 5
    os.utime(rows, (later, later))
    assert trained(f"data.train_files={rows}", steps="3") == 0 and contents(trained.folder) != before


def test_a_failed_run_goes_on(trained):
    assert trained("a=1", status=1, saved=2) == 1
    assert trained("a=1", steps="3") == 0
    assert steps_in(trained.folder / "metrics.jsonl") == [1, 2, 3]


def test_what_cannot_be_gone_on_from_changes_nothing(trained):
    assert trained("a=1", saved="none") == 0
    before = contents(trained.folder)
    with pytest.raises(ValueError, match="names no step"):
        trained("a=1")
    assert contents(trained.folder) == before
    (trained.folder / "checkpoints/latest_checkpointed_iteration.txt").write_text("2")
    (trained.folder / "run.json").write_text('{"status"')
    with pytest.raises(ValueError, match="run.json: not JSON .* move it away to go on from step 2"):
        trained("a=1")


def test_two_runs_do_not_share_a_folder(trained):
    assert trained("a=1") == 0
    before = contents(trained.folder)
    code = (
        "import sys, time; from pathlib import Path; from verl_stvg.launch import run as launch\n"
        "launch.python.module = lambda *_, **__: [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "launch.train(['a=2'], Path(sys.argv[1]))"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(trained.folder)])
    while not (trained.folder / "train.1.log").exists() or not (trained.folder / "train.log").exists():
        assert other.poll() is None
        time.sleep(0.1)
    with pytest.raises(ValueError, match=f"{trained.folder}: another process is writing into this folder"):
        trained("a=1")
    assert contents(trained.folder)["metrics.1.jsonl"] == before["metrics.jsonl"]
    assert not (trained.folder / "run.2.json").exists()
    other.send_signal(signal.SIGTERM)
    other.wait(600)
    assert trained("a=1") == 0


def test_files_of_a_run_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.absolute_paths("a/b.parquet") == f"{tmp_path}/a/b.parquet"
    assert run.absolute_paths("[a.parquet, '/d/b.parquet']") == [f"{tmp_path}/a.parquet", "/d/b.parquet"]


def test_arguments_are_read_without_hydras_quotes():
    given = ["+trainer.a='/x,y/b'", 'b="c=d"', "e=[f,g]", "--config-name", "h='"]
    assert recipe_names.values(given) == {"trainer.a": "/x,y/b", "b": "c=d", "e": "[f,g]", "h": "'"}
