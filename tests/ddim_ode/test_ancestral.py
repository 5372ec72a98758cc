"""Sampling with noise is what diffusers does with the same noise, step by step; without noise it is Euler's method."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from ddim_ode.ancestral import Ancestral, seeded_noise
from ddim_ode.codec import decode, encode
from ddim_ode.family import forward_process, noise_of_sigma_hat
from ddim_ode.grids import CLEAN_ENDS, Grid, grid_of_timesteps, make_grid
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.schedule import make_schedule
from ddim_ode.solvers import get_solver
from ddim_ode.spacings import GRIDS

SCHEDULE = make_schedule()
SHAPE = (2, 3, 4, 5)


class Recorded:
    """An arbitrary network, nonlinear and mixing neighbours, that keeps its inputs: ``xs``, and their ``ts``."""

    def __init__(self) -> None:
        self.xs: list[Tensor] = []
        self.ts: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.xs.append(x)
        self.ts.append(float(t[0]))
        phase = (t / 300).reshape(-1, 1, 1, 1)
        return torch.tanh(x + phase.cos()) + 0.3 * x.roll(1, 1).sin() * (1 + phase) - 0.2 * x.roll(1, -1) / (1 + x**2)


def draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noises() -> Callable[[], Tensor]:
    """Another noise on each call, the same on each series of calls."""
    seeds = count(100)
    return lambda: draw(next(seeds))


def in_float64(scheduler: DDIMScheduler | DDPMScheduler) -> DDIMScheduler | DDPMScheduler:
    """With our table in the place of its own, which is rounded to float32."""
    scheduler.alphas_cumprod = SCHEDULE.alpha_bar
    if isinstance(scheduler, DDIMScheduler):
        one = torch.tensor(1.0, dtype=torch.float64)
        scheduler.final_alpha_cumprod = one if scheduler.config.set_alpha_to_one else SCHEDULE.alpha_bar[0]
    return scheduler


def ddim(eta: float, steps: int, spacing: str, *, to_one: bool) -> tuple[Tensor, Recorded]:
    """The image and the way there of ``DDIMScheduler`` with ``noises``."""
    scheduler = in_float64(DDIMScheduler(timestep_spacing=spacing, set_alpha_to_one=to_one, clip_sample=False))
    scheduler.set_timesteps(steps)
    network, noise, x = Recorded(), noises(), draw(0)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.expand(2).double()), t, x, eta=eta, variance_noise=noise()).prev_sample
    return x, network


def ours(grid: Grid, sampler: Ancestral) -> tuple[Tensor, Recorded, ProbabilityFlowODE]:
    network = Recorded()
    ode = ProbabilityFlowODE(network, SCHEDULE)
    return decode(ode, draw(0), grid, sampler), network, ode


def assert_same_way(ours: Recorded, theirs: Recorded) -> None:
    assert ours.ts == pytest.approx(theirs.ts, abs=1e-9)
    for x, expected in zip(ours.xs, theirs.xs, strict=True):
        torch.testing.assert_close(x, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 10, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_to_sigma_zero_it_is_diffusers_ddim(spacing: str, steps: int, eta: float) -> None:
    expected, theirs = ddim(eta, steps, spacing, to_one=True)
    x_0, network, ode = ours(make_grid(SCHEDULE, spacing, steps), Ancestral(noises(), eta))
    torch.testing.assert_close(x_0, expected, rtol=1e-10, atol=1e-10)
    assert_same_way(network, theirs)
    assert ode.nfe == steps


@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_to_sigma_min_it_is_diffusers_ddim_without_set_alpha_to_one(spacing: str, eta: float) -> None:
    """Which ends at x of t = 0. Where it comes from there, with 'leading', its last step does nothing."""
    expected, theirs = ddim(eta, 10, spacing, to_one=False)
    tau = sorted(theirs.ts)
    if tau[0] == 0:
        theirs.ts.pop()
        theirs.xs.pop()
    else:
        tau = [0, *tau]
    grid = grid_of_timesteps(SCHEDULE, tau, clean_end="sigma-min")
    x_bar, network, _ = ours(grid, Ancestral(noises(), eta))
    torch.testing.assert_close(x_bar * SCHEDULE.alpha_bar[0].sqrt(), expected, rtol=1e-10, atol=1e-10)
    assert_same_way(network, theirs)


@pytest.mark.parametrize("steps", [1000, 20])
@pytest.mark.parametrize(("variance", "sigma_hat"), [("fixed_small", False), ("fixed_large", True)])
def test_eta_one_and_sigma_hat_are_diffusers_ddpm(variance: str, sigma_hat: bool, steps: int) -> None:
    """On all timesteps, where it is DDPM itself, and on some of them."""
    scheduler = in_float64(DDPMScheduler(variance_type=variance, clip_sample=False, timestep_spacing="leading"))
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(7)
    theirs, x = Recorded(), draw(0)
    for t in scheduler.timesteps:
        x = scheduler.step(theirs(x, t.expand(2).double()), t, x, generator=generator).prev_sample
    stream = torch.Generator().manual_seed(7)
    sampler = Ancestral(lambda: torch.randn(SHAPE, generator=stream, dtype=torch.float64), sigma_hat=sigma_hat)
    x_0, network, ode = ours(make_grid(SCHEDULE, "leading", steps), sampler)
    torch.testing.assert_close(x_0, x, rtol=1e-9, atol=1e-9)
    assert_same_way(network, theirs)
    assert ode.nfe == steps


def no_noise() -> Tensor:
    raise AssertionError("noise was asked for")


@pytest.mark.parametrize("clean_end", CLEAN_ENDS)
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_eta_zero_is_euler_and_draws_no_noise(name: str, clean_end: str) -> None:
    grid = make_grid(SCHEDULE, name, 13, clean_end=clean_end)
    x_0, _, _ = ours(grid, Ancestral(no_noise, eta=0.0))
    expected = decode(ProbabilityFlowODE(Recorded(), SCHEDULE), draw(0), grid, get_solver("euler"))
    torch.testing.assert_close(x_0, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma_hat", [False, True])
def test_one_step_to_sigma_zero_draws_no_noise(sigma_hat: bool) -> None:
    ours(make_grid(SCHEDULE, "trailing", 1), Ancestral(no_noise, sigma_hat=sigma_hat))


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("name", ["quad", "karras"])
def test_each_step_is_the_forward_process_with_the_guess_of_x_0(name: str, eta: float) -> None:
    grid = make_grid(SCHEDULE, name, 7)
    process, noise = forward_process(grid, eta), noises()
    _, network, _ = ours(grid, Ancestral(noises(), eta))
    for t, (x, following) in zip(
        range(len(process), 1, -1), zip(network.xs, network.xs[1:], strict=False), strict=False
    ):
        eps = Recorded()(x, SCHEDULE.t(process.sigmas[t - 1]).expand(2))
        guess = x / process.alpha_bar(t) ** 0.5 - process.sigmas[t - 1] * eps
        mean, std = process.posterior(x, guess, t)
        torch.testing.assert_close(following, mean + std * noise(), rtol=1e-11, atol=1e-11)


def test_sigma_hat_is_the_variance_beta_between_neighbours() -> None:
    """In x, where DDPM has it: of alpha_bar[t] = (1 - beta_t) alpha_bar[t - 1]."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    for t in (1, 2, 400, 999):
        up = noise_of_sigma_hat(float(SCHEDULE.sigma(t)), float(SCHEDULE.sigma(t - 1)))
        assert up**2 * float(SCHEDULE.alpha_bar[t - 1]) == pytest.approx(float(beta[t]), rel=1e-9)


def test_the_noise_of_a_sample_does_not_depend_on_its_batch() -> None:
    together = seeded_noise(range(5), SHAPE[1:], seed=3)
    apart = [seeded_noise(range(i, i + 1), SHAPE[1:], seed=3) for i in range(5)]
    for _ in range(3):
        assert together().equal(torch.cat([noise() for noise in apart]))


def test_seeded_noise_is_standard_normal_and_new_each_time() -> None:
    noise = seeded_noise(range(40), (3, 16, 16), seed=7)
    draws = torch.stack([noise(), noise()]).flatten(2)
    assert float(draws.mean()) == pytest.approx(0, abs=0.02)
    assert float(draws.var()) == pytest.approx(1, abs=0.03)
    correlations = draws.flatten(0, 1).corrcoef() - torch.eye(80)
    assert float(correlations.abs().max()) < 6 / 768**0.5
    assert not seeded_noise(range(1), (3, 16, 16), seed=8)().equal(draws[0, :1].reshape(1, 3, 16, 16))


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], from DDIM to DDPM, but it is 1.5"):
        Ancestral(noises(), eta=1.5)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        Ancestral(noises(), eta=float("nan"))
    with pytest.raises(ValueError, match=r"beside eta = 1 alone, but eta is 0\.5; leave one out"):
        Ancestral(noises(), eta=0.5, sigma_hat=True)
    with pytest.raises(ValueError, match=r"only goes down, but sigma = .* follows 0; encode with a solver"):
        encode(ProbabilityFlowODE(Recorded(), SCHEDULE), draw(0), make_grid(SCHEDULE, "linear", 5), Ancestral(noises()))
    with pytest.raises(
        ValueError, match=r"as many samples as the state, shape \(2, 3, 4, 5\), but it has \(1, 3, 4, 5\)"
    ):
        ours(make_grid(SCHEDULE, "linear", 5), Ancestral(seeded_noise(range(1), SHAPE[1:], seed=0)))
