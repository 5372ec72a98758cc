"""Networks that are asked under conditions, as functions of x and t. What conditions are: ``ddim_ode.conditions``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ddim_ode.conditions import Asked, Condition


class Labelled(Protocol):
    """A network that is told a class: ``none`` is the label that means none.

    ``knows_none``  whether it was trained with that; else it must be asked for a class.
    """

    none: int
    knows_none: bool

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The output, ``(B, C, H, W)``, for x ``(B, C, H, W)``, t ``(B,)`` and labels ``(B,)``, int64."""


def check_answers(network: Labelled, conditions: Sequence[Asked]) -> None:
    """Raise ValueError if one of ``conditions`` takes an answer of no class that ``network`` does not have."""
    if not network.knows_none and any(label is None for asked in conditions for label, _ in asked.terms):
        raise ValueError(
            f"this network was trained with a class for every picture; name one of its {network.none} classes, from "
            f"0 to {network.none - 1}, with guidance 1"
        )


class Conditioned(nn.Module):
    """A ``network`` that is a ``Labelled``, asked with a condition for each member of a batch.

    All that is asked goes into one call: a member whose condition mixes several labels is in it several times.

    Raises:
        ValueError: if no class is asked for, or guidance, of a network that knows only classes.
    """

    def __init__(self, network: nn.Module, conditions: Sequence[Asked]) -> None:
        super().__init__()
        self.network = network
        self._labelled: Labelled = network  # type: ignore[assignment]  # what the caller promises
        check_answers(self._labelled, conditions)
        self._conditions = tuple(conditions)
        none = self._labelled.none
        all_terms = [condition.terms for condition in conditions]
        # Made once, where the network is: a call copies nothing to a device.
        like = next(network.parameters(), torch.empty(0))
        # The first terms of all members, then the second ones of those that have any, and so on.
        rounds = range(max(map(len, all_terms), default=0))
        members = [[i for i, terms in enumerate(all_terms) if len(terms) > k] for k in rounds]
        labels = [all_terms[i][k][0] for k in rounds for i in members[k]]
        self._keep("labels", torch.tensor([none if n is None else n for n in labels], device=like.device))
        self._rounds = rounds[1:]
        for k in self._rounds:
            self._keep(f"members_{k}", torch.tensor(members[k], device=like.device))
            self._keep(f"weights_{k}", like.new_tensor([all_terms[i][k][1] for i in members[k]]))

    def _keep(self, name: str, values: Tensor) -> None:
        """Have ``values``, ``(A,)``, go wherever this module goes, as its attribute ``name``; it is no weight."""
        self.register_buffer(name, values, persistent=False)

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
        labels: Tensor = self.get_buffer("labels")
        if not self._rounds:
            return self._labelled.answer(x, t, labels)
        more = [(self.get_buffer(f"members_{k}"), self.get_buffer(f"weights_{k}")) for k in self._rounds]
        xs = [x, *(x[members] for members, _ in more)]
        ts = [t, *(t[members] for members, _ in more)]
        answers = self._labelled.answer(torch.cat(xs), torch.cat(ts), labels)
        first, *others = torch.split(answers, [len(part) for part in xs])
        mixed = first
        for (members, weights), output in zip(more, others, strict=True):
            w = weights.reshape(-1, *[1] * (x.ndim - 1))
            # A member that is asked for once stays what it is to the last bit.
            mixed = mixed.index_copy(0, members, mixed[members] + w * (output - first[members]))
        return mixed


class Bound(nn.Module):
    """A ``network`` that is a ``Labelled``, asked with one condition whatever the batch; as a function of x and t.

    The condition is a part of its state, so that its weights are others than those of another condition.
    """

    def __init__(self, network: nn.Module, condition: Condition) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("label", torch.tensor(-1 if condition.label is None else condition.label))
        self.register_buffer("guidance", torch.tensor(condition.guidance))
        self._condition = condition

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)``, to ``(B, C, H, W)``."""
        output: Tensor = Conditioned(self.network, [self._condition] * len(x))(x, t)
        return output
