"""Heads: what a shard says of itself, of each of its rows, and of the pictures that no latent could be made of."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

FORMAT, VERSION = "ddim-ode shard", 1
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

    def text(self) -> str:
        """That as JSON, in ASCII."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)})


def parse_head(name: str, text: str | bytes, count: int | None = None) -> Head:
    """What the JSON ``text`` in a shard by this ``name`` says, which holds ``count`` latents, unless that is unknown.

    Raises:
        ValueError, TypeError, KeyError: if it is none of a shard, or of another number.
    """
    content = json.loads(text)
    if content["format"] != FORMAT or content["version"] != VERSION:
        raise ValueError(f"it must be a {FORMAT} of version {VERSION}")
    rows = tuple(Row(**row | {"size": tuple(row["size"])}) for row in content["rows"])
    failed = tuple(Failed(**failed) for failed in content["failed"])
    head = Head(name, content["key"], rows, failed)
    for identity in (head.key, *head.identities()):
        if not _IDENTITY.fullmatch(identity):
            raise ValueError(f"an identity must have 64 digits, but it is {identity!r:.60}")
    if count is not None and count != len(rows):
        raise ValueError(f"it holds {count} latents, and there are {len(rows)} rows")
    return head
