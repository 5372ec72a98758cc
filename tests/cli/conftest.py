"""A tiny model in a folder, a few pictures, and a way to call the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from PIL import Image

from cli import main

Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_model(seed=..., beta_end=..., clip_sample=...)``: the folder of an untrained U-Net of 8 x 8 pixels."""

    def make(*, seed: int = 0, beta_end: float = 0.02, clip_sample: bool = False) -> Path:
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8,),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            add_attention=False,
        )
        scheduler = DDIMScheduler(beta_end=beta_end, clip_sample=clip_sample, prediction_type="v_prediction")
        folder = tmp_path_factory.mktemp("model")
        DDIMPipeline(unet, scheduler).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., Path]) -> Path:
    """The model that ``cli`` uses."""
    return make_model()


@pytest.fixture
def cli(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``cli("encode", "a.png", ...)`` in an empty folder; uses the tiny model unless one is named."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Result:
        words = [str(argument) for argument in arguments]
        if words and words[0] in ("encode", "decode", "reconstruct", "sample") and "--model" not in words:
            words += ["--model", str(tiny_model)]
        return CliRunner().invoke(main, words)

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A colourful PNG of 12 x 10 pixels."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    return path
