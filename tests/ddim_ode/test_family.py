"""The forward processes have the marginals that the paper's Lemma 1 says, and at eta = 1 are DDPM's."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from torch import Tensor

from ddim_ode.family import ForwardProcess, forward_process
from ddim_ode.grids import Grid, make_grid
from ddim_ode.schedule import make_schedule

SCHEDULE = make_schedule()
X_0 = torch.tensor([0.9, -0.4, 0.1], dtype=torch.float64).reshape(1, 3, 1, 1)
CHAINS = 40_000
# Of at most 500 z-scores in this file one in 1e7 runs would reach this, were it not for the fixed seed.
BOUND = 6.0


def levels(steps: int = 5, clean_end: str = "zero") -> Grid:
    return make_grid(SCHEDULE, "karras", steps, clean_end=clean_end)


def z_scores(process: ForwardProcess) -> Tensor:
    """How many standard errors mean and variance of drawn x_T, ..., x_1 are off the marginals, by pixel."""
    generator = torch.Generator().manual_seed(1)
    shape = (CHAINS, 3, 1, 1)
    chain = process.sample(X_0.expand(shape), lambda: torch.randn(shape, generator=generator, dtype=torch.float64))
    scores = []
    for t, x_t in zip(range(len(process), 0, -1), chain, strict=True):
        alpha_bar = 1 / (1 + process.sigmas[t - 1] ** 2)
        off = x_t.flatten(1) - sqrt(alpha_bar) * X_0.flatten(1)
        scores.append(off.mean(0) / sqrt((1 - alpha_bar) / CHAINS))
        scores.append((off.square().mean(0) / (1 - alpha_bar) - 1) / sqrt(2 / CHAINS))
    return torch.cat(scores)


@pytest.mark.parametrize("clean_end", ["zero", "sigma-min"])
@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
def test_marginals(eta: float, clean_end: str) -> None:
    process = forward_process(levels(clean_end=clean_end), eta)
    assert len(process) == (5 if clean_end == "zero" else 6)
    assert float(z_scores(process).abs().max()) < BOUND


def test_marginals_with_any_other_noise() -> None:
    sigmas = (0.1, 0.5, 2.0, 30.0)
    assert float(z_scores(ForwardProcess(sigmas, (0.3, 0.1, 0.02, 1.9))).abs().max()) < BOUND


class Wrong(ForwardProcess):
    """Its steps have the noise of another process, a tenth larger, but keep as much of the old."""

    def posterior(self, x_t: Tensor, x_0: Tensor, t: int) -> tuple[Tensor, float]:
        mean, std = super().posterior(x_t, x_0, t)
        return mean, 1.1 * std


def test_a_wrong_variance_would_be_found() -> None:
    right = forward_process(levels(), 1.0)
    assert float(z_scores(Wrong(right.sigmas, right.ups)).abs().max()) > 2 * BOUND


@pytest.mark.parametrize("t", [2, 3, 500, 1000])
def test_at_eta_one_it_is_the_posterior_of_ddpm(t: int) -> None:
    """Ho et al., arXiv 2006.11239, Eq. (6) and (7), with beta in the place of all that is derived from it."""
    process = forward_process(make_grid(SCHEDULE, "linear", 1000), 1.0)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[t - 1]
    alpha_bar, before = SCHEDULE.alpha_bar[t - 1], SCHEDULE.alpha_bar[t - 2]
    x_t = torch.tensor([0.3, -2.0, 1.1], dtype=torch.float64).reshape(1, 3, 1, 1)
    mean, std = process.posterior(x_t, X_0, t)
    expected = (before.sqrt() * beta * X_0 + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - alpha_bar)
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-12)
    assert std == pytest.approx(float(((1 - before) / (1 - alpha_bar) * beta).sqrt()), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_it_is_the_formula_of_the_paper(eta: float) -> None:
    """Eq. (7) with sigma_t of Eq. (16), letter by letter."""
    process = forward_process(levels(), eta)
    x_t = torch.tensor([0.3, -2.0, 1.1], dtype=torch.float64).reshape(1, 3, 1, 1)
    for t in range(2, 6):
        alpha, before = (1 / (1 + process.sigmas[i - 1] ** 2) for i in (t, t - 1))
        sigma = eta * sqrt((1 - before) / (1 - alpha)) * sqrt(1 - alpha / before)
        expected = sqrt(before) * X_0 + sqrt(1 - before - sigma**2) * (x_t - sqrt(alpha) * X_0) / sqrt(1 - alpha)
        mean, std = process.posterior(x_t, X_0, t)
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)
        assert std == pytest.approx(sigma, rel=1e-12)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="as many noises as sigmas, at least one, but it has 1 and 2"):
        ForwardProcess((1.0, 2.0), (0.1,))
    with pytest.raises(ValueError, match="at least one, but it has 0 and 0"):
        ForwardProcess((), ())
    with pytest.raises(ValueError, match="rise strictly from above 0, but 0 follows 0"):
        ForwardProcess((0.0, 1.0), (0.1, 0.0))
    with pytest.raises(ValueError, match=r"the noise of step 2 must lie in \[0, 1\], but it is 1.5"):
        ForwardProcess((1.0, 2.0), (0.1, 1.5))
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        forward_process(levels(), -0.1)
