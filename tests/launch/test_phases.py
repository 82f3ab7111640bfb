"""A run says which part of its start is under way, and the launcher says it on, with the seconds."""

import json
import sys

import pytest

from verl_stvg.launch import phases, run

RAY = "\x1b[36m(TaskRunnerV1 pid=77)\x1b[0m "
LOG = [
    "verl_stvg.launch.phases: checking the configuration and every row\n",
    "verl_stvg.launch.phases: starting Ray\n2025 INFO started\n",
    f"{RAY}verl_stvg.launch.phases: reading the rows\n",
    "(WorkerDict pid=8, ip=10.0.0.2) verl_stvg.launch.phases: loading the actor's model\x1b[32m [repeated 2x]\x1b[0m\n",
    f"{RAY}the answer was: verl_stvg.launch.phases: nonsense\n",
    f"{RAY}verl_stvg.launch.phases: starting vll",
    "m\r\n",
]


class Clock:
    def __init__(self):
        self.time = 1000.0

    def __call__(self):
        return self.time


def said(caplog):
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


@pytest.fixture
def followed(tmp_path, caplog):
    """A function that adds text to a log at a time since the start and returns what was told."""
    caplog.set_level("INFO")
    log, clock = tmp_path / "train.log", Clock()

    def start(terminal):
        progress = phases.Progress(log, terminal, clock)

        def at(seconds, text="", step=False):
            clock.time = 1000.0 + seconds
            with log.open("a", newline="") as file:
                file.write(text)
            progress.look()
            if step:
                progress.stepped()
            return said(caplog)

        return at

    return start


def test_phases_of_all_processes_are_told_once_with_the_seconds(followed):
    at = followed(terminal=True)
    assert at(1, LOG[0]) == ["    1 s  checking the configuration and every row"]
    assert at(2, LOG[1]) == ["    2 s  starting Ray"]
    assert at(30, LOG[2]) == ["   30 s  reading the rows"]
    assert at(31, LOG[3]) == ["   31 s  loading the actor's model"]
    assert at(32, LOG[4]) == [] and at(33, LOG[5]) == []  # other text, and half a line
    assert at(34, LOG[6]) == ["   34 s  starting vllm"]
    assert at(35, LOG[2] + LOG[6]) == []  # known


def test_a_terminal_is_told_every_minute_what_goes_on(followed):
    at = followed(terminal=True)
    assert at(59) == [] and at(60) == ["   60 s  still loading Python and verl, for 60 s"]
    assert at(100) == [] and at(120) == ["  120 s  still loading Python and verl, for 120 s"]
    assert at(130, LOG[1]) == ["  130 s  starting Ray"]
    assert at(185) == [] and at(190) == ["  190 s  still starting Ray, for 60 s"]
    assert at(200, step=True) == []
    assert at(230) == [] and at(260) == ["  260 s  still training, for 60 s"]
    # a phase that comes again is not told again, and is the one that goes on
    assert at(270, f"{RAY}verl_stvg.launch.phases: validating\n") == ["  270 s  validating"]
    assert at(280, f"{RAY}verl_stvg.launch.phases: training\n") == ["  280 s  training"]
    assert at(300, f"{RAY}verl_stvg.launch.phases: validating\n") == []
    assert at(340) == ["  340 s  still validating, for 40 s"]


def test_a_log_of_days_is_told_rarely(followed):
    at = followed(terminal=False)
    told = [second for second in range(0, 86400, 10) if at(second)]
    assert told == [60, 180, 420, 900, 1860, 3780, 7620, 15300, 30660, 61380]


def test_the_launcher_tells_phases_between_steps(tmp_path, caplog):
    caplog.set_level("INFO")
    code = (
        "import json, sys, time\n"
        "from verl_stvg.launch import phases\n"
        "phases.begin('starting Ray'); time.sleep(1.2)\n"
        "open(sys.argv[1], 'w').write(json.dumps({'step': 1, 'data': {'critic/score/mean': 2}}) + chr(10))\n"
        "time.sleep(1.2); phases.begin('saving a checkpoint'); time.sleep(1.2)"
    )
    metrics = tmp_path / "metrics.jsonl"
    command, log = [sys.executable, "-c", code, str(metrics)], tmp_path / "train.log"
    assert run.supervise(command, log, metrics, {phases.TELL: "yes"}) == 0
    told = [line.partition(" s  ")[2] or line for line in said(caplog)]
    assert told[1:] == ["starting Ray", "step 1  reward 2", "saving a checkpoint"]


HOOKS = """
import asyncio, json, types
import verl
from verl.experimental.agent_loop.agent_loop import AgentLoopManager
from verl.trainer.ppo import ray_trainer
from verl.trainer.ppo.v1 import trainer_base
from verl.workers.engine_workers import TrainingWorker
from verl.workers.rollout.llm_server import LLMServerManager
from verl_stvg.launch import phases

told = []
phases.begin = told.append
def call(owner, name, *args, **fields):
    try:
        found = getattr(owner, name)(types.SimpleNamespace(**fields), *args)
        if asyncio.iscoroutine(found):
            asyncio.run(found)
    except Exception:  # of the empty object; by then the phase is said
        pass

for trainer in (trainer_base.PPOTrainer, ray_trainer.RayPPOTrainer):
    for name in ("_load_checkpoint", "_validate", "_start_profiling", "_save_checkpoint"):
        call(trainer, name)
    told.append("")
for forward_only in (True, False):
    call(TrainingWorker, "reset", engine_config=types.SimpleNamespace(forward_only=forward_only),
         config=types.SimpleNamespace(model_type="language_model"))
call(TrainingWorker, "reset", config=types.SimpleNamespace(model_type="value_model"))
call(LLMServerManager, "_initialize_llm_servers", rollout_config=types.SimpleNamespace(name="vllm"))
call(AgentLoopManager, "_init_agent_loop_workers")
print(json.dumps({
    "told": told,
    "rows": [hasattr(trainer_base.PPOTrainer._init_dataloader, "__wrapped__"),
             hasattr(ray_trainer.RayPPOTrainer._create_dataloader, "__wrapped__")],
    "dispatch": sorted(k for k in vars(TrainingWorker.reset) if k != "__wrapped__"),
    "dispatched": sorted(k for k in vars(TrainingWorker.reset.__wrapped__) if k != "__wrapped__"),
}))
"""


def test_both_trainers_and_the_workers_of_verl_say_what_they_begin(run_python):
    found = json.loads(run_python(HOOKS).stdout.strip().splitlines()[-1])
    trainer = ["loading the checkpoint, if there is one", "validating", "training", "saving a checkpoint", ""]
    models = ["loading the reference model", "loading the actor's model", "loading the critic"]
    assert found["told"] == [*trainer, *trainer, *models, "starting vllm", "starting the agent loops"]
    assert found["rows"] == [True, True]
    assert found["dispatch"] == found["dispatched"] != []  # how verl hands calls to all workers


def test_programs_that_the_launcher_has_not_started_say_nothing(run_python):
    code = "from verl_stvg.launch import phases; phases.begin('starting Ray')"
    assert run_python(code).stderr == "" and "starting Ray" in run_python(code, **{phases.TELL: "yes"}).stderr
