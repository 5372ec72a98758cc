"""The smaller analyses: each says what theory or a computation by hand says, and measures nothing twice."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import pairwise, product
from math import inf, isfinite, isnan
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from limited_device import limited_device
from matplotlib.figure import Figure
from PIL import Image

from ddim_ode import codec, decode, encode, load_model, make_grid
from ddim_ode.analysis import (
    consistency,
    convergence,
    cross_solver,
    curvature,
    euler_time,
    learning,
    options,
    sample_quality,
    work_precision,
)
from ddim_ode.analysis.figures import save_figure
from ddim_ode.analysis.frechet import TEST_STATISTICS, frechet_to_test
from ddim_ode.analysis.pictures import CIFAR10_TEST, load_images
from ddim_ode.analysis.reconstruction_plot import ReconstructionRow
from ddim_ode.analysis.rows import load_rows
from ddim_ode.analysis.spread import spread
from ddim_ode.ancestral import seeded_noise
from ddim_ode.codec import draw_latents
from ddim_ode.ddpm_unet import DDPMUNet
from ddim_ode.images import pixel_mse
from ddim_ode.solvers import SOLVERS, torchdiffeq_adapter
from ddim_ode.work import load_json


def run(command: click.Command, model: Path | str, out: Path, *options: str) -> str:
    arguments = ["--model", str(model), "--out", str(out), *options]
    if any(parameter.name == "references" for parameter in command.params):
        arguments += ["--references", str(out.parent / "references")]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of all evaluations of a network, of any model, in the order they are made."""
    sizes: list[int] = []
    forward = DDPMUNet.forward

    def count(network: DDPMUNet, x: torch.Tensor, *others: Any, **more: Any) -> object:
        sizes.append(len(x))
        return forward(network, x, *others, **more)

    monkeypatch.setattr(DDPMUNet, "forward", count)
    return sizes


SMALL = {
    "consistency": (consistency, ("--count", "2", "--steps", "2", "--steps", "4")),
    "convergence": (convergence, ("--count", "1", "--solver", "euler")),
    "cross_solver": (cross_solver, ("--count", "2", "--nfe", "2", "--solver", "euler", "--solver", "heun")),
    "curvature": (curvature, ("--count", "2", "--points", "3", "--reference-steps", "20")),
    "euler_time": (euler_time, ("--count", "2", "--steps", "4", "--stride", "200")),
    "learning": (learning, ("--count", "2", "--steps", "3", "--latents", "4", "--walks", "1")),
    "sample_quality": (sample_quality, ("--count", "3", "--steps", "2", "--eta", "1")),
    "work_precision": (
        work_precision,
        ("--count", "2", "--stride", "20", "--adaptive", "per-sample-bosh3", "--fixed", "euler", "--tolerance", "0.1"),
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_second_run_measures_nothing(name: str, tiny_model: Path, tmp_path: Path, evaluations: list[int]) -> None:
    module, chosen = SMALL[name]
    model = "default" if name == "sample_quality" else str(tiny_model)  # whose features are for 32 x 32 pixels
    out = tmp_path / "out"
    first = run(module.main, model, out, *chosen)
    rows = (out / "rows.csv").read_text()
    assert list(out.glob("*.png"))
    assert evaluations
    evaluations.clear()
    if (tmp_path / "references").exists():
        shutil.rmtree(tmp_path / "references")
    assert run(module.main, model, out, *chosen) == first
    assert evaluations == []
    assert (out / "rows.csv").read_text() == rows
    result = CliRunner().invoke(module.main, ["--model", model, "--out", str(out), "--count", "4"])
    assert result.exit_code == 1
    assert "another" in result.output


def test_a_class_is_another_model(class_model: Path, tmp_path: Path) -> None:
    """Measured by itself: its rows are not those of another class, of none, or of another guidance."""
    quick = ("--count", "2", "--points", "3", "--reference-steps", "20")
    runs = {(): "none", ("--class", "dog"): "dog", ("--class", "dog", "--guidance", "2"): "dog 2"}
    printed = {run(curvature.main, class_model, tmp_path / name, *quick, *asked) for asked, name in runs.items()}
    assert len(printed) == 3
    names = [load_json(tmp_path / name / "settings.json")["model"] for name in runs.values()]
    assert [name.removeprefix(str(class_model)) for name in names] == [
        "",
        ", class 'dog' with guidance 1",
        ", class 'dog' with guidance 2",
    ]
    options = ["--model", str(class_model), "--out", str(tmp_path / "dog"), *quick, "--class", "cat"]
    result = CliRunner().invoke(curvature.main, options)
    assert (result.exit_code, "holds rows with another" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (convergence, ("--timestep", "999"), "from timestep 999 to the next; choose --timestep from 0 to 998"),
        (work_precision, ("--tolerance", "0"), "0 is not in the range x>0"),
        (work_precision, ("--fixed", "torchdiffeq-dopri5"), "'torchdiffeq-dopri5' is not one of"),
        (sample_quality, (), "makes images of 3 x 8 x 8, but the features that judge them are for 3 x 32 x 32"),
    ],
)
def test_what_cannot_be_measured(
    module: ModuleType, options: tuple[str, ...], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["--model", str(tiny_model), "--out", str(tmp_path / "out"), *options]
    result = CliRunner().invoke(module.main, arguments)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_orders_are_those_declared(tiny_model: Path, tmp_path: Path) -> None:
    """On the closed problem and on the network."""
    solvers = ("euler", "midpoint", "rk4", "ab3", "dpmpp3m", "reab3", "unipc3-bh2-data")
    options = [text for name in solvers for text in ("--solver", name)]
    run(convergence.main, tiny_model, tmp_path, "--count", "1", *options)
    rows = load_rows(convergence.ConvergenceRow, tmp_path / "rows.csv")
    for name, problem in product(solvers, convergence.STEPS):
        slope = convergence.slope([row for row in rows if (row.problem, row.solver) == (problem, name)])
        assert slope == pytest.approx(SOLVERS[name].order, abs=0.3), (name, problem)


def test_slope_of_known_errors() -> None:
    rows = [convergence.ConvergenceRow("closed", "s", 2, steps, 7.0 * steps**-2.5) for steps in (2, 4, 8)]
    assert convergence.slope(rows) == pytest.approx(2.5)
    assert convergence.slope([*rows, convergence.ConvergenceRow("closed", "s", 2, 16, 1e-14)]) == pytest.approx(2.5)
    assert isnan(convergence.slope([*rows[:2], convergence.ConvergenceRow("closed", "s", 2, 16, inf)]))


def test_pairs_are_encoded_with_one_and_decoded_with_the_other(tiny_model: Path, tmp_path: Path) -> None:
    run(
        cross_solver.main,
        tiny_model,
        tmp_path,
        *("--count", "2", "--nfe", "4", "--solver", "euler", "--solver", "heun", "--solver", "ddim-inverse"),
    )
    rows = {(row.encoder, row.decoder): row for row in load_rows(cross_solver.CrossSolverRow, tmp_path / "rows.csv")}
    assert set(rows) == {(a, b) for a in ("euler", "heun", "ddim-inverse") for b in ("euler", "heun")}
    model = load_model(str(tiny_model))
    images, _ = load_images(CIFAR10_TEST, model, 2)
    grids = [make_grid(model.schedule, "log-snr", steps, clean_end="sigma-min") for steps in (4, 2)]
    x_T = encode(model.ode(), images, grids[0], SOLVERS["euler"])
    back = decode(model.ode(), x_T, grids[1], SOLVERS["heun"])
    assert rows["euler", "heun"].mse.mean == pytest.approx(float(pixel_mse(images, back).mean()), rel=1e-6)


def test_distances_fall_with_the_steps(tiny_model: Path, tmp_path: Path) -> None:
    options = [text for steps in (5, 20, 320) for text in ("--steps", str(steps))]
    run(consistency.main, tiny_model, tmp_path, "--count", "2", *options)
    rows = load_rows(consistency.ConsistencyRow, tmp_path / "rows.csv")
    assert [row.steps for row in rows] == [5, 20]
    model = load_model(str(tiny_model))
    x_T = draw_latents(2, (3, 8, 8), seed=0)
    images = [
        decode(model.ode(), x_T, make_grid(model.schedule, "trailing", steps), SOLVERS["euler"]) for steps in (5, 320)
    ]
    assert rows[0].rmse.mean == pytest.approx(float(pixel_mse(*images).sqrt().mean()), rel=1e-6)
    assert rows[1].rmse.mean < rows[0].rmse.mean / 2


def test_half_the_bend_is_the_error_of_euler(tiny_model: Path, tmp_path: Path) -> None:
    """To leading order in the step: closely where the field is smooth, at the lowest noise."""
    run(curvature.main, tiny_model, tmp_path, "--count", "2", "--points", "3", "--reference-steps", "200")
    rows = load_rows(curvature.CurvatureRow, tmp_path / "rows.csv")
    ratios = {(row.chart, row.sigma): row.bend_mean * curvature.STEP**2 / 2 / row.error_mean for row in rows}
    assert len(ratios) == 6
    assert all(0.65 < ratio < 1.35 for ratio in ratios.values())
    least = min(row.sigma for row in rows)
    assert [ratios[chart, least] for chart in curvature.CHARTS] == pytest.approx([1, 1], rel=0.01)


def test_both_eulers_are_measured(tiny_model: Path, tmp_path: Path) -> None:
    run(euler_time.main, tiny_model, tmp_path, "--count", "2", "--grid", "log-snr", "--steps", "8", "--stride", "200")
    rows = load_rows(ReconstructionRow, tmp_path / "rows.csv")
    assert [row.solver for row in rows] == ["euler", "variance-euler"]
    assert rows[0].latent_rmse.mean < rows[1].latent_rmse.mean


def test_evaluations_of_each_image_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    module, chosen = SMALL["work_precision"]
    run(module.main, tiny_model, tmp_path, *chosen)
    rows = load_rows(work_precision.WorkPrecisionRow, tmp_path / "rows.csv")
    fixed = {row.setting.steps: row for row in rows if row.setting.steps}
    assert {steps: row.nfe for steps, row in fixed.items()} == {steps: steps for steps in work_precision.STEPS}
    (adaptive,) = [row for row in rows if row.setting.tolerance]
    assert adaptive.nfe > 3
    assert fixed[100].latent_rmse.mean < fixed[10].latent_rmse.mean


def test_steps_by_batch_and_by_sample_are_compared_in_the_same_chart() -> None:
    pair = (work_precision.BY_BATCH, work_precision.BY_SAMPLE)
    settings = work_precision.make_settings(pair, (1e-2,), ("euler",))
    charts = {(setting.solver, setting.chart) for setting in settings if setting.tolerance}
    own = {name: work_precision.ADAPTIVE[name].chart.name for name in pair}
    assert own[pair[0]] != own[pair[1]]
    assert charts == {(pair[0], own[pair[0]]), (pair[0], own[pair[1]]), (pair[1], own[pair[1]])}
    made = [setting.make_solver().settings for setting in settings if setting.tolerance]
    assert [solver["chart"] for solver in made] == [setting.chart for setting in settings if setting.tolerance]
    assert {solver["rtol"] for solver in made} == {1e-2}


def test_axes_of_work_and_precision_say_what_they_are() -> None:
    error = spread(torch.tensor([0.1, 0.2]))
    settings = work_precision.make_settings(("per-sample-bosh3",), (1e-1, 1e-2), ("euler",))
    rows = [work_precision.WorkPrecisionRow(setting, 10.0 + i, 1.0 + i, error) for i, setting in enumerate(settings)]
    panels = work_precision.plot(rows, 0.01).axes
    assert [axes.get_xlabel() for axes in panels] == ["network evaluations of each image", "seconds, for all images"]


def test_figures_say_what_they_were_made_with(tmp_path: Path) -> None:
    settings = {"model": "small", "fingerprint": "0123456789abcdef", "images": ["a.png", "b.png"], "seed": 3}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    figure = Figure(layout="constrained")
    save_figure(figure, tmp_path / "figure.png")
    assert [text.get_text() for text in figure.texts] == ["model 'small', weights 0123456789ab, 2 images, seed 3"]
    with Image.open(tmp_path / "figure.png") as picture:
        assert json.loads(picture.text["ddim-ode"]) == settings


@pytest.fixture
def noise() -> torch.Tensor:
    return ((draw_latents(200, (3, 32, 32), seed=0) * 0.5).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)


def test_test_images_are_nearer_to_themselves_than_noise(noise: torch.Tensor) -> None:
    assert TEST_STATISTICS.stat().st_size < 200_000
    loaded, _ = load_images(CIFAR10_TEST, load_model("default"))
    real = ((loaded + 1) * 127.5).round().to(torch.uint8)
    assert frechet_to_test(real) < frechet_to_test(noise[:32]) / 2


def test_samples_without_noise_are_those_of_euler() -> None:
    model = load_model("default")
    pixels, seconds, network_seconds = sample_quality.draw(model, "0", 2, "trailing", 3, 7)
    x_T = draw_latents(3, (3, 32, 32), seed=7)
    images = decode(model.ode(), x_T, make_grid(model.schedule, "trailing", 2, clean_end="zero"), SOLVERS["euler"])
    assert (pixels.double() / 127.5 - 1 - images.clamp(-1, 1)).abs().max() < 0.51 / 127.5 + 1e-4
    assert 0 < network_seconds < seconds


def test_samples_of_sigma_hat_are_those_of_the_papers_formula(tiny_model: Path) -> None:
    """arXiv 2010.02502, Eq. (12) with the sigma of eta = 1, and noise of sigma-hat, Section 5.1; in x itself."""
    model = load_model(str(tiny_model))
    pixels, _, _ = sample_quality.draw(model, "sigma-hat", 3, "trailing", 2, 7)
    x = draw_latents(2, (3, 8, 8), seed=7)
    noise = seeded_noise(range(2), (3, 8, 8), seed=7)
    sigmas = make_grid(model.schedule, "trailing", 3, clean_end="zero").downward()
    ode = model.ode()
    alpha_bar = 1 / (1 + sigmas**2)
    for i, (a, a_next) in enumerate(pairwise(alpha_bar)):
        with torch.no_grad():
            eps = ode(sigmas[i], x / a.sqrt())
        x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        spread = ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        x = a_next.sqrt() * x_0 + (1 - a_next - spread**2).clamp(min=0).sqrt() * eps
        if a_next < 1:
            x = x + (1 - a / a_next).sqrt() * noise()
    assert (pixels.double() / 127.5 - 1 - x.clamp(-1, 1)).abs().max() < 0.51 / 127.5 + 1e-4


def test_table_has_the_papers_figures_beside() -> None:
    rows = [
        sample_quality.SampleQualityRow("0", 10, 12.349, 1.0, 0.5),
        sample_quality.SampleQualityRow("0", 7, 2.0, 1.0, 0.5),
    ]
    assert "| 0 | 2.00 | 12.35 (13.36) |" in sample_quality.table(rows)


@pytest.mark.parametrize("name", sorted(set(SMALL) - {"sample_quality"}))
def test_the_same_on_a_device_without_float64(
    name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as float32 goes; the device is made up, for there is none here."""
    module, chosen = SMALL[name]
    run(module.main, tiny_model, tmp_path / "here", *chosen)
    with limited_device() as device:
        for holder in (codec, torchdiffeq_adapter):
            monkeypatch.setattr(holder, "WITHOUT_FLOAT64", {device.type})
        monkeypatch.setattr(options, "find_device", lambda _: device)
        run(module.main, tiny_model, tmp_path / "there", *chosen, "--device", "mps")
    here, there = (
        list(csv.reader((tmp_path / place / "rows.csv").read_text().splitlines())) for place in ("here", "there")
    )
    assert len(here) == len(there) > 1
    assert here[0] == there[0]
    assert [[is_finite(cell) for cell in row] for row in here] == [[is_finite(cell) for cell in row] for row in there]


def is_finite(cell: str) -> bool | None:
    """Whether it is a finite number; None for a word."""
    try:
        return isfinite(float(cell))
    except ValueError:
        return None
