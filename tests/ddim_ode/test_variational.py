"""Theorem 1 of the DDIM paper: over models, the objective of a process and its weighted loss differ by a constant."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import sqrt

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ddim_ode.family import ForwardProcess, forward_process
from ddim_ode.grids import make_grid
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.schedule import make_schedule
from ddim_ode.variational import denoising_losses, loss_weights, objective

SCHEDULE = make_schedule()
Eps = Callable[[Tensor, Tensor], Tensor]
# All signs in two dimensions: the mean over them is the expectation over N(0, I) of a polynomial of degree up to 3.
SIGNS = torch.tensor(list(product((-1.0, 1.0), repeat=2)), dtype=torch.float64).reshape(4, 1, 1, 2)
DATA = torch.tensor([[0.9, -0.4], [0.1, 0.7], [-0.8, 0.2]], dtype=torch.float64).reshape(3, 1, 1, 2)
X_0 = DATA.repeat_interleave(4, 0)


def process_of_eta(eta: float) -> ForwardProcess:
    process = forward_process(make_grid(SCHEDULE, "karras", 4, clean_end="zero"), eta)
    return ForwardProcess(process.sigmas, (0.03, *process.ups[1:]))


PROCESSES = {
    "eta 0.2": process_of_eta(0.2),
    "eta 1": process_of_eta(1.0),
    "arbitrary": ForwardProcess((0.1, 0.5, 2.0, 30.0), (0.3, 0.08, 0.02, 1.9)),
}
EPS = SIGNS.repeat(3, 1, 1, 1).expand(4, 12, 1, 1, 2)


def model(seed: int, *, linear: bool = False) -> ProbabilityFlowODE:
    """Random weights, another function at each t."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(2, 2, generator=generator, dtype=torch.float64) for _ in range(2))

    def eps(x: Tensor, t: Tensor) -> Tensor:
        inner = x @ first + (t / 200).cos().reshape(-1, 1, 1, 1)
        return inner if linear else inner.tanh() @ second

    return ProbabilityFlowODE(eps, SCHEDULE)


def by_definition(process: ForwardProcess, ode: ProbabilityFlowODE) -> float:
    """E log q(x_1, ..., x_T | x_0) - log p(x_0, ..., x_T), Eq. (11), in the paper's letters, from the densities.

    The expectation over x_{t-1} given x_t and x_0 is over all signs, and exact: the logarithms are quadratic in it.
    """
    alpha = [1.0, *(1 / (1 + sigma**2) for sigma in process.sigmas)]
    std = [0.0, *(up * sqrt(alpha[t]) for t, up in enumerate(process.ups))]

    def log_density(x: Tensor, mean: Tensor, scale: float) -> Tensor:
        return Normal(mean, scale).log_prob(x).flatten(1).sum(1).mean()

    def mean_of_step(x_t: Tensor, x_0: Tensor, t: int) -> Tensor:
        noise = (x_t - sqrt(alpha[t]) * x_0) / sqrt(1 - alpha[t])
        return sqrt(alpha[t - 1]) * x_0 + sqrt(1 - alpha[t - 1] - std[t] ** 2) * noise

    x_0, eps, z = X_0.repeat_interleave(4, 0), EPS[0].repeat_interleave(4, 0), SIGNS.repeat(12, 1, 1, 1)
    total = torch.tensor(0.0, dtype=torch.float64)
    for t in range(1, 5):
        x_t = sqrt(alpha[t]) * x_0 + sqrt(1 - alpha[t]) * eps
        predicted = ode(torch.tensor(sqrt(1 / alpha[t] - 1), dtype=torch.float64), x_t / sqrt(alpha[t]))
        guess = (x_t - sqrt(1 - alpha[t]) * predicted) / sqrt(alpha[t])
        if t == 1:
            total -= log_density(x_0, guess, std[1])
        else:
            mean = mean_of_step(x_t, x_0, t)
            before = mean + std[t] * z
            total += log_density(before, mean, std[t]) - log_density(before, mean_of_step(x_t, guess, t), std[t])
    x_T = sqrt(alpha[4]) * x_0 + sqrt(1 - alpha[4]) * eps
    return float(total + log_density(x_T, sqrt(alpha[4]) * x_0, sqrt(1 - alpha[4])) - log_density(x_T, 0 * x_T, 1.0))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_objective_is_what_its_definition_says(process: ForwardProcess, linear: bool) -> None:
    """For linear models both are the exact expectation."""
    for seed in range(3):
        ode = model(seed, linear=linear)
        assert float(objective(ode, process, X_0, EPS)) == pytest.approx(by_definition(process, ode), rel=1e-10)
        assert ode.nfe == 8


def differences(process: ForwardProcess, gamma: Tensor) -> Tensor:
    """J - L_gamma of eight models, in parts of the spread of J among them."""
    objectives = torch.stack([objective(model(seed), process, X_0, EPS) for seed in range(8)])
    losses = torch.stack([denoising_losses(model(seed), process, X_0, EPS) for seed in range(8)])
    return (objectives - losses @ gamma) / objectives.std()


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_theorem_1(process: ForwardProcess) -> None:
    found = differences(process, loss_weights(process))
    assert float(found.max() - found.min()) < 1e-11


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_each_weight_counts(process: ForwardProcess) -> None:
    """Which says that the test above can fail; here with a weight that is off by a hundredth, for each t."""
    for t in range(4):
        gamma = loss_weights(process)
        gamma[t] *= 1.01
        found = differences(process, gamma)
        assert float(found.max() - found.min()) > 1e-9


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_the_weights_that_the_appendix_prints_do_not_fit(process: ForwardProcess, dimension: int) -> None:
    """1 / (2 d sigma_t^2 alpha_t), whether d is taken for the dimension or for 1."""
    alpha = [1.0, *(1 / (1 + sigma**2) for sigma in process.sigmas)]
    printed = [1 / (2 * dimension * up**2 * alpha[t - 1] * alpha[t]) for t, up in enumerate(process.ups, start=1)]
    found = differences(process, torch.tensor(printed, dtype=torch.float64))
    assert float(found.max() - found.min()) > 0.1


def test_the_term_of_x_0_has_a_weight_of_its_own() -> None:
    """(1 - alpha_1) / (2 sigma_1^2 alpha_1) in the paper's letters; the noise of the other steps plays no part."""
    (weight,) = loss_weights(ForwardProcess((0.5,), (0.2,))).tolist()
    alpha = 1 / 1.25
    assert weight == pytest.approx((1 - alpha) / (2 * 0.2**2 * alpha), rel=1e-12)


def test_without_noise_there_is_no_weight() -> None:
    for function in (loss_weights, lambda process: objective(model(0), process, X_0, EPS)):
        with pytest.raises(ValueError, match="the step from x_1 to x_0 adds no noise"):
            function(forward_process(make_grid(SCHEDULE, "karras", 4), 1.0))
