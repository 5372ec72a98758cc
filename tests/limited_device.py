"""A device without float64, on a machine that has no such device: computed on the CPU, and called 'meta'.

Inside of ``limited_device()`` whatever is moved to the device 'meta', or made on it, becomes a tensor of this kind. It
answers every operation as the CPU would, but it is an error

- if any tensor on the device has the dtype float64, be it moved there, made there, or computed there,
- if a tensor on the CPU, of one or more dimensions and elements, takes part in an operation on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")


class OnDevice(Tensor):
    """A tensor that says it is on the device, around one on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[OnDevice], inner: Tensor) -> OnDevice:
        if inner.dtype == torch.float64:
            raise TypeError("the device has no float64")
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnDevice({self.inner!r})"

    def tolist(self) -> Any:
        """Its numbers, which torch gives of no other kind of tensor than its own."""
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``func`` on the CPU; what comes of it is on the device if anything that went in was, or if it was asked for."""
    flat = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    target = kwargs.get("device")
    to_device = (
        torch.device(target).type == DEVICE.type if target is not None else any(isinstance(x, OnDevice) for x in flat)
    )
    if func not in _TRANSFERS and any(isinstance(x, OnDevice) for x in flat):
        strangers = [x for x in flat if not isinstance(x, OnDevice) and x.ndim and x.numel()]
        if strangers:
            raise RuntimeError(f"{func}: a tensor on the CPU, {tuple(strangers[0].shape)}, meets one on the device")
    plain = tree_map(lambda value: value.inner if isinstance(value, OnDevice) else value, (args, kwargs))
    if target is not None:
        plain[1]["device"] = torch.device("cpu")
    result = func(*plain[0], **plain[1])
    if func is torch.ops.aten.copy_.default:
        return args[0]
    return tree_map(lambda value: OnDevice(value) if to_device and isinstance(value, Tensor) else value, result)


# Operations that may take tensors of both places: copies, and indices on the CPU.
_TRANSFERS = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default, torch.ops.aten.index.Tensor}


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Factories(TorchFunctionMode):
    """Tensors of given numbers, which torch would make on 'meta' without their numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        target = (kwargs or {}).get("device")
        if func not in (torch.tensor, torch.as_tensor) or target is None or torch.device(target).type != DEVICE.type:
            return func(*args, **(kwargs or {}))
        if isinstance(args[0], Tensor):
            return args[0].to(**kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)


@contextmanager
def limited_device() -> Iterator[torch.device]:
    """The device, while it is there."""
    with _Factories(), _Mode():
        yield DEVICE
