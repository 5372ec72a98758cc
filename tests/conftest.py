"""What every room's tests share: settings, and an untrained model in a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

# Several processes at a time, each with a thread: networks are small here. Before torch is imported, and for those that
# tests start in their turn.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from hypothesis import settings

# No deadline, since the machine is shared; and the same examples on every run.
settings.register_profile("project", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("project")


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_model(seed=..., beta_end=..., ...)``: the folder of an untrained U-Net of 8 x 8 pixels."""

    def make(
        *,
        seed: int = 0,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        clip_sample: bool = False,
        prediction: str = "v_prediction",
        labels: int | None = None,
    ) -> Path:
        torch.manual_seed(seed)
        unet = UNet2DModel(
            sample_size=8,
            block_out_channels=(8,),
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            add_attention=False,
            num_class_embeds=labels,
        )
        scheduler = DDIMScheduler(
            beta_start=beta_start, beta_end=beta_end, clip_sample=clip_sample, prediction_type=prediction
        )
        folder = tmp_path_factory.mktemp("model")
        DDIMPipeline(unet, scheduler).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model: Callable[..., Path]) -> Path:
    """The model that ``cli`` uses."""
    return make_model()


@pytest.fixture(scope="session")
def class_model(make_model: Callable[..., Path]) -> Path:
    """One that knows the classes cat, dog and horse."""
    folder = make_model(labels=4)
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id2label": {"0": "cat", "1": "dog", "2": "horse"}}))
    return folder
