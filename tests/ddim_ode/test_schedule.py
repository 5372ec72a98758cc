"""The noise schedule against diffusers, against published values, and against its own inverse."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim_ode.schedule import BETA_SCHEDULES, NoiseSchedule, make_schedule, schedule_from_diffusers

STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULES = {
    "linear": make_schedule("linear"),
    "scaled_linear": schedule_from_diffusers(STABLE_DIFFUSION),
    "squaredcos_cap_v2": make_schedule("squaredcos_cap_v2"),
    "sigmoid": make_schedule("sigmoid"),
    "short": make_schedule("linear", timesteps=2),
    "trained_betas": schedule_from_diffusers({"trained_betas": np.geomspace(1e-5, 0.5, 37).tolist()}),
}

schedules = st.sampled_from(sorted(SCHEDULES)).map(SCHEDULES.__getitem__)
parts = st.floats(0, 1)


@pytest.mark.parametrize("kind", [DDIMScheduler, DDPMScheduler])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"beta_schedule": "linear", "beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 400},
        STABLE_DIFFUSION,
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 200},
        {"trained_betas": [0.001, 0.004, 0.03, 0.2, 0.9], "num_train_timesteps": 5},
    ],
    ids=str,
)
def test_alpha_bar_is_that_of_diffusers(kind: type, config: dict[str, object]) -> None:
    check_against_diffusers(schedule_from_diffusers(config), kind(**config))


def test_the_sigmoid_schedule_is_that_of_diffusers() -> None:
    """Only DDPMScheduler knows it."""
    config = {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.03, "num_train_timesteps": 600}
    check_against_diffusers(schedule_from_diffusers(config), DDPMScheduler(**config))


def check_against_diffusers(ours: NoiseSchedule, theirs: DDIMScheduler | DDPMScheduler) -> None:
    """Their table is a float32 product: it holds sigma to 1e-3 at small t, and alpha_bar to 1e-4 at large t."""
    table = theirs.alphas_cumprod.double()
    assert len(ours) == len(table)
    torch.testing.assert_close(ours.alpha_bar, table, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.sigma(torch.arange(len(ours))), ((1 - table) / table).sqrt(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", sorted(BETA_SCHEDULES))
def test_a_config_without_betas_has_the_defaults_of_the_named_schedule(name: str) -> None:
    assert schedule_from_diffusers({"beta_schedule": name, "_class_name": "X"}).matches(make_schedule(name))


@pytest.mark.parametrize(
    ("name", "t", "sigma"),
    [
        ("linear", 0, "0.0100005"),
        ("linear", 800, "25.74"),
        ("linear", 980, "130.14"),
        ("linear", 999, "157.407"),
        ("scaled_linear", 0, "0.02917"),
        ("scaled_linear", 1, "0.0413"),
        ("scaled_linear", 981, "13.12"),
        ("scaled_linear", 999, "14.6146"),
        ("squaredcos_cap_v2", 0, "0.00643"),
        ("squaredcos_cap_v2", 990, "71.3"),
    ],
)
def test_published_sigmas_to_their_last_digit(name: str, t: int, sigma: str) -> None:
    decimals = len(sigma.split(".")[1])
    assert f"{float(SCHEDULES[name].sigma(t)):.{decimals}f}" == sigma


@given(schedules, parts)
@settings(max_examples=300)
def test_sigma_of_t_of_sigma_is_sigma(schedule: NoiseSchedule, part: float) -> None:
    sigma = schedule.sigma_min * (schedule.sigma_max / schedule.sigma_min) ** part
    assert float(schedule.sigma(schedule.t(sigma))) == pytest.approx(sigma, rel=1e-11)


@given(schedules, parts)
@settings(max_examples=300)
def test_t_of_sigma_of_t_is_t(schedule: NoiseSchedule, part: float) -> None:
    t = part * (len(schedule) - 1)
    assert float(schedule.t(schedule.sigma(t))) == pytest.approx(t, abs=1e-9)


@given(schedules, st.lists(parts, min_size=2, max_size=20, unique_by=lambda part: round(part, 6)))
@settings(max_examples=200)
def test_sigma_rises_with_t_and_t_with_sigma(schedule: NoiseSchedule, values: list[float]) -> None:
    t = torch.tensor(sorted(values), dtype=torch.float64) * (len(schedule) - 1)
    sigma = schedule.sigma(t)
    assert bool((sigma.diff() > 0).all())
    assert bool((schedule.t(sigma).diff() > 0).all())


@given(parts)
@settings(max_examples=100)
def test_t_of_sigma_is_that_of_diffusers(part: float) -> None:
    """Its Euler scheduler interpolates like k-diffusion: linearly in log sigma."""
    schedule = SCHEDULES["scaled_linear"]
    sigma = schedule.sigma_min * (schedule.sigma_max / schedule.sigma_min) ** part
    log_sigmas = schedule.sigma(torch.arange(len(schedule))).log().numpy()
    theirs = EulerDiscreteScheduler(**STABLE_DIFFUSION)._sigma_to_t(np.array([sigma]), log_sigmas)
    assert float(schedule.t(sigma)) == pytest.approx(float(theirs[0]), abs=1e-8)


def test_beyond_the_ends_of_training_t_stays_at_the_ends() -> None:
    schedule = SCHEDULES["linear"]
    sigmas = torch.tensor([-math.inf, -0.3, 0.0, 1e-30, schedule.sigma_min / 2, schedule.sigma_max * 2, math.inf])
    assert schedule.t(sigmas).tolist() == [0, 0, 0, 0, 0, 999, 999]


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_both_maps_keep_the_shape_and_compute_in_float64(shape: tuple[int, ...]) -> None:
    values = torch.ones(shape, dtype=torch.float32)
    for result in (SCHEDULES["linear"].sigma(values), SCHEDULES["linear"].t(values)):
        assert result.shape == shape
        assert result.dtype == torch.float64


@pytest.mark.parametrize("t", [-1e-9, 999.001, 1000, math.nan, [0, 5, -3]])
def test_sigma_refuses_timesteps_that_were_not_trained(t: float | list[float]) -> None:
    with pytest.raises(ValueError, match=r"^timesteps must lie in \[0, 999\], but they span \["):
        SCHEDULES["linear"].sigma(torch.tensor(t, dtype=torch.float64))


def test_schedules_match_up_to_rounding_only() -> None:
    schedule = SCHEDULES["linear"]
    assert schedule.matches(NoiseSchedule("another name", schedule.alpha_bar * (1 - 1e-12)))
    assert not schedule.matches(NoiseSchedule("linear", schedule.alpha_bar * (1 - 1e-7)))
    assert not schedule.matches(make_schedule("linear", timesteps=999))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([0.5], "must have shape (T,) with T >= 2, but its shape is (1,)"),
        ([[0.9, 0.5]], "must have shape (T,) with T >= 2, but its shape is (1, 2)"),
        ([0.9, 0.0, 0.0], "must lie strictly between 0 and 1, or be 0 at its end, but it spans [0, 0.9]"),
        ([0.9, 0.5, -0.1], "must lie strictly between 0 and 1, or be 0 at its end, but it spans [-0.1, 0.9]"),
        ([1.0, 0.5], "must lie strictly between 0 and 1, or be 0 at its end, but it spans [0.5, 1]"),
        ([0.9, math.nan], "must lie strictly between 0 and 1"),
        ([0.9, 0.5, 0.5], "of schedule 'mine' must fall strictly with t"),
        ([0.5, 0.9], "of schedule 'mine' must fall strictly with t"),
    ],
)
def test_a_table_that_is_no_schedule_is_refused(table: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        NoiseSchedule("mine", torch.tensor(table))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"beta_schedule": "laplace"},
            "unknown schedule 'laplace'; choose one of: linear, scaled_linear, sigmoid, squaredcos_cap_v2",
        ),
        ({"beta_end": 1.5}, "betas of 'linear-1000' must lie in (0, 1), but span [0.0001, 1.5]"),
        ({"beta_start": 0}, "betas of 'linear-1000' must lie in (0, 1), but span [0.0, 0.02]"),
        ({"beta_start": None}, "beta_start must be a number, but it is None"),
        ({"num_train_timesteps": "many"}, "num_train_timesteps must be a number, but it is 'many'"),
        ({"num_train_timesteps": 1}, "a schedule needs at least 2 timesteps, but it has 1"),
        ({"num_train_timesteps": -5}, "a schedule needs at least 2 timesteps, but it has -5"),
        ({"trained_betas": [0.1, -0.1]}, "betas of 'trained_betas-2' must lie in (0, 1), but span [-0.1, 0.1]"),
        ({"trained_betas": []}, "must have shape (T,) with T >= 2, but its shape is (0,)"),
        ({"trained_betas": 0.1}, "must have shape (T,) with T >= 2, but its shape is ()"),
        ({"trained_betas": "few"}, "trained_betas must be a list of numbers"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_followed_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        schedule_from_diffusers(config)
