"""The benchmark of the rewards: its command line, its rows, and what it says when an original is not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import Row, rewards
from benchmarks.__main__ import MODULES, cells, main, parser

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_missing_original_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="git clone https://github.com/XiaowZhang00/stvg-r1"):
        rewards.load_original(tmp_path, rewards.ORIGINALS["STVG-R1"])


def test_an_original_is_read_without_its_imports(tmp_path):
    original = rewards.ORIGINALS["Temporal-R1"]
    path = tmp_path / "Temporal-R1" / original.path
    path.parent.mkdir(parents=True)
    path.write_text(
        "import no_such_trainer\nLIMIT = 2\ndef tvg_compute_score(text, truth, length):\n    return LIMIT * 0.25\n"
    )
    names = rewards.load_original(tmp_path, original)
    assert original.call(names, "x") == 0.5


def test_rows_are_printed_and_written(tmp_path, capsys, monkeypatch):
    report = tmp_path / "rows.json"
    rows = [Row("speed", 123456.0, 10.0, 2.5, ">= 1", True), Row("text", "> 20 s"), Row("miss", 0.1234, met=False)]
    monkeypatch.setattr(rewards, "measure", lambda options: rows)
    assert main(["rewards", "--json", str(report)]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "speed | 123,456 | 10 | 2.5 | >= 1 | yes",
        "text | > 20 s | - | - | - | -",
        "miss | 0.123 | - | - | - | NO",
    ]
    written = json.loads(report.read_text())
    assert written["rows"][0]["ours"] == 123456.0 and written["machine"]["python"]
    assert len(cells(rows[0])) == 6


def test_command_line_names_the_measurements():
    done = subprocess.run([sys.executable, "-m", "benchmarks", "colour"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "unknown measurement 'colour'; known are rewards" in done.stderr
    assert set(MODULES) >= {"rewards"} and parser().parse_args([]).fuzz == 1_000_000


def test_fuzzing_counts_what_it_scores():
    options = parser().parse_args(["--fuzz", "20"])
    names = [row.name for row in rewards.fuzzing(options)]
    assert names[0].startswith(f"fuzz: 20 completions, {20 * len(rewards.RECIPES)} evaluations") and all(
        row.met for row in rewards.fuzzing(options)
    )


def test_typical_completions_differ_and_mostly_earn_something():
    for name, (truth, _) in rewards.TYPICAL.items():
        completions = rewards.typical(name, 50, 0)
        assert len(set(completions)) >= 4 and completions == rewards.typical(name, 50, 0)
        assert sum(rewards.RECIPES[name].score(text, truth)["score"] > 0 for text in completions) >= 45
