"""Edits: a picture encoded as one class or prompt, and decoded as another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ddim_ode.asked import describe
from ddim_ode.conditions import Condition
from ddim_ode.model import Model
from ddim_ode.session.plan import Plan
from ddim_ode.session.results import Edit, EditedAt
from ddim_ode.session.worker import Worker, plan_settings
from ddim_ode.spaces import Read


def edit(worker: Worker, to: Worker, picture: Read, own: Condition, plans: Mapping[float, Plan]) -> Edit:
    """``picture`` encoded by ``worker`` as its ``own`` class, and decoded by the worker ``to`` as the ``plans`` say.

    ``plans``  by their strength, rising.

    From each latent it is decoded as it was encoded as well, which shows what encoding has lost. Errors are those of
    ``codec.encode``.
    """
    x_0 = worker.states([picture.state])
    edits = [_edit(worker, to, x_0, own, strength, plan) for strength, plan in plans.items()]
    last = edits[-1]
    was, became = what_is_asked(worker.model, own), what_is_asked(to.model, last.plan.condition)
    settings = plan_settings(to.model, to.model.fingerprint, last.plan, last.plan.back, picture.source.name) | {
        "from": was,
        "to": became,
        "strengths": list(plans),
        "mse": [found.mse for found in edits],
    }
    return Edit(picture.source.name, worker.pictures(x_0)[0], was, became, edits, settings)


def what_is_asked(model: Model, condition: Condition) -> str:
    """What the network of ``model`` is asked for under ``condition``: its prompt, or a class."""
    return str(condition) if model.asked is None else describe(model.asked)


def _edit(worker: Worker, to: Worker, x_0: Tensor, own: Condition, strength: float, plan: Plan) -> EditedAt:
    label = f"edit {strength:g}"
    there, walk_there = worker.walker([own]).encode(x_0, plan.grid, plan.solver, label=label)
    again, _ = worker.walker([own]).decode(there.x, plan.grid, plan.back, companion=there.companion, label=label)
    # Without the companion, which is one of what it was.
    edited, walk_back = to.walker([plan.condition]).decode(there.x, plan.grid, plan.back, label=label)
    mse = float(worker.errors(x_0, again.x))
    pictures = worker.pictures(torch.cat([again.x, edited.x]))
    return EditedAt(strength, pictures[0], pictures[1], mse, plan, walk_there, walk_back)
