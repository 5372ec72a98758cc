"""What precision costs: nothing in the reference, little in single, and a reason where it does not go."""

from __future__ import annotations

from math import inf, isnan
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from ddim_ode import codec, load_model, make_grid
from ddim_ode.analysis import precision
from ddim_ode.analysis.pictures import CIFAR10_TEST, load_images
from ddim_ode.analysis.precision import PrecisionRow, main
from ddim_ode.analysis.rows import load_rows
from ddim_ode.images import pixel_mse
from ddim_ode.solvers import SolverError, get_solver

STEPS = 6
QUICK = ("--count", "2", "--steps", str(STEPS), "--network", "float32", "--network", "bfloat16", "--device", "cpu")


def run(model: Path, out: Path, *options: str) -> tuple[str, dict[tuple[str, str, str], PrecisionRow]]:
    result = CliRunner().invoke(main, ["--model", str(model), "--out", str(out), *QUICK, *options])
    assert result.exit_code == 0, result.output
    rows = load_rows(PrecisionRow, out / "rows.csv")
    return result.stdout, {(row.method, row.network, row.state): row for row in rows}


def test_rows_and_table(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed, rows = run(tiny_model, tmp_path)
    assert len(rows) == 2 * 2 * 4
    for method in precision.METHODS:
        best = rows[method, "float32", "float64"]
        assert (best.latent_rmse, best.image_rmse, best.why) == (0, 0, "")
        single = rows[method, "float32", "float32"]
        assert 0 < single.latent_rmse < 1e-3
        half = rows[method, "bfloat16", "float64"]
        assert half.latent_rmse > 10 * single.latent_rmse
    assert rows["auto", "bfloat16", "float64"].call_seconds > 0
    # It asks for a thousand times less than bfloat16 rounds to.
    assert "150 iterations did not find what euler takes" in rows["exact-euler", "bfloat16", "float64"].why
    heun = rows["reversible-heun", "bfloat16", "float64"]
    assert heun.trip_mse < 1e-20  # whatever the network says, it says it twice
    assert (heun.nfe, heun.nfe_back) == (STEPS + 1, STEPS + 1)
    assert f"| auto | {STEPS} | bfloat16 | float32 | {STEPS} + {STEPS} |" in printed
    monkeypatch.setattr(precision, "Precision", lambda *_: None)
    assert run(tiny_model, tmp_path)[0] == printed


def test_errors_are_those_of_the_codec(tiny_model: Path, tmp_path: Path) -> None:
    """Of a method with two states, by hand: with single precision all the way, and its companion."""
    _, rows = run(tiny_model, tmp_path, "--method", "reversible-heun")
    model = load_model(str(tiny_model))
    images, _ = load_images(CIFAR10_TEST, model, 2)
    grid, solver = make_grid(model.schedule, "log-snr", STEPS), get_solver("reversible-heun")
    there = codec.encode_solution(model.ode(), images, grid, solver)
    model.network.to(torch.bfloat16)
    half = codec.encode_solution(model.ode(), images, grid, solver)
    row = rows["reversible-heun", "bfloat16", "float64"]
    assert row.latent_rmse == pytest.approx(float((half.x - there.x).square().mean().sqrt()), rel=1e-6)
    back = codec.decode_solution(model.ode(), half.x, grid, solver, half.companion).x
    assert float(pixel_mse(images, back).mean()) < 1e-20


def test_a_state_in_single_precision_stays_so(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    seen: list[torch.dtype] = []

    def watch(_: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[1].dtype)

    ode = model.ode()
    ode.register_forward_pre_hook(watch)
    grid = make_grid(model.schedule, "log-snr", 2)
    solver = get_solver("reversible-heun")
    way = codec.encode_solution(ode, torch.zeros(1, 3, 8, 8), grid, solver, dtype=torch.float32)
    assert set(seen) == {torch.float32}
    assert way.companion is not None
    assert way.companion.dtype == torch.float32


def test_what_the_device_cannot_do_is_a_row(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = precision.Precision.encode

    def fail(self: precision.Precision, *arguments: object) -> object:
        if self._network_name == "bfloat16":
            raise SolverError("not implemented for\n'BFloat16'")
        return forward(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(precision.Precision, "encode", fail)
    printed, rows = run(tiny_model, tmp_path, "--method", "auto")
    row = rows["auto", "bfloat16", "float32"]
    assert row.why == "not implemented for 'BFloat16'"
    assert (row.latent_rmse, row.image_rmse, row.trip_mse) == (inf, inf, inf)
    assert isnan(row.call_seconds)
    assert row.why in printed
