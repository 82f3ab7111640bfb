"""Every command line that the documentation, a script or a message of ours names can be typed as it stands."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from verl_stvg.base import recipe_names
from verl_stvg.cli import app, options

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("recipes/*/*.md")]
SCRIPTS = [*ROOT.glob("recipes/**/*.sh"), ROOT / "Makefile"]
YAMLS = [*ROOT.glob("recipes/**/*.yaml")]
CODE = [
    path
    for folder in ("verl_stvg", "data_builders", "eval", "reward_fns", "benchmarks", "recipes")
    for path in ROOT.glob(f"{folder}/**/*.py")
]
OLD = ("eval --rows FILE", "plan --rows FILE", "score PREDICTIONS --rows FILE", "plan --hbm 80")
"""What docs/commands.md names as spellings of the last release."""
PLACES = {
    "X": "charades_sta",
    "SET": "charades_sta",
    "$set": "charades_sta",
    "RECIPE": "stvg_r1",
    "$recipe": "stvg_r1",
    "SIZE": "200G",
}
"""Words that stand for one of several."""
ENDS = ("|", "||", "&&", ";", "&", ">", ">>", "2>&1", "(", ")", "#")


def blocks_and_spans(text: str) -> tuple[str, list[str]]:
    """The code blocks of a page, and its inline code, each on one line and without a table's backslashes."""
    fence = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    spans = re.findall(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)", fence.sub("", text), re.DOTALL)
    return "\n".join(fence.findall(text)), [" ".join(span.replace("\\|", "|").split()) for _, span in spans]


def strings_of(path: Path) -> str:
    """All texts of a module, docstrings too, with X for what is put into them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in inner]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values))
    return "\n\n".join(text for text in found if isinstance(text, str))


def named(line: str) -> list[str] | None:
    """The arguments of `verl-stvg` in a line of a shell."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an open quote: prose
        words = line.split()
    starts = [place for place, word in enumerate(words) if re.search(r"(^|[/`(@])verl-stvg$", word)]
    if not starts:
        return None
    rest = words[starts[-1] + 1 :]
    end = next((place for place, word in enumerate(rest) if word in ENDS), len(rest))
    rest = [PLACES.get(word, word) for word in rest[:end] if "[@]" not in word]
    of_any_set = rest[:1] == ["build"] and rest[1:2] != ["--help"] and rest[1:2] and not re.match(r"\w", rest[1])
    return [*rest[:1], PLACES["SET"], *rest[1:]] if of_any_set else rest


def lines() -> Iterator[tuple[Path, str, bool]]:
    """Place, text, and whether it is a whole command line or a mention."""
    first_words = "|".join(app.COMMANDS)
    for path in PAGES + CODE:
        text = strings_of(path) if path.suffix == ".py" else path.read_text(encoding="utf-8")
        block, spans = blocks_and_spans(text)
        yield from ((path, line, True) for line in block.replace("\\\n", " ").splitlines() if "verl-stvg " in line)
        for span in spans:
            if re.match(rf"({first_words}) .*--", span) and span not in OLD:
                yield path, f"verl-stvg {span}", False
            elif "verl-stvg " in span:
                yield path, span, False
    for path in SCRIPTS + YAMLS:
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"^ *# ?", "", text, flags=re.MULTILINE) if path in YAMLS else text
        for line in text.replace("\\\n", " ").splitlines():
            if re.match(r"\s*(@\S*/)?verl-stvg ", line):
                yield path, line, True
            else:
                yield from ((path, span, False) for span in re.findall(r"`(verl-stvg [^`]*)`", line))


def faults(arguments: list[str], whole: bool) -> str:
    """Why the command line does not take these arguments; they are read, and nothing is run."""
    whole = whole and not any("..." in word or "…" in word for word in arguments)
    arguments = [word for word in arguments if "..." not in word and word not in ("[KEY=VALUE]", "--help")]
    if not arguments or arguments[0] in ("COMMAND", "--version"):
        return ""
    command = typer.main.get_command(app.app)
    context = command.make_context("verl-stvg", list(arguments))
    path, rest = [], list(arguments)
    try:
        while hasattr(command, "commands") and rest:
            name, command, rest = command.resolve_command(context, rest)
            path.append(name)
            if hasattr(command, "commands"):
                context = typer.Context(command, parent=context, info_name=name)
        if hasattr(command, "commands"):
            return f"a command of {' '.join(path)} is missing" if whole else ""
        context = command.make_context(path[-1], rest, parent=context)
    except Exception as error:  # typer's own click has its classes of errors to itself
        said = error.format_message() if hasattr(error, "format_message") else repr(error)
        missing = re.match("Missing (argument|option|parameter)", said) or "requires an argument" in said
        return "" if "does not exist" in said or (missing and not whole) else said
    if path[0] == "train":
        recipe_names.check(context.params["recipe"], context.params["overrides"])
        recipe_names.respelt(context.params["overrides"])
        if strange := [word for word in context.params["overrides"] if word.startswith("-")]:
            return f"no option {strange[0]}"
    return ""


LINES = sorted({(str(path.relative_to(ROOT)), line.strip(), whole) for path, line, whole in lines()})


def test_lines_are_found_in_all_kinds_of_places():
    assert len(LINES) > 150 and sum(whole for _, _, whole in LINES) > 50
    places = {place for place, _, _ in LINES}
    assert {"README.md", "docs/launch.md", "recipes/run.sh", "recipes/tiny/run.sh", "Makefile"} <= places
    assert {"verl_stvg/base/status.py", "recipes/variant/tiny.yaml", "recipes/time_r1/README.md"} <= places


@pytest.mark.parametrize("place", sorted({place for place, _, _ in LINES}))
def test_command_lines_are_read_without_a_fault(place, caplog):
    wrong = []
    for where, line, whole in LINES:
        arguments = named(line) if where == place else None
        if arguments and (fault := faults(arguments, whole)):
            wrong.append(f"{line}: {fault}")
    assert not wrong, "\n".join(wrong)
    assert not caplog.messages  # no old spelling


def test_spellings_of_the_last_release_are_still_read(caplog):
    for old in OLD[:2]:
        assert options.spelt_now((old.split()[0],), old.split()[1:]) == ["FILE"]
    assert faults(["score", "PREDICTIONS", "--rows", "FILE"], whole=True) == ""
    assert faults(["plan", "stvg_r1", "--hbm", "80"], whole=True) == ""
    assert len([said for said in caplog.messages if "the old spelling goes with the next release" in said]) == 3


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("verl-stvg plan stvg_r1 --gpu=8", "No such option: --gpu"),
        ("verl-stvg plan stvg_r1 --gpus=8 --hbm much", "'much' is not a size"),
        ("verl-stvg cache build a --cache b --max-bytes much", "'much' is not a size"),
        ("verl-stvg eval a.parquet --modle m --out b", "No such option: --modle"),
        ("verl-stvg cache list --cache a", "No such command 'list'"),
        ("verl-stvg tiny-model", "Missing option '--out'"),
        ("verl-stvg select difficulty a --out b --bins rank", "'rank' is not one of"),
        ("verl-stvg train --recipe stvg_r1 --run-dir a --config_name=b", "no option --config_name=b"),
    ],
)
def test_a_fault_would_be_seen(line, fault):
    assert fault in faults(named(line), whole=True)
