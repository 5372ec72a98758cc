"""The loss against its closed form for Gaussian data, and the timesteps it is taken at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ddim_ode.predictions import PREDICTIONS
from ddim_ode.schedule import NoiseSchedule, make_schedule
from ddim_ode.training.objective import GAMMAS, denoising_loss, stratified_timesteps

SD = 0.5
COUNT = 40_000
# (x, t) -> output
Network = Callable[[Tensor, Tensor], Tensor]


def best_network(schedule: NoiseSchedule, prediction: str) -> Network:
    """The network with the smallest loss for data N(0, SD^2): E[eps | x], or what follows from it."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = schedule.alpha_bar[t.long()].reshape(-1, 1, 1, 1)
        eps = (1 - alpha_bar).sqrt() * x / (alpha_bar * SD**2 + 1 - alpha_bar)
        x_0 = (x - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()
        return PREDICTIONS[prediction].target(x_0, eps, alpha_bar)

    return network


def draw() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    noise, data = torch.randn((2, COUNT, 1, 2, 2), generator=generator, dtype=torch.float64)
    return SD * data, noise


@pytest.mark.parametrize("t", [0, 300, 999])
@pytest.mark.parametrize("gamma", [*GAMMAS, None])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_of_the_best_network_is_the_variance_that_x_leaves(prediction: str, gamma: str | None, t: int) -> None:
    """Var(eps | x) = SD^2 / (SD^2 + sigma^2), times gamma, or times the network's own where none is given."""
    schedule = make_schedule()
    x_0, noise = draw()
    timesteps = torch.full((COUNT,), t)
    found = denoising_loss(best_network(schedule, prediction), schedule, prediction, x_0, timesteps, noise, gamma=gamma)
    sigma = float(schedule.sigma(t))
    own = float(PREDICTIONS[prediction].own_gamma(schedule.alpha_bar[t]))
    weight = {"1": 1.0, "1/alpha_bar": 1 + sigma**2, None: own}[gamma]
    assert found.shape == (COUNT,)
    assert float(found.mean()) == pytest.approx(weight * SD**2 / (SD**2 + sigma**2), rel=0.02)


@pytest.mark.parametrize("count", [7, 128, 1000])
def test_timesteps_are_stratified(count: int) -> None:
    """Each of ``count`` equal stretches of [0, T) holds one of them."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        t = stratified_timesteps(count, 1000, generator)
        assert t.shape == (count,)
        assert int(t.min()) >= 0
        assert int(t.max()) <= 999
        gaps = torch.cat([t.sort().values, t.min()[None] + 1000]).diff()
        assert int(gaps.max()) <= 1000 // count + 1
        assert not t.equal(t.sort().values)


def test_every_timestep_is_as_likely_as_any_other() -> None:
    """Chi-squared with 9 degrees of freedom, at the first place of a batch; above 33.7 with probability 1e-4."""
    generator = torch.Generator().manual_seed(2)
    first = torch.stack([stratified_timesteps(16, 10, generator)[0] for _ in range(2000)])
    counts = torch.bincount(first, minlength=10).double()
    assert float(((counts - 200) ** 2 / 200).sum()) < 33.7
