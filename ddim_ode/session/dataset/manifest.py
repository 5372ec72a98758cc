"""The manifest of a data set: a line of JSON for each picture, in the order in which they were done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddim_ode.session.dataset.ledger import Ledger
from ddim_ode.work import reading

MANIFEST = "manifest.jsonl"
_PART = ".manifest.part"
# Made once, since there is a line for each picture.
_ENCODE = json.JSONEncoder(sort_keys=True).encode


@dataclass(frozen=True)
class Line:
    """A picture by its ``name``: the identity of its latent, with shard and row, or the ``reason`` why there is none.

    The identity is None where the picture could not even be read.
    """

    name: str
    identity: str | None = None
    shard: str | None = None
    row: int | None = None
    reason: str | None = None

    def text(self) -> bytes:
        """The line in the file."""
        return _ENCODE({key: value for key, value in vars(self).items() if value is not None}).encode() + b"\n"


def read_lines(folder: Path) -> Iterator[Line]:
    """The lines of the manifest in ``folder``; the last one is left out if it is not whole, as after a kill.

    Raises:
        WorkError: if it is damaged.
    """
    path = folder / MANIFEST
    if path.exists():
        with path.open("rb") as lines:
            for number, text in enumerate(lines, 1):
                if not text.endswith(b"\n"):
                    return
                with reading(path):
                    line = _parse(text, number)
                yield line


def _parse(text: bytes, number: int) -> Line:
    """The line in ``text``.

    Raises:
        ValueError: if it is none; the message says its ``number``.
    """
    try:
        line = Line(**json.loads(text))
    except (ValueError, TypeError):
        raise ValueError(f"line {number} is none of a manifest") from None
    kinds: dict[str, Any] = {"name": str, "identity": str | None, "shard": str | None, "row": int | None}
    right = all(isinstance(getattr(line, name), kind) for name, kind in kinds.items())
    done = line.shard is not None and line.row is not None and line.row >= 0 and line.identity is not None
    if not right or done == isinstance(line.reason, str) or (line.shard or "").count("/"):
        raise ValueError(f"line {number} is none of a manifest")
    return line


class Manifest:
    """The manifest in ``folder``, to be brought up to date by a run that says ``list`` once for each picture.

    A line that is there is not written again, and at the ``finish`` of a run that saw all pictures those that it did
    not say are taken away.

    Raises:
        WorkError: if it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._part = folder / MANIFEST, folder / _PART
        with ExitStack() as opened:
            # By the hash of each line, whether this run said it.
            self._lines = opened.enter_context(closing(Ledger()))
            self._lines.put((_hash(line.text()), False) for line in read_lines(folder))
            self._unsaid = len(self._lines)
            self._file = opened.enter_context(self._path.open("ab"))
            self._drop_rest()
            opened.pop_all()  # nothing failed

    def _drop_rest(self) -> None:
        """Take away a last line that is not whole."""
        with self._path.open("rb") as lines:
            end = sum(len(text) for text in lines if text.endswith(b"\n"))
        if end < self._path.stat().st_size:
            os.truncate(self._path, end)

    def list(self, line: Line) -> None:
        """Say what became of a picture."""
        text = line.text()
        hashed = _hash(text)
        said = self._lines.get(hashed)
        if said:
            return
        if said is None:
            self._file.write(text)
        else:
            self._unsaid -= 1
        self._lines.put([(hashed, True)])

    def flush(self) -> None:
        """Let readers see what was said."""
        self._file.flush()

    def finish(self) -> None:
        """Take away the lines of pictures that are gone or were changed."""
        self._file.flush()
        if not self._unsaid:
            return
        with self._path.open("rb") as lines, self._part.open("wb") as kept:
            kept.writelines(text for text in lines if self._lines.get(_hash(text)))
            kept.flush()
            os.fsync(kept.fileno())
        os.replace(self._part, self._path)

    def close(self) -> None:
        """Close the file, and forget what was said."""
        self._file.close()
        self._lines.close()


def _hash(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=8).digest()
