"""The yardstick itself: every problem's field belongs to its density, and its flow to its field."""

from __future__ import annotations

import pytest
import torch
from flows import MIXTURE, PROBLEMS, Problem, correlated, gaussian, mixture, real, relative_error

each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


@each_problem
@pytest.mark.parametrize("sigma", [0.0, 0.3, 2.0])
def test_flow_moves_along_the_field(problem: Problem, sigma: float) -> None:
    """By central differences of the flow, whose error is O(step^2)."""
    x = problem.data
    step = 1e-3
    velocity = (problem.flow(x, sigma, sigma + step) - problem.flow(x, sigma, sigma - step)) / (2 * step)
    slope = problem.field(real(sigma), x)
    torch.testing.assert_close(velocity, slope, rtol=0, atol=1e-5)


@each_problem
def test_flow_returns_to_where_it_began(problem: Problem) -> None:
    assert relative_error(problem.flow(problem.at(10.0), 10.0, 0.0), problem.data) < 1e-10


def test_field_of_the_mixture_is_its_score() -> None:
    """eps = -sigma grad log p, with the density p summed up term by term."""
    weights, means, stds, sigma = real([0.4, 0.6]), real([-1.0, 0.7]), real([0.5, 0.8]), real(0.6)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64, requires_grad=True)
    terms = torch.distributions.Normal(means, (stds**2 + sigma**2).sqrt()).log_prob(x[:, None]).exp()
    (score,) = torch.autograd.grad((terms @ weights).log().sum(), x)

    images = x.detach().reshape(7, 1, 1, 1)
    slope = mixture(weights, means.reshape(2, 1, 1, 1), stds, images).field(sigma, images)

    torch.testing.assert_close(slope.flatten(), -sigma * score)


def test_problems_agree_where_they_coincide() -> None:
    """One isotropic Gaussian, written in the three ways."""
    mean, std, data = MIXTURE.data[0], real(0.7), MIXTURE.data
    plain = gaussian(mean, std, data)
    full = correlated(mean, std**2 * torch.eye(4, dtype=torch.float64), data)
    single = mixture(real([1.0]), mean[None], std[None], data)
    for other in (full, single):
        torch.testing.assert_close(other.field(real(1.3), data), plain.field(real(1.3), data))
        torch.testing.assert_close(other.at(1.3), plain.at(1.3))


@each_problem
def test_each_member_may_be_at_its_own_sigma(problem: Problem) -> None:
    sigmas = real([0.3, 5.0])
    together = problem.field(sigmas, problem.data)
    apart = [problem.field(sigma, x[None]) for sigma, x in zip(sigmas, problem.data, strict=True)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-13, atol=1e-13)
