"""Reversible methods walk back the way they came, to rounding, on a field that no order of accuracy could save."""

from __future__ import annotations

import pytest
import torch
from flows import CORRELATED, SIGMA_MAX, real, relative_error
from torch import Tensor

from solvers import SOLVERS, ReversibleHeun

each_reversible_solver = pytest.mark.parametrize(
    "solver", [s for s in SOLVERS.values() if isinstance(s, ReversibleHeun)], ids=lambda s: s.name
)


def rough(sigma: Tensor, x: Tensor) -> Tensor:
    """As a lightly trained network may be: without bound on its change in sigma, and with one in x."""
    return torch.sin(2 * x / (1 + sigma)) + (13 * sigma).cos()


@each_reversible_solver
@pytest.mark.parametrize("steps", [1, 6, 20, 50])
@pytest.mark.parametrize(("begin", "end"), [(0.01, SIGMA_MAX), (SIGMA_MAX, 0.01)], ids=["encode", "decode"])
def test_the_pair_leads_back_exactly(solver: ReversibleHeun, begin: float, end: float, steps: int) -> None:
    grid = real(begin) * (end / begin) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    start = CORRELATED.data * max(begin, 1)
    pair = solver.both(rough, start, start, grid)
    x, x_hat = solver.both(rough, *pair, grid.flip(0))
    assert relative_error(x, start) < 1e-10
    assert relative_error(x_hat, start) < 1e-10


@each_reversible_solver
def test_one_state_alone_does_not(solver: ReversibleHeun) -> None:
    grid = real(0.01) * (SIGMA_MAX / 0.01) ** torch.linspace(0, 1, 11, dtype=torch.float64)
    back = solver(rough, solver(rough, CORRELATED.data, grid), grid.flip(0))
    assert relative_error(back, CORRELATED.data) > 1e-3


@each_reversible_solver
def test_stacked_is_both_in_one_batch(solver: ReversibleHeun) -> None:
    grid = real([0.5, 1.0, 3.0])
    x, x_hat = CORRELATED.data, CORRELATED.data.flip(0)
    together = solver.stacked(CORRELATED.field, torch.cat([x, x_hat]), grid)
    assert torch.equal(together, torch.cat(solver.both(CORRELATED.field, x, x_hat, grid)))
