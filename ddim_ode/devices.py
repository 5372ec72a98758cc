"""Finding the device to compute on."""

from __future__ import annotations

import torch
from torch import nn


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


def device_of(module: nn.Module) -> torch.device:
    """The device that ``module`` computes on; of one without parameters the CPU.

    One that waits elsewhere until it is called, as diffusers and accelerate offload it, computes where its hook says.
    """
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        for own in getattr(hook, "hooks", [hook]):
            device = getattr(own, "execution_device", None)
            if device is not None:
                return torch.device(device)
    parameter = next(module.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device
