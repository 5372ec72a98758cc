"""The pictures that measurements are made on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ddim_ode.images import list_pictures
from ddim_ode.models import Model

CIFAR10_TEST = Path(__file__).parent / "images" / "cifar10_test"
# What a model is calibrated with unless other pictures are named.
CIFAR10_TRAIN = Path(__file__).parent / "images" / "cifar10_train"


def load_images(folder: Path, model: Model, count: int | None = None) -> tuple[Tensor, list[str]]:
    """The pictures in ``folder`` by name, as ``(B, C, H, W)`` of the model's size, pixels in [-1, 1]; and the names.

    ``count``  only so many of them, spread evenly over the folder; None for all.

    Raises:
        ValueError: if there are fewer than ``count`` pictures, or none.
    """
    paths = list_pictures(folder)
    wanted = len(paths) if count is None else count
    if not 0 < wanted <= len(paths):
        raise ValueError(f"'{folder}' holds {len(paths)} pictures, but {max(wanted, 1)} are wanted")
    chosen = [paths[i] for i in spread_over(wanted, len(paths))]
    images = [model.space.read(path)[0] for path in chosen]
    return torch.cat(images), [path.name for path in chosen]


def spread_over(count: int, total: int) -> list[int]:
    """Choose ``count`` of ``total`` indices, at even distances."""
    return [i * total // count for i in range(count)]


def rms(x: Tensor) -> Tensor:
    """The root mean square of each of ``x``, ``(B, C, H, W)``; shape ``(B,)``."""
    return x.square().flatten(1).mean(1).sqrt()


def rms_of_all(x: Tensor) -> float:
    """The root mean square of all elements of ``x``."""
    return float(x.square().mean().sqrt())
