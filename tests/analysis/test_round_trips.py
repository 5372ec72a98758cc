"""Pipelines there and back: ours lead back to rounding, and the field's own are what loops written out say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import inf, isnan
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler
from tiny_pipelines import build, picture
from torch import Tensor

from ddim_ode import from_pipeline
from ddim_ode.analysis.round_trips import main
from ddim_ode.analysis.round_trips_plot import DDIM_INVERSE, EULER, TripRow, table
from ddim_ode.analysis.rows import load_rows

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore::FutureWarning")

STEPS, GUIDANCE, PROMPT = 12, 2.0, "a cat"
PIPELINES = {"SD": "SD 1.5", "SDXL": "SDXL", "SD3": "SD3"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pipelines, and a picture."""
    folder = tmp_path_factory.mktemp("pipelines")
    for name, kind in PIPELINES.items():
        build(kind).save_pretrained(folder / name)
    picture().save(folder / "picture.png")
    return folder


def run(folders: Path, out: Path, *options: str, pipelines: tuple[str, ...] = tuple(PIPELINES)) -> str:
    asked = [text for name in pipelines for text in ("--pipeline", str(folders / name))]
    asked += ["--prompt", PROMPT, "--image", str(folders / "picture.png"), "--out", str(out), "--device", "cpu"]
    result = CliRunner().invoke(main, [*asked, *options])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def rows(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], TripRow]:
    out = tmp_path_factory.mktemp("out")
    printed = run(folders, out, "--steps", str(STEPS), "--guidance", str(GUIDANCE), "--reference", "8")
    assert (out / "round-trips.png").exists()
    assert f"| SD3 | flow | 2 | {STEPS} | reversible-heun | {STEPS + 1} + {STEPS + 1} |" in printed
    return {(row.pipeline, row.method): row for row in load_rows(TripRow, out / "rows.csv")}


def test_ours_lead_back(rows: dict[tuple[str, str], TripRow]) -> None:
    for name, own in (("SD", DDIM_INVERSE), ("SDXL", DDIM_INVERSE), ("SD3", EULER)):
        assert {method for pipeline, method in rows if pipeline == name} == {
            "auto",
            "reversible-heun",
            "exact euler",
            own,
        }
        assert rows[name, "reversible-heun"].x_0_mse < 1e-20
        for method in ("auto", own):
            row = rows[name, method]
            assert (row.nfe, row.nfe_back, row.why) == (STEPS, STEPS, "")
            assert 0 < row.latent_rmse < inf
            assert 0 < row.moment < inf
            assert row.psnr < inf
    assert rows["SD3", "auto"].solver == "angle-ab3"
    for name, own in (("SD", DDIM_INVERSE), ("SD3", EULER)):
        exact = rows[name, "exact euler"]
        assert exact.x_0_mse < 1e-4 * rows[name, own].x_0_mse
        assert exact.nfe > exact.nfe_back == STEPS


def test_an_inverse_that_is_not_found_is_a_row_with_the_reason(rows: dict[tuple[str, str], TripRow]) -> None:
    """That of a network of random weights, with guidance."""
    row = rows["SDXL", "exact euler"]
    assert "150 iterations did not find what euler takes to the state at sigma" in row.why
    assert (row.x_0_mse, row.psnr, row.moment, row.latent_rmse) == (inf, -inf, inf, inf)


def state(pipeline: Any) -> Tensor:
    """The picture as the pipeline's latents, float32."""
    return from_pipeline(pipeline).space.read(picture()).state.float()


def eps_of(pipeline: Any) -> Callable[[Tensor, int], Tensor]:
    """eps(x, t) of Stable Diffusion with prompt and guidance, asked without its loop."""
    texts = pipeline.encode_prompt(PROMPT, "cpu", 1, True)
    both = torch.cat([texts[1], texts[0]])

    def eps(x: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            without, asked = pipeline.unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
        return without + GUIDANCE * (asked - without)

    return eps


def test_the_inverse_of_ddim_is_that_of_a_loop(rows: dict[tuple[str, str], TripRow]) -> None:
    """Each step up takes the slope at its end's label and its beginning's state; down it is DDIM's Eq. (12)."""
    pipeline = build("SD 1.5")
    eps, x_0 = eps_of(pipeline), state(pipeline)
    table = DDIMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
    tau = [1 + i * (1000 // STEPS) for i in range(STEPS)]
    alpha = [table[0], *table[tau]]

    def step(x: Tensor, slope: Tensor, here: Tensor, there: Tensor) -> Tensor:
        seen = (x - (1 - here).sqrt() * slope) / here.sqrt()
        return there.sqrt() * seen + (1 - there).sqrt() * slope

    x = x_0
    for i, t in enumerate(tau):
        x = step(x, eps(x, t), alpha[i], alpha[i + 1])
    row = rows["SD", DDIM_INVERSE]
    assert row.moment == pytest.approx(float(x.square().mean()), rel=1e-4)
    for i, t in reversed(list(enumerate(tau))):
        x = step(x, eps(x, t), alpha[i + 1], alpha[i])
    assert row.x_0_mse == pytest.approx(float((x - x_0).square().mean()), rel=1e-3)


def test_euler_is_that_of_a_loop_in_the_time_of_flow_matching(rows: dict[tuple[str, str], TripRow]) -> None:
    pipeline = build("SD3")
    x_0 = state(pipeline)
    asked, without, pooled, pooled_without = pipeline.encode_prompt(PROMPT, PROMPT, PROMPT, max_sequence_length=256)

    def velocity(x: Tensor, u: float) -> Tensor:
        with torch.no_grad():
            no, yes = pipeline.transformer(
                torch.cat([x, x]),
                timestep=torch.full((2,), 1000 * u),
                encoder_hidden_states=torch.cat([without, asked]),
                pooled_projections=torch.cat([pooled_without, pooled]),
            ).sample.chunk(2)
        return no + GUIDANCE * (yes - no)

    pipeline.scheduler.set_timesteps(STEPS)
    nodes = pipeline.scheduler.sigmas.flip(0).tolist()
    x = x_0
    for here, there in itertools.pairwise(nodes):
        x = x + (there - here) * velocity(x, here)
    row = rows["SD3", EULER]
    assert row.moment == pytest.approx(float(x.square().mean()), rel=1e-4)
    for there, here in reversed(list(itertools.pairwise(nodes))):
        x = x + (there - here) * velocity(x, here)
    assert row.x_0_mse == pytest.approx(float((x - x_0).square().mean()), rel=1e-3)


def test_a_second_run_measures_nothing(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ("--steps", "2", "--guidance", "1")
    first = run(folders, tmp_path, *quick, pipelines=("SD3",))
    rows = load_rows(TripRow, tmp_path / "rows.csv")
    assert len(rows) == 4
    assert all(isnan(row.latent_rmse) for row in rows if not row.why)
    monkeypatch.setattr("ddim_ode.analysis.round_trips.Judge", None)
    assert run(folders, tmp_path, *quick, pipelines=("SD3",)) == first


def test_a_solver_that_fails_says_why(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddim_ode.analysis import round_trips
    from ddim_ode.solvers import SolverError

    def fail(*_: object) -> None:
        raise SolverError("it stopped\nthere")

    monkeypatch.setattr(round_trips, "decode_solution", fail)
    printed = run(folders, tmp_path, "--steps", "2", "--guidance", "1", pipelines=("SD",))
    rows = {row.method: row for row in load_rows(TripRow, tmp_path / "rows.csv")}
    assert rows["auto"].why == "it stopped there"
    assert (rows["auto"].x_0_mse, rows["auto"].psnr) == (inf, -inf)
    assert rows[DDIM_INVERSE].why == ""
    assert "| inf | -inf | inf | inf | it stopped there |" in printed
    assert table([rows["auto"]]).count("\n") == 2


def test_wrong_arguments_are_a_line(folders: Path, tmp_path: Path) -> None:
    options = ["--pipeline", str(folders / "SD"), "--image", str(folders / "picture.png"), "--out", str(tmp_path)]
    for more, words in (
        (["--call", "a=b"], "it must be a name and a value of JSON, such as max_sequence_length=64"),
        (["--call", 'latents="x"'], "'latents' of StableDiffusionPipeline is what drives it, and cannot be given"),
        (["--size", "31"], "height and width must be multiples of 4"),
    ):
        result = CliRunner().invoke(main, [*options, *more])
        assert result.exit_code != 0
        assert words in " ".join(result.output.split())
        assert "Traceback" not in result.output
