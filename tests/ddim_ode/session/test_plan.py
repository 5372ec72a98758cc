"""Plans: a table of wishes and what is made of them, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ddim_ode.calibration import Calibration, Entry, Learned
from ddim_ode.conditions import UNCONDITIONAL
from ddim_ode.grids import Grid, full_range, grid_of_timesteps, make_grid
from ddim_ode.images import Source
from ddim_ode.latents import Latent, LatentError
from ddim_ode.models import Model
from ddim_ode.processes import Flow, VariancePreserving
from ddim_ode.schedule import make_schedule
from ddim_ode.session.plan import (
    Plan,
    check_cost,
    plan_decoding,
    plan_edit,
    plan_encoding,
    plan_interpolation,
    plan_noise,
    plan_sampling,
)
from ddim_ode.session.request import DEFAULT_STEPS, PlanError, Request
from ddim_ode.solvers import AUTO, DEFAULT_SOLVER, SOLVERS, ReversibleSolver, get_solver, way_back
from ddim_ode.spacings import GRIDS, Spacing

SCHEDULE = make_schedule()
X_T = torch.zeros(1, 1, 2, 2)


def entry(grid: str, steps: int, weight: float = 0.0) -> Entry:
    weights = Learned(((weight,),) * steps)
    return Entry("euler", make_grid(SCHEDULE, grid, steps, clean_end="sigma-min"), weights, weights, {})


def make_model(prediction: str = "epsilon", entries: Mapping[int, Entry] | None = None) -> Model:
    model = Model("small", nn.Linear(1, 1), VariancePreserving(SCHEDULE, prediction), 1, 2, 2)
    if entries:
        vars(model)["calibration"] = Calibration(model.fingerprint, tuple(entries.values()), {})
    return model


# Calibrated for 3 and 5 steps, and for 7 on a grid that ends short of the last timestep.
CALIBRATED = make_model(entries={3: entry("karras", 3), 5: entry("quad", 5), 7: entry("leading", 7)})
PLAIN = make_model()


def latent(solver: Mapping[str, Any], grid: Grid, *, companion: bool = False) -> Latent:
    second = X_T if companion else None
    return Latent(X_T, grid, solver, SCHEDULE, "small", PLAIN.fingerprint, Source("a.png", (2, 2)), 3, second)


def summary(plan: Plan) -> tuple[str, str, str, int]:
    return plan.solver.name, plan.back.name, plan.grid.name, plan.grid.steps


FALLS_BACK = f"{AUTO} is {DEFAULT_SOLVER}: "


@pytest.mark.parametrize(
    ("model", "request_", "expected", "why"),
    [
        (PLAIN, Request(), (DEFAULT_SOLVER, DEFAULT_SOLVER, "log-snr", DEFAULT_STEPS), "not calibrated for 50 steps"),
        (PLAIN, Request(steps=3), (DEFAULT_SOLVER, DEFAULT_SOLVER, "log-snr", 3), "not calibrated for 3 steps"),
        (PLAIN, Request(solver="heun", steps=3), ("heun", "heun", "log-snr", 3), ""),
        (PLAIN, Request(solver="ddim-predicted", steps=3), ("ddim-predicted", "euler", "log-snr", 3), ""),
        (PLAIN, Request(exact=True, steps=3), ("exact-euler", "euler", "log-snr", 3), ""),
        (PLAIN, Request(exact=True, solver="heun"), ("exact-heun", "heun", "log-snr", DEFAULT_STEPS), ""),
        (PLAIN, Request(solver="euler", grid=(0.0, 9.0, 500.0)), ("euler", "euler", "explicit", 3), ""),
        (PLAIN, Request(solver="scipy-RK45"), ("scipy-RK45", "scipy-RK45", "ends", 1), ""),
        (CALIBRATED, Request(steps=3), (AUTO, AUTO, "karras", 3), ""),
        (CALIBRATED, Request(steps=3, solver=AUTO), (AUTO, AUTO, "karras", 3), ""),
        (CALIBRATED, Request(steps=3, clean_end="sigma-min"), (AUTO, AUTO, "karras", 3), ""),
        (CALIBRATED, Request(steps=3, grid="karras"), (AUTO, AUTO, "karras", 3), ""),
        (CALIBRATED, Request(), (DEFAULT_SOLVER, DEFAULT_SOLVER, "log-snr", 50), "not calibrated for 50 steps"),
        (CALIBRATED, Request(steps=4), (DEFAULT_SOLVER, DEFAULT_SOLVER, "log-snr", 4), "not calibrated for 4 steps"),
        (
            CALIBRATED,
            Request(steps=3, grid="log-snr"),
            (DEFAULT_SOLVER, DEFAULT_SOLVER, "log-snr", 3),
            "the calibration for 3 steps is for the grid 'karras', not 'log-snr'",
        ),
        (CALIBRATED, Request(steps=3, solver=DEFAULT_SOLVER), (DEFAULT_SOLVER, DEFAULT_SOLVER, "log-snr", 3), ""),
        (CALIBRATED, Request(exact=True, steps=3), ("exact-euler", "euler", "log-snr", 3), ""),
    ],
)
def test_encoding(model: Model, request_: Request, expected: tuple[str, str, str, int], why: str) -> None:
    """The same for sampling, of which no wish is for encoding alone."""
    plans = [plan_encoding(request_, model)]
    plans += [] if request_.exact else [plan_sampling(request_, model)]
    for plan in plans:
        assert summary(plan) == expected
        assert len(plan.why) == bool(why)
        assert why in "".join(plan.why)
        assert not why or plan.why[0].startswith(FALLS_BACK)
        assert plan.grid.clean_end == ("zero" if plan.grid.name == "explicit" else "sigma-min")


def test_a_list_of_timesteps_is_not_calibrated() -> None:
    plan = plan_encoding(Request(solver=AUTO, grid=(0.0, 9.0, 500.0), clean_end="sigma-min"), CALIBRATED)
    assert summary(plan) == (DEFAULT_SOLVER, DEFAULT_SOLVER, "explicit", 2)
    assert plan.why == (f"{FALLS_BACK}the calibration has grids of its own, and not these timesteps",)


EULER_4 = make_grid(SCHEDULE, "linspace", 4)
REVERSIBLE_6 = make_grid(SCHEDULE, "log-snr", 6)
AUTO_3 = plan_encoding(Request(steps=3), CALIBRATED)
TIGHT = get_solver("scipy-RK45", rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("source", "request_", "expected", "exact", "why"),
    [
        (latent({"name": "euler"}, EULER_4), Request(), ("euler", "euler", "linspace", 4), False, ""),
        (latent({"name": "euler"}, EULER_4), Request(steps=7), ("euler", "euler", "linspace", 7), False, ""),
        (latent({"name": "euler"}, EULER_4), Request(grid="karras"), ("euler", "euler", "karras", 4), False, ""),
        (latent({"name": "euler"}, EULER_4), Request(solver="rk4"), ("rk4", "rk4", "linspace", 4), False, ""),
        (latent({"name": "ddim-inverse"}, EULER_4), Request(), ("ddim-inverse", "euler", "linspace", 4), False, ""),
        (
            latent({"name": "ddim-inverse"}, EULER_4),
            Request(solver="ddim-inverse"),
            ("ddim-inverse", "ddim-inverse", "linspace", 4),
            False,
            "",
        ),
        (
            latent({"name": "euler"}, EULER_4),
            Request(solver=AUTO, steps=3),
            (AUTO, AUTO, "karras", 3),
            False,
            "",
        ),
        (
            latent({"name": "euler"}, EULER_4),
            Request(solver=AUTO),
            (DEFAULT_SOLVER, DEFAULT_SOLVER, "linspace", 4),
            None,
            "cannot reach sigma = 0",
        ),
        (latent(TIGHT.settings, full_range(SCHEDULE)), Request(), ("scipy-RK45", "scipy-RK45", "ends", 1), False, ""),
        (latent(TIGHT.settings, full_range(SCHEDULE)), Request(solver="heun"), ("heun", "heun", "log-snr", 50), 0, ""),
        (
            latent({"name": "reversible-heun"}, REVERSIBLE_6, companion=True),
            Request(),
            ("reversible-heun", "reversible-heun", "log-snr", 6),
            True,
            "",
        ),
        (
            latent({"name": "reversible-heun"}, REVERSIBLE_6, companion=True),
            Request(steps=6, grid="log-snr", clean_end="sigma-min"),
            ("reversible-heun", "reversible-heun", "log-snr", 6),
            True,
            "",
        ),
        (
            latent({"name": "reversible-heun"}, REVERSIBLE_6, companion=True),
            Request(steps=7),
            ("reversible-heun", "reversible-heun", "log-snr", 7),
            False,
            "without the companion, which leads back exactly with reversible-heun in 6 steps on log-snr alone",
        ),
        (
            latent({"name": "reversible-heun"}, REVERSIBLE_6, companion=True),
            Request(grid="karras"),
            ("reversible-heun", "reversible-heun", "karras", 6),
            False,
            "without the companion",
        ),
        (
            latent({"name": "bdia", "gamma": 0.5}, REVERSIBLE_6, companion=True),
            Request(),
            ("bdia", "bdia", "log-snr", 6),
            True,
            "",
        ),
        (
            latent({"name": "bdia"}, REVERSIBLE_6, companion=True),
            Request(solver="reversible-heun"),
            ("reversible-heun", "reversible-heun", "log-snr", 6),
            False,
            "without the companion, which leads back exactly with bdia in 6 steps on log-snr alone",
        ),
        (
            latent({"name": "bdia", "gamma": 0.5}, REVERSIBLE_6, companion=True),
            Request(solver="heun"),
            ("heun", "heun", "log-snr", 6),
            False,
            "without the companion",
        ),
        (latent(AUTO_3.solver.settings, AUTO_3.grid), Request(), (AUTO, AUTO, "karras", 3), False, ""),
        (latent(AUTO_3.solver.settings, AUTO_3.grid), Request(solver=AUTO), (AUTO, AUTO, "karras", 3), False, ""),
        (
            latent(AUTO_3.solver.settings, AUTO_3.grid),
            Request(steps=3, grid="karras", clean_end="sigma-min"),
            (AUTO, AUTO, "karras", 3),
            False,
            "",
        ),
        (latent(AUTO_3.solver.settings, AUTO_3.grid), Request(steps=5), (AUTO, AUTO, "quad", 5), False, ""),
        (
            latent(AUTO_3.solver.settings, AUTO_3.grid),
            Request(steps=4),
            (DEFAULT_SOLVER, DEFAULT_SOLVER, "karras", 4),
            False,
            f"{FALLS_BACK}model 'small' is not calibrated for 4 steps",
        ),
        (
            latent(AUTO_3.solver.settings, AUTO_3.grid),
            Request(steps=7),
            (DEFAULT_SOLVER, DEFAULT_SOLVER, "karras", 7),
            False,
            f"{FALLS_BACK}the calibration for 7 steps ends at another sigma",
        ),
        (
            latent(AUTO_3.solver.settings, AUTO_3.grid),
            Request(grid="log-snr"),
            (DEFAULT_SOLVER, DEFAULT_SOLVER, "log-snr", 3),
            False,
            "is for the grid 'karras', not 'log-snr'",
        ),
        (latent(AUTO_3.solver.settings, AUTO_3.grid), Request(solver="heun"), ("heun", "heun", "karras", 3), False, ""),
    ],
)
def test_decoding(
    source: Latent, request_: Request, expected: tuple[str, str, str, int], exact: bool | None, why: str
) -> None:
    if exact is None:
        with pytest.raises(PlanError, match=why):
            plan_decoding(request_, source, CALIBRATED)
        return
    plan = plan_decoding(request_, source, CALIBRATED)
    assert (*summary(plan), plan.exact) == (*expected, bool(exact))
    assert len(plan.why) == bool(why)
    assert why in "".join(plan.why)


def test_decoding_takes_every_setting_of_the_latent() -> None:
    """And tolerances that are asked for instead."""
    tuned = replace(SOLVERS["edict"], mixing=0.9)
    assert plan_decoding(Request(), latent(tuned.settings, REVERSIBLE_6), PLAIN).back == tuned
    ends = full_range(SCHEDULE)
    assert plan_decoding(Request(), latent(TIGHT.settings, ends), PLAIN).back == TIGHT
    loose = plan_decoding(Request(rtol=0.1), latent(TIGHT.settings, ends), PLAIN).back
    assert loose == replace(TIGHT, rtol=0.1)
    other = plan_decoding(Request(solver="scipy-DOP853"), latent(TIGHT.settings, ends), PLAIN).back
    assert other == SOLVERS["scipy-DOP853"]


def test_decoding_begins_where_the_latent_lies() -> None:
    """Here at t = 900, short of the last timestep; a grid that cannot begin there is refused."""
    short = latent({"name": "euler"}, make_grid(SCHEDULE, "leading", 10))
    for grid in ("karras", "linspace"):
        plan = plan_decoding(Request(steps=7, grid=grid), short, PLAIN)
        assert (plan.grid.steps, plan.grid.timesteps[-1]) == (7, pytest.approx(900))
    for wish in (Request(steps=7), Request(grid=(0.0, 500.0))):
        with pytest.raises(LatentError, match=r"^the latent lies at sigma = \S+ \(t = 900\), but grid"):
            plan_decoding(wish, short, PLAIN)


def test_a_calibration_that_has_changed_is_refused() -> None:
    source = latent(AUTO_3.solver.settings, AUTO_3.grid)
    for model in (PLAIN, make_model(entries={3: entry("karras", 3, weight=0.1)})):
        with pytest.raises(LatentError, match="encoded with a calibration for 3 steps that model 'small' does not"):
            plan_decoding(Request(), source, model)


@pytest.mark.parametrize("tolerance", ["rtol", "atol"])
def test_a_tolerance_is_no_wish_for_a_calibrated_solver(tolerance: str) -> None:
    request = Request(steps=3, **{tolerance: 1e-3})
    for model in (CALIBRATED, PLAIN):
        with pytest.raises(ValueError, match=f"^solver '{DEFAULT_SOLVER}' takes fixed steps and has no tolerances"):
            plan_encoding(request, model)
    with pytest.raises(ValueError, match=f"^solver '{DEFAULT_SOLVER}' takes fixed steps and has no tolerances"):
        plan_decoding(Request(**{tolerance: 1e-3}), latent(AUTO_3.solver.settings, AUTO_3.grid), CALIBRATED)


def test_interpolation_is_planned_by_the_first_latent() -> None:
    """Pictures beside it are encoded so that they lead back; an ``auto`` latent is as calibrated in both directions."""
    undone = latent({"name": "exact-euler", "tolerance": 1e-6}, REVERSIBLE_6)
    plan = interpolated(Request(), [undone, latent({"name": "heun"}, EULER_4)], PLAIN)
    assert summary(plan) == ("exact-euler", "euler", "log-snr", 6)
    plan = interpolated(Request(), [None, latent(AUTO_3.solver.settings, AUTO_3.grid)], CALIBRATED)
    assert plan.solver == plan.back == AUTO_3.solver
    assert plan.grid == AUTO_3.grid
    plan = interpolated(Request(), [latent({"name": "bdia"}, REVERSIBLE_6, companion=True), None], PLAIN)
    assert not plan.exact
    assert plan.why == ("without the companion: what lies between latents has none",)
    assert interpolated(Request(steps=3), [None, None], CALIBRATED) == AUTO_3


def interpolated(request: Request, latents: Sequence[Latent | None], model: Model) -> Plan:
    plan, conditions = plan_interpolation([request] * len(latents), latents, model)
    assert conditions == [UNCONDITIONAL] * len(latents)
    return plan


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(solver="huen"), "unknown solver 'huen'; choose one of: "),
        (Request(grid="kharras"), "unknown grid 'kharras'; choose one of: "),
        (Request(solver="scipy-RK45", steps=3), "solver 'scipy-RK45' chooses its own steps and takes no --steps"),
        (Request(solver="scipy-RK45", grid="quad"), "solver 'scipy-RK45' chooses its own steps and takes no --steps"),
        (Request(grid=(0.0, 5.0), clean_end="sigma-min", steps=4), "these timesteps make 1 steps, not 4; leave out"),
        (Request(clean_end="zero"), f"solver '{DEFAULT_SOLVER}' cannot reach sigma = 0, where the clean end 'zero' is"),
        (Request(exact=True, solver="dpmpp3m"), "the steps of 'dpmpp3m' cannot be undone one by one; choose one of: "),
        (Request(solver="euler", grid="linear", steps=2000), r"grid 'linear' .* needs 2000 timesteps, but there are"),
    ],
)
def test_wishes_that_do_not_go_together(request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        plan_encoding(request_, PLAIN)


def test_no_steps_are_no_wish() -> None:
    with pytest.raises(PlanError, match=r"^steps must be an integer from 1 to 1000000, but it is 0$"):
        Request(steps=0)


def test_noise_has_the_cost_and_the_grid_of_euler() -> None:
    plan = plan_noise(Request(steps=4), PLAIN)
    assert (plan.solver.name, plan.grid, plan.solver.nfe(4)) == ("ancestral", make_grid(SCHEDULE, "trailing", 4), 4)
    assert plan_noise(Request(grid="linspace"), PLAIN).grid == make_grid(SCHEDULE, "linspace", DEFAULT_STEPS)
    with pytest.raises(PlanError, match="steps of their own; leave out --solver heun"):
        plan_noise(Request(solver="heun"), PLAIN)


class TestWithoutASlopeAtZero:
    """A network that predicts x_0 has none."""

    model = make_model("sample")

    @pytest.mark.parametrize("name", sorted(GRIDS))
    def test_the_clean_end_moves_and_the_plan_says_so(self, name: str) -> None:
        for plan in (plan_encoding, plan_sampling):
            found = plan(Request(solver="euler", grid=name, steps=5), self.model)
            assert found.grid == make_grid(SCHEDULE, name, 5, clean_end="sigma-min")
            moved = not isinstance(GRIDS[name], Spacing)
            assert bool(found.why) == moved
            assert not moved or re.match("the image is taken at sigma-min: a network that predicts x_0", found.why[0])

    def test_encoding_from_zero_is_refused_and_decoding_to_it_is_not(self) -> None:
        wish = Request(solver="euler", grid="trailing", steps=5, clean_end="zero")
        with pytest.raises(PlanError, match="model 'small' predicts x_0 and has no slope at sigma = 0"):
            plan_encoding(wish, self.model)
        assert plan_sampling(wish, self.model).grid.clean_end == "zero"
        assert plan_noise(Request(steps=5), self.model).grid.clean_end == "zero"
        assert plan_encoding(Request(solver="scipy-RK45"), self.model).grid.clean_end == "sigma-min"


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_is_given_grids_that_it_can_walk(name: str) -> None:
    """Above sigma = 0, where it must be; or a refusal that says why."""
    solver = SOLVERS[name]
    for grid in GRIDS:
        wish = Request(solver=name, grid=grid, steps=4)
        if solver.adaptive:
            with pytest.raises(PlanError, match="chooses its own steps"):
                plan_encoding(wish, PLAIN)
            continue
        plan = plan_encoding(wish, PLAIN)
        assert (plan.solver, plan.back, plan.grid.steps) == (solver, way_back(solver), 4)
        assert plan.grid.sigmas[0] > 0 or not solver.positive
        assert plan.exact == isinstance(solver, ReversibleSolver)


class Velocity(nn.Module):
    """A network whose answer does not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.weight * x


FLOW = Model("flow", Velocity(), Flow(), 1, 2, 2)


def flow_latent(solver: str, steps: int) -> Latent:
    plan = plan_encoding(Request(solver, steps=steps), FLOW)
    source = Source("a.png", (2, 2))
    settings = plan.solver.settings
    return Latent(X_T, plan.grid, settings, FLOW.schedule, "flow", FLOW.fingerprint, source, 3, None, family="flow")


def test_what_chooses_its_own_steps_decodes_as_near_to_infinity_as_it_samples() -> None:
    """Else one step of Euler's would lead from there to the first node of the latent, whatever the tolerance."""
    found = plan_decoding(Request("per-sample-bosh3"), flow_latent("euler", 10), FLOW)
    sampled = plan_sampling(Request("per-sample-bosh3"), FLOW)
    assert found.grid.sigmas[1:] == sampled.grid.sigmas[1:]
    assert found.grid.sigmas[-2] > 100


@pytest.mark.parametrize("solver", ["edict", "bdia"])
def test_an_edit_does_not_go_to_the_end_that_others_cannot_begin_at(solver: str) -> None:
    plan = plan_edit(Request(solver, steps=4), FLOW, 0.7)
    assert plan.grid.sigma_T < 10
    with pytest.raises(PlanError, match="cannot begin at sigma = infinity"):
        plan_edit(Request(solver, steps=4), FLOW, 1)


def test_nodes_that_are_given_up_are_spoken_of() -> None:
    grid = grid_of_timesteps(SCHEDULE, (0, 500, 999), clean_end="zero")
    found = plan_decoding(Request(clean_end="sigma-min"), latent({"name": "euler"}, grid), PLAIN)
    assert (found.grid.name, found.grid.clean_end, found.grid.steps) == ("log-snr", "sigma-min", 3)
    assert found.why == (
        f"on log-snr, since the nodes of the latent, '{grid.name}', are for the steps and ends they have",
    )
    assert plan_decoding(Request(grid="quad"), latent({"name": "euler"}, grid), PLAIN).why == ()


def test_exact_inverses_have_a_tolerance_of_their_own() -> None:
    for wish in ({"rtol": 1e-3}, {"atol": 1e-3}):
        with pytest.raises(PlanError, match="leave out --rtol and --atol"):
            plan_encoding(Request(exact=True, **wish), PLAIN)


def test_a_limit_below_one_step_is_to_be_raised() -> None:
    solver = get_solver("pndm")
    with pytest.raises(PlanError, match=r"and the limit is 3; raise --max-nfe$"):
        check_cost(solver, make_grid(SCHEDULE, "linear", 1), 3)


@pytest.mark.parametrize("grid", [[0, 500, 999], range(0, 1000, 333), torch.tensor([0.0, 500.0, 999.0])])
def test_timesteps_may_be_any_sequence(grid: Sequence[float]) -> None:
    request = Request("euler", grid=grid)  # type: ignore[arg-type]
    assert request == Request("euler", grid=tuple(float(t) for t in grid))
    assert hash(request)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"steps": 10.0}, "steps must be an integer from 1 to 1000000, but it is 10.0"),
        ({"steps": "10"}, "steps must be an integer"),
        ({"grid": 5}, "a grid must be a name or a list of timesteps, but it is 5"),
        ({"grid": [None]}, "a grid must be a name or a list"),
        ({"grid": [10**400]}, "a grid must be a name or a list"),
    ],
)
def test_wishes_of_a_wrong_kind_are_said(wish: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Request("euler", **wish)
