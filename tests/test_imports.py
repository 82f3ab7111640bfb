"""The floors of docs/architecture.md hold: modules import in no circle, and rooms import only what the table names."""

import re
from functools import cache
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parent.parent
FLOORS = "| floor | room | may import |\n|---|---|---|\n"
PACKAGES = "| package | rooms that import it |\n|---|---|\n"


@cache
def graph() -> grimp.ImportGraph:
    """Imports of all modules, those inside of functions and of ``if TYPE_CHECKING`` included."""
    return grimp.build_graph("verl_stvg", "reward_fns", cache_dir=None)


def rows_of(head: str) -> list[list[str]]:
    """Cells of the table of docs/architecture.md that begins so."""
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split(head)[1].split("\n\n")[0]
    return [line.strip("|").split("|") for line in table.splitlines()]


def named(cell: str) -> frozenset[str]:
    return frozenset(re.findall(r"`([^`]+)`", cell))


@cache
def arrows() -> list[tuple[str, str]]:
    return sorted((one, other) for one in graph().modules for other in graph().find_modules_directly_imported_by(one))


@cache
def floors() -> dict[str, tuple[int, frozenset[str]]]:
    """Of each room in the table of docs/architecture.md: its floor, and the rooms that it may import."""
    return {room: (int(floor), named(allowed)) for floor, rooms, allowed in rows_of(FLOORS) for room in named(rooms)}


def room_of(module: str) -> str:
    """The room of a module, as the table calls it; each ``__main__`` is an entry point, wherever it lies."""
    top, _, rest = module.partition(".")
    part = rest.partition(".")[0] or "__init__"
    if module.endswith(".__main__"):
        return "__main__.py"
    if top != "verl_stvg":
        return f"{top}/"
    return f"{part}/" if (ROOT / top / part).is_dir() else f"{part}.py"


def test_every_file_is_a_module_of_the_graph():
    """Also behind the links to `data_builders`, `eval` and `recipes`."""
    folders = {"verl_stvg": "verl_stvg", "reward_fns": "reward_fns"}
    folders |= {name: f"verl_stvg/{name}" for name in ("data_builders", "eval", "recipes")}
    files = {
        str(inside / path.relative_to(ROOT / folder).with_suffix("")).replace("/", ".").removesuffix(".__init__")
        for folder, inside in ((folder, Path(inside)) for folder, inside in folders.items())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert files == graph().modules


def test_imports_inside_of_functions_are_drawn():
    assert ("verl_stvg.inference.generate", "verl_stvg.inference.engines") in arrows()


def test_no_circle():
    assert [(one, other) for one, other in arrows() if graph().chain_exists(other, one)] == []


def test_no_import_against_the_floors():
    wrong = [
        f"{one} imports {other}"
        for one, other in arrows()
        if room_of(one) != room_of(other) and room_of(other) not in floors()[room_of(one)][1]
    ]
    assert wrong == [], "move the name to the floor where it belongs"


def test_the_table_names_every_room_and_nothing_more():
    drawn = {room: set() for room in map(room_of, graph().modules)}
    for one, other in arrows():
        drawn[room_of(one)].add(room_of(other))
    assert {room: allowed for room, (_, allowed) in floors().items()} == {
        room: others - {room} for room, others in drawn.items()
    }


def test_rooms_import_from_lower_floors():
    assert [
        (room, other) for room, (floor, allowed) in floors().items() for other in allowed if floors()[other][0] >= floor
    ] == []


def test_large_packages_are_imported_where_the_table_says():
    drawn = grimp.build_graph("verl_stvg", "reward_fns", include_external_packages=True, cache_dir=None)
    for package, rooms in rows_of(PACKAGES):
        (name,) = named(package)
        assert {room_of(module) for module in drawn.find_modules_that_directly_import(name)} == named(rooms), name
