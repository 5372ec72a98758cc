"""The speed script counts calls of the network itself, and takes the fewest that reach the target."""

from __future__ import annotations

from math import inf, isinf
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from ddim_ode.analysis import speed
from ddim_ode.analysis.options import ModelChoice
from ddim_ode.analysis.rows import load_rows
from ddim_ode.analysis.speed import DDIM, OURS, THEIRS, Bench, SpeedRow, main
from ddim_ode.codec import draw_latents

# diffusers hands torch tensors to numpy's old protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


@pytest.fixture
def bench(tiny_model: Path) -> Bench:
    return Bench(ModelChoice(str(tiny_model), "cpu").load(), "float32", False, {})


@pytest.mark.parametrize(
    ("task", "way"),
    [*(("decode", way) for way in (*OURS, *THEIRS)), *(("there and back", way) for way in (*OURS, *DDIM))],
)
def test_calls_are_those_of_the_network(bench: Bench, task: str, way: str) -> None:
    seen = []
    bench.model.network.register_forward_hook(lambda *_: seen.append(1))
    x = draw_latents(2, (3, 8, 8), seed=0).clamp(-1, 1)
    found, _, calls = bench.solve(task, way, x, 6)
    assert found.shape == x.shape
    assert calls == len(seen)
    # One more each way, of the state that is carried along.
    extra = 1 if way == "reversible-heun" else 0
    assert calls == (6 + extra) * (1 if task == "decode" else 2)


def test_the_fewest_calls_that_reach_the_target_count(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 3, 8, 8)

    def solve(task: str, way: str, x: Tensor, budget: int) -> tuple[Tensor, str, int]:
        if budget < 7:
            raise ValueError("too few")
        return x + 1 / budget, "zero", budget + 1

    monkeypatch.setattr(bench, "solve", solve)
    row = bench.at_equal_error("decode", "auto", x, 0.11, lambda found, end: float(found.max()), 1)
    assert (row.nfe, row.error) == (11, pytest.approx(0.1))
    row = bench.at_equal_error("decode", "auto", x, 0.0, lambda found, end: float(found.max()), 1)
    assert (row.nfe, row.seconds, row.error) == (0, inf, inf)


def test_memory_that_is_full_is_no_error_of_a_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def solve(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(bench, "solve", solve)
    with pytest.raises(torch.OutOfMemoryError):
        bench.at_equal_error("decode", "auto", torch.zeros(1, 3, 8, 8), 0.1, lambda *_: 0.0, 1)


def test_rows_and_table(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "BUDGETS", (5,))
    monkeypatch.setattr(speed, "DECODE_TARGETS", (1e9,))
    options = ["--model", str(tiny_model), "--device", "cpu", "--out", "out", "--count", "2", "--batch", "2"]
    options += ["--no-compile", "--stride", "100", "--repeats", "1"]
    result = CliRunner().invoke(main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = load_rows(SpeedRow, Path("out", "rows.csv"))
    assert [row.way for row in rows if row.task == "decode"] == [*OURS, *THEIRS]
    assert [(row.nfe, isinf(row.seconds)) for row in rows if row.task == "decode"] == [
        (6 if way == "reversible-heun" else 5, False) for way in (*OURS, *THEIRS)
    ]
    assert f"| decode 1e+09 | {OURS[0]} | float32 | no | 5 |" in result.output
    assert CliRunner().invoke(main, options).output == result.output
