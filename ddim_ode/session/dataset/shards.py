"""Shards: safetensors files of latents, with what is said of each row.

``x_T`` and, of reversible solvers, ``companion`` are ``(N, C, H, W)``. The metadata hold one JSON text: the key of the
settings, N rows, and the pictures that no latent could be made of.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from ddim_ode.files import write_file
from ddim_ode.work import reading

FORMAT, VERSION = "ddim-ode shard", 1
_METADATA = "ddim-ode"
_IDENTITY = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Row:
    """What is said of a latent: its ``identity``, the picture's name, size (width, height) and fit, and its cost."""

    identity: str
    name: str
    size: tuple[int, int]
    fit: str
    nfe: int


@dataclass(frozen=True)
class Failed:
    """A picture that no latent could be made of, and why; the reason calls it 'picture', since it may have any name.

    ``again``  whether it may be another time, since its file was not to be had.
    """

    identity: str
    reason: str
    again: bool = False


@dataclass(frozen=True)
class Head:
    """What a shard says of itself, by the ``name`` of its file."""

    name: str
    key: str
    rows: tuple[Row, ...]
    failed: tuple[Failed, ...]

    def identities(self) -> list[str]:
        """Those of all its pictures."""
        return [*(row.identity for row in self.rows), *(failed.identity for failed in self.failed)]


def shard_name(identities: Sequence[str]) -> str:
    """The name of the file of a shard of these pictures, which is theirs alone."""
    digest = hashlib.sha256("".join(identities).encode())
    return f"shard-{digest.hexdigest()[:24]}.safetensors"


def list_shards(folder: Path) -> list[Path]:
    """The shards in ``folder``, by name."""
    return sorted(folder.glob("shard-*.safetensors"))


def write_shard(folder: Path, head: Head, x_T: Tensor, companion: Tensor | None) -> None:
    """Write the shard, in place of one of the same pictures.

    Raises:
        OSError: if it cannot be written.
    """
    tensors = {"x_T": x_T.contiguous()} | ({} if companion is None else {"companion": companion.contiguous()})
    content = {"format": FORMAT, "version": VERSION, **asdict(head)}
    write_file(folder / head.name, save(tensors, {_METADATA: json.dumps(content)}), overwrite=True)


class Shard:
    """A shard that is open for reading; its tensors stay in the file until they are asked for.

    Raises:
        WorkError: if the file is damaged, or no shard.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _opened(path) as file:
            self.head = _head(path, (file.metadata() or {})[_METADATA])
            names = set(file.keys())
            if not {"x_T"} <= names <= {"x_T", "companion"}:
                raise ValueError(f"it should hold x_T and perhaps its companion, but holds {', '.join(sorted(names))}")
            for name in names:
                shape = file.get_slice(name).get_shape()
                if len(shape) != 4 or shape[0] != len(self.head.rows):
                    raise ValueError(f"{name} has the shape {tuple(shape)}, and there are {len(self.head.rows)} rows")
            self._names = names

    def tensors(self, row: int) -> tuple[Tensor, Tensor | None]:
        """The latent in ``row``, ``(1, C, H, W)``, and its companion, if there is one. Errors are those of opening."""
        with _opened(self._path) as file:
            parts = {name: file.get_slice(name)[row : row + 1] for name in self._names}
        return parts["x_T"], parts.get("companion")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with reading(path), safe_open(path, framework="pt") as file:
        yield file


def _head(path: Path, text: str) -> Head:
    """What the JSON ``text`` in a shard says.

    Raises:
        ValueError, TypeError, KeyError: if it is none of a shard.
    """
    content = json.loads(text)
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError(f"it must be a {FORMAT} of version {VERSION}")
    rows = tuple(Row(**row | {"size": tuple(row["size"])}) for row in content["rows"])
    failed = tuple(Failed(**failed) for failed in content["failed"])
    head = Head(path.name, content["key"], rows, failed)
    for identity in (head.key, *head.identities()):
        if not _IDENTITY.fullmatch(identity):
            raise ValueError(f"an identity must have 64 digits, but it is {identity!r:.60}")
    return head


def empty(shape: tuple[int, int, int]) -> Tensor:
    """What a shard without rows holds, of latents of the ``shape`` (C, H, W)."""
    return torch.empty(0, *shape)
