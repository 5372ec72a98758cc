"""Conditions: the class that a network is asked for, and how strongly, for each member of a batch.

With guidance W the slope is eps_none + W (eps_class - eps_none), where eps_none is what the network answers with the
label that means no class. W = 0 asks for no class at all, W = 1 for the class as it was learned, and larger ones for
more of it. Every prediction is affine in eps with the same offset at one x and sigma, so that the outputs themselves
are mixed.

Ho and Salimans, "Classifier-Free Diffusion Guidance", arXiv 2207.12598, Eq. (6), with w = W - 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Condition:
    """A class by its number, None for none, and the ``guidance`` W towards it.

    Raises:
        ValueError: if W is not finite.
    """

    label: int | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        if not isfinite(self.guidance):
            raise ValueError(f"guidance must be a finite number, but it is {self.guidance:g}")


class Labelled(Protocol):
    """A network that is told a class: ``none`` is the label that means none."""

    none: int

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The output, ``(B, C, H, W)``, for x ``(B, C, H, W)``, t ``(B,)`` and labels ``(B,)``, int64."""


class Conditioned(nn.Module):
    """A ``network`` that is a ``Labelled``, asked with a condition for each member of a batch.

    A member with guidance other than 1 is asked for twice, with its class and without, in one call of the network for
    all of them; where no member is, or none has a class, each is asked for once.
    """

    def __init__(self, network: nn.Module, conditions: Sequence[Condition]) -> None:
        super().__init__()
        self.network = network
        self._labelled: Labelled = network  # type: ignore[assignment]  # what the caller promises
        self._conditions = tuple(conditions)
        none = self._labelled.none
        # Made once, where the network is: nothing is copied to a device at a call.
        like = next(network.parameters(), torch.empty(0))
        self._labels = torch.tensor([none if c.label is None else c.label for c in conditions], device=like.device)
        self._guidance = like.new_tensor([1.0 if c.label is None else c.guidance for c in conditions])
        self._guided = any(c.label is not None and c.guidance != 1 for c in conditions)

    def of(self, members: Tensor) -> Conditioned:
        """The same for some ``members`` of the batch, by their places in it: int64, ``(A,)``."""
        return Conditioned(self.network, [self._conditions[i] for i in members.tolist()])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)``, to ``(B, C, H, W)``.

        Raises:
            ValueError: if there is not one condition for each member.
        """
        if len(x) != len(self._conditions):
            raise ValueError(f"there are {len(self._conditions)} conditions, but the batch has {len(x)} members")
        if not self._guided:
            return self._labelled.answer(x, t, self._labels)
        both = torch.cat([self._labels, torch.full_like(self._labels, self._labelled.none)])
        wanted, without = self._labelled.answer(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        w = self._guidance.reshape(-1, *[1] * (x.ndim - 1))
        # Not left to rounding: what a member is must not depend on the others.
        return torch.where(w == 1, wanted, without + w * (wanted - without))
