"""Models whose network kills its process, for processes that others watch."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ddim_ode import Flow, Model, Session, VariancePreserving, from_module, make_schedule


class _Mortal(nn.Module):
    """A network that dies at what is almost white, and once where there is a file named by FATAL; what is almost
    black is too much for it where OUT_OF_MEMORY is set. Where BROKEN is, what is almost black breaks its device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self._broken = False

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        fatal = os.environ.get("FATAL")
        if fatal and Path(fatal).exists():
            Path(fatal).unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if bool((x.flatten(1).mean(1) > 0.95).any()):
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("OUT_OF_MEMORY") and bool((x.flatten(1).mean(1) < -0.95).any()):
            raise RuntimeError("no memory left")
        if os.environ.get("BROKEN"):
            self._broken = self._broken or bool((x.flatten(1).mean(1) < -0.95).any())
            if self._broken:
                raise torch.AcceleratorError("an illegal access")
        return self.weight * x


def make() -> Model:
    """The model."""
    return from_module(_Mortal(), process=Flow(), shape=(3, 8, 8))


def die() -> Model:
    """No model: the process ends at once."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class _Slow(nn.Module):
    """A network that takes a fifth of a second, until there is a file 'go' in ``folder``; and leaves there another,
    named by its process's parent.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self._folder = folder

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        (self._folder / str(os.getppid())).touch()
        if not (self._folder / "go").exists():
            time.sleep(0.2)
        return self.weight * x


def slow() -> Model:
    """A DDPM with that network, and the folder that SEEN names."""
    network = _Slow(Path(os.environ["SEEN"]))
    return from_module(network, process=VariancePreserving(make_schedule("linear"), "epsilon"), shape=(3, 8, 8))


def slow_session(folder: Path) -> Session:
    """A session of a slow network, whose processes can be seen in ``folder``."""
    return Session(from_module(_Slow(folder), process=Flow(), shape=(3, 8, 8)), device="cpu", batch_size=1)
