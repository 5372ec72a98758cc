"""Shards that are tar files of samples, as the package webdataset reads them.

A sample is what has the same name up to the first dot, here the identity of a latent: ``IDENTITY.x_T.npy`` and perhaps
``IDENTITY.companion.npy``, each ``(C, H, W)``, and ``IDENTITY.json`` with the picture's name, size (width, height) and
fit, and the cost. Before them stands the head, under a name that begins and ends with two underscores and has no dot,
which webdataset skips.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddim_ode.session.dataset.heads import Head, Row, parse_head

_HEAD = "__ddim-ode__"


def write(head: Head, tensors: Mapping[str, Tensor]) -> bytes:
    """The content of the file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, _HEAD, head.text().encode())
        for i, row in enumerate(head.rows):
            for name, tensor in tensors.items():
                _add(tar, f"{row.identity}.{name}.npy", _npy(tensor[i]))
            _add(tar, f"{row.identity}.json", _said(row))
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _npy(tensor: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, tensor.numpy(), allow_pickle=False)
    return buffer.getvalue()


def _said(row: Row) -> bytes:
    return json.dumps({"name": row.name, "size": row.size, "fit": row.fit, "nfe": row.nfe}).encode()


class _File:
    """``_places`` are the first byte and the length of each member, by its name."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with tarfile.open(path, "r:") as tar:
            self._places = {member.name: (member.offset_data, member.size) for member in tar}
        count = sum(name.endswith(".x_T.npy") for name in self._places)
        self.head = parse_head(path.name, self._read(_HEAD), count)
        companions = sum(name.endswith(".companion.npy") for name in self._places)
        self._names = ("x_T", "companion") if companions else ("x_T",)
        members = [*(f"{name}.npy" for name in self._names), "json"]
        for row in self.head.rows:
            missing = next((name for name in members if f"{row.identity}.{name}" not in self._places), None)
            if missing is not None:
                raise ValueError(f"there is no {missing} of '{row.name}'")

    def _read(self, name: str) -> bytes:
        start, size = self._places[name]
        with self._path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def tensors(self, row: int) -> tuple[Tensor, Tensor | None]:
        key = self.head.rows[row].identity
        contents = {name: self._read(f"{key}.{name}.npy") for name in self._names}
        parts = {
            name: torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))[None]
            for name, content in contents.items()
        }
        return parts["x_T"], parts.get("companion")


def open_shard(path: Path) -> _File:
    """The file ``path``, as ``formats.Kind`` says."""
    return _File(path)
