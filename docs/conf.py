"""The documentation, made by sphinx: pages in Markdown, tables of what the registries hold, and the docstrings.

make docs
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert

from ddim_ode import __version__
from ddim_ode.analysis import ANALYSES
from ddim_ode.solvers import SOLVERS
from ddim_ode.spacings import GRIDS

project = "ddim-ode"
author = "The ddim-ode authors"
copyright = author
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click", "sphinx_copybutton"]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = f"ddim-ode {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["formulas.css"]
smartquotes = False  # two hyphens begin an option

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
copybutton_prompt_text = "$ "

GENERATED = Path(__file__).parent / "_generated"
# A parameter or attribute, or several, as docstrings have them: at the margin, with the text two spaces or more beyond.
ENTRY = re.compile(r"^(\s*)(``\w+``(?:, ``\w+``)*|``[\w, ]+``) {2,}(\S.*)$")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def write_tables() -> None:
    """What the registries hold, as pages that others include."""
    solvers = ((f"`{s.name}`", s.order, s.cost_of_step, s.source) for _, s in sorted(SOLVERS.items()))
    grids = ((f"`{name}`", f"`{grid.clean_end}`", grid.source) for name, grid in sorted(GRIDS.items()))
    analyses = ((f"`{name.replace('_', '-')}`", text) for name, text in sorted(ANALYSES.items()))
    GENERATED.mkdir(exist_ok=True)
    for name, head, rows in (
        ("solvers", ("solver", "order", "NFE of a step", "source"), solvers),
        ("grids", ("grid", "clean end", "rule"), grids),
        ("analyses", ("`ddim-ode analyze`", "what it shows"), analyses),
    ):
        (GENERATED / f"{name}.md").write_text(table(head, rows), encoding="utf-8")


def write_math(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Formulas as MathML, which browsers draw without a script from elsewhere."""
    translator.body.append(convert(node.astext(), display="block" if isinstance(node, nodes.math_block) else "inline"))
    raise nodes.SkipNode


def as_definitions(app: object, what: str, name: str, it: object, options: object, lines: list[str]) -> None:
    """Entries become a list of definitions, and indented formulas literal blocks, each with lines of space around."""
    made, inside = list[str](), False
    for line in lines:
        if entry := ENTRY.match(line):
            margin, names, text = entry.groups()
            made += ["", f"{margin}{names}", f"{margin}    {text}"]
            inside = True
        elif inside and line.startswith("  ") and line.strip():
            made.append(f"{margin}    {line.strip()}")
        else:
            made += ["", line] if inside and line.strip() else [line]
            inside = False
    lines[:] = made


def setup(app: Any) -> None:
    write_tables()
    app.add_html_math_renderer("mathml", inline_renderers=(write_math, None), block_renderers=(write_math, None))
    app.connect("autodoc-process-docstring", as_definitions, priority=400)
