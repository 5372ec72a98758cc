"""Models' folders that are hostile, over every command that takes them: one line, and nothing else happens.

To add one, add a line to ``MODELS``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import Edit, call, refused, there
from safetensors.torch import load_file, save_file

from ddim_ode.calibration import Calibration, Entry, Learned, save_calibration
from ddim_ode.grids import make_grid
from ddim_ode.models import load_model


def config(**changes: object) -> Edit:
    """Change the configuration of the network."""
    return _json("unet/config.json", changes)


def scheduler(**changes: object) -> Edit:
    """Change the scheduler."""
    return _json("scheduler/scheduler_config.json", changes)


def _json(name: str, changes: Mapping[str, object]) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def written(name: str, content: bytes) -> Edit:
    """Put another content into a file."""

    def edit(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return edit


def renamed(prefix: str) -> Edit:
    """Weights with a prefix before their names."""

    def edit(folder: Path) -> None:
        path = folder / WEIGHTS
        save_file({prefix + name: value for name, value in load_file(path).items()}, path)

    return edit


def _replace(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _spoil(folder: Path, value: float) -> None:
    """Put ``value`` into one of the weights."""
    state = load_file(folder / WEIGHTS)
    next(iter(state.values())).view(-1)[0] = value
    save_file(state, folder / WEIGHTS)


def _calibrate(folder: Path, corrections: tuple[tuple[float, ...], ...], solver: str = "reab3") -> None:
    """Write a calibration for 50 steps."""
    model = load_model(str(folder))
    learned = Learned(corrections)
    entry = Entry(solver, make_grid(model.schedule, "log-snr", 50), learned, learned, {})
    save_calibration(Calibration(model.fingerprint, (entry,), {}), folder / "calibration.json")


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
MODELS: Mapping[str, Edit] = {
    "nothing in it": lambda folder: shutil.rmtree(folder / "unet"),
    "no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights empty": written(WEIGHTS, b""),
    "weights zeros": written(WEIGHTS, bytes(1000)),
    "weights a text": written(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"),
    "weights of a module": renamed("module."),
    "weights compiled": renamed("_orig_mod."),
    "config empty": written("unet/config.json", b""),
    "config a list": written("unet/config.json", b"[]"),
    "config no text": written("unet/config.json", b"\xff\xfe\xfa"),
    "scheduler empty": written("scheduler/scheduler_config.json", b""),
    "scheduler a number": written("scheduler/scheduler_config.json", b"1"),
    "another network": config(_class_name="UNet2DConditionModel"),
    "size of 8.0": config(sample_size=8.0),
    "size a string": config(sample_size="ab"),
    "size two strings": config(sample_size=["8", "8"]),
    "size 0": config(sample_size=0),
    "size None": config(sample_size=None),
    "2 channels": config(in_channels=2, out_channels=2),
    "4 channels": config(in_channels=4, out_channels=4),
    "5 channels": config(in_channels=5, out_channels=5),
    "norm_num_groups 0": config(norm_num_groups=0),
    "norm_num_groups -1": config(norm_num_groups=-1),
    "norm_num_groups true": config(norm_num_groups=True),
    "norm_eps a string": config(norm_eps="x"),
    "norm_eps NaN": config(norm_eps=float("nan")),
    "freq_shift None": config(freq_shift=None),
    "freq_shift a list": config(freq_shift=[[1]]),
    "mid_block_scale_factor 0": config(mid_block_scale_factor=0),
    "layers of 1e7": config(layers_per_block=10_000_000),
    "size of 1e6": config(sample_size=1_000_000),
    "config deep": written("unet/config.json", b"[" * 100_000),
    "scheduler deep": written("scheduler/scheduler_config.json", b"[" * 100_000),
    "config a device": lambda folder: _replace(folder / "unet/config.json", "/dev/zero"),
    "weights NaN": lambda folder: _spoil(folder, torch.nan),
    "weights infinite": lambda folder: _spoil(folder, torch.inf),
    "timesteps of 30 digits": scheduler(num_train_timesteps=10**30),
    "timesteps of 400 digits": scheduler(num_train_timesteps=10**400),
    "timesteps broken": scheduler(num_train_timesteps=1000.5),
    "norm_num_groups 3": config(norm_num_groups=3),
    "layers a string": config(layers_per_block="two"),
    "blocks empty": config(block_out_channels=[]),
    "block unknown": config(down_block_types=["SideBlock2D"]),
    "classes": config(num_class_embeds=10),
    "timesteps infinite": scheduler(num_train_timesteps=float("inf")),
    "timesteps a string": scheduler(num_train_timesteps="1000"),
    "timesteps 1": scheduler(num_train_timesteps=1),
    "timesteps negative": scheduler(num_train_timesteps=-5),
    "beta of 2": scheduler(beta_end=2.0),
    "beta NaN": scheduler(beta_start=float("nan")),
    "betas empty": scheduler(trained_betas=[]),
    "betas nested": scheduler(trained_betas=[[0.1, 0.2], [0.3, 0.4]]),
    "betas strings": scheduler(trained_betas=["a", "b"]),
    "betas an object": scheduler(trained_betas={"a": 1}),
    "schedule unknown": scheduler(beta_schedule="exponential-ish"),
    "prediction unknown": scheduler(prediction_type="score"),
    "prediction a list": scheduler(prediction_type=["epsilon"]),
    "flow in one timestep": scheduler(use_flow_sigmas=True, num_train_timesteps=1),
    "flow in a fraction of timesteps": scheduler(prediction_type="flow_prediction", num_train_timesteps=10.5),
    "EDM without data": scheduler(_class_name="EDMEulerScheduler", sigma_data=0, prediction_type="epsilon"),
    "EDM backwards": scheduler(_class_name="EDMEulerScheduler", sigma_min=80, sigma_max=1),
    "EDM NaN": scheduler(_class_name="EDMEulerScheduler", sigma_max=float("nan")),
    "EDM of another prediction": scheduler(_class_name="EDMEulerScheduler", prediction_type="sample"),
    "zero SNR of eps": scheduler(rescale_betas_zero_snr=True, prediction_type="epsilon"),
    **{
        f"scheduler {name}": scheduler(_class_name=name)
        for name in (
            "FlowMatchLCMScheduler",
            "ScoreSdeVeScheduler",
            "CMStochasticIterativeScheduler",
            "LCMScheduler",
            "TCDScheduler",
            "VQDiffusionScheduler",
            "DDPMWuerstchenScheduler",
        )
    },
    "autoencoder": written("vae/config.json", b"{}"),
    "quantizer": written("vqvae/config.json", b"{}"),
    "calibration for 50 steps with wrong corrections": lambda folder: _calibrate(folder, ((0.0,) * 4,) * 50),
    "calibration for 50 steps without corrections": lambda folder: _calibrate(folder, ((),) * 50),
    "calibration for 50 steps by another kind of solver": lambda folder: _calibrate(folder, (), "scipy-RK45"),
    "calibration empty": written("calibration.json", b""),
    "calibration a list": written("calibration.json", b"[]"),
    "calibration of another format": written("calibration.json", b'{"format": "mine"}'),
    "calibration a folder": lambda folder: (folder / "calibration.json").mkdir(),
}
MODEL_COMMANDS: Sequence[Sequence[str]] = (
    ("encode", "good.png"),
    ("decode", "good.pt", "--solver", "auto"),
    ("reconstruct", "good.png"),
    ("sample", "-n", "1"),
    ("interpolate", "--seed", "1", "--seed", "2"),
    ("info", "--", "MODEL"),
    ("calibrate", "--images", ".", "--steps", "2", "--latents", "4"),
    ("analyze", "cross-solver", "--images", ".", "--count", "1", "--nfe", "1", "--out", "rows"),
)


@pytest.mark.parametrize("words", MODEL_COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("name", MODELS)
def test_models(
    name: str, words: Sequence[str], good: Path, latent: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    torch.save(latent, tmp_path / "good.pt")
    shutil.copytree(tiny_model, tmp_path / "BAD")
    MODELS[name](tmp_path / "BAD")
    before = there(tmp_path)
    of_model = () if words[0] == "info" else ("--model", "BAD")
    result = call(*("BAD" if word == "MODEL" else word for word in words), *of_model)
    if "calibration" in name and words[0] in ("calibrate", "analyze"):
        return  # which make a new one, or have no use for it
    if "for 50 steps" in name and words[0] in ("decode", "info"):
        return  # which take another number of them, or none
    refused(result)
    assert there(tmp_path) == before
