"""Conditions: the class that a network is asked for, and how strongly, for each member of a batch.

With guidance W the slope is eps_none + W (eps_class - eps_none), where eps_none is what the network answers with the
label that means no class. W = 0 asks for no class at all, W = 1 for the class as it was learned, and larger ones for
more of it. Every prediction is affine in eps with the same offset at one x and sigma, so that the outputs themselves
are mixed; any mixture whose weights add up to 1 may be asked for.

Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598, Eq. (6), with w = W - 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Protocol

# What the guidance W does to the slope, as latent files say it.
MEANING = "eps = eps_none + guidance * (eps_class - eps_none)"

# A class by its name or its number, and what is said for none of them.
Label = str | int
NO_CLASS = "none"
# Labels, None for that of no class, each once, with weights that add up to 1.
Terms = tuple[tuple[int | None, float], ...]


class Asked(Protocol):
    """What a network may be asked for."""

    @property
    def terms(self) -> Terms:
        """The labels whose answers are mixed, with their weights; as many as times the network is asked."""


@dataclass(frozen=True)
class Condition:
    """A class by its number, None for none, and the ``guidance`` W towards it; an ``Asked``.

    ``name``  of the class, for people to read.

    Raises:
        ValueError: if W is not finite.
    """

    label: int | None = None
    guidance: float = 1.0
    name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, but it is {self.guidance:g}")

    @property
    def terms(self) -> Terms:
        """No class, the class, or both."""
        if self.label is None or self.guidance == 0:
            return ((None, 1.0),)
        if self.guidance == 1:
            return ((self.label, 1.0),)
        return ((None, 1 - self.guidance), (self.label, self.guidance))

    @property
    def strength(self) -> float:
        """The guidance where it counts: 1 where the network is asked only once."""
        return float(self.guidance) if len(self.terms) > 1 else 1.0

    def __str__(self) -> str:
        if self.label is None:
            return "no class"
        return f"class '{self.name or self.label}' with guidance {self.guidance:g}"


# Asked for where nobody asks for a class.
UNCONDITIONAL = Condition()


@dataclass(frozen=True)
class Blend:
    """Some of each of the ``parts``, whose weights add up to 1; an ``Asked``."""

    parts: tuple[tuple[Asked, float], ...]

    @property
    def terms(self) -> Terms:
        """Those of all parts."""
        sums: dict[int | None, float] = {}
        for part, share in self.parts:
            for label, weight in part.terms:
                sums[label] = sums.get(label, 0.0) + share * weight
        return tuple((label, weight) for label, weight in sums.items() if weight)
