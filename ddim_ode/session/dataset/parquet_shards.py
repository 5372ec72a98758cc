"""Shards that are Parquet files: a row for each latent, and a row group for each row, so that one is read alone.

The columns are ``identity``, ``name``, ``width``, ``height``, ``fit``, ``nfe``, and ``x_T`` and perhaps ``companion``,
the numbers of a latent as a flat list. The metadata of the schema say the ``shape``, (C, H, W), of both, and the head.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ddim_ode.session.dataset.heads import Head, parse_head

_METADATA = "ddim-ode"


def write(head: Head, tensors: Mapping[str, Tensor]) -> bytes:
    """The content of the file."""
    columns = {
        "identity": pa.array([row.identity for row in head.rows], pa.string()),
        # Names on a disk may hold bytes that are no character; the head has them as they are.
        "name": pa.array([row.name.encode(errors="backslashreplace").decode() for row in head.rows], pa.string()),
        "width": pa.array([row.size[0] for row in head.rows], pa.int64()),
        "height": pa.array([row.size[1] for row in head.rows], pa.int64()),
        "fit": pa.array([row.fit for row in head.rows], pa.string()),
        "nfe": pa.array([row.nfe for row in head.rows], pa.int64()),
    }
    columns |= {name: _column(tensor) for name, tensor in tensors.items()}
    shape = json.dumps(tensors["x_T"].shape[1:])
    table = pa.table(columns).replace_schema_metadata({"shape": shape, _METADATA: head.text()})
    buffer = io.BytesIO()
    # There is nothing to gain with numbers that are all different.
    pq.write_table(table, buffer, row_group_size=1, compression="none", use_dictionary=False)
    return buffer.getvalue()


def _column(tensor: Tensor) -> Any:
    numbers = pa.array(tensor.contiguous().numpy().reshape(-1))
    return pa.FixedSizeListArray.from_arrays(numbers, prod(tensor.shape[1:]))


class _File:
    def __init__(self, path: Path) -> None:
        self._path = path
        with pq.ParquetFile(path) as file:
            self._footer = file.metadata
            names, said = file.schema_arrow.names, file.schema_arrow.metadata or {}
        self.head = parse_head(path.name, said[_METADATA.encode()], self._footer.num_rows)
        self._names = [name for name in ("x_T", "companion") if name in names]
        self._shape = tuple(json.loads(said[b"shape"]))
        if "x_T" not in names or self._footer.num_row_groups < self._footer.num_rows:
            raise ValueError("it should hold a column x_T, and a row group for each row")

    def tensors(self, row: int) -> tuple[Tensor, Tensor | None]:
        with pq.ParquetFile(self._path, metadata=self._footer) as file:
            group = file.read_row_group(row, columns=self._names)
        parts = {name: self._tensor(group[name]) for name in self._names}
        return parts["x_T"], parts.get("companion")

    def _tensor(self, column: Any) -> Tensor:
        numbers = np.array(column.combine_chunks().flatten())  # a copy, since torch writes where it likes
        return torch.from_numpy(numbers).reshape(1, *self._shape)


def open_shard(path: Path) -> _File:
    """The file ``path``, as ``formats.Kind`` says."""
    return _File(path)
