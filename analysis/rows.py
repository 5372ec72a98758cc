"""What a measurement leaves: rows in a CSV file, and in a JSON file the settings that they were made with.

A row is a frozen dataclass of str, int and float fields, and of dataclasses of these; a file of rows has one column for
each, and for each field of a dataclass in it: ``mse_mean`` for ``row.mse.mean``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, get_type_hints

import torch
from torch import Tensor

from ddim_ode.files import write_file
from ddim_ode.models import Model
from ddim_ode.work import hold, load_json, reading

from .timing import device_name

Row = TypeVar("Row")


def save_rows(kind: type[Row], rows: Sequence[Row], path: Path) -> None:
    """Write ``rows`` of the dataclass ``kind`` as CSV; a kill leaves the file as it was or as it is to be."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, _columns(kind), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(row) for row in rows)
    write_file(path, buffer.getvalue().encode(), overwrite=True)


def load_rows(kind: type[Row], path: Path) -> list[Row]:
    """The rows of the dataclass ``kind`` in the CSV file ``path``; none if there is no such file.

    Raises:
        ValueError: if the file is damaged, or has other columns.
    """
    if not path.exists():
        return []
    with reading(path):
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines(), strict=True))
    if not lines or lines[0] != _columns(kind):
        raise ValueError(f"'{path}' has other columns than this program writes; move it away and measure again")
    with reading(path):
        return [_row(kind, dict(zip(lines[0], line, strict=True))) for line in lines[1:]]


def _columns(kind: type[Any], prefix: str = "") -> list[str]:
    """The names of the columns for the dataclass ``kind``."""
    return [
        column
        for name, type_ in get_type_hints(kind).items()
        for column in (_columns(type_, f"{prefix}{name}_") if _has_columns(type_) else [prefix + name])
    ]


def _has_columns(type_: object) -> bool:
    """Whether a field of this type has a column for each of its own fields."""
    return is_dataclass(type_)


def _cells(row: Any, prefix: str = "") -> dict[str, object]:
    """The values of the dataclass ``row`` by column."""
    cells: dict[str, object] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        cells |= _cells(value, f"{prefix}{field.name}_") if is_dataclass(value) else {prefix + field.name: value}
    return cells


def _row(kind: type[Row], cells: Mapping[str, str], prefix: str = "") -> Row:
    """The dataclass ``kind`` of the text in the ``cells``."""
    return kind(
        **{
            name: _row(type_, cells, f"{prefix}{name}_") if _has_columns(type_) else type_(cells[prefix + name])
            for name, type_ in get_type_hints(kind).items()
        }
    )


def describe(model: Model, image_names: Sequence[str] = (), images: Tensor | None = None) -> dict[str, object]:
    """What a measurement was made with and on: ``images``, ``(B, C, H, W)``, of these names.

    Rows belong together only if it is the same.
    """
    pixels = {} if images is None else {"pixels": pixels_digest(images)}
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "images": list(image_names),
        **pixels,
        "device": device_name(model.device),
        "torch": torch.__version__,
    }


def pixels_digest(images: Tensor) -> str:
    """What tells ``images``, ``(B, C, H, W)``, from all others."""
    return hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()[:16]


def calibrated(model: Model) -> dict[str, str]:
    """Digests of what the calibration of ``model`` says, by the number of steps: what ``auto`` depends on."""
    entries = model.calibration.entries if model.calibration else ()
    parts = {entry.name: repr(replace(entry, scores={})) for entry in entries}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in parts.items()}


def check_same(settings: Mapping[str, object], path: Path) -> dict[str, Any]:
    """What the JSON file ``path`` holds, or nothing; refuses to add rows to those of another measurement.

    Raises:
        ValueError: if the file differs from ``settings`` in one of their values.
    """
    before = load_json(path)
    for key, value in settings.items():
        if before and before.get(key) != value:
            raise ValueError(f"'{path.parent}' holds rows with another {key}; choose another folder for the output")
    return before


class Results(Generic[Row]):
    """The rows of one measurement in ``file`` in a folder, with its settings: read first, saved with every new one.

    In the settings are, under ``commits``, those of this program that the rows were measured with.

    Other processes are kept out of the folder meanwhile.

    Raises:
        ValueError: if the folder holds rows of other settings or another kind, or another process is at work there.
    """

    def __init__(self, kind: type[Row], folder: Path, settings: Mapping[str, object], file: str = "rows.csv") -> None:
        self._lock = hold(folder)
        self.settings: dict[str, Any] = {**check_same(settings, folder / "settings.json"), **settings}
        self.rows = load_rows(kind, folder / file)
        self._kind, self._folder, self._file = kind, folder, file
        self._said = False

    def note(self, **found: object) -> None:
        """Save the settings, with what was ``found`` out beside the rows."""
        commits = [*self.settings.get("commits", []), git_commit()]
        self.settings |= {**found, "commits": list(dict.fromkeys(commits))}
        text = json.dumps(self.settings, indent=2)
        write_file(self._folder / "settings.json", f"{text}\n".encode(), overwrite=True)
        self._said = True

    def add(self, row: Row) -> None:
        """Save one more."""
        self.replace([*self.rows, row])

    def replace(self, rows: Sequence[Row]) -> None:
        """Save these instead."""
        if not self._said:
            self.note()
        self.rows = list(rows)
        save_rows(self._kind, self.rows, self._folder / self._file)


def git_commit() -> str | None:
    """The commit of this program, with '-dirty' behind it if files were changed since; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()
