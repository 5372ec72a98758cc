"""What the scripts share: images from a folder, rows in a CSV file, settings in a JSON file, and curves in colour.

A row is a frozen dataclass of str, int and float fields, and of dataclasses of these; a file of rows has one column for
each, and for each field of a dataclass in it: ``mse_mean`` for ``row.mse.mean``.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

import torch
from torch import Tensor

from ddim_ode.files import write_file
from ddim_ode.images import load_image
from ddim_ode.models import Model
from solvers import SOLVERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from analysis.spread import Spread

CIFAR10_TEST = Path(__file__).parent / "images" / "cifar10_test"
# Where solutions to measure others against are kept, for all scripts.
REFERENCES = Path("demo/references")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}

# The names of solvers whose evaluations are known beforehand.
FIXED_STEP = sorted(name for name, solver in SOLVERS.items() if solver.nfe(1))

# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow, too pale for a line, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")

Row = TypeVar("Row")


def load_images(folder: Path, model: Model, count: int | None = None) -> tuple[Tensor, list[str]]:
    """The pictures in ``folder`` by name, as ``(B, C, H, W)`` of the model's size, pixels in [-1, 1]; and the names.

    ``count``  only so many of them, spread evenly over the folder; None for all.

    Raises:
        ValueError: if there are fewer than ``count`` pictures, or none.
    """
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    wanted = len(paths) if count is None else count
    if not 0 < wanted <= len(paths):
        raise ValueError(f"'{folder}' holds {len(paths)} pictures, but {max(wanted, 1)} are wanted")
    chosen = [paths[i] for i in spread_over(wanted, len(paths))]
    images = [load_image(path, model.channels, model.height, model.width)[0] for path in chosen]
    return torch.cat(images), [path.name for path in chosen]


def spread_over(count: int, total: int) -> list[int]:
    """``count`` of ``total`` indices, at even distances."""
    return [i * total // count for i in range(count)]


def rms(x: Tensor) -> Tensor:
    """Root mean square of each of ``x``, ``(B, C, H, W)``; shape ``(B,)``."""
    return x.square().flatten(1).mean(1).sqrt()


def save_rows(rows: Sequence[Any], path: Path) -> None:
    """Write the dataclasses ``rows``, at least one, as CSV; a kill leaves the file as it was or as it is to be."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, _columns(type(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_cells(row) for row in rows)
    write_file(path, buffer.getvalue().encode(), overwrite=True)


def load_rows(kind: type[Row], path: Path) -> list[Row]:
    """The rows of the dataclass ``kind`` in the CSV file ``path``; none if there is no such file.

    Raises:
        ValueError: if the file has other columns.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or ()) != _columns(kind):
            raise ValueError(f"'{path}' has other columns than this program writes; move it away and measure again")
        return [_row(kind, line) for line in reader]


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
    pixels = {} if images is None else {"pixels": hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()[:16]}
    return {
        "model": model.name,
        "fingerprint": model.fingerprint,
        "images": list(image_names),
        **pixels,
        "torch": torch.__version__,
    }


def save_settings(settings: Mapping[str, object], path: Path) -> None:
    """Write ``settings`` as JSON, whole or not at all, with the commit of this program under ``commit``."""
    text = json.dumps({**settings, "commit": git_commit()}, indent=2)
    write_file(path, f"{text}\n".encode(), overwrite=True)


def load_settings(path: Path) -> dict[str, Any]:
    """What the JSON file ``path`` holds; nothing if there is none."""
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return settings


def check_same(settings: Mapping[str, object], path: Path) -> dict[str, Any]:
    """What the JSON file ``path`` holds, or nothing; refuses to add rows to those of another measurement.

    Raises:
        ValueError: if the file differs from ``settings`` in one of their values.
    """
    before = load_settings(path)
    for key, value in settings.items():
        if before and before.get(key) != value:
            raise ValueError(f"'{path.parent}' holds rows with another {key}; choose another folder for the output")
    return before


class Results(Generic[Row]):
    """The rows of one measurement in ``file`` in a folder, with its settings: read first, saved with every new one.

    Raises:
        ValueError: if the folder holds rows of other settings or another kind.
    """

    def __init__(self, kind: type[Row], folder: Path, settings: Mapping[str, object], file: str = "rows.csv") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.settings: dict[str, Any] = {**check_same(settings, folder / "settings.json"), **settings}
        self.rows = load_rows(kind, folder / file)
        self._folder, self._file = folder, file
        self._said = False

    def note(self, **found: object) -> None:
        """Save the settings, with what was ``found`` out beside the rows."""
        self.settings |= found
        save_settings(self.settings, self._folder / "settings.json")
        self._said = True

    def add(self, row: Row) -> None:
        """Save one more."""
        self.replace([*self.rows, row])

    def replace(self, rows: Sequence[Row]) -> None:
        """Save these instead."""
        if not self._said:
            self.note()
        self.rows = list(rows)
        save_rows(self.rows, self._folder / self._file)


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


def label_counts(axes: Axes, counts: Sequence[int]) -> None:
    """Ticks of a logarithmic x axis at ``counts`` alone, as plain numbers."""
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)


def shade(axes: Axes, xs: Sequence[float], spreads: Sequence[Spread], of: str, colour: str) -> None:
    """The 95 % interval of the mean, median or trimmed mean, whatever ``of`` names, along ``xs``."""
    low, high = ([getattr(spread, f"{of}_{end}") for spread in spreads] for end in ("low", "high"))
    axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def mark_accuracy(axes: Axes, accuracy: float) -> Line2D:
    """A line at the RMSE of the reference to a coarser one: much below it an error says nothing."""
    label = "how far the reference is from a coarser one"
    return axes.axhline(accuracy, color="0.6", linewidth=1, linestyle="-.", label=label)


def round_counts(values: Iterable[float]) -> list[int]:
    """Those of 1, 2, 5, 10, 20, 50, ... that lie in the range of the ``values``, which are at least 1."""
    low, high = min(values := list(values)), max(values)
    return [n for n in (m * 10**e for e in range(len(str(int(high)))) for m in (1, 2, 5)) if low <= n <= high]


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG file, in place of an older one; above it and in the file stands what it was made with,
    according to the ``settings.json`` beside it.
    """
    settings = load_settings(path.parent / "settings.json")
    figure.text(0.01, 1.01, _caption(settings), va="bottom", fontsize="x-small", color="0.4")
    buffer = io.BytesIO()
    about = {"ddim-ode": json.dumps(settings)}
    figure.savefig(buffer, format="png", dpi=150, metadata=about, bbox_inches="tight")  # with what stands above it
    write_file(path, buffer.getvalue(), overwrite=True)


def _caption(settings: Mapping[str, Any]) -> str:
    """Model, images and seed, as far as the ``settings`` name them."""
    weights = settings.get("models", {settings.get("model"): settings.get("fingerprint")})
    parts = [f"model '{model}', weights {fingerprint[:12]}" for model, fingerprint in weights.items() if fingerprint]
    parts += [f"{len(settings['images'])} images"] if settings.get("images") else []
    parts += [f"seed {settings['seed']}"] if settings.get("seed") is not None else []
    return ", ".join(parts)
