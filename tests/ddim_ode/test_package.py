"""The package as a whole: cheap to import, and its names are there for people and for type checkers."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ddim_ode

ROOT = Path(ddim_ode.__file__).parent.parent


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, ddim_ode, ddim_ode.grids, ddim_ode.files; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert "ddim_ode.grids" in loaded
    assert not {"torch", "numpy", "PIL", "diffusers", "scipy"} & set(loaded)


@pytest.mark.parametrize("name", ddim_ode.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(ddim_ode, name).__name__ == name


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="module 'ddim_ode' has no attribute 'encoder'"):
        ddim_ode.encoder  # noqa: B018


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    """What stands under ``if TYPE_CHECKING`` is what is found when the program runs."""
    tree = ast.parse(Path(ddim_ode.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    homes = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for alias in statement.names:
            assert alias.asname == alias.name, "only 'name as name' is exported"
            homes[alias.name] = statement.module
    assert sorted(homes) == ddim_ode.__all__
    assert homes == {name: getattr(ddim_ode, name).__module__ for name in ddim_ode.__all__}
