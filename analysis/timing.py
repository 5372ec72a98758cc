"""Measuring time: what is spent inside of a module, and on which machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from types import TracebackType

import torch
from torch import nn


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done what it was told to, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(call: Callable[[], object], device: torch.device) -> float:
    """The seconds that ``call`` takes on ``device``."""
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


class Stopwatch:
    """The ``seconds`` spent inside of ``module`` while this is entered: ``with Stopwatch(network) as watch: ...``."""

    def __init__(self, module: nn.Module) -> None:
        self.seconds = 0.0
        self._module = module
        self._begin = 0.0
        parameter = next(module.parameters(), None)
        self._device = torch.device("cpu") if parameter is None else parameter.device

    def __enter__(self) -> Stopwatch:
        self._hooks = (
            self._module.register_forward_pre_hook(self._start),
            self._module.register_forward_hook(self._stop),
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_: object) -> None:
        synchronize(self._device)
        self._begin = time.perf_counter()

    def _stop(self, *_: object) -> None:
        synchronize(self._device)
        self.seconds += time.perf_counter() - self._begin


def device_name(device: torch.device) -> str:
    """What a measurement says of ``device``: which GPU it is, or its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def machine() -> dict[str, object]:
    """What seconds depend on beside the device, for the settings of a measurement."""
    return {"machine": platform.machine(), "processor": platform.processor(), "threads": torch.get_num_threads()}
