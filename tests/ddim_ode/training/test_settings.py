"""The length of a run, its learning rate, and settings that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ddim_ode.predictions import PREDICTIONS
from ddim_ode.training.settings import SCHEDULES, Settings, load_unet_config

MakeSettings = Callable[..., Settings]


def test_learning_rate_rises_stays_and_falls_to_zero(make_settings: MakeSettings) -> None:
    settings = make_settings(steps=10_000, learning_rate=1e-3)
    rates = [settings.learning_rate_at(step, settings.progress(step, 0)) for step in range(10_000)]
    assert rates[0] == pytest.approx(1e-3 / settings.warm_up)
    plateau = rates[settings.warm_up : round(10_000 * (1 - settings.annealed))]
    assert min(plateau) == max(plateau) == 1e-3
    falling = rates[round(10_000 * (1 - settings.annealed)) :]
    assert falling == sorted(falling, reverse=True)
    assert 0 < rates[-1] < 1e-6


def test_progress_in_time(make_settings: MakeSettings) -> None:
    settings = make_settings(minutes=10)
    assert settings.progress(10**9, 150) == 0.25
    assert settings.progress(0, 10_000) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": None}, "either a number of steps or of minutes"),
        ({"steps": 3, "minutes": 1}, "either a number of steps or of minutes"),
        ({"steps": 0}, "steps must be positive and finite, but it is 0"),
        ({"prediction": "nonsense"}, f"unknown prediction 'nonsense'; choose one of: {', '.join(sorted(PREDICTIONS))}"),
        ({"schedule": "quadratic"}, "unknown schedule 'quadratic'; choose one of: cosine, linear"),
        ({"gamma": "2"}, "unknown gamma '2'; choose one of: 1, 1/alpha_bar"),
        ({"batch_size": -1}, "batch_size must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"minutes": float("inf"), "steps": None}, "minutes must be positive and finite, but it is inf"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"label_dropout": 1.0}, "label_dropout must be at least 0 and below 1, but it is 1"),
        ({"warm_up": 0}, "warm_up must be positive and finite, but it is 0"),
        ({"annealed": 0.0}, "annealed must be positive"),
        ({"mirrored": 1}, "mirrored must be bool, but it is 1"),
        ({"classes": ("a", "b")}, "the network has num_class_embeds None, but it must be 3 for 2 classes"),
        ({"classes": ["a"]}, "classes must be tuple"),
    ],
)
def test_wrong_values_are_named(make_settings: MakeSettings, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_settings(**values)


def test_only_length_and_licence_change_when_resumed(make_settings: MakeSettings) -> None:
    settings = make_settings(steps=10)
    assert settings.resumed({}) == settings
    assert settings.resumed({"batch_size": 4}) == settings
    assert settings.resumed({"minutes": 5}) == make_settings(minutes=5)
    assert settings.resumed({"licence": "CC0"}) == make_settings(steps=10, licence="CC0")
    with pytest.raises(ValueError, match="another batch_size: 4, not 8; leave the option out"):
        settings.resumed({"batch_size": 8})


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(make_settings: MakeSettings, name: str) -> None:
    schedule = make_settings(schedule=name).make_schedule()
    assert len(schedule) == 1000
    assert schedule.sigma_max > 100


def test_unet_config_is_completed_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "unet.json"
    path.write_text(json.dumps({"sample_size": 16, "block_out_channels": [32, 32, 32, 32]}))
    config = load_unet_config(path)
    assert config["sample_size"] == 16
    assert config["in_channels"] == 3
    assert load_unet_config(None)["sample_size"] == 32
    for text, message in (
        ("{", "cannot read"),
        ("[]", "must hold a JSON object, but it holds a list"),
        ("{}", "does not say its image size"),
        ('{"sample_size": 8, "block_out_channels": 32}', "does not describe a UNet2DModel"),
        ('{"sample_size": 8, "num_class_embeds": 3}', "which follows from the pictures; leave it out, and pass --cla"),
        ('{"sample_size": 8, "out_channels": 6}', "has out_channels 6, but it must be 3"),
        ('{"sample_size": 12}', "has sample_size 12, .* must be a multiple of 8"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_unet_config(path)
