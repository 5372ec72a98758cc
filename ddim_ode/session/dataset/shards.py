"""Shards: files of latents, with what is said of each row, in one of the ``formats``.

Each is one file, written whole or not at all. It holds N latents, ``x_T`` and, of reversible solvers, ``companion``,
and a head: the key of the settings, N rows, and the pictures that no latent could be made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ddim_ode.files import write_file
from ddim_ode.session.dataset.formats import FORMATS, kind_of
from ddim_ode.session.dataset.heads import Failed as Failed
from ddim_ode.session.dataset.heads import Head as Head
from ddim_ode.session.dataset.heads import Row as Row
from ddim_ode.work import reading


def shard_name(identities: Sequence[str], format: str) -> str:
    """The name of the file of a shard of these pictures, which is theirs alone; ``format`` is a key of ``FORMATS``."""
    digest = hashlib.sha256("".join(identities).encode())
    return f"shard-{digest.hexdigest()[:24]}{FORMATS[format].suffix}"


def list_shards(folder: Path) -> list[Path]:
    """The shards in ``folder``, by name."""
    return sorted(path for own in FORMATS.values() for path in folder.glob(f"shard-*{own.suffix}"))


def write_shard(folder: Path, head: Head, x_T: Tensor, companion: Tensor | None) -> None:
    """Write the shard, in place of one of the same pictures.

    Raises:
        OSError: if it cannot be written.
    """
    tensors = {"x_T": x_T} | ({} if companion is None else {"companion": companion})
    write_file(folder / head.name, kind_of(head.name).write(head, tensors), overwrite=True)


class Shard:
    """A shard that is open for reading; its tensors stay in the file until they are asked for.

    Raises:
        ValueError: as ``formats.kind_of`` does.
        WorkError: if the file is damaged, or no shard.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        kind = kind_of(path.name)
        with reading(path):
            self._file = kind.open_shard(path)
        self.head = self._file.head

    def tensors(self, row: int) -> tuple[Tensor, Tensor | None]:
        """The latent in ``row``, ``(1, C, H, W)``, and its companion, if there is one. Errors are those of opening."""
        with reading(self._path):
            return self._file.tensors(row)


def empty(shape: tuple[int, int, int]) -> Tensor:
    """What a shard without rows holds, of latents of the ``shape`` (C, H, W)."""
    return torch.empty(0, *shape)
