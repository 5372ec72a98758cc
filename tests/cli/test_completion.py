"""Completion in the shell: what click offers for the words that are typed, as bash asks for it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from ddim_ode.cli import main
from ddim_ode.solvers import SOLVERS
from ddim_ode.spacings import GRIDS

TYPED = {
    "enc": ["plain,encode"],
    "encode --solver dpmpp": sorted(f"plain,{name}" for name in SOLVERS if name.startswith("dpmpp")),
    "encode --grid l": sorted(f"plain,{name}" for name in GRIDS if name.startswith("l")),
    "encode --model d": ["file,d"],
    "encode pho": ["file,pho"],
    "decode a.pt -o pict": ["file,pict"],
    "analyze rec": ["plain,reconstruction"],
}


@pytest.mark.parametrize("typed", TYPED)
def test_words_are_completed(typed: str) -> None:
    words = f"ddim-ode {typed}"
    asked = {"_DDIM_ODE_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    found = CliRunner().invoke(main, [], prog_name="ddim-ode", env=asked)
    assert TYPED[typed]
    assert sorted(found.output.split()) == TYPED[typed]
