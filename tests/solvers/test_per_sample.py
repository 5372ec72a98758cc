"""Steps for each sample: none depends on its batch mates, each pays for itself, and one that fails is named."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from flows import MIXTURE, SIGMA_MAX, Field, Recorded, level, real
from scipy.integrate import RK23
from torch import Tensor

from ddim_ode.solvers import Cost, PerSampleSolver, SolverError, get_solver
from ddim_ode.solvers.per_sample import PER_SAMPLE_SOLVERS

BOSH3 = get_solver("per-sample-bosh3", rtol=1e-3, atol=1e-3)
each_per_sample_solver = pytest.mark.parametrize(
    "solver", [replace(s, rtol=1e-3, atol=1e-3) for s in PER_SAMPLE_SOLVERS], ids=lambda s: s.name
)
both_directions = pytest.mark.parametrize("ends", [(0.0, SIGMA_MAX), (SIGMA_MAX, 0.0)], ids=["encode", "decode"])


def sixteen(sigma: float) -> Tensor:
    """States that need steps of very different sizes: some in the data's midst at ``sigma``, some far off."""
    noise = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return noise * (1 + sigma) * torch.logspace(-1, 2, 16, dtype=torch.float64)[:, None, None, None]


def solved(solver: PerSampleSolver, field: Field, x: Tensor, grid: Tensor) -> tuple[Tensor, Cost]:
    """The state at the end, and what each member cost."""
    solution = solver.solve(field, x, grid)
    assert solution.cost is not None
    return solution.x, solution.cost


@each_per_sample_solver
@both_directions
def test_a_member_of_a_batch_of_sixteen_is_what_it_is_alone(solver: PerSampleSolver, ends: tuple[float, float]) -> None:
    x = sixteen(ends[0])
    together, cost = solved(solver, MIXTURE.field, x, real(ends))
    for i, member in enumerate(x.split(1)):
        alone, cost_alone = solved(solver, MIXTURE.field, member, real(ends))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-11, atol=1e-11)
        assert (cost.accepted[i], cost.rejected[i]) == (cost_alone.accepted, cost_alone.rejected)


def test_in_a_solver_of_the_whole_batch_it_is_not() -> None:
    """So that the batch of the test above can tell."""
    solver = get_solver("torchdiffeq-bosh3", rtol=1e-3, atol=1e-3)
    x, ends = sixteen(0.0), real([0.0, SIGMA_MAX])
    together, alone = solver(MIXTURE.field, x, ends)[:1], solver(MIXTURE.field, x[:1], ends)
    assert float((together - alone).abs().max()) > 1e-3


@each_per_sample_solver
@both_directions
def test_statistics_are_the_evaluations_of_each_member(solver: PerSampleSolver, ends: tuple[float, float]) -> None:
    """Those who have arrived are not evaluated any more, and the batch costs what its dearest member does."""
    sizes: list[int] = []

    def field(sigma: Tensor, x: Tensor) -> Tensor:
        sizes.append(len(x))
        return MIXTURE.field(sigma, x)

    _, cost = solved(solver, field, sixteen(ends[0]), real(ends))
    assert sum(sizes) == int(cost.evaluations.sum())
    assert len(sizes) == int(cost.evaluations.max()) > int(cost.evaluations.min())
    assert sizes == sorted(sizes, reverse=True)
    assert cost.evaluations.tolist() == (2 + len(solver.pair.a) * (cost.accepted + cost.rejected)).tolist()


@each_per_sample_solver
def test_the_order_of_the_batch_is_kept_whoever_arrives_first(solver: PerSampleSolver) -> None:
    x, ends = sixteen(0.0), real([0.0, 5.0])
    turned = solver(MIXTURE.field, x.flip(0), ends).flip(0)
    torch.testing.assert_close(solver(MIXTURE.field, x, ends), turned, rtol=1e-11, atol=1e-11)


def test_an_easy_member_costs_little_beside_a_hard_one() -> None:
    def field(sigma: Tensor, x: Tensor) -> Tensor:
        return torch.where(x > 0, (40 * level(sigma, x)).cos(), 0.1 * x)

    _, cost = solved(BOSH3, field, real([[5.0], [-1.0]]), real([0.0, 3.0]))
    assert cost.accepted[0] > 5 * cost.accepted[1]
    assert cost.rejected[0] > 0


@each_per_sample_solver
def test_all_members_end_at_the_end(solver: PerSampleSolver) -> None:
    """The state tells where it is, on dx/dsigma = 1 / (1 + sigma); an error in sigma would be seen in it."""
    solver = replace(solver, rtol=1e-6, atol=1e-6)
    x = solver(lambda sigma, x: level(1 / (1 + sigma), x).expand_as(x), real([0.0, 1.0, -20.0]), real([0.0, 0.7]))
    torch.testing.assert_close(x - real([0.0, 1.0, -20.0]), torch.full_like(x, log(1.7)), rtol=0, atol=5e-5)


def test_the_pair_is_scipys() -> None:
    a = BOSH3.pair.a
    assert [list(row) for row in a[:-1]] == [row[: i + 1].tolist() for i, row in enumerate(RK23.A[1:])]
    assert a[-1] == tuple(RK23.B)
    assert BOSH3.pair.error == pytest.approx(-RK23.E, abs=1e-15)


def blow_up(sigma: Tensor, x: Tensor) -> Tensor:
    """From x at 0 the solution is 1 / (1 / x - sigma): it ends at sigma = 1 / x."""
    return x**2


@each_per_sample_solver
def test_the_member_whose_solution_ends_early_is_named(solver: PerSampleSolver) -> None:
    """A step may lead a little past the end of the solution."""
    words = r"stopped at sigma = (0\.99|1\.00)\d* of 2 with sample 1: its step fell to \S+ of .* larger rtol\.$"
    with pytest.raises(SolverError, match=f"^{solver.name} {words}"):
        solver(blow_up, real([0.1, 1.0, -1.0]), real([0.0, 2.0]))


@each_per_sample_solver
def test_the_member_whose_slope_is_not_finite_is_named(solver: PerSampleSolver) -> None:
    def field(sigma: Tensor, x: Tensor) -> Tensor:
        return torch.where((x > 1.5) & (sigma > 1), float("nan"), x)

    with pytest.raises(SolverError, match=rf"^{solver.name}: the slope is not finite at sigma = .* of sample 2: check"):
        solver(field, real([0.1, 0.2, 1.0, 0.3]), real([0.0, 2.0]))


@each_per_sample_solver
def test_an_empty_batch_stays_empty(solver: PerSampleSolver) -> None:
    x, cost = solved(solver, lambda sigma, x: x, torch.zeros(0, 3), real([0.0, 1.0]))
    assert x.shape == (0, 3)
    assert cost.evaluations.shape == (0,)


def test_slopes_are_kept_from_one_step_to_the_next() -> None:
    """Three evaluations for each step tried, and two for the first slope and the first step."""
    field = Recorded(MIXTURE.field)
    _, cost = solved(BOSH3, field, MIXTURE.data[:1], real([0.0, 5.0]))
    assert field.nfe == 2 + 3 * int(cost.accepted + cost.rejected)


@each_per_sample_solver
def test_a_step_that_errs_too_much_is_not_taken(solver: PerSampleSolver) -> None:
    """A slope that jumps from 0 to 10 at sigma = 1, after steps that nothing kept short: x is 20 at sigma = 3."""
    x = solver(lambda sigma, x: 10.0 * (level(sigma, x) > 1).expand_as(x), real([0.0, 0.1]), real([0.0, 3.0]))
    torch.testing.assert_close(x, real([20.0, 20.1]), rtol=0, atol=0.1)


class Apart:
    """A field of which each member has its own, at ``rates``, ``(B,)``: dx/dsigma = rate x."""

    def __init__(self, rates: Tensor) -> None:
        self.rates = rates

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        assert len(x) == len(self.rates)
        return self.rates[:, None] * x

    def of(self, members: Tensor) -> Apart:
        return Apart(self.rates[members])


@each_per_sample_solver
def test_a_field_with_members_of_its_own_is_asked_for_those_on_their_way(solver: PerSampleSolver) -> None:
    """Whoever has arrived before, each goes on with its own rate; so each is what it is alone."""
    rates, solver = real([0.1, -3.0, 1.0, 0.0]), replace(solver, rtol=1e-6, atol=1e-6)
    x, cost = solved(solver, Apart(rates), torch.ones(4, 1).double(), real([0.0, 2.0]))
    torch.testing.assert_close(x[:, 0], (2 * rates).exp(), rtol=1e-4, atol=1e-4)
    assert len(set(cost.evaluations.tolist())) > 1
