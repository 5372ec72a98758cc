"""The rooms and who may know whom: every import in the source, wherever it stands, also for type checkers alone.

``cli`` and ``ddim_ode.commands`` are one room, with commands about different things.

``solvers``, ``analysis`` and ``cli`` lie beside ``ddim_ode`` in a clone and are imported as parts of it, which they are
where it is installed; by other names they would be loaded twice. Within ``solvers`` and within ``analysis`` imports are
relative, so that ``python -m analysis.convergence`` works in a clone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("solvers", "ddim_ode", "analysis", "cli")
# In a clone these lie beside ddim_ode, and inside it in an installed package.
BESIDE = ("solvers", "analysis", "cli")


def source_files() -> list[Path]:
    paths = [ROOT / "cli.py", *(path for room in ROOMS[:-1] for path in sorted((ROOT / room).rglob("*.py")))]
    return [path for path in paths if "notebooks" not in path.parts]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in source_files()}
EVERY_FILE = [ROOT / "cli.py", *(path for top in (*ROOMS[:-1], "tests") for path in sorted((ROOT / top).rglob("*.py")))]


def room(module: str) -> str:
    return module.split(".")[0]


def in_its_room(name: str) -> str:
    """The name in a clone's folders of the module that is imported as ``name``."""
    inner = name.removeprefix("ddim_ode.")
    return inner if room(inner) in BESIDE else name


def imports(module: str, path: Path) -> Iterator[str]:
    """The modules of this project that one of them imports, anywhere in its file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            within_room = ".".join(filter(None, (room(module), node.module)))
            base = within_room if node.level else in_its_room(str(node.module))
            within = [in_its_room(f"{base}.{alias.name}") for alias in node.names]
            names = [name if name in MODULES else base for name in within]
        else:
            continue
        yield from (name for name in names if room(name) in ROOMS)


GRAPH = {name: sorted(set(imports(name, path)) - {name}) for name, path in MODULES.items()}


def may_import(module: str, other: str) -> bool:
    if module.startswith("ddim_ode.commands"):
        return other != "cli"
    if other.startswith("ddim_ode.commands"):
        return module == "cli"
    if other.startswith("ddim_ode.page") and not module.startswith("ddim_ode.page"):
        return module == "cli"
    if room(module) == room(other):
        return True
    if module == "ddim_ode.__main__":
        return other == "cli"
    if room(module) == "ddim_ode":
        return room(other) == "solvers" and module.startswith("ddim_ode.session")
    allowed = {"solvers": set(), "analysis": {"solvers", "ddim_ode"}, "cli": {"solvers", "ddim_ode", "analysis"}}
    return room(other) in allowed[room(module)]


@pytest.mark.parametrize("path", EVERY_FILE)
def test_rooms_are_imported_by_the_names_that_they_have_when_installed(path: Path) -> None:
    home = room(module_name(path)) if "notebooks" not in path.parts else ""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names if room(alias.name) in BESIDE}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            inner = room(str(node.module).removeprefix("ddim_ode."))
            assert room(str(node.module)) not in BESIDE
            assert inner not in BESIDE or inner != home, "within a room imports are relative"
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1
            assert home in BESIDE


def test_the_walk_finds_the_rooms() -> None:
    """Or else nothing below would be looked at."""
    assert {room(name) for name in MODULES} == set(ROOMS)
    assert len(MODULES) > 60
    assert "solvers" in GRAPH["ddim_ode.session.plan"]
    assert "ddim_ode.session.request" in GRAPH["cli"]
    assert "analysis" in GRAPH["ddim_ode.commands.analyze"]


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_one_way(module: str) -> None:
    wrong = [other for other in GRAPH[module] if not may_import(module, other)]
    assert not wrong, f"{module} imports {', '.join(wrong)}"


def test_there_are_no_circles() -> None:
    """Not even such as only type checkers see; a package's own list of names, which imports all of it, is none."""
    lists = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    graph = {name: [other for other in others if other not in lists] for name, others in GRAPH.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_solvers_say_nothing_of_what_they_are_for() -> None:
    """Numerics: names of papers apart, no word of images, networks or diffusion stands in the code itself."""
    for name, path in MODULES.items():
        if room(name) == "solvers":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            words = {node.id.lower() for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert not {word for word in words for part in ("diffusion", "network") if part in word}, name
