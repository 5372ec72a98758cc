"""Latent files that are hostile, over every command that takes them: one line, and nothing else happens.

To add one, add a line to ``LATENTS``.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import PNG, Edit, Runs, call, drop, put, refused, there


def scaled(factor: float) -> Edit:
    """A latent multiplied by ``factor``."""
    return lambda content: content.update(x_T=content["x_T"] * factor)


def many_times(part: list[Any]) -> list[Any]:
    """A few lists with 2^60 places."""
    for _ in range(60):
        part = [part, part]
    return part


def of_itself() -> list[Any]:
    """A list that is all of its own elements."""
    part = list[Any]()
    part += [part] * 100_000
    return part


LATENTS: Mapping[str, bytes | Edit] = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"no latent at all",
    "picture": PNG,
    "pickle": pickle.dumps(Runs()),
    "pickle of a dict": pickle.dumps({"format": "ddim-ode latent", "x_T": Runs()}),
    "another format": put("jpeg", "format"),
    "no format": drop("format"),
    "version 99": put(99, "version"),
    "version true": put(True, "version"),
    "dtype another": put("float16", "dtype"),
    "schedule complex": put(torch.full((1000,), 0.5 + 0.1j), "schedule", "alpha_bar"),
    "size negative": put((-5, -6), "source", "size"),
    "nfe negative": put(-7, "nfe"),
    "solver in capitals": put("EULER", "solver", "name"),
    "no version": drop("version"),
    "no x_T": drop("x_T"),
    "x_T a list": put([0.0], "x_T"),
    "x_T of 3 dimensions": put(torch.zeros(3, 8, 8), "x_T"),
    "x_T of 5 channels": put(torch.zeros(1, 5, 8, 8).double(), "x_T"),
    "x_T empty": put(torch.zeros(1, 3, 0, 8).double(), "x_T"),
    "x_T of integers": put(torch.zeros(1, 3, 8, 8, dtype=torch.int64), "x_T"),
    "x_T complex": put(torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "x_T"),
    "x_T sparse": put(torch.zeros(1, 3, 8, 8).to_sparse(), "x_T"),
    "x_T without values": put(torch.zeros(1, 3, 8, 8, device="meta"), "x_T"),
    "x_T larger than the file": put(torch.zeros(1).expand(1, 3, 20_000, 20_000), "x_T"),
    "x_T of 8 bits": put(torch.zeros(1, 3, 8, 8).to(torch.float8_e4m3fn), "x_T"),
    "sigmas a number repeated": put(torch.zeros(1).expand(10**9), "grid", "sigmas"),
    "timesteps a number repeated": put(torch.zeros(1).expand(10**9), "grid", "timesteps"),
    "size a number repeated": put(torch.ones(1, dtype=torch.int64).expand(10**9), "source", "size"),
    "version a list of lists of lists": put(many_times([]), "version"),
    "nfe a list of lists of lists": put(many_times([]), "nfe"),
    "source a list of itself": put(of_itself(), "source"),
    "schedule larger than the file": put(torch.full((1,), 0.5).expand(10**9), "schedule", "alpha_bar"),
    "x_T NaN": scaled(float("nan")),
    "x_T of 1e6": scaled(1e6),
    "x_T of 1e300": scaled(1e300),
    "rtol larger than a float": put({"name": "scipy-RK45", "rtol": 10**400}, "solver"),
    "no grid": drop("grid"),
    "grid None": put(None, "grid"),
    "sigmas a number": put(1.0, "grid", "sigmas"),
    "sigmas empty": put([], "grid", "sigmas"),
    "sigma of 1e5": put(1e5, "grid", "sigmas", -1),
    "sigma of 1e155": put(1e155, "grid", "sigmas", -1),
    "sigma infinite": put(float("inf"), "grid", "sigmas", -1),
    "sigma NaN": put(float("nan"), "grid", "sigmas", -1),
    "sigma negative": put(-1.0, "grid", "sigmas", 0),
    "timestep NaN": put(float("nan"), "grid", "timesteps", -1),
    "timestep of 1e9": put(1e9, "grid", "timesteps", -1),
    "timestep of another sigma": put(500.0, "grid", "timesteps", -1),
    "timestep a string": put("last", "grid", "timesteps", -1),
    "clean end unknown": put("one", "grid", "clean_end"),
    "clean end the other": put("zero", "grid", "clean_end"),
    "solver a string": put("euler", "solver"),
    "solver unknown": put("perpetual", "solver", "name"),
    "solver with noise": put("ancestral", "solver", "name"),
    "solver calibrated": put("auto", "solver", "name"),
    "solver with steps of its own": put("ends", "grid", "name"),
    "solver with a setting it has not": put(1e-3, "solver", "rtol"),
    "solver with a wrong setting": put(["x"], "solver", "rtol"),
    "no schedule": drop("schedule"),
    "schedule rising": put(torch.linspace(0.1, 0.9, 1000), "schedule", "alpha_bar"),
    "schedule NaN": put(torch.full((1000,), torch.nan), "schedule", "alpha_bar"),
    "schedule a string": put("linear", "schedule", "alpha_bar"),
    "of another model": put("0" * 64, "model", "fingerprint"),
    "no model": drop("model"),
    "size of one number": put([640], "source", "size"),
    "nfe infinite": put(float("inf"), "nfe"),
    "companion of another shape": put(torch.zeros(1, 3, 4, 4), "companion"),
    "companion a string": put("friend", "companion"),
}
# What only a model can know, or a solver: 'info' tells what is in the file.
BY_MODEL = {"of another model", "x_T of 5 channels", "x_T empty"}
BY_MODEL |= {
    f"solver {what}" for what in ("unknown", "in capitals", "with noise", "calibrated", "with steps of its own")
}
BY_MODEL |= {"solver with a setting it has not"}
LATENT_COMMANDS: Sequence[Sequence[str]] = (
    ("decode", "BAD.pt"),
    ("decode", "BAD.pt", "-o", "out"),
    ("info", "BAD.pt"),
    ("interpolate", "BAD.pt", "--seed", "1", "--steps", "1"),
)


@pytest.mark.parametrize("words", LATENT_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", LATENTS)
def test_latents(name: str, words: Sequence[str], latent: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    bad = LATENTS[name]
    if isinstance(bad, bytes):
        (tmp_path / "BAD.pt").write_bytes(bad)
    else:
        content = copy.deepcopy(latent)
        bad(content)
        torch.save(content, tmp_path / "BAD.pt")
    before = there(tmp_path)
    of_model = () if words[0] == "info" else ("--model", tiny_model)
    result = call(*words, *of_model)
    if words[0] == "info" and name in BY_MODEL:
        assert result.exit_code == 0
    elif words[0] == "interpolate" and "solver " in name:
        assert result.exit_code in (0, 1)  # the steps are asked for, and perhaps the solver is not needed
        return
    else:
        refused(result)
    assert there(tmp_path) == before
