"""Pickles of NVlabs/edm: tensors and what networks were made with, read with none of their code run.

Every module in such a file is ``_reconstruct_persistent_obj(meta)``, where meta holds the source of a Python module,
the name of a class in it, and the state of the object. This machine knows that name, tensors and containers. It makes a
plain record of each module, never looks at the source, and refuses every other name.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_ode.configs import first_line
from ddim_ode.formats.reading import Weights, check_plain
from ddim_ode.kinds import ModelError

_MOST_NESTED = 20


class Record:
    """What a file says of a module: the name of its class, and its state."""

    def __init__(self, class_name: str = "", state: Mapping[str, Any] | None = None) -> None:
        self.class_name = class_name
        self.state = state or {}


def read_pickle(path: Path) -> object:
    """What the pickle ``path`` holds, with a ``Record`` in the place of each module, on the CPU.

    Raises:
        ModelError: if it is damaged, or asks for a name that is not known.
    """
    try:
        with path.open("rb") as file:
            content: object = _Reader(file, path).load()
    except ModelError:
        raise
    except Exception as error:  # damaged files fail in pickle, torch and in every type that they name
        raise ModelError(f"cannot read '{path}' as a pickle of EDM: {first_line(error):.200}") from error
    return content


def weights_of(path: Path, record: Record) -> Weights:
    """The parameters and buffers of a module and those in it, by their names.

    Raises:
        ModelError: if the ``record``, from ``path``, is none of a module.
    """
    found: Weights = {}
    _collect(path, record, "", found, _MOST_NESTED)
    check_plain(path, found)
    return found


def _collect(path: Path, record: object, prefix: str, found: Weights, depth: int) -> None:
    state = getattr(record, "state", None)
    if not isinstance(record, Record) or not isinstance(state, Mapping) or depth == 0:
        raise ModelError(f"'{path}' is damaged: what it says of '{prefix.rstrip('.')}' is no module")
    for kind in ("_parameters", "_buffers", "_modules"):
        parts = state.get(kind, {})
        if not isinstance(parts, Mapping):
            raise ModelError(f"'{path}' is damaged: '{prefix}{kind}' is no list by names")
        for name, part in parts.items():
            if kind == "_modules" and part is not None:
                _collect(path, part, f"{prefix}{name}.", found, depth - 1)
            elif isinstance(part, Tensor):
                found[f"{prefix}{name}"] = part.detach()


class _Reader(pickle.Unpickler):
    """What it hands out is made anew for each file, which may set attributes of it, and so of nothing else."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path
        self._known = _known()

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("torch.nn.modules.") and name.isidentifier():
            return _module_class(name)
        if module.startswith("numpy") and (name in ("scalar", "dtype") or name.endswith("DType")):
            return _unused_class()
        if (module, name) not in self._known:
            asked = " ".join(f"{module}.{name}".split())
            raise ModelError(f"'{self._path}' asks for '{asked:.100}', which may run code and is not read")
        return self._known[module, name]


def _known() -> dict[tuple[str, str], Any]:
    def tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
        return torch._utils._rebuild_tensor(storage, offset, size, stride)  # type: ignore[no-untyped-call,no-any-return]

    def parameter(data: Tensor, *_: object) -> Tensor:
        return data

    def record(meta: Mapping[str, Any]) -> Record:
        if meta.get("type") != "class":
            raise pickle.UnpicklingError(f"it holds something of the type '{meta.get('type')}'")
        return Record(str(meta["class_name"]), meta["state"])

    def storage(data: bytes) -> Any:
        """A file of torch's own, in which weights alone are read."""
        return torch.load(BytesIO(data), map_location="cpu", weights_only=True)

    known: dict[tuple[str, str], Callable[..., Any] | torch.dtype] = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): record,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("torch.storage", "_load_from_bytes"): storage,
        ("dnnlib.util", "EasyDict"): dict,
        ("collections", "OrderedDict"): OrderedDict,
        ("builtins", "set"): set,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
    }
    for dtype in (torch.float16, torch.float32, torch.float64):
        known["torch", str(dtype).removeprefix("torch.")] = dtype
    return known


def _module_class(name: str) -> type[Record]:
    """A class for modules of torch's own, as containers are, which are pickled by their state."""

    class Module(Record):
        def __setstate__(self, state: Mapping[str, Any]) -> None:
            self.class_name, self.state = name, state

    return Module


def _unused_class() -> type:
    """A class for numbers of numpy's, which say what weights were drawn from."""

    class Unused:
        def __init__(self, *arguments: object) -> None:
            pass

        def __setstate__(self, state: object) -> None:
            pass

    return Unused
