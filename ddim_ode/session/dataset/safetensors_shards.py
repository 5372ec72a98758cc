"""Shards that are safetensors files: ``x_T`` and perhaps ``companion``, each ``(N, C, H, W)``; the head is metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ddim_ode.session.dataset.heads import Head, parse_head

_METADATA = "ddim-ode"


def write(head: Head, tensors: Mapping[str, Tensor]) -> bytes:
    """The content of the file."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {_METADATA: head.text()})


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="pt") as file:
            self.head = parse_head(path.name, (file.metadata() or {})[_METADATA])
            self._names = set(file.keys())
            if not {"x_T"} <= self._names <= {"x_T", "companion"}:
                held = ", ".join(sorted(self._names))
                raise ValueError(f"it should hold x_T and perhaps its companion, but holds {held}")
            for name in self._names:
                shape, count = file.get_slice(name).get_shape(), len(self.head.rows)
                if len(shape) != 4 or shape[0] != count:
                    raise ValueError(f"{name} has the shape {tuple(shape)}, and there are {count} rows")

    def tensors(self, row: int) -> tuple[Tensor, Tensor | None]:
        with safe_open(self._path, framework="pt") as file:
            parts = {name: file.get_slice(name)[row : row + 1] for name in self._names}
        return parts["x_T"], parts.get("companion")


def open_shard(path: Path) -> _File:
    """The file ``path``, as ``formats.Kind`` says."""
    return _File(path)
