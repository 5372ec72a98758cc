"""Whether pictures of a class are recognized: how often ``analysis.classifier`` is right, and Frechet's distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from .classifier import CLASSES, guesses, load_features
from .frechet import frechet
from .tables import markdown


@dataclass(frozen=True)
class ClassRow:
    """How good ``count`` images of one class are, of a model's samples or of training images, which ``what`` says.

    ``frechet``   their distance from as many test images of the class, or all if there are fewer.
    ``accuracy``  the part that the classifier takes for what they should be.
    """

    what: str
    name: str
    count: int
    frechet: float
    accuracy: float


def accuracy(images: Tensor, labels: Tensor) -> float:
    """The part of ``images``, ``(N, 3, 32, 32)``, uint8, that is taken for what the ``labels``, ``(N,)``, say."""
    return float((guesses(load_features(), images) == labels).double().mean())


def measure_classes(
    what: str, images: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor, *, inception: bool = False
) -> list[ClassRow]:
    """A row for each class of ``images``, ``(N, 3, 32, 32)``, uint8, against ``real`` ones of the same class.

    ``labels``, ``real_labels``  say which they are of, ``(N,)``. The distance is nan where there are fewer than two.
    """
    rows = []
    for number, name in enumerate(CLASSES):
        own, theirs = images[labels == number], real[real_labels == number][: int((labels == number).sum())]
        if len(own) == 0:
            continue
        distance = frechet(own, theirs, inception=inception) if min(len(own), len(theirs)) > 1 else nan
        rows.append(ClassRow(what, name, len(own), distance, accuracy(own, torch.full((len(own),), number))))
    return rows


def class_table(rows: Sequence[ClassRow]) -> str:
    """Markdown: a line for each class; for each set of images its distance and how often it is recognized."""
    whats = list(dict.fromkeys(row.what for row in rows))
    cells = {(row.what, row.name): row for row in rows}
    heads = ["", *(f"{what}: {figure}" for what in whats for figure in ("Frechet", "recognized"))]
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        line = [name]
        for what in whats:
            row = cells.get((what, name))
            line += [f"{row.frechet:.2f}", f"{row.accuracy:.0%}"] if row else ["", ""]
        lines.append(line)
    return markdown(heads, lines)
