"""Work files: what a long job keeps in a folder of its own, so that it can be stopped and go on."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from torch import Tensor

from ddim_ode.files import reason, write_file

# In a folder that a job works in.
LOCK = ".ddim-ode.lock"


class WorkError(ValueError):
    """A folder or file of work that cannot be used; the message names it."""


def hold(folder: Path) -> AcquireReturnProxy[Any]:
    """Keep other processes out of ``folder``, which is made if need be, while what is returned is kept or entered.

    Two jobs in one folder would replace each other's files. It is let go when the process ends, however it ends.

    Raises:
        WorkError: if another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"cannot work in '{folder}': {error.strerror}; name another folder") from error
    try:
        return FileLock(folder / LOCK, timeout=0, is_singleton=True).acquire()
    except Timeout:
        raise WorkError(
            f"another process is at work in '{folder}'; wait until it ends, or name another folder"
        ) from None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """``hold`` the ``folder`` while this is entered, and leave no trace of it. Errors are those of ``hold``."""
    with hold(folder):
        try:
            yield
        finally:
            with suppress(OSError):  # of systems on which no open file is deleted
                (folder / LOCK).unlink()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever reading the work file ``path`` provokes becomes a WorkError that names it."""
    try:
        yield
    except Exception as error:
        what = reason(error)
        raise WorkError(f"'{path}' is damaged: {what}; delete it, and that part of the work is done again") from error


def load_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file ``path``; nothing if there is no such file.

    Raises:
        WorkError: if it holds anything else.
    """
    if not path.exists():
        return {}
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it should hold a JSON object, but holds a {type(content).__name__}")
    return content


def save_tensors(tensors: Sequence[Tensor], path: Path) -> None:
    """Write tensors of any shape, in place of older ones; a kill leaves the file as it was or as it is to be."""
    buffer = io.BytesIO()
    torch.save(tuple(tensor.cpu() for tensor in tensors), buffer)
    write_file(path, buffer.getvalue(), overwrite=True)


def load_tensors(path: Path, shapes: Sequence[tuple[int | None, ...]]) -> tuple[Tensor, ...]:
    """What ``save_tensors`` has written: tensors on the CPU, of these ``shapes``, in which None stands for any length.

    Raises:
        WorkError: if the file is damaged, or holds others, or numbers that are not finite.
    """
    with reading(path):
        tensors: tuple[Tensor, ...] = tuple(torch.load(path, map_location="cpu", weights_only=True))
        found = [tuple(tensor.shape) for tensor in tensors]
        if len(found) != len(shapes) or not all(map(_fits, found, shapes)):
            raise ValueError(f"it should hold tensors of the shapes {list(shapes)}, but holds {found}")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            raise ValueError("it holds numbers that are not finite")
    return tensors


def _fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(found) == len(wanted) and all(b in (a, None) for a, b in zip(found, wanted, strict=True))
