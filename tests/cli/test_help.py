"""The help: quick, one distinct line for each command, and all that is known of recipes and annotation sets."""

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from verl_stvg.base import recipe_names
from verl_stvg.cli import app
from verl_stvg.data_builders import sets


def told(*arguments: str) -> str:
    """What a command line prints, on a wide terminal, with the line ends and indents taken out."""
    done = CliRunner().invoke(app.app, arguments, terminal_width=400, env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def every_command():
    """Path and command of each command that does something, however deep."""

    def below(path, command):
        if isinstance(command, typer.core.TyperGroup):
            context = typer.Context(command)
            for name in command.list_commands(context):
                yield from below((*path, name), command.get_command(context, name))
        else:
            yield path, command

    for name in app.COMMANDS:
        yield from below((name,), app.load(name))


def test_no_two_summaries_are_alike():
    lines = [line.summary for line in app.COMMANDS.values()]
    lines += [command.get_short_help_str(400) for path, command in every_command() if len(path) > 1]
    assert len(lines) > 40 and all(lines) and len(set(lines)) == len(lines)
    assert not [line for line in lines if line.endswith("...")]  # nothing is cut off


def test_every_command_says_what_it_does_beyond_its_options():
    for path, command in every_command():
        assert command.help and len(command.help) > 30, path


def test_the_list_of_commands_imports_none_of_them():
    code = (
        "import sys; sys.argv = ['verl-stvg', '--help']\n"
        "from verl_stvg.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('loaded:', *sorted({name.split('.')[0] for name in sys.modules} & set(sys.argv[0:0] + %r)))\n"
        "print('ours:', *sorted(name for name in sys.modules if name.startswith('verl_stvg.')))"
    ) % ["numpy", "pydantic", "rich", "av", "cv2", "pyarrow", "torch", "psutil"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "tiny-model" in done.stdout
    assert done.stdout.splitlines()[-2:] == [
        "loaded:",
        "ours: verl_stvg.__main__ verl_stvg.base verl_stvg.base.extras verl_stvg.base.status verl_stvg.cli "
        "verl_stvg.cli.app verl_stvg.moved",
    ]


def test_train_names_recipes_variants_and_an_example():
    said = told("train", "--help")
    assert "[KEY=VALUE]..." in said and "verl-stvg train --recipe stvg_r1 --run-dir" in said
    for name in (*recipe_names.recipes(), *recipe_names.variants()):
        assert f" {name} " in said
    assert "Qwen3-VL-4B instead of the recipe's base" in said


def test_keys_of_verl_reach_the_launcher_in_their_order(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("verl_stvg.launch.run.train", lambda arguments, folder: seen.append((arguments, folder)) or 0)
    monkeypatch.setattr("verl_stvg.base.status.Output.goes_on", False)
    given = ["+variant=[tiny,lora]", "data.seed=1", "--config-dir", "mine", "hydra.searchpath=[file:///mine]"]
    arguments = ["train", given[0], "--recipe", "stvg_r1", *given[1:], "--run-dir", str(tmp_path)]
    done = CliRunner().invoke(app.app, arguments)
    assert done.exit_code == 0, done.output
    chosen = ["--config-path", "pkg://verl_stvg.recipes.stvg_r1", "--config-name", "stvg_r1"]
    assert seen == [([*chosen, *given], tmp_path)]


@pytest.mark.parametrize("name", sets.NAMES)
def test_a_set_says_its_files_form_and_pitfalls(name):
    source, said = sets.find(name), told("build", name, "--help")
    for files in source.splits.values():
        for file in files:
            assert " or ".join(file.names) + (" (optional)" if not file.required else "") in said
    assert source.title in said and f"Default template: {source.template}." in said and "Pitfalls" in said
    assert "`" not in said.split("Options:")[0]  # docstrings' names of functions mean nothing here


def test_the_fields_of_ones_own_set_keep_their_lines():
    done = CliRunner().invoke(app.app, ["build", "generic", "--help"])
    assert (
        '\n      tube       {"first_frame": zero-based frame of the file, "boxes": [[x1, y1, x2, y2], ...]}'
        in done.output
    )


def test_the_version():
    from importlib.metadata import version

    assert told("--version") == f"verl-stvg {version('verl-stvg')}"
