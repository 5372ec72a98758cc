"""Faster networks: in half precision, and compiled.

The state of the ODE stays in float64 or float32 whatever the network computes in, and the fingerprint is that of the
weights as they were read, so that a latent is decoded in any of these. ``analysis.precision`` measures what each costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddim_ode.dtypes import DTYPES
from ddim_ode.embeddings import Told
from ddim_ode.model import Model
from ddim_ode.networks import KnowingClasses
from ddim_ode.predictor import Closing


def in_dtype(model: Model, dtype: str) -> Model:
    """``model`` with its network, and its text encoders, in another dtype; they are changed in place.

    An autoencoder stays as it is, for its error would be that of every picture.

    Raises:
        ValueError: if there is no such dtype in ``DTYPES``.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{dtype}'; choose one of: {', '.join(DTYPES)}")
    _ = model.fingerprint, model.fingerprints  # found out before the weights are rounded
    for module in (model.network, *(part for name, part in model.beside.items() if name != "vae")):
        module.to(getattr(torch, DTYPES[dtype]))
    return replace(model).with_fingerprints_of(model)


def compiled(model: Model) -> Model:
    """``model`` with a network that is compiled when it is first called, which takes a minute.

    Raises:
        ValueError: if it is a driven pipeline, which is more than a network.
    """
    if isinstance(model.network, Closing):
        raise ValueError(f"model '{model.name}' is a driven pipeline and cannot be compiled; write it out, or leave it")
    _ = model.fingerprint, model.fingerprints  # of the weights by the names that they have now
    network, device = model.network, model.device
    whole = CompiledClasses(network, device) if isinstance(network, KnowingClasses) else Compiled(network, device)
    same = replace(model, network=whole, ask=model.ask and _compiling(model.ask))
    vars(same)["calibration"] = model.calibration
    return same.with_fingerprints_of(model)


def _compiling(ask: Callable[[Mapping[str, Any]], Model]) -> Callable[[Mapping[str, Any]], Model]:
    """``ask`` for models that are compiled, but where they are driven."""

    def again(changes: Mapping[str, Any]) -> Model:
        model = ask(changes)
        return compiled(model) if changes.get("adapted", True) else model

    return again


class Compiled(nn.Module):
    """A ``network`` compiled for batches of a few sizes: smaller ones are filled up, so that nothing is compiled anew.

    On a GPU its calls are captured, and launched all at once.

    ``function``  what of the network is compiled; itself unless given.
    """

    def __init__(self, network: nn.Module, device: torch.device, function: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.network = network
        self._captured = device.type == "cuda"
        self._sizes: set[int] = set()
        mode = "reduce-overhead" if self._captured else "default"
        self._function: Callable[..., Tensor] = torch.compile(function or network, dynamic=False, mode=mode)

    @property
    def embedding(self) -> str | None:
        """What the network of a pipeline has been told instead of the prompt, as a hash."""
        return self.network.embedding if isinstance(self.network, Told) else None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and labels t ``(B,)`` to ``(B, C, H, W)``."""
        return self._call(x, t.float() if not t.is_floating_point() else t)

    def _call(self, x: Tensor, *others: Tensor) -> Tensor:
        count = len(x)
        size = min((known for known in self._sizes if known >= count), default=count)
        self._sizes.add(size)
        parts = [_filled(part, size) for part in (x, *others)]
        if self._captured:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            # What is captured gives the same memory each time.
            return self._function(*parts)[:count].clone()
        return self._function(*parts)[:count]


class CompiledClasses(KnowingClasses, Compiled):
    """A ``Compiled`` network that is told classes."""

    def __init__(self, network: KnowingClasses, device: torch.device) -> None:
        super().__init__(network, device, network.answer)
        self.none, self.knows_none = network.none, network.knows_none

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and labels t ``(B,)`` to ``(B, C, H, W)``, of the classes ``labels``, ``(B,)``, int64."""
        return self._call(x, t, labels)


def _filled(part: Tensor, size: int) -> Tensor:
    """``part``, ``(B, ...)``, with its last member as often as it takes to be ``(size, ...)``."""
    missing = size - len(part)
    return part if missing == 0 else torch.cat([part, part[-1:].expand(missing, *part.shape[1:])])


@contextmanager
def products(*, tf32: bool) -> Iterator[None]:
    """Have products of float32 on GPUs computed with all of its digits, or with those of tf32 where that is asked for.

    torch computes convolutions in tf32 unless it is told not to. What it is told holds for the whole process: sessions
    with and without tf32 must not be at work at the same time.
    """
    kinds: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    name, wish = "allow_tf32", cast(Any, tf32)
    try:
        before = [getattr(kind, name) for kind in kinds]
    except RuntimeError:  # the program uses torch's newer names, which do not go together with these
        kinds[1] = kinds[1].conv
        name, wish = "fp32_precision", "tf32" if tf32 else "ieee"
        before = [getattr(kind, name) for kind in kinds]
    for kind in kinds:
        setattr(kind, name, wish)
    try:
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            setattr(kind, name, value)
