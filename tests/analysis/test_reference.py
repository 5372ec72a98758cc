"""References are the solution of the ODE, and are walked once."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
import torch
from best_network import SD, best_model

from ddim_ode.analysis import reference
from ddim_ode.analysis.reference import _key, decoded_references, make_references
from ddim_ode.codec import draw_latents
from ddim_ode.models import load_model
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule


def test_references_are_the_true_solution(tmp_path: Path) -> None:
    """Of N(0, SD^2), whose way is known: from both clean ends, through several noise levels, and back.

    Not quite from sigma = 0: below the smallest sigma of training the network is told that one.
    """
    model = best_model(8)
    schedule = model.schedule
    images = SD * draw_latents(5, (3, 8, 8), seed=1)
    ends = {(clean_end, t) for clean_end in ("zero", "sigma-min") for t in (500, 999)}
    found = make_references(model, images, ends, folder=tmp_path, stride=2, batch_size=2)
    assert set(found) == ends
    for (clean_end, t), kept in found.items():
        below, sigma = 0.0 if clean_end == "zero" else schedule.sigma_min, float(schedule.sigma(t))
        truth = images * sqrt((SD**2 + sigma**2) / (SD**2 + below**2) / (1 + sigma**2))
        torch.testing.assert_close(kept.x_T, truth, rtol=5e-4 if below == 0 else 1e-6, atol=0)
        assert kept.accuracy < 1e-6
    decoded = decoded_references(model, found["zero", 999].x_T, folder=tmp_path, stride=2)
    torch.testing.assert_close(decoded.at["zero"], images, rtol=1e-6, atol=0)


def test_references_are_walked_once(tiny_model: Path, tmp_path: Path) -> None:
    model, x_T = load_model(str(tiny_model)), draw_latents(2, (3, 8, 8), seed=0)
    decoded = decoded_references(model, x_T, folder=tmp_path, stride=100)
    encoded = make_references(model, x_T, {("zero", 999)}, folder=tmp_path, stride=100)
    model.network.register_forward_hook(lambda *_: pytest.fail("walked again"))
    again = decoded_references(model, x_T, folder=tmp_path, stride=100)
    assert again.accuracy == decoded.accuracy > 0
    assert all(again.at[end].equal(decoded.at[end]) for end in decoded.at)
    assert make_references(model, x_T, {("zero", 999)}, folder=tmp_path, stride=100)["zero", 999].x_T.equal(
        encoded["zero", 999].x_T
    )


def test_what_is_kept_is_of_this_method_and_this_schedule(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = load_model(str(tiny_model)), draw_latents(2, (3, 8, 8), seed=0)
    keys = {_key(model, x, 1), _key(model, x, 2), _key(model, x + 1, 1)}
    shorter = replace(model, process=VariancePreserving(make_schedule("linear", timesteps=500), model.prediction))
    keys.add(_key(shorter, x, 1))
    monkeypatch.setattr(reference, "SOLVER", "another")
    assert len(keys | {_key(model, x, 1)}) == 5


def test_accuracy_is_of_members_spread_over_all(tiny_model: Path) -> None:
    fine = torch.arange(8.0)[:, None, None, None].expand(8, 3, 2, 2)
    assert reference._distance(fine, fine[[0, 2, 4, 6]]) == 0
