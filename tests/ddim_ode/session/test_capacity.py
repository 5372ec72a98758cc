"""The size of batches follows from what a network takes: here one whose time and memory are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from ddim_ode import Session
from ddim_ode.cli import main
from ddim_ode.models import Model
from ddim_ode.networks import KnowingClasses
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule
from ddim_ode.session import capacity
from ddim_ode.session import session as module
from ddim_ode.session.capacity import find_batch_size


class Known(nn.Module):
    """A network that takes as long for one image as for ``even``, and has room for ``room`` of them."""

    def __init__(self, clock: Clock, even: int, room: int) -> None:
        super().__init__()
        self.clock, self.even, self.room = clock, even, room

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.clock.now += max(len(x), self.even)
        return x


class KnownWithClasses(KnowingClasses):
    none = 2

    def __init__(self, network: Known) -> None:
        super().__init__()
        self.network = network

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        answer: Tensor = self.network(x, t)
        return answer


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("even", "room", "plain", "with_classes"), [(8, 10**6, 8, 8), (10**6, 20, 16, 8), (1, 1, 1, 1)]
)
def test_a_batch_is_as_large_as_is_worth_it_and_fits(
    even: int, room: int, plain: int, with_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that knows classes twice as many fit, for guidance."""
    clock = Clock()
    monkeypatch.setattr(capacity, "time", clock)
    process = VariancePreserving(make_schedule(), "epsilon")
    known = Known(clock, even, room)
    assert find_batch_size(Model("known", known, process, 1, 2, 2)) == plain
    model = Model("known", KnownWithClasses(known), process, 1, 2, 2, classes=("cat", "dog"))
    assert find_batch_size(model) == with_classes


def test_a_session_that_finds_it_itself_does_the_same_work(tiny_model: Path, tmp_path: Path) -> None:
    session = Session(tiny_model, batch_size="auto")
    assert session.batch_size & (session.batch_size - 1) == 0
    given, found = (list(own.sample(3, steps=2)) for own in (Session(tiny_model, batch_size=2), session))
    for one, other in zip(given, found, strict=True):
        torch.testing.assert_close(one.picture.image, other.picture.image, rtol=0, atol=1e-5)
    words = ["sample", "--model", str(tiny_model), "-n", "2", "--steps", "1", "--batch-size", "auto"]
    result = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output


def test_a_session_of_a_compiled_network_tries_it_as_it_was(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size would be compiled anew."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: lambda *_: pytest.fail("it was called compiled"))
    assert Session(tiny_model, compile=True, batch_size="auto").batch_size >= 1


def test_it_is_found_anew_only_where_calls_grow(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another guidance, or in another size; a prompt alone changes nothing."""
    found = list[Model]()
    monkeypatch.setattr(module, "find_batch_size", lambda model: found.append(model) or len(found))
    session = Session(tiny_model, batch_size="auto")

    def ask(changes: Mapping[str, Any]) -> Model:
        asked = {**(session.model.asked or {}), **changes}
        return replace(session.model, asked=asked, height=changes.get("height", session.model.height))

    session.model = replace(session.model, ask=ask, asked={"prompt": "", "guidance": 1.0})
    assert session.asked_for(prompt="a cat").batch_size == 1
    assert session.asked_for(guidance=1.0).batch_size == 1
    assert session.asked_for(guidance=7.5).batch_size == 2
    assert session.asked_for(height=16).batch_size == 3
