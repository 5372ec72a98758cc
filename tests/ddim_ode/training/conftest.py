"""A folder of pictures, and settings for a network that trains in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddim_ode.training.settings import Settings

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
    "add_attention": False,
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten PNGs of 8 x 8 pixels that grow brighter to the right, in two folders of one folder."""
    folder = tmp_path / "pictures"
    random = np.random.default_rng(0)
    for i in range(10):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        ramp = np.linspace(0.2, 1, 8)[None, :, None] * random.integers(100, 256, 3)
        Image.fromarray(np.broadcast_to(ramp, (8, 8, 3)).astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def make_settings() -> Callable[..., Settings]:
    """``make_settings(steps=..., ...)``: those of a small run; other values as ``Settings`` has them."""

    def make(**values: Any) -> Settings:
        length = {} if "minutes" in values else {"steps": 6}
        return Settings(**{"unet": UNET, "batch_size": 4, **length, **values})

    return make
