"""The comparison with diffusers: its figures are those of a computation by hand, and its verdicts follow from them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ddim_ode.analysis.comparison import ComparisonRow, leave_out_older, main, plan
from ddim_ode.analysis.comparison_plot import GOALS, table, verdict
from ddim_ode.analysis.pictures import CIFAR10_TEST, load_images
from ddim_ode.analysis.rows import Results, load_rows
from ddim_ode.analysis.schedulers import (
    decode_with_scheduler,
    invert_with_ddim,
    there_and_back_with_dpm_solver,
)
from ddim_ode.analysis.spread import Spread
from ddim_ode.calibration import FILE, Calibration, Entry, Learned, save_calibration
from ddim_ode.codec import decode, draw_latents, encode
from ddim_ode.grids import make_grid
from ddim_ode.images import pixel_mse
from ddim_ode.models import Model, load_model
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule
from ddim_ode.solvers import DEFAULT_SOLVER, SOLVERS
from ddim_ode.work import load_json

ROOT = Path(__file__).parents[2]
# diffusers hands torch tensors to numpy's old protocol.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning", "ignore:DPMSolverMultistepInverse")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def measured(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a small comparison, and what it printed."""
    folder = tmp_path_factory.mktemp("comparison")
    return folder, run(tiny_model, folder, 2)


def run(model: Path, folder: Path, count: int) -> str:
    options = ["--model", str(model), "--count", str(count), "--few", "1", "--stride", "200"]
    options += ["--references", str(folder / "references"), "--out", str(folder)]
    result = CliRunner().invoke(main, options)
    return result.output if result.exit_code else result.stdout


def test_every_goal_has_its_line(measured: tuple[Path, str]) -> None:
    folder, printed = measured
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(GOALS) + 1
    assert all(line.split(" | ")[-1].rstrip(" |") in ("aim", "reached", "missed") for line in lines[1:])
    assert (folder / "comparison.png").stat().st_size > 10_000


def test_a_second_run_measures_nothing(measured: tuple[Path, str], tiny_model: Path) -> None:
    folder, printed = measured
    written = (folder / "rows.csv").stat().st_mtime_ns
    assert run(tiny_model, folder, 2) == printed
    assert (folder / "rows.csv").stat().st_mtime_ns == written
    assert "another" in run(tiny_model, folder, 4)


def test_figures_are_those_of_a_computation_by_hand(measured: tuple[Path, str], model: Model) -> None:
    rows = {
        (r.measure, r.family, r.name, r.grid, r.steps): r for r in load_rows(ComparisonRow, measured[0] / "rows.csv")
    }
    images, _ = load_images(CIFAR10_TEST, model, 2)
    grid = make_grid(model.schedule, "log-snr", 10)
    x_T = encode(model.ode(), images, grid, SOLVERS["reab2"])
    mse = float(pixel_mse(images, decode(model.ode(), x_T, grid, SOLVERS["reab2"])).mean())
    found = rows["round_trip", "ddim-ode", "reab2", "log-snr", 10]
    assert (found.nfe, found.images) == (10, 2)
    assert found.error.mean == pytest.approx(mse, rel=1e-9)
    default = rows["round_trip", "ddim-ode", DEFAULT_SOLVER, "log-snr", 10]
    assert rows["round_trip", "ddim-ode", "auto", "", 10].error.mean == default.error.mean
    assert rows["two_states", "ddim-ode", "reversible-heun", "log-snr", 6].error.mean < 1e-12


@pytest.mark.parametrize(("spacing", "t_end"), [("leading", 980), ("trailing", 999)])
def test_diffusers_inverse_is_our_ddim_inverse(model: Model, spacing: str, t_end: int) -> None:
    """For a network that predicts v too, since it is asked for eps."""
    images, _ = load_images(CIFAR10_TEST, model, 2)
    x_T, end = invert_with_ddim(model, images, spacing, 50)
    ours = encode(model.ode(), images, make_grid(model.schedule, spacing, 50), SOLVERS["ddim-inverse"])
    assert end == ("zero", t_end)
    torch.testing.assert_close(x_T, ours, rtol=0, atol=1e-4)


def test_dpm_solver_leads_back(model: Model) -> None:
    images, _ = load_images(CIFAR10_TEST, model, 2)
    few, many = (there_and_back_with_dpm_solver(model, images, 2, "trailing", steps) for steps in (10, 40))
    assert float(pixel_mse(images, many).mean()) < float(pixel_mse(images, few).mean()) / 4


def test_auto_is_what_the_calibration_says(model: Model, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "calibrated"
    shutil.copytree(tiny_model, folder)
    grid = make_grid(model.schedule, "capped-50", 5)
    entries = (Entry("reab3", grid, Learned(((0.0,),) * 5), Learned(((0.0,),) * 5), {}),)
    save_calibration(Calibration(model.fingerprint, entries, {}), folder / FILE)
    calibrated = load_model(str(folder))
    assert plan(calibrated, "auto", "", 5).grid == grid
    assert plan(calibrated, "auto", "", 5).solver.name == "auto"
    assert plan(calibrated, "auto", "", 6).solver == SOLVERS[DEFAULT_SOLVER]


def test_a_solver_is_given_a_grid_that_it_can_walk(model: Model) -> None:
    """As on the command line: above sigma = 0, where the grid's own end is."""
    found = plan(model, "dpmpp3m", "trailing", 10)
    assert (found.grid.name, found.grid.clean_end, found.grid.steps) == ("trailing", "sigma-min", 10)
    assert plan(model, "euler", "trailing", 10).grid.clean_end == "zero"


@pytest.mark.parametrize(("value", "word"), [(0.1, "aim"), (0.2, "reached"), (0.5, "reached"), (0.51, "missed")])
def test_verdicts(value: float, word: str) -> None:
    assert verdict(value, least=0.5, aim=0.1) == word


def test_a_ratio_is_to_the_best_baseline() -> None:
    def row(measure: str, family: str, name: str, grid: str, steps: int, value: float) -> ComparisonRow:
        mean, median, trimmed = ((value * part,) * 3 for part in (3, 0.5, 1))
        return ComparisonRow(measure, family, name, grid, steps, steps, 3, Spread(*mean, *median, *trimmed))

    printed = table(
        [
            row("round_trip", "diffusers", "DDIM", "trailing", 10, 0.5),
            row("round_trip", "diffusers", "DDIM", "leading", 10, 0.2),
            row("round_trip", "ddim-ode", "auto", "", 10, 0.0002),
            row("round_trip", "ddim-ode", "dpmpp3m", "log-snr", 10, 0.0001),
            row("few", "diffusers", "DDIM", "trailing", 1000, 0.05),
            row("few", "ddim-ode", "auto", "", 10, 0.06),
            row("few", "ddim-ode", "auto", "", 12, 0.05),
        ]
    )
    ratios = "0.001 | 0.001 | 0.001 | 0.001 | 6.4e-06"
    assert f"| round trip, one latent | 10 | DDIM leading: 0.2 | auto: 0.0002 | {ratios} | reached |" in printed
    assert "| steps that lose as little as DDIM in 1000 | 12 | DDIM trailing: 0.05 | auto: 0.05 | 0.012 |" in printed
    assert printed.endswith("| 12 steps | 10 steps | reached |")


def test_diffusers_is_told_how_many_timesteps_there_are(model: Model) -> None:
    """Or else it takes those of the first thousand of four."""
    schedule = make_schedule("squaredcos_cap_v2", timesteps=4000)
    long = replace(model, process=VariancePreserving(schedule, model.prediction))
    x_T = draw_latents(2, (3, 8, 8), seed=0)
    theirs, clean_end, calls = decode_with_scheduler(long, x_T, "DDIMScheduler", {"timestep_spacing": "trailing"}, 20)
    ours = decode(long.ode(), x_T, make_grid(schedule, "trailing", 20), SOLVERS["euler"])
    assert (clean_end, calls) == ("zero", 20)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_a_scheduler_that_fails_is_infinitely_far_off(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise IndexError("out of range")

    monkeypatch.setattr("diffusers.UniPCMultistepScheduler.step", fail)
    x_T = torch.zeros(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="UniPCMultistepScheduler fails in 5 evaluations: IndexError: out of range"):
        images, clean_end, calls = decode_with_scheduler(model, x_T, "UniPCMultistepScheduler", {}, 5)
    assert bool(images.isinf().all())
    assert (clean_end, calls) == ("zero", 5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_machine_that_is_too_small_is_no_failure_of_a_scheduler(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("diffusers.UniPCMultistepScheduler.step", fail)
    with pytest.raises(error):
        decode_with_scheduler(model, torch.zeros(1, 3, 8, 8), "UniPCMultistepScheduler", {}, 5)


def test_settings_that_a_scheduler_does_not_take_are_no_failure_of_it(model: Model) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'spacing'"):
        decode_with_scheduler(model, torch.zeros(1, 3, 8, 8), "DDIMScheduler", {"spacing": 1}, 5)


def test_what_another_calibration_decided_is_measured_anew(tiny_model: Path, tmp_path: Path) -> None:
    row = load_rows(ComparisonRow, ROOT / "analysis" / "results" / "comparison" / "rows.csv")[0]
    kept = [replace(row, name=name, steps=steps) for name, steps in (("auto", 10), ("DDIM", 20), ("auto", 20))]
    results = Results(ComparisonRow, tmp_path, {})
    leave_out_older(results, {"10": "a", "20": "b"})
    results.replace(kept)
    leave_out_older(results, {"10": "a", "20": "b", "30": "new"})
    assert results.rows == kept
    leave_out_older(results, {"10": "a", "20": "c"})
    assert results.rows == kept[:2]
    del results
    assert load_rows(ComparisonRow, tmp_path / "rows.csv") == kept[:2]
    assert load_json(tmp_path / "settings.json")["calibrated"] == {"10": "a", "20": "c"}
