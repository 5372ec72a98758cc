"""Sessions of pipelines: what is asked for, remembered and said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from tiny_pipelines import build, picture

from ddim_ode import Session
from ddim_ode.latents import Latent

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore::FutureWarning")
QUICK: dict[str, Any] = {"solver": "euler", "steps": 2}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A Stable Diffusion, which no test changes."""
    return build("SD 1.5")


def latent_of(pipeline: Any, prompt: str) -> Latent:
    return Session(pipeline, prompt=prompt).encode(picture(), **QUICK)


@pytest.mark.parametrize("first", ["a cat", "a dog"])
def test_corners_that_were_asked_for_something_else_are_told_of(pipeline: Any, first: str) -> None:
    """Whichever of them it is, and each once."""
    corners = [latent_of(pipeline, prompt) for prompt in (first, "a cat", "a bird", "a bird")]
    with pytest.warns(UserWarning) as told:
        found = Session(pipeline, prompt="a cat").interpolate(corners, count=2)
    assert [str(warning.message) for warning in told] == [
        f"asked for 'a cat' with guidance 1.0, and encoded as '{other}' with guidance 1.0"
        for other in (("a bird",) if first == "a cat" else ("a dog", "a bird"))
    ]
    assert "and encoded as 'a bird' with guidance 1.0" in found.report()


def test_corners_that_leave_their_prompt_out_are_told_of_by_their_hash(pipeline: Any) -> None:
    corners = [latent_of(pipeline, prompt).without_prompt() for prompt in ("a cat", "a dog on a mat")]
    with pytest.warns(UserWarning, match="told of another prompt than the one it was encoded as"):
        Session(pipeline, prompt="a cat").interpolate(corners, count=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Session(pipeline, prompt="a cat").interpolate(corners[:1], seeds=[0], count=2)
