"""Calibration: trajectories are solutions, fits are judged on what they have not seen, and worse ones are refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from math import inf, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import SIDE, flux, stable_diffusion
from torch import Tensor, nn

from ddim_ode import Session, learn_solver
from ddim_ode.calibration import CalibrationError, Entry, Learned, load_calibration, read_entry, save_calibration
from ddim_ode.codec import decode, draw_latents, encode
from ddim_ode.grids import make_grid
from ddim_ode.models import Model
from ddim_ode.processes import Flow, VariancePreserving
from ddim_ode.schedule import make_schedule
from ddim_ode.session import calibrate as module
from ddim_ode.session import learn, material
from ddim_ode.session.calibrate import Candidate, calibrate, choose
from ddim_ode.session.learned import learned_solver
from ddim_ode.session.material import Effort
from ddim_ode.session.plan import plan_sampling
from ddim_ode.session.request import Request
from ddim_ode.session.trajectories import walk
from ddim_ode.solvers import SOLVERS, SolverError, learning, polishing
from ddim_ode.speed import in_dtype
from ddim_ode.work import load_json

SCHEDULE = make_schedule()
MODES = torch.tensor([-0.8, 0.5], dtype=torch.float64)
SD = 0.2


class Mixture(nn.Module):
    """The true eps of two kinds of pixels, N(-0.8, 0.2^2) and N(0.5, 0.2^2), which are equally frequent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1, dtype=torch.float64)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        sigma = SCHEDULE.sigma(t.double()).reshape(-1, 1, 1, 1, 1)
        offsets = (x * (1 + sigma[..., 0] ** 2).sqrt())[..., None] - MODES
        variance = SD**2 + sigma**2
        pulls = (-(offsets**2) / (2 * variance)).softmax(-1) * sigma / variance
        return (pulls * offsets).sum(-1)


class FlowMixture(Mixture):
    """The true velocity, noise minus data, of the same pixels at the time t of flow matching."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        t = t.double().reshape(-1, 1, 1, 1, 1)
        a = 1 - t
        offsets = x[..., None] - a * MODES
        variance = (a * SD) ** 2 + t**2
        share = (-(offsets**2) / (2 * variance)).softmax(-1)
        data = (share * (MODES + a * SD**2 / variance * offsets)).sum(-1)
        noise = (share * t / variance * offsets).sum(-1)
        return noise - data


class Gaussian(nn.Module):
    """The true eps of data N(0, SD^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1, dtype=torch.float64)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        sigma = SCHEDULE.sigma(t.double()).reshape(-1, 1, 1, 1)
        return sigma * x * (1 + sigma**2).sqrt() / (SD**2 + sigma**2)


def model(network: nn.Module) -> Model:
    return Model("true", network, VariancePreserving(SCHEDULE, "epsilon"), 1, 4, 4)


def pictures(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    kinds = MODES[torch.randint(2, (count, 1, 4, 4), generator=generator)]
    return kinds + SD * torch.randn(kinds.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("upward", [True, False])
def test_trajectories_are_solutions_everywhere(upward: bool) -> None:
    """Of Gaussian data: x_bar / sqrt(SD^2 + sigma^2) is constant. Read off at nodes and between them."""
    grid = make_grid(SCHEDULE, "log-snr", 200)
    x_bar = torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    begin = grid.sigmas[0 if upward else -1]
    start = x_bar if upward else x_bar / sqrt(1 + begin**2)
    found = walk(model(Gaussian()), start, grid, upward=upward, batch_size=2, label="")
    for sigma in (grid.sigmas[0], grid.sigmas[7], 0.1234, 1.0, 33.3, grid.sigmas[-1]):
        expected = x_bar * sqrt((SD**2 + sigma**2) / (SD**2 + begin**2))
        torch.testing.assert_close(found.at(sigma), expected, rtol=2e-5, atol=0)
    assert found.take(slice(1)).at(1.0).shape == (1, 1, 4, 4)
    with pytest.raises(ValueError, match="sigma = 200 lies outside"):
        found.at(200.0)


@pytest.fixture
def effort(monkeypatch: pytest.MonkeyPatch) -> Effort:
    monkeypatch.setattr(module, "grid_names", lambda model: ("capped-50",))
    return Effort(("euler", "log-snr"), budgets=(4,), latents=96, reference_steps=100, walks=8)


def test_a_calibration_is_better_on_images_of_its_own(effort: Effort, tmp_path: Path) -> None:
    """Judged once more, here, on latents of another seed and against a walk of another number of steps."""
    true = model(Mixture())
    calibration = calibrate(true, pictures(24), effort, tmp_path)
    (entry,) = calibration.entries
    assert calibration.fingerprint == true.fingerprint
    assert entry.fitted
    x_T = draw_latents(40, (1, 4, 4), seed=77)
    fine = make_grid(SCHEDULE, "karras", 400)
    truth = walk(true, x_T, fine, upward=False, batch_size=40, label="").at(fine.sigmas[0])
    errors = {}
    for name, solver, grid in (
        ("auto", learned_solver(entry.solver, entry.grid, entry.up, entry.down), entry.grid),
        ("default", SOLVERS["euler"], make_grid(SCHEDULE, "log-snr", 4)),
    ):
        errors[name] = float((decode(true.ode(), x_T, grid, solver) - truth).square().mean().sqrt())
    assert errors["auto"] < 0.5 * errors["default"]
    assert entry.scores["decode"] == pytest.approx(errors["auto"], rel=0.5)
    assert entry.scores["decode of the default"] == pytest.approx(errors["default"], rel=0.5)


def entry(solver: str, grid: str, scores: dict[str, float], *, fitted: bool) -> Entry:
    weights = Learned(((0.1, 0.2),) * 4) if fitted else Learned()
    return Entry(solver, make_grid(SCHEDULE, grid, 4, clean_end="sigma-min"), weights, weights, scores)


def test_what_is_worse_than_an_uncalibrated_rival_is_refused(effort: Effort) -> None:
    entries = [
        entry("euler", "log-snr", GOOD, fitted=False),
        entry("reab2", "capped-50", {**GOOD, "latent": 0.01, "moment": 0.5}, fitted=False),
        entry("reab2", "capped-50", {**GOOD, "decode": 0.05, "latent": 0.02}, fitted=True),
    ]
    assert choose(entries, model(Mixture()), effort).solver == "euler"
    assert choose([entries[0], entries[2]], model(Mixture()), effort).solver == "reab2"


class Broken(Gaussian):
    """A network that gives NaN for images whose first pixel is bright, at small noise."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        bad = (x[:, :1, :1, :1] > 0.99) & (t < 3).reshape(-1, 1, 1, 1)
        return super().forward(x, t).where(~bad, torch.nan)


def test_what_the_network_fails_on_is_named_before_anything_is_fitted(effort: Effort, tmp_path: Path) -> None:
    images = pictures(6).clamp(-0.9, 0.9)
    images[[2, 5], :, 0, 0] = 1.0
    with pytest.raises(ValueError, match=r"^reference images: .* not finite for: c, f; leave them out$"):
        calibrate(model(Broken()), images, replace(effort, batch_size=2, seed=2), tmp_path, names="abcdef")
    assert not list(tmp_path.glob("[0-9]*.json"))


def test_errors_that_are_no_numbers_are_never_written(
    effort: Effort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "_rmse", lambda error: torch.nan)
    with pytest.raises(ValueError, match=r"no solver leads to finite numbers in \d+ steps with model 'true'; look at"):
        calibrate(model(Mixture()), pictures(8), effort, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets": (5, 81)}, "from 1 to 80 steps, but 81 are asked for"),
        ({"budgets": (0,)}, "from 1 to 80 steps, but 0 are asked for"),
        ({"latents": 1}, "there must be 2 latents or more"),
        ({"seed": -1}, "a seed must be at least 0"),
        ({"walks": -1}, "walks must be 0 or more, but they are -1"),
        ({"batch_size": 1}, "a batch must hold 2 trajectories or more, but it holds 1"),
        ({"budgets": (5, 5)}, r"numbers of steps must differ, but they are \(5, 5\)"),
    ],
)
def test_no_effort_is_made_in_vain(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Effort(("euler", "log-snr"), **changes)


def test_what_does_not_fit_into_memory_is_refused_with_what_would(tmp_path: Path, effort: Effort) -> None:
    words = r"of 1000000000 latents and 4 images take \d+ GB of memory, and there are \d+; take at most \d"
    with pytest.raises(ValueError, match=words):
        calibrate(model(Mixture()), pictures(4), replace(effort, latents=10**9), tmp_path)


def test_work_is_not_done_twice(effort: Effort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = model(Mixture())
    first = calibrate(true, pictures(8), effort, tmp_path)
    assert {"latents.pt", "images.pt"} <= {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(material, "walk", None)
    monkeypatch.setattr(module, "try_out", None)
    monkeypatch.setattr(learn, "_searched", None)
    assert calibrate(true, pictures(8), effort, tmp_path) == first


GOOD = {"decode": 0.1, "latent": 0.1, "round_trip": 0.1, "moment": 0.02}


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({**GOOD, "decode": 0.05}, "reab2"),
        ({**GOOD, "decode": 0.001, "latent": 0.11}, "euler"),
        ({**GOOD, "decode": 0.001, "round_trip": inf}, "euler"),
        ({**GOOD, "decode": 0.05, "moment": 0.03}, "euler"),
        ({**GOOD, "decode": 0.05, "moment": 0.02}, "reab2"),
    ],
)
def test_what_is_worse_anywhere_is_refused(effort: Effort, scores: dict[str, float], chosen: str) -> None:
    entries = [entry("euler", "log-snr", GOOD, fitted=False), entry("reab2", "quad", scores, fitted=True)]
    best = choose(entries, model(Mixture()), effort)
    assert best.solver == chosen
    assert best.scores["decode of the default"] == 0.1


def test_decoding_counts_as_much_as_what_encoding_takes_part_in(effort: Effort) -> None:
    """Half the error of decoding is worth more than two fifths of that of the latents."""
    entries = [
        entry("euler", "log-snr", GOOD, fitted=False),
        entry("reab2", "capped-50", {**GOOD, "latent": 0.04}, fitted=True),
        entry("reab2", "capped-200", {**GOOD, "decode": 0.05}, fitted=True),
    ]
    for order in (entries, entries[::-1]):
        assert choose(order, model(Mixture()), effort).grid.name == "capped-200"


def test_a_candidate_that_blows_up_has_no_scores(effort: Effort, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*_: object, **__: object) -> dict[str, float]:
        raise SolverError("the state is not finite")

    monkeypatch.setattr(module, "judge", explode)
    worst = module.try_out(model(Mixture()), None, Candidate("euler", "log-snr", 4, False), batch_size=4)  # type: ignore[arg-type]
    assert worst.scores == {}
    better = entry("reab2", "capped-50", GOOD, fitted=True)
    assert choose([worst, better], model(Mixture()), effort).solver == "reab2"
    with pytest.raises(ValueError, match="no solver leads to finite numbers in 4 steps"):
        choose([worst], model(Mixture()), effort)


@pytest.mark.parametrize("family", ["vp", "flow"])
def test_what_is_learned_errs_less_than_what_is_fitted(family: str, tmp_path: Path) -> None:
    """On latents of another seed, in both directions; of flow matching, which has no last sigma, it errs no more."""
    true = model(Mixture()) if family == "vp" else Model("flow", FlowMixture(), Flow(), 1, 4, 4)
    calibrations = {
        walks: learn_solver(Session(true), 5, latents=48, walks=walks, folder=tmp_path / str(walks), pictures=())
        for walks in (0, 150)
    }
    fine = make_grid(true.schedule, "trailing" if family == "flow" else "log-snr", 400, clean_end="sigma-min")
    x_T = draw_latents(40, (1, 4, 4), seed=77)
    truth = walk(true, x_T, fine, upward=False, batch_size=40, label="").at(fine.sigmas[0])
    errors = []
    for calibration in calibrations.values():
        (found,) = calibration.entries
        solver = learned_solver(found.solver, found.grid, found.up, found.down)
        images, latents = decode(true.ode(), x_T, found.grid, solver), encode(true.ode(), truth, found.grid, solver)
        errors.append([float(e.square().mean().sqrt()) for e in (images - truth, latents - x_T)])
    assert errors[1][0] < (0.9 if family == "vp" else 1.01) * errors[0][0]
    assert errors[1][1] < (0.9 if family == "vp" else 1.01) * errors[0][1]
    for name, error in zip(("decode", "latent"), errors[1], strict=True):
        assert error < 0.5 * found.scores[f"{name} of the default"]
    learned, polished = (read_entry(load_json(tmp_path / "150" / f"5-{name}.json")) for name in ("learned", "polished"))
    assert polished.scores["decode"] < learned.scores["decode"]
    assert (
        polished.scores["latent"] * polished.scores["round_trip"]
        < learned.scores["latent"] * learned.scores["round_trip"]
    )
    ode = true.ode()
    decode(ode, x_T, found.grid, solver)
    assert ode.nfe == solver.nfe(5) == 5
    assert found.grid.name == "learned"
    session = Session(true).calibrated(calibrations[0]).calibrated(calibration)
    assert len(session.model.calibration.entries) == 1  # the newer one
    plan = plan_sampling(Request(steps=5), session.model)
    assert (plan.solver.settings, plan.grid) == (solver.settings, found.grid)
    with pytest.raises(CalibrationError, match="was made for other weights"):
        Session(model(Gaussian())).calibrated(replace(calibration, fingerprint="other"))


@pytest.mark.parametrize(("rounds", "made", "kept"), [(0, 0, 5.0), (1, 1, 4.0), (2, 2, 3.0), (9, 3, 3.0)])
def test_polishing_goes_on_as_long_as_it_helps_others(
    rounds: int, made: int, kept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, calls = model(Mixture()), list[learning.Walk]()
    solutions = walk(true, pictures(2), make_grid(true.schedule, "log-snr", 8), upward=True, batch_size=2, label="")
    way = learn.fitting_of(learn.Subject(true, 2), solutions, upward=True)
    begin = way.walk(make_grid(true.schedule, "log-snr", 3).sigmas)
    aim = polishing.Aim(results=lambda x: (x,), truths=(begin.x,))
    others = [5.0, 4.0, 3.0, 3.5, 1.0]

    def next_ones(way: learning.Fitting, start: learning.Walk, *rest: object) -> list[learning.Walk]:
        calls.append(start)
        return [start, replace(start, x=begin.x + len(calls)), start]

    def score(found: learning.Walk) -> float:
        return others[round(float((found.x - begin.x).mean()))]

    monkeypatch.setattr(learn.polishing, "polish", next_ones)
    found = learn._polished(way, begin, aim, score, rounds, "polish-up")
    assert (len(calls), score(found)) == (made, kept)


def test_a_search_that_was_cut_off_goes_on_where_it_was(
    effort: Effort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, effort = model(Mixture()), replace(effort, latents=16, walks=40)
    whole = calibrate(true, pictures(8), effort, tmp_path / "whole")
    save = learn._save

    def killed(progress: learn.Progress, path: Path) -> None:
        save(progress, path)
        if "up" in path.name and progress.at.sweeps == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(learn, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        calibrate(true, pictures(8), effort, tmp_path / "cut")
    monkeypatch.setattr(learn, "_save", save)
    monkeypatch.setattr(learn.learning, "begin", None)  # it need not begin anew
    again = calibrate(true, pictures(8), effort, tmp_path / "cut")
    assert again == whole
    searches = [(tmp_path / name / "4-search-up.json").read_text() for name in ("whole", "cut")]
    assert searches[0] == searches[1]


@pytest.mark.parametrize("name", ["stable-diffusion", "flux"])
def test_a_pipeline_is_learned_for_its_guidance_whatever_the_prompt(name: str) -> None:
    pipeline = {"stable-diffusion": stable_diffusion, "flux": partial(flux, distilled=False)}[name]()
    session = Session(pipeline, prompt="a cat", guidance=2.0, size=(SIDE, SIDE))
    learned = learn_solver(session, steps=3, latents=4, walks=1)
    assert [entry.guidance for entry in learned.entries] == [2.0]
    session = session.calibrated(learned)
    request = Request(steps=3)
    assert plan_sampling(request, session.asked_for(prompt="a dog").model).grid == learned.entries[0].grid
    plan = plan_sampling(request, session.asked_for(guidance=3.0).model)
    assert "is not calibrated for 3 steps with guidance 3" in plan.why[0]


def test_calibrations_are_joined_by_steps_and_guidance(tmp_path: Path) -> None:
    session = Session(model(Mixture()))
    for steps in (3, 4):
        session = session.calibrated(learn_solver(session, steps, latents=4, walks=0))
    assert {entry.grid.steps for entry in session.model.calibration.entries} == {3, 4}
    save_calibration(session.model.calibration, str(tmp_path / "calibration.json"))
    again = load_calibration(str(tmp_path / "calibration.json"), session.model.fingerprint, SCHEDULE)
    assert again == session.model.calibration


def test_work_of_others_is_refused(effort: Effort, tmp_path: Path) -> None:
    calibrate(model(Mixture()), pictures(8), effort, tmp_path)
    for arguments, what in (
        ((model(Mixture()), None, effort), "pixels"),
        ((model(Mixture()), pictures(9), effort), "pixels"),
        ((replace(model(Mixture()), name="other"), pictures(8), effort), "model"),
        ((model(Mixture()), pictures(8), replace(effort, walks=9)), "effort"),
    ):
        with pytest.raises(ValueError, match=f"holds the work for another {what} .*; choose another folder"):
            calibrate(*arguments, tmp_path)


def test_one_picture_is_too_few(effort: Effort, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there must be 2 pictures or more, half of them for judging, but there is 1"):
        calibrate(model(Mixture()), pictures(1), effort, tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_more_go_through_the_network_together_than_asked_for(tmp_path: Path) -> None:
    true, sizes = model(Mixture()), set[int]()
    true.network.register_forward_pre_hook(lambda _, arguments: sizes.add(len(arguments[0])))
    learn_solver(Session(true, batch_size=3), 4, latents=10, walks=25, folder=tmp_path)
    assert sizes <= {1, 2, 3}
    assert load_json(tmp_path / "4-polished.json")


def test_where_no_fit_leads_anywhere_searching_begins_all_the_same(
    effort: Effort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise SolverError("the state is not finite")

    monkeypatch.setattr(module, "_fitted", explode)
    (found,) = calibrate(model(Mixture()), pictures(8), replace(effort, latents=8), tmp_path).entries
    assert found.grid.name == "learned"


def test_without_a_default_that_leads_anywhere_the_best_is_taken(effort: Effort) -> None:
    """Though each of the others is worse than another in something."""
    entries = [
        entry("euler", "log-snr", {}, fitted=False),
        entry("reab2", "capped-50", {**GOOD, "latent": 0.2}, fitted=False),
        entry("reab2", "capped-100", {**GOOD, "decode": 0.3}, fitted=False),
        entry("reab2", "capped-50", {**GOOD, "latent": 0.15, "decode": 0.15}, fitted=True),
    ]
    assert choose(entries, model(Mixture()), effort).grid.name == "capped-50"


def test_work_in_another_precision_is_other_work(effort: Effort, tmp_path: Path) -> None:
    true = model(Mixture())
    calibrate(true, None, replace(effort, latents=4, walks=0), tmp_path)
    with pytest.raises(ValueError, match="holds the work for another tf32"):
        calibrate(true, None, replace(effort, latents=4, walks=0), tmp_path, tf32=True)
    half = in_dtype(true, "bfloat16")
    assert half.fingerprint == true.fingerprint
    with pytest.raises(ValueError, match="holds the work for another dtype"):
        calibrate(half, None, replace(effort, latents=4, walks=0), tmp_path)
