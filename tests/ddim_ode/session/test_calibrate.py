"""Calibration: trajectories are solutions, fits are judged on what they have not seen, and worse ones are refused."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddim_ode.codec import draw_latents
from ddim_ode.grids import make_grid
from ddim_ode.models import Model
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule
from ddim_ode.session import calibrate as module
from ddim_ode.session.calibrate import Candidate, Effort, Result, calibrate, choose
from ddim_ode.session.trajectories import walk

SCHEDULE = make_schedule()
MODES = torch.tensor([-0.8, 0.5], dtype=torch.float64)
SD = 0.2


class Mixture(nn.Module):
    """The true eps of two kinds of pixels, N(-0.8, 0.2^2) and N(0.5, 0.2^2), which are equally frequent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1, dtype=torch.float64)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        sigma = SCHEDULE.sigma(t.double()).reshape(-1, 1, 1, 1, 1)
        offsets = (x * (1 + sigma[..., 0] ** 2).sqrt())[..., None] - MODES
        variance = SD**2 + sigma**2
        pulls = (-(offsets**2) / (2 * variance)).softmax(-1) * sigma / variance
        return (pulls * offsets).sum(-1)


class Gaussian(nn.Module):
    """The true eps of data N(0, SD^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1, dtype=torch.float64)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        sigma = SCHEDULE.sigma(t.double()).reshape(-1, 1, 1, 1)
        return sigma * x * (1 + sigma**2).sqrt() / (SD**2 + sigma**2)


def model(network: nn.Module) -> Model:
    return Model("true", network, VariancePreserving(SCHEDULE, "epsilon"), 1, 4, 4)


def pictures(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    kinds = MODES[torch.randint(2, (count, 1, 4, 4), generator=generator)]
    return kinds + SD * torch.randn(kinds.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("upward", [True, False])
def test_trajectories_are_solutions_everywhere(upward: bool) -> None:
    """Of Gaussian data: x_bar / sqrt(SD^2 + sigma^2) is constant. Read off at nodes and between them."""
    grid = make_grid(SCHEDULE, "log-snr", 200)
    x_bar = torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    begin = grid.sigmas[0 if upward else -1]
    found = walk(model(Gaussian()), x_bar, grid, upward=upward, batch_size=2, label="")
    for sigma in (grid.sigmas[0], grid.sigmas[7], 0.1234, 1.0, 33.3, grid.sigmas[-1]):
        expected = x_bar * sqrt((SD**2 + sigma**2) / (SD**2 + begin**2))
        torch.testing.assert_close(found.at(sigma), expected, rtol=2e-5, atol=0)
    assert len(found.along(make_grid(SCHEDULE, "karras", 9))) == 10
    assert found.take(slice(1)).at(1.0).shape == (1, 1, 4, 4)
    with pytest.raises(ValueError, match="sigma = 200 lies outside"):
        found.at(200.0)


@pytest.fixture
def effort(monkeypatch: pytest.MonkeyPatch) -> Effort:
    monkeypatch.setattr(module, "SOLVER", "reab2")
    return Effort(("euler", "log-snr"), budgets=(4,), latents=96, reference_steps=100)


def test_a_calibration_is_better_on_images_of_its_own(effort: Effort, tmp_path: Path) -> None:
    """Judged once more, here, on latents of another seed and against a walk of another number of steps."""
    true = model(Mixture())
    calibration = calibrate(true, pictures(24), effort, tmp_path)
    (entry,) = calibration.entries
    assert calibration.fingerprint == true.fingerprint
    assert entry.fitted
    x_T = draw_latents(40, (1, 4, 4), seed=77)
    fine = make_grid(SCHEDULE, "karras", 400)
    truth = walk(true, x_T * sqrt(1 + fine.sigma_T**2), fine, upward=False, batch_size=40, label="").at(fine.sigmas[0])
    errors = {}
    for name, solver, grid in (
        ("auto", module.fitted(entry.solver, entry.grid.sigmas, entry.up, entry.down), entry.grid),
        ("default", module.SOLVERS["euler"], make_grid(SCHEDULE, "log-snr", 4)),
    ):
        errors[name] = float((module.decode(true.ode(), x_T, grid, solver) - truth).square().mean().sqrt())
    assert errors["auto"] < 0.5 * errors["default"]
    assert entry.scores["decode"] == pytest.approx(errors["auto"], rel=0.5)
    assert entry.scores["decode of the default"] == pytest.approx(errors["default"], rel=0.5)


def test_what_is_worse_than_an_uncalibrated_rival_is_refused(effort: Effort) -> None:
    weights = ((0.1, 0.2),) * 4
    results = [
        Result(Candidate("euler", "log-snr", 4, False), (), (), GOOD),
        Result(Candidate("reab2", "capped-50", 4, False), (), (), {**GOOD, "latent": 0.01, "moment": 0.5}),
        Result(Candidate("reab2", "capped-50", 4, True), weights, weights, {**GOOD, "decode": 0.05, "latent": 0.02}),
    ]
    assert choose(results, model(Mixture()), effort).solver == "euler"
    assert choose([results[0], results[2]], model(Mixture()), effort).solver == "reab2"


class Broken(Gaussian):
    """A network that gives NaN for images whose first pixel is bright, at small noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        bad = (x[:, :1, :1, :1] > 0.99) & (t < 3).reshape(-1, 1, 1, 1)
        return super().forward(x, t).where(~bad, torch.nan)


def test_what_the_network_fails_on_is_named_before_anything_is_fitted(effort: Effort, tmp_path: Path) -> None:
    images = pictures(6).clamp(-0.9, 0.9)
    images[[2, 5], :, 0, 0] = 1.0
    with pytest.raises(ValueError, match=r"^reference images: .* not finite for: c, f; leave them out$"):
        calibrate(model(Broken()), images, replace(effort, batch_size=2, seed=2), tmp_path, names="abcdef")
    assert not list(tmp_path.glob("*.json"))


def test_errors_that_are_no_numbers_are_never_written(
    effort: Effort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_rmse", lambda error: torch.nan)
    with pytest.raises(ValueError, match=r"no solver leads to finite numbers in \d+ steps with model 'true'; look at"):
        calibrate(model(Mixture()), pictures(8), effort, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets": (5, 81)}, "from 1 to 80 steps, but 81 are asked for"),
        ({"budgets": (0,)}, "from 1 to 80 steps, but 0 are asked for"),
        ({"latents": 1}, "there must be 2 latents or more"),
        ({"seed": -1}, "a seed must be at least 0"),
    ],
)
def test_no_effort_is_made_in_vain(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Effort(("euler", "log-snr"), **changes)


def test_what_does_not_fit_into_memory_is_refused_with_what_would(tmp_path: Path, effort: Effort) -> None:
    words = r"of 1000000000 latents and 4 images take \d+ GB of memory, and there are \d+; take at most \d"
    with pytest.raises(ValueError, match=words):
        calibrate(model(Mixture()), pictures(4), replace(effort, latents=10**9), tmp_path)


def test_work_is_not_done_twice(effort: Effort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = model(Mixture())
    first = calibrate(true, pictures(8), effort, tmp_path)
    assert {"latents.pt", "images.pt"} <= {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(module, "walk", None)
    monkeypatch.setattr(module, "try_out", None)
    assert calibrate(true, pictures(8), effort, tmp_path) == first


GOOD = {"decode": 0.1, "latent": 0.1, "round_trip": 0.1, "moment": 0.02}


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({**GOOD, "decode": 0.05}, "reab2"),
        ({**GOOD, "decode": 0.001, "latent": 0.11}, "euler"),
        ({**GOOD, "decode": 0.001, "round_trip": inf}, "euler"),
        ({**GOOD, "decode": 0.05, "moment": 0.03}, "euler"),
        ({**GOOD, "decode": 0.05, "moment": 0.02}, "reab2"),
    ],
)
def test_what_is_worse_anywhere_is_refused(effort: Effort, scores: dict[str, float], chosen: str) -> None:
    results = [
        Result(Candidate("euler", "log-snr", 4, False), (), (), GOOD),
        Result(Candidate("reab2", "quad", 4, True), ((0.1, 0.2),) * 4, ((0.1, 0.2),) * 4, scores),
    ]
    entry = choose(results, model(Mixture()), effort)
    assert entry.solver == chosen
    assert entry.scores["decode of the default"] == 0.1


def test_decoding_counts_as_much_as_what_encoding_takes_part_in(effort: Effort) -> None:
    """Half the error of decoding is worth more than two fifths of that of the latents."""
    results = [
        Result(Candidate("euler", "log-snr", 4, False), (), (), GOOD),
        Result(
            Candidate("reab2", "capped-50", 4, True), ((0.1, 0.2),) * 4, ((0.1, 0.2),) * 4, {**GOOD, "latent": 0.04}
        ),
        Result(
            Candidate("reab2", "capped-200", 4, True), ((0.1, 0.2),) * 4, ((0.1, 0.2),) * 4, {**GOOD, "decode": 0.05}
        ),
    ]
    for order in (results, results[::-1]):
        assert choose(order, model(Mixture()), effort).grid.name == "capped-200"


def test_a_candidate_that_blows_up_is_infinitely_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*arguments: object) -> dict[str, float]:
        raise module.SolverError("the state is not finite")

    monkeypatch.setattr(module, "judge", explode)
    result = module.try_out(model(Mixture()), None, Candidate("ab4", "log-snr", 6, False))  # type: ignore[arg-type]
    assert set(result.scores.values()) == {inf}
