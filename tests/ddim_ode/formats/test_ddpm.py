"""Networks of ddim and pytorch_diffusion against one of our own in their layout, and against diffusers' folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
import yaml
from diffusers import DDPMPipeline, DDPMScheduler

from ddim_ode.kinds import ModelError
from ddim_ode.models import load_model

SETTINGS: dict[str, Any] = {
    "data": {"dataset": "CIFAR10", "image_size": 8, "channels": 3, "logit_transform": False, "rescaled": True},
    "model": {
        "type": "simple",
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 2,
        "attn_resolutions": [4],
        "dropout": 0.1,
        "var_type": "fixedlarge",
        "ema_rate": 0.9999,
        "ema": True,
        "resamp_with_conv": True,
    },
    "diffusion": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "num_diffusion_timesteps": 1000},
}


def settings(folder: Path, **changes: Any) -> Path:
    """A YAML file with these ``changes``, of names with two underscores in the place of the dot."""
    content = {group: dict(values) for group, values in SETTINGS.items()}
    for name, value in changes.items():
        group, _, key = name.partition("__")
        content[group][key] = value
    path = folder / "cifar10.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def written(network: torch.nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def inputs(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, channels, 8, 8), torch.tensor([0.0, 411.5, 999.0])


def agrees(model: Any, network: torch.nn.Module, channels: int = 3) -> None:
    x, t = inputs(channels)
    expected = network(x, t)[:, :channels]
    assert float((model.network(x, t) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ({}, {}),
        ({"attn_resolutions": (8, 2), "ch_mult": (1, 2, 2)}, {"attn_resolutions": [8, 2], "ch_mult": [1, 2, 2]}),
        ({"num_res_blocks": 1, "attn_resolutions": ()}, {"num_res_blocks": 1, "attn_resolutions": []}),
        ({"in_channels": 1, "out_ch": 2}, {"in_channels": 1, "out_ch": 2}),
    ],
)
def test_it_answers_what_the_network_answers(network: Any, changes: Any, tmp_path: Path) -> None:
    theirs = layouts.shake(layouts.DDPM(**network))
    config = settings(tmp_path, **{f"model__{key}": value for key, value in changes.items()})
    model = load_model(str(written(theirs, tmp_path / "model.ckpt")), config=config)
    agrees(model, theirs, network.get("in_channels", 3))


def test_a_training_is_read_as_its_moving_average(tmp_path: Path) -> None:
    raw, average = layouts.shake(layouts.DDPM(), 1), layouts.shake(layouts.DDPM(), 2)
    wrapped = {f"module.{name}": value for name, value in raw.state_dict().items()}
    optimizer = {"state": {0: {"step": 3}}, "param_groups": [{"lr": 2e-4}]}
    config = settings(tmp_path, model__type="bayesian")
    torch.save([wrapped, optimizer, 2, 100, {**average.state_dict(), "logvar": torch.zeros(1000)}], tmp_path / "a.pth")
    agrees(load_model(str(tmp_path / "a.pth"), config=config), average)
    torch.save([wrapped, optimizer, 2, 100], tmp_path / "b.pth")
    agrees(load_model(str(tmp_path / "b.pth"), config=config), raw)
    torch.save(wrapped, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    agrees(load_model(str(tmp_path / "c.pth"), config=config), raw)


def test_it_is_the_same_model_as_a_folder_of_diffusers(tmp_path: Path) -> None:
    path = written(layouts.shake(layouts.DDPM()), tmp_path / "model.ckpt")
    model = load_model(str(path), config=str(settings(tmp_path)))
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    DDPMPipeline(model.network.unet, scheduler).save_pretrained(tmp_path / "folder")
    folder = load_model(str(tmp_path / "folder"))
    assert folder.fingerprint == model.fingerprint
    assert folder.schedule.matches(model.schedule)
    assert (model.name, model.folder, model.height, model.channels) == (str(path), None, 8, 3)
    x, t = inputs()
    assert torch.equal(folder.network(x, t), model.network(x, t))


@pytest.mark.parametrize(
    ("theirs", "betas"),
    [
        ("linear", torch.linspace(0.001, 0.03, 50, dtype=torch.float64)),
        ("quad", torch.linspace(0.001**0.5, 0.03**0.5, 50, dtype=torch.float64) ** 2),
        ("sigmoid", torch.linspace(-6, 6, 50, dtype=torch.float64).sigmoid() * 0.029 + 0.001),
    ],
)
def test_the_schedule_is_that_of_the_file(theirs: str, betas: torch.Tensor, tmp_path: Path) -> None:
    path = written(layouts.shake(layouts.DDPM()), tmp_path / "model.ckpt")
    changes = {"beta_schedule": theirs, "beta_start": "1e-3", "beta_end": 0.03, "num_diffusion_timesteps": 50}
    config = settings(tmp_path, **{f"diffusion__{key}": value for key, value in changes.items()})
    model = load_model(str(path), config=config)
    torch.testing.assert_close(model.schedule.alpha_bar, torch.cumprod(1 - betas, 0), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__ch": 64}, r"has the shape \(32, 3, 3, 3\), which does not go with '.*cifar10.yml', where"),
        ({"model__ch": "many"}, "model.ch in '.*' must be an integer from 1 to 10000, but it is 'many'; mend it"),
        ({"model__ch": 10**12}, "model.ch in '.*' must be an integer"),
        ({"model__ch": 40}, "cannot make a U-Net"),
        ({"model__ch_mult": [1, 2, 2]}, "lack: down.1.downsample"),
        ({"model__ch_mult": [2, 2]}, "begins with 2"),
        ({"model__ch_mult": {"a": 1}}, "model.ch_mult in .* must be integers from 1 to 100"),
        ({"model__ch_mult": [1] * 1000}, "64 at the most"),
        ({"model__num_res_blocks": 3}, "lack: down.0.block.2.conv1.bias"),
        ({"model__num_res_blocks": 10**6}, "must be an integer from 1 to 100"),
        ({"model__attn_resolutions": [8]}, "lack: down.0.attn.0.k.bias"),
        ({"model__resamp_with_conv": False}, "only networks that resample with convolutions"),
        ({"model__dropout": float("nan")}, "model.dropout in .* must be a number, but it is nan"),
        ({"model__type": "strange"}, "must be one of simple, bayesian, but it is 'strange'"),
        ({"model__in_channels": 4, "model__out_ch": 4}, r"has the shape"),
        ({"data__rescaled": False}, r"only networks of pixels in \[-1, 1\]"),
        ({"data__image_size": 10**9}, "data.image_size in .* must be an integer from 1 to 8192"),
        ({"diffusion__beta_schedule": "jsd"}, "must be one of linear, quad, sigmoid, but it is 'jsd'"),
        ({"diffusion__beta_end": 7}, r"betas of 'linear-1000' must lie in \(0, 1\)"),
        ({"diffusion__num_diffusion_timesteps": 1}, "must be an integer from 2 to"),
    ],
)
def test_settings_of_another_network_are_refused(changes: Any, said: str, tmp_path: Path) -> None:
    path = written(layouts.shake(layouts.DDPM()), tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match=said) as caught:
        load_model(str(path), config=settings(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_without_its_settings_it_says_what_to_add(tmp_path: Path) -> None:
    path = written(layouts.shake(layouts.DDPM()), tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match="does not say its schedule; add --config FILE, its YAML file"):
        load_model(str(path))
