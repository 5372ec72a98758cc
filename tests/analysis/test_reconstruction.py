"""The reconstruction script measures what it says, resumes, and draws from its rows alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ddim_ode import decode, encode, load_model, make_grid
from ddim_ode.analysis.pictures import CIFAR10_TEST, load_images
from ddim_ode.analysis.reconstruction import ReconstructionRow, main, steps_for
from ddim_ode.analysis.reconstruction_plot import plot, table
from ddim_ode.analysis.rows import load_rows
from ddim_ode.images import pixel_mse
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.solvers import SOLVERS

OPTIONS = ("--solver", "euler", "--solver", "heun", "--grid", "log-snr", "--count", "2", "--stride", "100")


def run(model: Path, out: Path, *options: str) -> Result:
    places = ["--model", str(model), "--out", str(out), "--references", str(out / "references")]
    result = CliRunner().invoke(main, [*places, *OPTIONS, *options])
    assert result.exit_code == 0, result.output
    return result


def load(folder: Path) -> list[ReconstructionRow]:
    return load_rows(ReconstructionRow, folder / "rows.csv")


def test_rows_hold_what_a_round_trip_by_hand_gives(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, "--nfe", "4")
    model = load_model(str(tiny_model))
    images, _ = load_images(CIFAR10_TEST, model, 2)
    for row in load(tmp_path):
        ode, solver = model.ode(), SOLVERS[row.solver]
        grid = make_grid(model.schedule, row.grid, row.steps, clean_end=row.clean_end)
        x_T = encode(ode, images, grid, solver)
        assert row.nfe == ode.nfe == 4
        assert row.mse.mean == pytest.approx(float(pixel_mse(images, decode(ode, x_T, grid, solver)).mean()), rel=1e-3)
        assert row.second_moment.mean == pytest.approx(float(x_T.square().mean()), rel=1e-3)


def test_latent_error_falls_with_the_steps(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, "--solver", "heun", "--steps", "4", "--steps", "64")
    errors = {row.steps: row.latent_rmse.mean for row in load(tmp_path) if row.solver == "heun"}
    assert errors[64] < errors[4] / 2


def test_a_second_run_measures_only_what_is_missing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tiny_model, tmp_path, "--nfe", "4")
    first = load(tmp_path)
    calls: list[torch.Tensor] = []
    forward = ProbabilityFlowODE.forward

    def counted(self: ProbabilityFlowODE, sigma: torch.Tensor, x_bar: torch.Tensor) -> torch.Tensor:
        calls.append(sigma)
        return forward(self, sigma, x_bar)

    monkeypatch.setattr(ProbabilityFlowODE, "forward", counted)
    run(tiny_model, tmp_path, "--nfe", "4")
    assert calls == []
    assert load(tmp_path) == first
    run(tiny_model, tmp_path, "--nfe", "6")
    assert len(calls) == 2 * 3 * 6  # up, down again, and down from the reference
    assert load(tmp_path)[: len(first)] == first


def test_plot_only_needs_no_model(tiny_model: Path, tmp_path: Path) -> None:
    output = run(tiny_model, tmp_path, "--nfe", "4", "--nfe", "10").output
    figure = tmp_path / "reconstruction.png"
    figure.unlink()
    again = run(Path("nowhere"), tmp_path, "--plot-only").output
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert again == output


def test_settings_are_beside_the_rows(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, "--nfe", "4")
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert load_model(str(tiny_model)).fingerprint in json.dumps(settings)
    assert "reference_rmse" in settings


def test_a_folder_of_another_model_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, "--nfe", "4")
    options = ["--model", str(tiny_model), "--out", str(tmp_path), "--count", "3", "--nfe", "4"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert result.output.count("Error: ") == 1


def test_the_table_compares_at_equal_nfe(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, "--nfe", "10", "--nfe", "20")
    mean = {"euler": 0.25, "heun": 0.125}
    rows = [replace(row, mse=replace(row.mse, mean=mean[row.solver])) for row in load(tmp_path)]
    lines = table(rows).splitlines()
    assert "euler" in lines[0]
    assert "heun" in lines[0]
    assert len(lines) == 4
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == ["10", "0.014", "0.25", "0.12"]
    assert steps_for("heun", 10) == 5


def test_a_good_latent_is_decoded_as_by_hand(tiny_model: Path, tmp_path: Path) -> None:
    """More steps decode the reference latent to the image that it was encoded from."""
    run(tiny_model, tmp_path, "--steps", "4", "--steps", "64")
    errors = {(row.solver, row.steps): row.decode_mse.mean for row in load(tmp_path)}
    assert errors["heun", 64] < errors["heun", 4] / 10
    assert errors["heun", 64] < errors["euler", 64]


def test_of_many_curves_the_best_are_drawn_and_euler(tiny_model: Path, tmp_path: Path) -> None:
    run(tiny_model, tmp_path, "--nfe", "4")
    (row,) = [row for row in load(tmp_path) if row.solver == "euler"]
    better = [replace(row.mse, mean=row.mse.mean / (i + 2)) for i in range(20)]
    rows = [row, *(replace(row, solver=f"s{i:02}", mse=mse) for i, mse in enumerate(better))]
    drawn = [text.get_text() for text in plot(rows).legends[0].get_texts()]
    assert [label for label in drawn if label.startswith("s")] == [f"s{i}" for i in range(14, 20)]
    assert "euler" in drawn
