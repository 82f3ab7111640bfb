"""Every command ends with a status that a script can trust: 0 all is well, 1 findings, 2 it could not; one message."""

import io
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_stvg.base import recipe_names, status
from verl_stvg.cli import app
from verl_stvg.data_builders.sets.synthetic import ROW_SCHEMA
from verl_stvg.launch import doctor
from verl_stvg.launch import run as launch
from verl_stvg.plugin import PluginError
from verl_stvg.rows.answers import Answer

ROOT = recipe_names.FOLDER.parent


@pytest.fixture
def run(monkeypatch):
    """Run a command line in this process; returns its status and what it said on standard error."""

    def run(*arguments) -> tuple[int, str]:
        said = io.StringIO()
        monkeypatch.setattr(sys, "argv", ["verl-stvg", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        monkeypatch.setattr(sys, "stderr", said)
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code or 0, said.getvalue()

    monkeypatch.setattr(status.Output, "goes_on", False)  # `train` sets it
    return run


@pytest.fixture
def without_a_video(rows, tmp_path):
    """The held-out rows, of which one names a video that is not there."""
    table = pq.read_table(rows / "val.parquet").to_pylist()
    for row in table:
        row["videos"][0]["video"] = str(rows / row["videos"][0]["video"])
    table[3]["videos"][0]["video"] = str(tmp_path / "gone.mp4")
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(table, schema=ROW_SCHEMA), path)
    return path


def test_all_is_well(run, tmp_path):
    assert run("cache", "verify", "--cache", tmp_path) == (0, "")
    assert run("--help")[0] == 0


def test_findings(run, without_a_video, tmp_path):
    assert run("check", without_a_video, "--no-decode", "--workers", "1") == (1, "")
    assert run("cache", "build", without_a_video, "--cache", tmp_path / "frames", "--workers", "1") == (1, "")
    assert "gone.mp4" in (tmp_path / "frames" / "quarantine.jsonl").read_text()


def test_predictions_that_are_missing_are_findings(run, rows, tmp_path):
    uids = [row["extra_info"]["uid"] for row in pq.read_table(rows / "val.parquet").to_pylist()]
    lines = [Answer(uid, ("nothing",)).line() for uid in uids]
    for count, expected in ((len(uids), 0), (len(uids) - 1, 1)):
        (tmp_path / "said.jsonl").write_text("".join(lines[:count]))
        assert run("score", rows / "val.parquet", "--predictions", tmp_path / "said.jsonl") == (expected, "")


@pytest.mark.parametrize(("good", "expected"), [(True, 0), (False, 1)])
def test_doctor_judges_the_machine(run, monkeypatch, good, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(doctor, "local_rows", lambda needs_gpu: [doctor.Row("disk", "1 GiB", good)])
    assert run("doctor") == (expected, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check"], "Missing argument"),
        (["chekc"], "No such command 'chekc'"),
        (["check", "nowhere.parquet"], "verl-stvg: nowhere.parquet: no such file"),
        (["check", __file__], "verl-stvg: "),
        (["cache", "build", "nowhere.parquet", "--cache", "/proc/frames"], "verl-stvg: "),
        (["report", "nowhere"], "verl-stvg: nowhere/metrics.jsonl: no such file"),
        (["score", "nowhere.jsonl"], "verl-stvg: predictions are scored against the rows"),
        (["plan", "stvg-r1"], "no recipe 'stvg-r1' below recipes/; did you mean stvg_r1? There are stvg_r1, temporal"),
        (["plan", "stvg_r1", "gone.parquet"], "gone.parquet: no such file; build the rows first"),
    ],
)
def test_what_cannot_be_done_is_one_message(run, arguments, words):
    code, said = run(*arguments)
    assert code == 2 and words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "stvg-r1"], "no recipe 'stvg-r1' below recipes/; did you mean stvg_r1?"),
        (["--recipe", "tiny"], "no recipe 'tiny' below recipes/; there are stvg_r1, temporal_r1"),
        (["--recipe", "stvg_r1", "--config-name", "stvg"], "recipe stvg_r1 has no stvg.yaml; it has stvg_r1"),
        (["--recipe", "stvg_r1", "+variant=tyny"], "no variant 'tyny' below recipes/variant/; did you mean tiny?"),
        (
            ["--recipe", "stvg_r1", "+variant=[tiny, loro]"],
            "no variant 'loro' below recipes/variant/; did you mean lora",
        ),
    ],
)
def test_a_misspelt_recipe_leaves_the_run_folder_alone(run, tmp_path, arguments, words):
    code, said = run("train", "--run-dir", tmp_path / "run", *arguments)
    assert code == 2 and words in said
    assert not (tmp_path / "run").exists()


def test_recipes_and_variants_that_are_there_pass():
    for recipe in recipe_names.recipes():
        recipe_names.check(recipe, ["+variant=[tiny,lora]", "variant=null", "data.seed=1"])
    recipe_names.check("stvg_r1", ["hydra.searchpath=[file:///mine]", "+variant=mine"])


@pytest.mark.parametrize(("ended", "expected"), [(0, 0), (1, 1), (130, 130), (-9, 137)])
def test_training_ends_with_the_status_of_the_run(run, monkeypatch, tmp_path, ended, expected):
    monkeypatch.setattr(launch, "train", lambda arguments, folder: ended)
    assert run("train", "--recipe", "stvg_r1", "--run-dir", tmp_path) == (expected, "")


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (ValueError("a.parquet: row 3 has no video; remove it"), 2, "verl-stvg: a.parquet: row 3 has no video"),
        (PermissionError(13, "Permission denied", "/data/x"), 2, "verl-stvg: /data/x: Permission denied"),
        (OSError(28, "No space left on device"), 2, "verl-stvg: [Errno 28] No space left on device"),
        (EOFError("End of file: 'x.mp4'"), 2, "verl-stvg: a file ends too early: End of file: 'x.mp4'"),
        (KeyboardInterrupt(), 130, "verl-stvg: interrupted"),
        (RuntimeError("a fault of ours"), 2, "Traceback"),  # and not 1, which Python gives it
        (PluginError("broken"), 2, "Traceback"),
    ],
)
def test_what_a_command_raises_has_a_status(run, monkeypatch, error, expected, words):
    from verl_stvg.data_builders import show

    def write(*arguments):
        raise error

    monkeypatch.setattr(show, "write", write)
    code, said = run("show", "rows.parquet")
    assert code == expected and said.startswith(words)
    assert ("Traceback" in said) == (words == "Traceback") and (words == "Traceback" or said.count("\n") == 1)


@pytest.mark.parametrize("both", [False, True])
def test_a_closed_pipe_is_quiet(without_a_video, both):
    """As ``verl-stvg check ... | head -0``, with and without ``2>&1``."""
    command = [
        sys.executable,
        "-m",
        "verl_stvg.cli.app",
        "check",
        str(without_a_video),
        "--no-decode",
        "--workers",
        "1",
    ]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT if both else subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, **streams)
    process.stdout.close()
    assert both or process.stderr.read() == b""
    assert process.wait() == status.UNHEARD


def test_a_run_goes_on_unheard(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        output = status.Output(file)
        output.write("step 1\n")
        with pytest.raises(SystemExit) as ended:
            output.flush()
        assert ended.value.code == status.UNHEARD
        output.write("goes nowhere\n")
        output.flush()
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(status.Output, "goes_on", True)
    with os.fdopen(writer, "w", buffering=1) as file:
        output = status.Output(file)
        assert output.write("step 1\n") == 7
        output.flush()
