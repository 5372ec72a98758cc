"""Finding the device to compute on."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """The device called ``name``: 'cpu', 'cuda', 'mps', or 'auto' for the fastest there is.

    Raises:
        ValueError: if this machine or this build of torch has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available.get(name, False):
        there = ", ".join(device for device, there in available.items() if there)
        raise ValueError(f"device '{name}' is not available here; choose one of: auto, {there}")
    return torch.device(name)
