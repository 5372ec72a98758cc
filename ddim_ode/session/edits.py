"""Edits: a picture encoded as one class and decoded as another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ddim_ode.conditions import Condition
from ddim_ode.images import Source
from ddim_ode.session.plan import Plan
from ddim_ode.session.results import Edit, EditedAt
from ddim_ode.session.worker import Worker, plan_settings


def edit(worker: Worker, image: Tensor, source: Source, own: Condition, plans: Mapping[float, Plan]) -> Edit:
    """``image``, ``(1, C, H, W)``, pixels in [-1, 1], encoded as its ``own`` class and decoded as the ``plans`` say.

    ``plans``  by their strength, rising.

    From each latent it is decoded as its own class as well, which shows what encoding has lost. Errors are those of
    ``codec.encode``.
    """
    x_0 = worker.states([image])
    edits = [_edit(worker, x_0, own, strength, plan) for strength, plan in plans.items()]
    last = edits[-1]
    settings = plan_settings(worker.model, last.plan, last.plan.back, source.name) | {
        "from": str(own),
        "to": str(last.plan.condition),
        "strengths": list(plans),
        "mse": [found.mse for found in edits],
    }
    return Edit(source.name, worker.pictures(x_0)[0], own, edits, settings)


def _edit(worker: Worker, x_0: Tensor, own: Condition, strength: float, plan: Plan) -> EditedAt:
    label = f"edit {strength:g}"
    there, walk_there = worker.walker([own]).encode(x_0, plan.grid, plan.solver, label=label)
    again, _ = worker.walker([own]).decode(there.x, plan.grid, plan.back, companion=there.companion, label=label)
    # Without the companion, which is one of its own class.
    edited, walk_back = worker.walker([plan.condition]).decode(there.x, plan.grid, plan.back, label=label)
    mse = float(worker.errors(x_0, again.x))
    pictures = worker.pictures(torch.cat([again.x, edited.x]))
    return EditedAt(strength, pictures[0], pictures[1], mse, plan, walk_there, walk_back)
