"""What a data set says of itself as a whole: the key of its settings, the format of its shards, what was wished."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ddim_ode.files import write_file
from ddim_ode.latents import Latent, load_latent
from ddim_ode.models import DEFAULT_MODEL, EMBEDDED
from ddim_ode.session.dataset.encoder import TEMPLATE
from ddim_ode.session.dataset.formats import DEFAULT_FORMAT, FORMATS
from ddim_ode.session.dataset.shards import list_shards
from ddim_ode.session.request import Request
from ddim_ode.session.session import Session
from ddim_ode.work import WorkError, load_json

HOME = "dataset.json"
FORMAT, VERSION = "ddim-ode data set", 1


def read_home(folder: Path) -> dict[str, Any]:
    """What ``folder`` says of itself; nothing, if there is no data set yet.

    Raises:
        WorkError: if it is damaged, of another version, or lost.
    """
    path = folder / HOME
    content = load_json(path)
    if not content and list_shards(folder):
        raise WorkError(f"'{folder}' holds shards, but no '{HOME}'; name another folder, or put that file back")
    if content and (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise WorkError(f"'{path}' is not of a {FORMAT} of version {VERSION}; name another folder")
    if content and not isinstance(content.get("key"), str):
        raise WorkError(f"'{path}' is damaged: it holds no key; name another folder")
    if content and content.setdefault("shards", DEFAULT_FORMAT) not in list(FORMATS):
        known = ", ".join(sorted(FORMATS))
        raise WorkError(f"'{path}' is damaged: its shards must be one of: {known}; name another folder")
    return content


def pick_format(folder: Path, home: dict[str, Any], wished: str | None) -> str:
    """The format of the shards of the data set in ``folder``: that of its ``home``, or else the one that is wished.

    Raises:
        ValueError: if there is no such format, or a package that it needs is not installed.
        WorkError: if the two differ.
    """
    if wished is not None and wished not in FORMATS:
        raise ValueError(f"unknown format '{wished}'; choose one of: {', '.join(sorted(FORMATS))}")
    found: str = home["shards"] if home else wished or DEFAULT_FORMAT
    if wished not in (None, found):
        raise WorkError(
            f"'{folder}' holds shards in the format '{found}', not '{wished}'; go on in that, or name another folder"
        )
    FORMATS[found].kind()  # which refuses before any work
    return found


def write_home(folder: Path, key: str, wishes: str | None, format: str) -> None:
    """Begin a data set of the settings of this ``key``, which came of these ``wishes``, with shards in this format."""
    content = {"format": FORMAT, "version": VERSION, "key": key, "wishes": wishes, "shards": format}
    write_file(folder / HOME, json.dumps(content, indent=1).encode() + b"\n")


def read_template(folder: Path) -> Latent:
    """What the latents of the data set in ``folder`` have in common.

    Raises:
        LatentError: if it is not there, or damaged.
    """
    return load_latent(folder / TEMPLATE)


def wishes_of(opener: Callable[..., object], request: Request) -> str | None:
    """A hash of all that the key of the settings comes of, so that no model need be loaded; None where that is unknown.

    Of a model in files it holds their names, sizes and times.
    """
    made = opener if isinstance(opener, partial) else partial(opener)
    if made.func is not Session:
        return None
    names = {"model": DEFAULT_MODEL} | dict(zip(("model",), made.args, strict=False)) | made.keywords
    if not isinstance(names["model"], str | Path):  # but in memory
        return None
    places = [EMBEDDED.get(str(names["model"]), Path(str(names["model"]))), Path(str(names.get("config")))]
    if not places[0].exists():
        return None
    files = [list(_stamps(place)) for place in places]
    return hashlib.sha256(repr((sorted(names.items()), request, files)).encode()).hexdigest()


def _stamps(place: Path) -> Iterator[tuple[str, int, int]]:
    """Of each file of ``place`` its name, its size and when it was changed."""
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path.is_file():
            status = os.stat(path)
            yield str(path), status.st_size, status.st_mtime_ns
