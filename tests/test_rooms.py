"""The rooms and who may know whom: every import in the source, wherever it stands, also for type checkers alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("solvers", "ddim_ode", "analysis", "cli")


def source_files() -> list[Path]:
    paths = [ROOT / "cli.py", *(path for room in ROOMS[:-1] for path in sorted((ROOT / room).rglob("*.py")))]
    return [path for path in paths if "notebooks" not in path.parts]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in source_files()}


def imports(path: Path) -> Iterator[str]:
    """The modules of this project that the file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            within = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in within]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in ROOMS)


GRAPH = {name: sorted(set(imports(path)) - {name}) for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[0]


def may_import(module: str, other: str) -> bool:
    if room(module) == room(other):
        return True
    if room(module) == "ddim_ode":
        return room(other) == "solvers" and module.startswith("ddim_ode.session")
    allowed = {"solvers": set(), "analysis": {"solvers", "ddim_ode"}, "cli": {"solvers", "ddim_ode", "analysis"}}
    return room(other) in allowed[room(module)]


def test_the_walk_finds_the_rooms() -> None:
    """Or else nothing below would be looked at."""
    assert {room(name) for name in MODULES} == set(ROOMS)
    assert len(MODULES) > 60
    assert "solvers" in GRAPH["ddim_ode.session.plan"]
    assert "ddim_ode.session.request" in GRAPH["cli"]


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
