"""How many images should go through a network together on the device that it is on."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from ddim_ode.codec import draw_latents, to_device
from ddim_ode.model import Model
from ddim_ode.speed import Compiled

# Twice as many must bring this much more a second, or they are not worth the memory.
_WORTH = 1.1
_MOST = 4096
_CALLS = 2


def find_batch_size(model: Model) -> int:
    """The number of images, a power of 2, from which on twice as many bring ``model`` no more of them a second, or do
    not fit.

    It is found by calling the network, or that which was compiled. Twice as many fit as it says where the network
    knows classes, since with guidance each image goes through it twice.
    """
    if isinstance(model.network, Compiled):
        model = replace(model, network=model.network.network)
    size, rate = 1, _rate(model, 1)
    while size < _MOST:
        try:
            doubled = _rate(model, 2 * size)
        except (RuntimeError, MemoryError):  # of memory that was not to be had; of another fault, the work will tell
            size = max(size // 2, 1) if model.classes else size
            break
        if doubled < _WORTH * rate:
            break
        size, rate = 2 * size, doubled
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    return size


def _rate(model: Model, size: int) -> float:
    """Images a second in batches of this ``size``."""
    ode = model.ode(conditions=[model.condition(0)] * size if model.classes else None)
    x_bar = to_device(draw_latents(1, model.space.shape, seed=0), model.device)
    x_bar = x_bar.expand(size, -1, -1, -1).contiguous()
    sigma = torch.tensor(model.schedule.sigma_min, dtype=torch.float64)
    seconds = []
    try:
        with torch.no_grad():
            for _ in range(1 + _CALLS):
                begin = time.perf_counter()
                float(ode(sigma, x_bar).sum())  # which waits for the device
                seconds.append(time.perf_counter() - begin)
    finally:
        ode.close()
    return size / min(seconds[1:])
