"""The multistep family: its weights, and its members beside the schedulers of diffusers that implement the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from math import log2

import numpy as np
import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    IPNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from flows import CORRELATED, MIXTURE, real, relative_error, steps_of_two_sizes
from hypothesis import given
from hypothesis import strategies as st
from numpy.polynomial import Polynomial
from scipy.integrate import quad
from torch import Tensor

from ddim_ode.solvers import SOLVERS
from ddim_ode.solvers.charts import DATA, LOG, LOG_TAN, NONE, VP_TIME, Stretch
from ddim_ode.solvers.fixed import FixedStepSolver
from ddim_ode.solvers.multistep import (
    _EQUAL_STEPS,
    AdamsBashforthStep,
    _History,
    integration_weights,
    moment_bh1,
    moment_bh2,
)

# diffusers hands torch tensors to numpy's old protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

each_stretch = pytest.mark.parametrize("stretch", [NONE, LOG, LOG_TAN, VP_TIME], ids=lambda s: s.name)


@each_stretch
@given(
    gaps=st.lists(st.floats(0.02, 0.3), max_size=3),
    coefficients=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    begin=st.floats(0.1, 1.4),
    end=st.floats(0.1, 1.4),
)
def test_weights_integrate_polynomials_in_v(
    stretch: Stretch, gaps: list[float], coefficients: list[float], begin: float, end: float
) -> None:
    """n nodes, at any distances: exact below degree n in v, integrated over u. scipy integrates beside."""
    nodes = np.cumsum([0.1, *gaps]).tolist()
    polynomial = Polynomial(coefficients[: len(nodes)])
    weights = integration_weights(nodes, begin, end, stretch)
    terms = [w * polynomial(stretch.v(node)) for w, node in zip(weights, nodes, strict=True)]
    exact = quad(lambda u: polynomial(stretch.v(u)), begin, end, epsabs=1e-13, epsrel=1e-13)[0]
    assert sum(terms) == pytest.approx(exact, abs=1e-9 * (1 + sum(map(abs, terms))))


@pytest.mark.parametrize("moment", [moment_bh1, moment_bh2])
@each_stretch
def test_shortcuts_of_the_first_moment_are_good_to_second_order(
    stretch: Stretch, moment: Callable[[Stretch, float, float], float]
) -> None:
    def defect(h: float) -> float:
        exact = quad(lambda u: stretch.v(u) - stretch.v(0.5), 0.5, 0.5 + h, epsabs=1e-14)[0]
        return abs(moment(stretch, 0.5, 0.5 + h) - exact) / h**2

    assert defect(0.01) < 0.6 * defect(0.02) + 1e-9


def test_weights_of_equal_steps_are_the_exact_ones() -> None:
    for k, weights in _EQUAL_STEPS.items():
        assert integration_weights([float(i) for i in range(1 - k, 1)], 0.0, 1.0) == pytest.approx(weights)


# diffusers keeps sigmas and coefficients in float32, and solves for the latter in it. The least that two of these
# methods differ by is tested to be ten times as much.
ROUNDING = 2e-4
STEPS = 12


def by_diffusers(scheduler: SchedulerMixin, *, karras: bool = True) -> tuple[Tensor, list[Tensor]]:
    """The scheduler's sigmas above 0, falling, and its states x_bar there, with the field ``CORRELATED``."""
    scheduler.set_timesteps(STEPS)
    sigmas = scheduler.sigmas.double().unique_consecutive()  # some repeat the last
    sigmas = sigmas[sigmas > 0]
    scale = (1 + sigmas**2).sqrt()
    x_bar = [CORRELATED.at(float(sigmas[0]))]
    for i, t in enumerate(scheduler.timesteps[: len(sigmas) - 1]):
        eps = CORRELATED.field(sigmas[i], x_bar[-1])
        x_bar.append(scheduler.step(eps, t, x_bar[-1] / scale[i]).prev_sample * scale[i + 1])
    return sigmas, x_bar


def options(**more: object) -> dict[str, object]:
    return {"use_karras_sigmas": True, "final_sigmas_type": "zero", "lower_order_final": False, **more}


def walk(solver: FixedStepSolver, sigmas: Tensor) -> list[Tensor]:
    """Its states at all of ``sigmas``."""
    start = CORRELATED.at(float(sigmas[0]))
    return [start, *(solver(CORRELATED.field, start, sigmas[:n]) for n in range(2, len(sigmas) + 1))]


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("moment", ["bh1", "bh2"])
@pytest.mark.parametrize("form", ["eps", "data"])
def test_unipc_is_that_of_diffusers(order: int, moment: str, form: str) -> None:
    scheduler = UniPCMultistepScheduler(**options(solver_order=order, solver_type=moment, predict_x0=form == "data"))
    sigmas, theirs = by_diffusers(scheduler)
    ours = walk(SOLVERS[f"unipc{order}-{moment}-{form}"], sigmas)
    assert max(map(relative_error, ours, theirs)) < ROUNDING


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("unipc2-bh1-eps", "unipc2-bh2-eps"),
        ("unipc2-bh1-data", "unipc2-bh2-data"),
        ("unipc2-bh2-data", "unipc3-bh2-data"),
        ("unipc3-bh1-eps", "unipc3-bh1-data"),
        ("unipc2-bh2-data", "dpmpp2m"),
        ("deis2", "deis-tab2"),
        ("deis2", "deis3"),
    ],
)
def test_the_comparisons_can_tell_one_method_from_another(one: str, other: str) -> None:
    sigmas, _ = by_diffusers(UniPCMultistepScheduler(**options()))
    assert max(map(relative_error, walk(SOLVERS[one], sigmas), walk(SOLVERS[other], sigmas))) > 10 * ROUNDING


@pytest.mark.parametrize(
    ("solver", "scheduler"),
    [
        ("dpmpp2m", DPMSolverMultistepScheduler(**options(algorithm_type="dpmsolver++", solver_type="midpoint"))),
        ("deis2", DEISMultistepScheduler(**{k: v for k, v in options().items() if k != "final_sigmas_type"})),
    ],
)
def test_second_order_members_are_those_of_diffusers(solver: str, scheduler: SchedulerMixin) -> None:
    sigmas, theirs = by_diffusers(scheduler)
    assert max(map(relative_error, walk(SOLVERS[solver], sigmas), theirs)) < ROUNDING


def test_line_with_its_exact_moment_is_diffusers_dpm_solver_of_the_type_heun() -> None:
    solver = replace(SOLVERS["dpmpp2m"], step=AdamsBashforthStep(2, LOG))
    sigmas, theirs = by_diffusers(
        DPMSolverMultistepScheduler(**options(algorithm_type="dpmsolver++", solver_type="heun"))
    )
    assert max(map(relative_error, walk(solver, sigmas), theirs)) < ROUNDING


def test_deis3_takes_the_steps_of_diffusers_once_it_has_three_slopes() -> None:
    """The start differs: theirs is of first order, which leaves an error of second order behind."""
    scheduler = DEISMultistepScheduler(use_karras_sigmas=True, solver_order=3, lower_order_final=False)
    sigmas, theirs = by_diffusers(scheduler)
    slopes = [CORRELATED.field(sigma, x) for sigma, x in zip(sigmas, theirs, strict=True)]
    for n in range(2, len(sigmas) - 1):
        history = _History((0.0, theirs[0]), n, tuple(sigmas[n - 2 : n].tolist()), tuple(slopes[n - 2 : n]))
        x, _ = AdamsBashforthStep(3, LOG)(CORRELATED.field, sigmas[n], sigmas[n + 1], theirs[n], history)
        assert relative_error(x, theirs[n + 1]) < ROUNDING


def test_third_order_of_dpm_solver_is_ours_and_not_that_of_diffusers() -> None:
    """From three exact slopes one step should be off by O(h^4). Diffusers halves the last term, and has O(h^3)."""
    scheduler = DPMSolverMultistepScheduler(**options(solver_order=3))

    def errors(h: float) -> tuple[float, float]:
        sigmas = 2.0 * torch.exp(-h * real([0.0, 1.0, 2.0, 3.0]))
        states = [MIXTURE.at(float(sigma)) for sigma in sigmas]
        data = [x - sigma * MIXTURE.field(sigma, x) for sigma, x in zip(sigmas, states, strict=True)]
        scheduler.set_timesteps(STEPS)
        scheduler.sigmas, scheduler._step_index = sigmas, 2
        scale = (1 + sigmas**2).sqrt()
        theirs = scheduler.multistep_dpm_solver_third_order_update(data[:3], sample=states[2] / scale[2]) * scale[3]
        step = SOLVERS["dpmpp3m"].step
        history = _History((0.0, states[0]), 2, tuple((1 / sigmas[:2]).tolist()), tuple(data[:2]))
        field, y = DATA.pull_back(MIXTURE.field), DATA.enter(states[2], sigmas[2])
        ours = DATA.leave(step(field, 1 / sigmas[2], 1 / sigmas[3], y, history)[0], sigmas[3])
        return relative_error(ours, states[3]), relative_error(theirs, states[3])

    (ours, theirs), (ours_half, theirs_half) = errors(0.01), errors(0.005)
    assert log2(ours / ours_half) == pytest.approx(4, abs=0.2)
    assert log2(theirs / theirs_half) == pytest.approx(3, abs=0.2)


def test_ipndm_has_the_coefficients_of_diffusers() -> None:
    """Its own time is another, in which diffusers walks; the combinations of slopes are the same."""
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(STEPS)
    slopes = [torch.full((1, 1, 1, 1), 3.0**i, dtype=torch.float64) for i in range(6)]
    field = iter(slopes)
    state, combined = None, []
    for u, u_next in pairwise(real(range(7)).unbind()):
        x, state = SOLVERS["ipndm4"].step(lambda u, x: next(field), u, u_next, torch.zeros_like(slopes[0]), state)
        combined.append(float(x))
    scheduler.alphas, scheduler.betas = torch.ones(STEPS + 1), torch.zeros(STEPS + 1)
    taken: list[float] = []
    scheduler._get_prev_sample = lambda sample, i, j, ets: taken.append(float(ets)) or sample
    for t, slope in zip(scheduler.timesteps, slopes, strict=False):
        scheduler.step(slope, t, slope)
    assert combined == pytest.approx(taken)


def test_adams_bashforth_keeps_its_order_from_the_start_in_every_chart() -> None:
    """Beside a start of first order, which falls to second order; see ``deis3`` above."""
    grids = [steps_of_two_sizes(0.3, 10.3, steps) for steps in (64, 128)]
    errors = [relative_error(SOLVERS["reab3"](MIXTURE.field, MIXTURE.at(0.3), g), MIXTURE.at(10.3)) for g in grids]
    assert log2(errors[0] / errors[1]) > 2.8
