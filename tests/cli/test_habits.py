"""One habit for all commands: rows are arguments, ``--out`` is a folder, help lists choices, one default each."""

import dataclasses
import inspect
import logging
import typing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.cli.test_help import every_command, told
from verl_stvg.cli import app, asking, options
from verl_stvg.data_builders import check, make_row, show, templates
from verl_stvg.data_builders.build import Job
from verl_stvg.data_builders.objects import pipeline
from verl_stvg.data_builders.objects.draw import render
from verl_stvg.data_builders.objects.target import size_filter
from verl_stvg.data_builders.objects.track import Options
from verl_stvg.data_builders.selection import boundary_reflection, difficulty, report, subset, time_r1_filter, variance
from verl_stvg.data_builders.sets import NAMES, synthetic
from verl_stvg.eval.benchmarks import BENCHMARKS
from verl_stvg.eval.importers import foreign
from verl_stvg.inference.settings import BATCHES, Settings
from verl_stvg.launch import capacity
from verl_stvg.rows.cache_fill import read_jobs
from verl_stvg.video.frame_rules import RULES
from verl_stvg.video.markers import STYLES
from verl_stvg.video.store import FrameStore

ASK = (Settings, FrameStore)
"""What the options of every command that asks a model are for."""


def parameters(command) -> dict[str, typing.Any]:
    """Parameters of a command by name, without help and those that are hidden."""
    return {one.name: one for one in command.params if one.name != "help" and not getattr(one, "hidden", False)}


def is_option(parameter) -> bool:
    return parameter.param_type_name == "option"


# --- rows, folders, sizes, choices ------------------------------------------------------------------------------------


def test_rows_are_arguments():
    found = {path for path, command in every_command() if "rows" in parameters(command)}
    assert {"check", "show", "select", "cache", "plan", "eval", "score"} == {path[0] for path in found}
    for path, command in every_command():
        for name, parameter in parameters(command).items():
            assert not (name in ("rows", "files") and is_option(parameter)), path
            assert "--rows" not in getattr(parameter, "opts", ()), path


def test_out_is_a_folder():
    with_out = 0
    for path, command in every_command():
        out = parameters(command).get("out")
        if out is not None:
            with_out += 1
            assert is_option(out) and "--out" in out.opts and out.help.startswith(("Folder", "Another folder")), path
    assert with_out > 30


def test_a_file_as_out_is_that_file_with_a_warning(tmp_path, caplog):
    assert options.in_folder(tmp_path / "pages", "rows.html") == tmp_path / "pages/rows.html"
    assert (tmp_path / "pages").is_dir() and not caplog.messages
    assert options.in_folder(tmp_path / "mine.html", "rows.html") == tmp_path / "mine.html"
    (said,) = caplog.messages
    assert said.startswith(f"--out {tmp_path}/mine.html: write --out {tmp_path}, a folder, in which rows.html is made")
    (tmp_path / "odd.html").mkdir()
    assert options.in_folder(tmp_path / "odd.html", "rows.html") == tmp_path / "odd.html/rows.html"


def test_sizes(caplog):
    from verl_stvg.cli.plan import gigabytes

    assert gigabytes("80G") == 80 and gigabytes("0.5T") == 512 and not caplog.messages
    assert gigabytes("80") == 80 and gigabytes("79.5") == 79.5
    assert "--hbm 80: write --hbm 80G; the old spelling goes with the next release" in caplog.messages
    for wrong in ("much", "-1"):
        with pytest.raises(typer.BadParameter, match="is not a size; write it like 200G"):
            gigabytes(wrong)


CHOICES = {
    "engine": (("eval", ("select", "difficulty")), tuple(BATCHES)),
    "benchmark": (("eval", "score"), tuple(BENCHMARKS)),
    "format": (("score",), ("auto", foreign.ANNOTATION, *foreign.FORMATS)),
    "mode": ((("select", "reflect"),), boundary_reflection.MODES),
    "bins": ((("select", "difficulty"),), difficulty.MODES),
    "task": (("tiny-model", ("build", "synthetic")), tuple(synthetic.TASKS)),
    "template": ((("build", "generic"),), tuple(templates.TEMPLATES)),
    "rule": ((("build", "generic"),), RULES),
    "marker-style": ((("build", "generic"), ("objects", "render")), tuple(STYLES)),
    **{name.replace("_", "-"): ((("build", "generic"),), values) for name, values in make_row.CHOICES.items()},
}
"""Option, commands that have it, and the values that the code takes."""


@pytest.mark.parametrize("name", CHOICES)
def test_the_help_lists_the_choices_and_no_other_is_taken(name):
    commands, values = CHOICES[name]
    for path in commands:
        path = (path,) if isinstance(path, str) else path
        said = told(*path, "--help")
        listed = said.split(f"--{name} <")[1].split(">")[0].split("|")
        assert sorted(listed) == sorted(values)
        refused = CliRunner().invoke(app.app, [*path, f"--{name}", "another"])
        assert refused.exit_code == 2 and "'another' is not one of" in " ".join(refused.output.split())


# --- asking a model ---------------------------------------------------------------------------------------------------


def test_eval_and_select_ask_with_the_same_options():
    commands = dict(every_command())
    own = set(asking.OPTIONS)
    for path in (("eval",), ("select", "reflect"), ("select", "difficulty"), ("select", "variance")):
        found = parameters(commands[path])
        assert own <= found.keys(), path
        assert all(found[name].help == parameters(commands["eval",])[name].help for name in own)
    assert {field.name for field in dataclasses.fields(Settings)} - own == {"template", "store", "video_root", "limit"}


def test_every_option_reaches_the_settings(tmp_path):
    given = {
        "model": "a/b", "engine": "vllm", "samples": 3, "temperature": 0.5, "top_p": 0.75, "top_k": 9, "max_tokens": 7,
        "seed": 5, "max_model_len": 99, "dtype": "float32", "tensor_parallel": 2, "gpu_memory_utilization": 0.5,
        "batch": 6, "fold_size": 4, "fold_index": 1, "ray": True, "engines": 2,
    }  # fmt: skip
    more = {"template_option": ["enable_thinking=false"], "fit": ["fps=1"], "cache": tmp_path, "decoder": "decord"}
    made = asking.settings_of(**given, **more)
    assert {name: getattr(made, name) for name in given} == given
    assert made.template == {"enable_thinking": False} and made.fit["fps"] == 1.0
    assert made.store == FrameStore(str(tmp_path), decoder="decord")
    assert asking.settings_of() is None


# --- one default each -------------------------------------------------------------------------------------------------

SET = ((Job, make_row.Policies), {})
"""What a command's options are for, and the names there of options with another name here."""
FEEDS: dict[tuple[str, ...], tuple[tuple, dict[str, str]]] = {
    ("build", "synthetic"): ((synthetic.build,), {"train_clips": "num_train", "val_clips": "num_val"}),
    **{("build", name): SET for name in NAMES},
    ("check",): ((check.check,), {}),
    ("show",): ((show.write,), {}),
    ("cache", "build"): ((FrameStore, read_jobs), {}),
    ("select", "reflect"): ((*ASK, boundary_reflection.Rules, boundary_reflection.stage), {}),
    ("select", "difficulty"): ((*ASK, difficulty.Rules), {"bins": "mode"}),
    ("select", "variance"): ((*ASK, variance.Rules), {}),
    ("select", "subset"): ((subset.Rules,), {}),
    ("select", "time-r1"): ((time_r1_filter.Rules, time_r1_filter.select), {}),
    ("select", "report"): ((report.write,), {}),
    ("objects", "detect"): ((pipeline.Models, Options), {"classes": "mode"}),
    ("objects", "track"): ((pipeline.Models, Options, pipeline.track_all), {"classes": "mode"}),
    ("objects", "filter"): ((size_filter,), {}),
    ("objects", "render"): ((render,), {"marker_style": "style"}),
    ("objects", "assign"): ((pipeline.Rule,), {}),
    ("objects", "run"): (
        (pipeline.Models, Options, pipeline.track_all, size_filter, pipeline.Rule),
        {"classes": "mode"},
    ),
    ("plan",): ((capacity.plan,), {}),
    ("eval",): (ASK, {}),
    ("score",): ((foreign.read,), {}),
}
OWN = {
    ("show",): {"out"},
    ("check",): {"decode", "videos"},
    ("select", "variance"): {"samples", "temperature"},  # answers can differ only if they are drawn
    ("select", "report"): {"out"},
    ("select", "reflect"): {"mode"},
    ("plan",): {"gpus", "hbm", "gpus_per_node", "measured_gpus"},
    ("cache", "build"): {"patch"},
}
"""Options whose default stands in the command line only, or is meant to differ."""


def defaults_of(fed) -> dict[str, typing.Any]:
    return {name: one.default for name, one in inspect.signature(fed).parameters.items()}


def test_no_option_has_a_second_default():
    from verl_stvg.data_builders.testing import tiny_model, tiny_parts  # imports torch

    feeds = FEEDS | {("tiny-model",): ((tiny_model.make, tiny_parts.TinyConfig), {})}
    for path, command in every_command():
        fed, other_names = feeds.get(path, ((), {}))
        taken = [pair for one in fed for pair in defaults_of(one).items()]
        known = dict(sorted(taken, key=lambda pair: pair[1] is not inspect.Parameter.empty))  # the last one counts
        for name, parameter in parameters(command).items():
            default, there = parameter.default, other_names.get(name, name)
            if not is_option(parameter) or default is None or name in OWN.get(path, ()):
                continue
            if default is False and there not in known:
                continue  # an option that is off changes nothing
            assert there in known, f"{' '.join(path)} --{name}={default}: name in FEEDS what takes it"
            in_code = known[there]
            differs = in_code is not inspect.Parameter.empty and in_code != default
            assert not differs, f"{path} --{name}: {default} here, {in_code} in the code"


# --- spellings of the last release ------------------------------------------------------------------------------------


def warned(caplog) -> str:
    (said,) = [text for text in caplog.messages if "the old spelling goes with the next release" in text]
    return said


@pytest.mark.parametrize(
    ("path", "old", "now", "said"),
    [
        (("eval",), ["--rows", "a", "--out", "b"], ["--out", "b", "a"], "--rows a: write a, without --rows"),
        (("eval",), ["--rows=a", "--rows", "b", "--seed", "1"], ["--seed", "1", "a", "b"], "--rows a: write a"),
        (("plan",), ["stvg_r1", "--rows", "a.parquet", "x=1"], ["stvg_r1", "x=1", "a.parquet"], "--rows a.parquet:"),
        (("tiny-model",), ["model", "--seed", "1"], ["--seed", "1", "--out", "model"], "model: write --out model"),
        (("tiny-model",), ["--seed=1", "1"], ["--seed=1", "--out", "1"], "1: write --out 1"),
        (("build", "synthetic"), ["--seed", "1", "rows"], ["--seed", "1", "--out", "rows"], "rows: write --out rows"),
        (("build", "generic"), ["--out", "rows"], ["--out", "rows"], None),
        (("tiny-model",), ["--out", "model", "--seed", "1"], ["--out", "model", "--seed", "1"], None),
        (("tiny-model",), ["--out", "a", "b"], ["--out", "a", "b"], None),  # b is refused, and not made in a's place
        (("eval",), ["a", "--out", "b"], ["a", "--out", "b"], None),
    ],
)
def test_arguments_of_the_last_release(path, old, now, said, caplog):
    assert options.spelt_now(path, old) == now
    assert (said is None and not caplog.messages) or warned(caplog).startswith(said)


def test_commands_take_them(monkeypatch, tmp_path, caplog):
    made, asked = [], []
    monkeypatch.setattr("verl_stvg.data_builders.testing.tiny_model.make", lambda out, **more: made.append(out))
    monkeypatch.setattr(synthetic, "build", lambda out, *counts, **more: made.append(out))
    monkeypatch.setattr("verl_stvg.eval.run.run", lambda rows, *more: asked.append(rows) or {"counts": {}})
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{}")
    for arguments in (
        ["tiny-model", "model"],
        ["tiny-model", "--out", "model"],
        ["build", "synthetic", "rows"],
        ["build", "synthetic", "--out", "rows"],
        ["eval", "--rows", "a", "--rows", "b", "--model", str(tmp_path / "m"), "--out", "c"],
        ["eval", "a", "b", "--model", str(tmp_path / "m"), "--out", "c"],
    ):
        done = CliRunner().invoke(app.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert made == [Path("model")] * 2 + [Path("rows")] * 2 and asked == [[Path("a"), Path("b")]] * 2
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 3


def test_scores_of_the_last_release(monkeypatch, tmp_path, caplog):
    seen = []
    monkeypatch.setattr("verl_stvg.eval.score.score_run", lambda folder, *more: seen.append(folder) or {"counts": {}})
    for arguments in (["score", str(tmp_path)], ["score", "--predictions", str(tmp_path)]):
        assert CliRunner().invoke(app.app, arguments, catch_exceptions=False).exit_code == 0
    assert seen == [tmp_path] * 2
    assert warned(caplog).startswith("PREDICTIONS --rows ROWS.parquet: write ROWS.parquet --predictions PREDICTIONS")
    for arguments in (
        ["score", "said.jsonl", "--rows", "gone.parquet"],
        ["score", "gone.parquet", "--predictions", "x"],
    ):
        done = CliRunner().invoke(app.app, arguments)
        assert isinstance(done.exception, ValueError) and str(done.exception).startswith("gone.parquet: no such file")
    with pytest.raises(ValueError, match="predictions are scored against the rows they answer: give ROWS.parquet"):
        CliRunner().invoke(app.app, ["score", "gone.parquet"], catch_exceptions=False)


def test_keys_of_verl_of_the_last_release(caplog):
    from verl_stvg.base.recipe_names import respelt

    given = ["+data.curriculum.enabled=true", "data.curriculum.r0=0.5", "+data.draw.steps=3", "data.seed=1"]
    kept = ["+data.draw={steps: 3}", "++data.draw.seed=1", "+data.fit.fps=1", "data.curriculum.known", "--config-dir=x"]
    assert respelt([*given, *kept]) == [
        "++data.curriculum.enabled=true",
        "++data.curriculum.hidden_at_start=0.5",
        "++data.draw.steps=3",
        "data.seed=1",
        *kept,
    ]
    assert len(caplog.messages) == 3
    assert caplog.messages[1].startswith("data.curriculum.r0=0.5: write data.curriculum.hidden_at_start=0.5; the old")
