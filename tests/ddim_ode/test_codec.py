"""Encoding and decoding against the exact flow of Gaussian data; what they keep, and what they do not."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ddim_ode.codec import decode, decode_solution, draw_latents, encode, encode_solution
from ddim_ode.grids import Grid, full_range, make_grid
from ddim_ode.ode import EvaluationLimitError, ProbabilityFlowODE
from ddim_ode.processes import Flow
from ddim_ode.schedule import NoiseSchedule, make_schedule
from ddim_ode.solvers import SOLVERS, Solver, get_solver

SCHEDULE = make_schedule()
FROM_ALMOST_ZERO = make_schedule(beta_start=1e-10)
STD = 0.6
MEAN = torch.linspace(-0.8, 0.8, 3, dtype=torch.float64).reshape(3, 1, 1)
FIXED_STEP = [solver for solver in SOLVERS.values() if solver.nfe(1)]


def by_name(solver: Solver) -> str:
    return solver.name


def gaussian_ode(schedule: NoiseSchedule = SCHEDULE) -> ProbabilityFlowODE:
    """With the best eps for data N(MEAN, STD^2): sigma (x_bar - mean) / (std^2 + sigma^2)."""

    def eps(x: Tensor, t: Tensor) -> Tensor:
        sigma = schedule.sigma(t).reshape(-1, 1, 1, 1)
        return sigma * (x * (1 + sigma**2).sqrt() - MEAN) / (STD**2 + sigma**2)

    return ProbabilityFlowODE(eps, schedule)


def exact_latents(x_0: Tensor, grid: Grid) -> Tensor:
    """x_T of ``x_0`` along the exact flow of the Gaussian, from the first sigma of the grid to its last."""
    start, end = grid.sigmas[0], grid.sigma_T
    stretch = math.sqrt((STD**2 + end**2) / (STD**2 + start**2))
    return (MEAN + (x_0 - MEAN) * stretch) / math.sqrt(1 + end**2)


def pictures(batch: int = 2) -> Tensor:
    """Not only within [-1, 1], because nothing may be clipped on the way."""
    return 2 * torch.randn(batch, 3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Net(nn.Module):
    """A small, smooth, nonlinear network in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
        with torch.no_grad():
            for i, parameter in enumerate(self.parameters()):
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(i))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.mix(x) + (t / 1000).reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(
    "solver",
    [get_solver("rk4"), *(get_solver(name, rtol=1e-9, atol=1e-9) for name in ("torchdiffeq-dopri5", "scipy-DOP853"))],
    ids=by_name,
)
@pytest.mark.parametrize(("schedule", "clean_end"), [(SCHEDULE, "sigma-min"), (FROM_ALMOST_ZERO, "zero")])
def test_latents_and_images_lie_on_the_exact_flow(schedule: NoiseSchedule, clean_end: str, solver: Solver) -> None:
    """Below sigma_min eps stands still, and is not that of the Gaussian: from 'zero' the way there must be short."""
    grid = make_grid(schedule, "log-snr", 400, clean_end=clean_end)
    x_0 = pictures()
    x_T = exact_latents(x_0, grid)
    torch.testing.assert_close(encode(gaussian_ode(schedule), x_0, grid, solver), x_T, rtol=0, atol=5e-6)
    torch.testing.assert_close(decode(gaussian_ode(schedule), x_T, grid, solver), x_0, rtol=0, atol=5e-6)


def test_latents_of_gaussian_data_have_the_exact_variance() -> None:
    """The data, once sigma_min is added to it, has variance s^2 + sigma_min^2; the latents s^2 + sigma_T^2, scaled."""
    grid = make_grid(SCHEDULE, "log-snr", 300)
    noise = torch.randn(500, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise - noise.mean(0)) / noise.std(0, correction=0)
    x_T = encode(gaussian_ode(), MEAN + noise * math.hypot(STD, grid.sigmas[0]), grid, get_solver("rk4"))
    variance = (STD**2 + grid.sigma_T**2) / (1 + grid.sigma_T**2)
    assert x_T.var(0, correction=0).flatten().tolist() == pytest.approx([variance] * 3, rel=1e-7)
    assert x_T.mean(0).flatten().tolist() == pytest.approx((MEAN / math.hypot(1, grid.sigma_T)).flatten().tolist())


@pytest.mark.parametrize(("name", "rate"), [("euler", 1), ("heun", 3), ("midpoint", 3), ("rk4", 5)])
def test_the_error_of_the_round_trip_shrinks_at_its_rate(name: str, rate: int) -> None:
    """The order if it is odd, and one more if it is even: there the leading errors of the two ways cancel."""
    x_0 = pictures()
    errors = []
    for steps in (80, 160):
        grid = make_grid(SCHEDULE, "log-snr", steps)
        x_T = encode(gaussian_ode(), x_0, grid, get_solver(name))
        errors.append(float((decode(gaussian_ode(), x_T, grid, get_solver(name)) - x_0).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(rate, abs=0.3)


@pytest.mark.parametrize("solver", FIXED_STEP, ids=by_name)
def test_each_way_costs_what_the_solver_says(solver: Solver) -> None:
    ode, grid = gaussian_ode(), make_grid(SCHEDULE, "trailing", 12, clean_end="sigma-min")
    encode(ode, pictures(), grid, solver)
    assert ode.nfe == solver.nfe(12)
    decode(ode, pictures(), grid, solver)
    assert ode.nfe == 2 * solver.nfe(12)


@pytest.mark.parametrize("solver", FIXED_STEP, ids=by_name)
def test_a_batch_equals_its_members(solver: Solver) -> None:
    ode = ProbabilityFlowODE(lambda x, t: torch.tanh(x * (1 + t / 500).reshape(-1, 1, 1, 1)), SCHEDULE)
    grid = make_grid(SCHEDULE, "karras", 9)
    x = pictures(batch=5)
    for convert in (encode, decode):
        together = convert(ode, x, grid, solver)
        apart = torch.cat([convert(ode, member[None], grid, solver) for member in x])
        torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["euler", "ab2", "heun", "torchdiffeq-rk4"])
@pytest.mark.parametrize("convert", [encode, decode])
def test_gradients_equal_finite_differences(convert: Callable[..., Tensor], name: str) -> None:
    """Those to the image, and those to the weights."""
    net = Net()
    ode = ProbabilityFlowODE(net, SCHEDULE)
    grid = make_grid(SCHEDULE, "log-snr", 3, t_end=400)
    start = torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def end(x: Tensor, *weights: Tensor) -> Tensor:
        return convert(ode, x, grid, get_solver(name), differentiable=True)

    assert torch.autograd.gradcheck(end, (start.requires_grad_(), *net.parameters()))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=by_name)
@pytest.mark.parametrize("convert", [encode, decode])
def test_no_graph_is_kept_unless_asked_for(convert: Callable[..., Tensor], solver: Solver) -> None:
    ode = ProbabilityFlowODE(Net(), SCHEDULE)
    x = pictures()[:, :2].requires_grad_()
    result = convert(ode, x, make_grid(SCHEDULE, "log-snr", 4, t_end=50), solver)
    assert not result.requires_grad
    assert result.grad_fn is None
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("solver", FIXED_STEP, ids=by_name)
@pytest.mark.parametrize("convert", [encode, decode])
def test_memory_does_not_grow_with_steps(convert: Callable[..., Tensor], solver: Solver) -> None:
    few, many = (most_tensors_alive(convert, solver, steps, differentiable=False) for steps in (10, 60))
    assert many == few <= 12


def test_of_a_graph_all_steps_are_kept() -> None:
    """So that the measurement above is known to see what is kept."""
    assert most_tensors_alive(encode, get_solver("euler"), 60, differentiable=True) >= 60


def most_tensors_alive(convert: Callable[..., Tensor], solver: Solver, steps: int, *, differentiable: bool) -> int:
    """The most states, inputs of the network and slopes that are in memory at a time, on the way of ``steps`` steps."""
    seen: list[weakref.ref[Tensor]] = []
    alive = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(weakref.ref(x))
        return x.sin()

    def count(ode: nn.Module, inputs: tuple[Tensor, Tensor], slope: Tensor) -> None:
        seen.extend((weakref.ref(inputs[1]), weakref.ref(slope)))
        alive.append(sum(reference() is not None for reference in seen))

    ode = ProbabilityFlowODE(network, SCHEDULE)
    ode.register_forward_hook(count)
    start = pictures().requires_grad_(differentiable)
    convert(ode, start, make_grid(SCHEDULE, "karras", steps), solver, differentiable=differentiable)
    return max(alive)


@pytest.mark.parametrize("convert", [encode, decode])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_the_state_is_float64_unless_asked_otherwise(convert: Callable[..., Tensor], given: torch.dtype) -> None:
    grid, solver, x = make_grid(SCHEDULE, "log-snr", 20), get_solver("heun"), pictures().to(given)
    exact = convert(gaussian_ode(), x, grid, solver)
    rounded = convert(gaussian_ode(), x, grid, solver, dtype=torch.float32)
    assert exact.dtype == torch.float64
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-4)
    assert not rounded.double().equal(exact)


@pytest.mark.parametrize("convert", [encode, decode])
@pytest.mark.parametrize("shape", [(), (3, 4, 5), (1, 1, 3, 4, 5)])
def test_a_wrong_shape_is_refused(convert: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(B, C, H, W\), but this one has \("):
        convert(gaussian_ode(), torch.zeros(shape), make_grid(SCHEDULE, "log-snr", 4), get_solver("euler"))


def test_drawn_latents_are_standard_normal_and_do_not_depend_on_their_number() -> None:
    latents = draw_latents(40, (3, 16, 16), seed=7)
    assert latents.shape == (40, 3, 16, 16)
    assert latents.dtype == torch.float64
    assert float(latents.mean()) == pytest.approx(0, abs=0.02)
    assert float(latents.var()) == pytest.approx(1, abs=0.04)
    assert draw_latents(3, (3, 16, 16), seed=7).equal(latents[:3])
    assert not draw_latents(3, (3, 16, 16), seed=8).equal(latents[:3])


def by_the_sample(max_nfe: int | None = None) -> ProbabilityFlowODE:
    """A network that answers to its timestep, so that one for another sample would be noticed."""
    return ProbabilityFlowODE(lambda x, t: (x + t[:, None, None, None] / 500).sin(), SCHEDULE, max_nfe=max_nfe)


@pytest.mark.parametrize("convert", [encode, decode])
def test_a_sample_with_steps_of_its_own_does_not_depend_on_its_batch(convert: Callable[..., Tensor]) -> None:
    solver, grid = get_solver("per-sample-bosh3", rtol=1e-3, atol=1e-3), full_range(SCHEDULE)
    batch = torch.randn(16, 1, 2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    batch *= torch.logspace(-1, 1, 16)[:, None, None, None]
    alone = [convert(by_the_sample(), x, grid, solver) for x in batch.split(1)]
    torch.testing.assert_close(convert(by_the_sample(), batch, grid, solver), torch.cat(alone), rtol=1e-9, atol=1e-9)


def test_steps_of_its_own_count_as_evaluations_of_the_batch_and_end_at_the_limit() -> None:
    solver, grid = get_solver("per-sample-bosh3", rtol=1e-3, atol=1e-3), full_range(SCHEDULE)
    batch, ode = torch.ones(3, 1, 2, 2, dtype=torch.float64), by_the_sample()
    cost = solver.solve(ode, batch, grid.upward()).cost
    assert ode.nfe == int(cost.evaluations.max())
    with pytest.raises(EvaluationLimitError, match=f"limit of {ode.nfe - 1} network evaluations was reached at sigma"):
        encode(by_the_sample(ode.nfe - 1), batch, grid, solver)


class Classes:
    """A network that is told a class of each member: data N(class, STD^2), whose eps is known."""

    def __init__(self, classes: Tensor) -> None:
        self.classes = classes

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        assert len(x) == len(self.classes)
        sigma = SCHEDULE.sigma(t).reshape(-1, 1, 1, 1)
        offset = x * (1 + sigma**2).sqrt() - self.classes.reshape(-1, 1, 1, 1)
        return sigma * offset / (STD**2 + sigma**2)

    def of(self, members: Tensor) -> Classes:
        return Classes(self.classes[members])


@pytest.mark.parametrize("name", ["per-sample-bosh3", "heun", "torchdiffeq-dopri5", "exact-euler"])
def test_a_network_may_be_told_more_of_each_member(name: str) -> None:
    """Also where members leave the batch when they have arrived, each at its own time."""
    solver = get_solver(name, rtol=1e-4, atol=1e-4) if SOLVERS[name].adaptive else get_solver(name)
    classes, x = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64), pictures(batch=4)
    grid = make_grid(SCHEDULE, "log-snr", 20)
    together = encode(ProbabilityFlowODE(Classes(classes), SCHEDULE), x, grid, solver)
    alone = [
        encode(ProbabilityFlowODE(Classes(c), SCHEDULE), y, grid, solver)
        for c, y in zip(classes.split(1), x.split(1), strict=True)
    ]
    tolerance = 2e-3 if name == "torchdiffeq-dopri5" else 1e-9
    torch.testing.assert_close(together, torch.cat(alone), rtol=tolerance, atol=tolerance)


def test_a_reversible_solver_that_does_not_reach_infinity_is_refused_there() -> None:
    """It would not lead back."""
    ode = ProbabilityFlowODE(lambda x, t: x, Flow())
    grid = make_grid(Flow().schedule, "trailing", 5, clean_end="sigma-min")
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"does not take the step to or from sigma = infinity"):
        encode_solution(ode, x, grid, get_solver("edict"))
    with pytest.raises(ValueError, match=r"does not take the step to or from sigma = infinity"):
        decode_solution(ode, x, grid, get_solver("edict"), x)
    assert encode_solution(ode, x, grid, get_solver("reversible-heun")).companion is not None
