"""Models made of a network at hand, of any family: a module, a function, or what a factory in somebody's code returns.

model = from_module(net, process=Flow(), shape=(3, 64, 64))
Session(model).encode("photo.jpg")
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from torch import Tensor, nn

from ddim_ode.kinds import ModelError
from ddim_ode.model import Model
from ddim_ode.predictor import Network
from ddim_ode.processes import Process


class Function(nn.Module):
    """A function ``(x, t)`` as a module without weights."""

    def __init__(self, function: Network) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and labels t ``(B,)`` to ``(B, C, H, W)``."""
        return self._function(x, t)


def from_module(
    network: Network | nn.Module, *, process: Process, shape: tuple[int, int, int], name: str = "module"
) -> Model:
    """A model of ``network``, which takes x ``(B, C, H, W)`` and labels ``(B,)`` as its ``process`` says.

    A module is set to ``eval``, and stays where it is; what a function refers to is not known, and so models of
    functions are all alike to latent files.

    ``shape``  (C, H, W) of the images, in [-1, 1].
    ``name``   what messages and files call it.

    Raises:
        ValueError: if the shape is not of three positive numbers.
    """
    if len(shape) != 3 or not all(type(size) is int and size > 0 for size in shape):
        raise ValueError(f"shape must be (C, H, W), three positive integers, but it is {shape}")
    module = network.eval() if isinstance(network, nn.Module) else Function(network)
    return Model(name, module, process, *shape, shared=True)


def model_from_factory(name: str) -> Model:
    """The model that the function ``name``, of the form package.module:factory, returns; it is imported and called.

    Modules of the current folder are found too.

    Raises:
        ModelError: if there is no such function, it fails, or it returns something else.
    """
    place, _, function = name.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        model = getattr(importlib.import_module(place), function)()
    except Exception as error:  # whatever somebody's code raises
        raise ModelError(f"cannot make a model with '{name}': {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if not isinstance(model, Model):
        raise ModelError(
            f"'{name}' returns a {type(model).__name__}; it should return a Model: see ddim_ode.from_module"
        )
    return model
