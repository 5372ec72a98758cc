"""Grids: the promised number of steps, and the nodes of diffusers, DDIM's code, k-diffusion and EDM."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_utils import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from ddim_ode.grids import CLEAN_ENDS, Grid, full_range, grid_of_timesteps, make_grid
from ddim_ode.schedule import NoiseSchedule, make_schedule
from ddim_ode.spacings import AYS_SD, CURVATURE, GRIDS, Tau

SCHEDULE = make_schedule()
TAUS = sorted(name for name, kind in GRIDS.items() if isinstance(kind, Tau))
SPACINGS = sorted(set(GRIDS) - set(TAUS))


@st.composite
def requests(draw: st.DrawFn) -> tuple[NoiseSchedule, str, int, str | None, float | None]:
    """What ``make_grid`` may be asked for: schedule, name, steps, clean_end, t_end."""
    kind = draw(st.sampled_from(["linear", "squaredcos_cap_v2"]))
    schedule = make_schedule(kind, timesteps=draw(st.integers(3, 1100)))
    name = draw(st.sampled_from(sorted(GRIDS)))
    clean_end = draw(st.sampled_from([None, *CLEAN_ENDS]))
    t_end = draw(st.none() | st.floats(1, len(schedule) - 1))
    timesteps = len(schedule) if t_end is None else math.floor(t_end) + 1
    return schedule, name, draw(st.integers(1, timesteps - 1)), clean_end, t_end


@given(requests())
@settings(max_examples=400)
def test_every_grid_keeps_its_promises(request: tuple[NoiseSchedule, str, int, str | None, float | None]) -> None:
    schedule, name, steps, clean_end, t_end = request
    grid = make_grid(schedule, name, steps, clean_end=clean_end, t_end=t_end)
    end = len(schedule) - 1 if t_end is None else t_end
    sigmas, timesteps = grid.upward(), torch.tensor(grid.timesteps, dtype=torch.float64)

    assert grid.name == name
    assert grid.clean_end == (clean_end or GRIDS[name].clean_end)
    assert grid.steps == steps == len(grid.sigmas) - 1 == len(grid.timesteps) - 1
    assert bool((sigmas.diff() > 0).all())
    assert grid.timesteps[0] == pytest.approx(0, abs=1e-9)
    assert grid.timesteps[-1] <= end + 1e-9
    assert grid.sigma_T == grid.sigmas[-1]
    if grid.clean_end == "zero":
        assert grid.sigmas[0] == 0
        sigmas, timesteps = sigmas[1:], timesteps[1:]
    else:
        assert grid.sigmas[0] == pytest.approx(schedule.sigma_min, rel=1e-12)
    assert bool((timesteps.diff() > 0).all())
    torch.testing.assert_close(sigmas, schedule.sigma(timesteps.clamp(max=len(schedule) - 1)), rtol=1e-11, atol=0)
    if name in SPACINGS:
        assert grid.timesteps[-1] == pytest.approx(end)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("T", [1000, 777])
def test_leading_and_linspace_are_those_of_diffusers(spacing: str, T: int) -> None:
    scheduler = DDIMScheduler(num_train_timesteps=T, timestep_spacing=spacing)
    for steps in many_steps(T):
        scheduler.set_timesteps(steps)
        assert make_grid_timesteps(spacing, steps, T) == scheduler.timesteps.flip(0).tolist()


@pytest.mark.parametrize("T", [1000, 777])
def test_trailing_is_that_of_diffusers(T: int) -> None:
    """For some steps diffusers yields one timestep too many. Its sum in floating point falls to either side of a tie,
    i.e. of an exact half, where ours is exact and rounds to even: there, and only there, they may differ, by one."""
    scheduler = DDIMScheduler(num_train_timesteps=T, timestep_spacing="trailing")
    steps_compared = []
    for steps in many_steps(T):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        if len(theirs) != steps:
            continue
        steps_compared.append(steps)
        for i, (ours, t) in enumerate(zip(reversed(make_grid_timesteps("trailing", steps, T)), theirs, strict=True)):
            exact = T - Fraction(i * T, steps)
            assert ours == round(exact) - 1
            assert ours == t or (abs(ours - t) == 1 and exact.denominator == 2)
    assert len(steps_compared) > 0.9 * len(many_steps(T))


def many_steps(T: int) -> list[int]:
    """Numbers of steps up to T, whether they divide it or not: the small ones all, of the others some."""
    return [*range(1, 130), *range(130, T, 7), T]


def make_grid_timesteps(name: str, steps: int, T: int) -> list[float]:
    """The timesteps of tau that the grid ``name`` visits above sigma = 0."""
    return list(make_grid(make_schedule(timesteps=T), name, steps, clean_end="zero").timesteps[1:])


@pytest.mark.parametrize("steps", [S for S in range(1, 1001) if 1000 % S == 0])
def test_linear_is_the_uniform_tau_of_ddims_code(steps: int) -> None:
    assert make_grid_timesteps("linear", steps, 1000) == list(range(0, 1000, 1000 // steps))


@pytest.mark.parametrize("steps", [3, 7, 333, 501, 999])
def test_linear_reaches_the_end_where_steps_do_not_divide_the_timesteps(steps: int) -> None:
    """DDIM's code takes more steps than asked there, and diffusers' leading grid stops short of the end."""
    assert make_grid_timesteps("linear", steps, 1000) == [math.floor(Fraction(i * 1000, steps)) for i in range(steps)]


def test_quad_is_that_of_ddims_code() -> None:
    """It truncates floats, and where sqrt(0.8 T) i / (S - 1) squared falls short of an integer it loses one."""
    compared = 0
    for steps in range(2, 100):
        theirs = (np.linspace(0, np.sqrt(0.8 * 1000), steps) ** 2).astype(int).tolist()
        if len(set(theirs)) < steps:
            continue
        compared += 1
        ours = make_grid(SCHEDULE, "quad", steps, t_end=800).timesteps[1:]
        for i, (t, other) in enumerate(zip(ours, theirs, strict=True)):
            is_integer = Fraction(800 * i * i, (steps - 1) ** 2).denominator == 1
            assert t == other or (is_integer and t == other + 1)
    assert compared > 20


@pytest.mark.parametrize("steps", [50, 300, 801])
def test_quad_repeats_no_timestep_and_reaches_its_end(steps: int) -> None:
    timesteps = make_grid(SCHEDULE, "quad", steps, t_end=800).timesteps[1:]
    assert timesteps[0] == 0
    assert timesteps[-1] == 800
    assert len(set(timesteps)) == steps


@pytest.mark.parametrize(("steps", "clean_end"), [(1, "sigma-min"), (2, "zero"), (18, "sigma-min"), (18, "zero")])
def test_karras_is_that_of_edm(steps: int, clean_end: str) -> None:
    """EDM, generate.py: t_steps from sigma_max down to sigma_min, and 0 after them: as many steps as t_steps."""
    nodes = steps + (clean_end == "sigma-min")
    high, low, i = SCHEDULE.sigma_max, SCHEDULE.sigma_min, np.arange(nodes)
    t_steps = (high ** (1 / 7) + i / (nodes - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    expected = [*t_steps, 0.0] if clean_end == "zero" else t_steps.tolist()
    grid = make_grid(SCHEDULE, "karras", steps, clean_end=clean_end)
    assert grid.downward().tolist() == pytest.approx(expected, rel=1e-12)


def test_log_snr_has_equal_ratios() -> None:
    sigmas = make_grid(SCHEDULE, "log-snr", 50).upward()
    expected = (SCHEDULE.sigma_max / SCHEDULE.sigma_min) ** (1 / 50)
    torch.testing.assert_close(sigmas[1:] / sigmas[:-1], torch.full((50,), expected, dtype=torch.float64))


@pytest.mark.parametrize("ceiling", [50, 100, 200])
def test_capped_has_equal_ratios_of_the_harmonic_sum_with_the_ceiling(ceiling: int) -> None:
    """1 / sigma + 1 / ceiling, that is; so it ends where log-snr does, with a larger last step."""
    sigmas = make_grid(SCHEDULE, f"capped-{ceiling}", 30).upward()
    assert sigmas[[0, -1]].tolist() == pytest.approx([SCHEDULE.sigma_min, SCHEDULE.sigma_max], rel=1e-12)
    sums = 1 / sigmas + 1 / ceiling
    torch.testing.assert_close(sums[1:] / sums[:-1], ((sums[-1] / sums[0]) ** (1 / 30)).expand(30))
    assert sigmas[-2] < make_grid(SCHEDULE, "log-snr", 30).sigmas[-2]


@pytest.mark.parametrize(
    ("name", "key", "sigma_min"),
    [
        ("ays-sd", "StableDiffusionSigmas", 0.0291671582),
        ("ays-sdxl", "StableDiffusionXLSigmas", 0.0291671582),
        ("ays-svd", "StableDiffusionVideoSigmas", 0.002),
    ],
)
def test_ays_in_ten_steps_is_the_table_of_diffusers(name: str, key: str, sigma_min: float) -> None:
    """Over the table's own range; diffusers goes to 0 where the authors stop at the smallest sigma of training."""
    table = [*reversed(AysSchedules[key][:-1])]
    assert GRIDS[name].sigmas(11, sigma_min, table[-1]) == pytest.approx([sigma_min, *table], rel=1e-6)


@pytest.mark.parametrize("steps", [5, 10, 20, 37])
def test_ays_is_interpolated_as_its_authors_do(steps: int) -> None:
    """Linearly in log sigma; and to the range of another schedule it is stretched in the same."""
    log_table = np.log([0.0291671582, *reversed(AysSchedules["StableDiffusionSigmas"][:-1])])
    expected = np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, 11), log_table)
    low, high = np.log(SCHEDULE.sigma_min), np.log(SCHEDULE.sigma_max)
    stretched = low + (expected - log_table[0]) * (high - low) / (log_table[-1] - log_table[0])
    assert make_grid(SCHEDULE, "ays-sd", steps).sigmas == pytest.approx(np.exp(stretched), rel=1e-9)


def test_smallest_sigma_of_the_ays_tables_is_that_of_stable_diffusion() -> None:
    schedule = make_schedule("scaled_linear", beta_start=0.00085, beta_end=0.012)
    assert schedule.sigma_min == pytest.approx(AYS_SD[0], rel=1e-4)
    assert schedule.sigma_max == pytest.approx(AYS_SD[-1], rel=1e-4)


def test_curvature_is_the_table_over_the_range_of_the_model_that_ships() -> None:
    sigmas = make_grid(SCHEDULE, "curvature", len(CURVATURE) - 1).sigmas
    assert sigmas == pytest.approx(CURVATURE, rel=1e-4)


def test_an_explicit_grid_may_be_that_of_k_diffusion() -> None:
    """get_sigmas(50): sigma at 50 fractional timesteps from T - 1 to 0, by linear interpolation of its log; then 0."""
    grid = grid_of_timesteps(SCHEDULE, np.linspace(0, 999, 50).tolist())
    table = ((1 - SCHEDULE.alpha_bar) / SCHEDULE.alpha_bar).sqrt().log().numpy()
    expected = np.exp(np.interp(np.linspace(0, 999, 50), np.arange(1000), table))
    assert grid.steps == 50
    assert grid.sigmas == pytest.approx([0, *expected], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "t_end", "first", "last", "sigma_T"),
    [
        ("linear", None, [0, 20, 40], 980, 130.14),
        ("leading", None, [0, 20, 40], 980, 130.14),
        ("trailing", None, [19, 39, 59], 999, 157.41),
        ("linspace", None, [0, 20, 41], 999, 157.41),
        ("quad", 800, [0, 1, 2], 800, 25.74),
    ],
)
def test_where_fifty_steps_begin_and_end(
    name: str, t_end: int | None, first: list[int], last: int, sigma_T: float
) -> None:
    """The conventions of diffusers and of DDIM's code, all with alpha = 1 at the clean end."""
    grid = make_grid(SCHEDULE, name, 50, t_end=t_end)
    assert grid.sigmas[0] == 0
    assert list(grid.timesteps[1:4]) == first
    assert grid.timesteps[-1] == last
    assert grid.sigma_T == pytest.approx(sigma_T, abs=0.005)


# Where a rule that picks timesteps goes in a single step, with the clean end 'zero' and with 'sigma-min'.
SINGLE = {"linear": (0, 500), "leading": (0, 500), "linspace": (0, 999), "trailing": (999, 999), "quad": (999, 999)}


@pytest.mark.parametrize(("name", "ends"), [*SINGLE.items(), *((name, (999, 999)) for name in SPACINGS)])
def test_a_single_step(name: str, ends: tuple[int, int]) -> None:
    """Sigmas that are put between two ends have both ends, in however few steps."""
    zero, sigma_min = ends
    assert make_grid(SCHEDULE, name, 1, clean_end="zero").timesteps == pytest.approx((0, zero))
    assert make_grid(SCHEDULE, name, 1, clean_end="sigma-min").timesteps == pytest.approx((0, sigma_min))


@pytest.mark.parametrize("name", TAUS)
def test_as_many_steps_as_timesteps_visit_them_all(name: str) -> None:
    assert make_grid(SCHEDULE, name, 1000, clean_end="zero").timesteps == (0, *range(1000))
    assert make_grid(SCHEDULE, name, 999, clean_end="sigma-min").timesteps == tuple(range(1000))


@pytest.mark.parametrize("name", SPACINGS)
def test_spacings_may_have_more_steps_than_there_are_timesteps(name: str) -> None:
    assert make_grid(SCHEDULE, name, 5000).steps == 5000


def test_the_full_range_is_one_step_between_the_ends() -> None:
    assert full_range(SCHEDULE).sigmas == pytest.approx((SCHEDULE.sigma_min, SCHEDULE.sigma_max))
    assert full_range(SCHEDULE, clean_end="zero", t_end=500.5).sigmas == (0, float(SCHEDULE.sigma(500.5)))


def test_both_directions_are_the_same_nodes() -> None:
    grid = make_grid(SCHEDULE, "karras", 10)
    assert grid.upward().dtype == grid.downward().dtype == torch.float64
    assert tuple(grid.upward().tolist()) == grid.sigmas
    assert grid.downward().flip(0).equal(grid.upward())


@pytest.mark.parametrize(
    ("name", "steps", "options", "words"),
    [
        (
            "quadratic",
            10,
            {},
            f"unknown grid 'quadratic'; choose one of: {', '.join(sorted(GRIDS))}",
        ),
        ("linear", 0, {}, "steps must be at least 1, but it is 0"),
        ("karras", -3, {}, "steps must be at least 1, but it is -3"),
        ("linear", 1001, {}, "'zero' and 1001 steps needs 1001 timesteps, but there are 1000; take fewer steps"),
        ("trailing", 1000, {"clean_end": "sigma-min"}, "1000 steps needs 1001 timesteps, but there are 1000"),
        ("quad", 802, {"t_end": 800}, "needs 802 timesteps, but there are 801"),
        ("linear", 10, {"t_end": 1000}, "t_end must lie in [1, 999], but it is 1000"),
        ("log-snr", 10, {"t_end": 0}, "t_end must lie in [1, 999], but it is 0"),
        ("log-snr", 10, {"t_end": math.nan}, "t_end must lie in [1, 999], but it is nan"),
        ("linear", 10, {"clean_end": "clean"}, "unknown clean end 'clean'; choose one of: zero, sigma-min"),
    ],
)
def test_a_grid_that_cannot_be_made_is_refused(name: str, steps: int, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make_grid(SCHEDULE, name, steps, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tau", "clean_end", "words"),
    [
        ([0, 10, 10], "zero", "timesteps must rise strictly, but 10 follows 10"),
        ([500, 20], "zero", "timesteps must rise strictly, but 20 follows 500"),
        ([0, 1000], "zero", "timesteps must lie in [0, 999]"),
        ([-1, 5], "zero", "timesteps must lie in [0, 999]"),
        ([5, 10, 20, 30], "sigma-min", "tau must begin at 0, but it is [5, 10, 20]...; put 0 first"),
        ([], "sigma-min", "tau must begin at 0, but it is []"),
        ([], "zero", "a grid needs at least two sigmas"),
        ([0], "sigma-min", "a grid needs at least two sigmas"),
    ],
)
def test_an_explicit_list_that_is_no_tau_is_refused(tau: list[float], clean_end: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        grid_of_timesteps(SCHEDULE, tau, clean_end=clean_end)


@pytest.mark.parametrize(
    ("clean_end", "sigmas", "timesteps", "words"),
    [
        ("none", (0.0, 1.0), (0.0, 1.0), "unknown clean end 'none'; choose one of: zero, sigma-min"),
        ("zero", (1.0,), (1.0,), "at least two sigmas and as many timesteps, but it has 1 and 1"),
        ("zero", (0.0, 1.0), (0.0,), "at least two sigmas and as many timesteps, but it has 2 and 1"),
        ("zero", (-1.0, 1.0), (0.0, 1.0), "sigma must not be negative, but the grid begins at -1"),
        ("zero", (math.nan, 1.0), (0.0, 1.0), "sigma must not be negative, but the grid begins at nan"),
        ("zero", (0.0, 1.0, 1.0), (0.0, 1.0, 2.0), "sigmas must rise strictly, but sigma[2] = 1 follows 1"),
        ("zero", (0.0, math.nan), (0.0, 1.0), "sigmas must rise strictly, but sigma[1] = nan follows 0"),
    ],
)
def test_a_grid_checks_its_nodes(
    clean_end: str, sigmas: tuple[float, ...], timesteps: tuple[float, ...], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Grid("mine", clean_end, sigmas, timesteps)
