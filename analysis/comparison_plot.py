"""The rows of ``analysis.comparison``, and the table and the figure that are made of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from ddim_ode.solvers import AUTO

from .figures import COLOURS, MARKERS, label_counts, shade
from .spread import Spread
from .tables import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# MSE of rounding pixels in [0, 1] to 8 bits: 1 / (12 * 255^2).
ROUNDING = 1.28e-6
DDIM = (("DDIM", "trailing"), ("DDIM", "leading"))
DPM_SOLVER = (("DPMSolverMultistep 2", ""), ("DPMSolverMultistep 3", ""))


@dataclass(frozen=True)
class ComparisonRow:
    """One figure of one competitor; ``nfe`` evaluations one way, of the encoder where there are two ways.

    ``family``  "diffusers" or "ddim-ode".
    ``error``   what is measured, over so many ``images`` or latents; of ``moment`` there is one for all.
    """

    measure: str
    family: str
    name: str
    grid: str
    steps: int
    nfe: int
    images: int
    error: Spread


@dataclass(frozen=True)
class Goal:
    """A line of the table: a figure of ours, and what it should at most be.

    ``ours``     name and grid; any grid if that is "".
    ``against``  baselines, of which the best counts; all of diffusers if there are none.
    ``least``    the most that ours may be, and ``aim`` what it had better be: in parts of the baseline.
    ``absolute`` but these of ``least`` and ``aim`` are figures themselves.
    """

    what: str
    measure: str
    steps: int
    ours: tuple[str, str]
    against: tuple[tuple[str, str], ...]
    least: float
    aim: float
    absolute: tuple[str, ...] = ()


def _for_ddim(measure: str, what: str, least: float, aim: float) -> list[Goal]:
    """DDIM's decoder with another encoder; on diffusers' grid, and on that of this project, which diffusers lacks."""
    pairs = (("ddim-predicted", "trailing"), ("ddim-predicted", "log-snr"), ("exact-euler", "log-snr"))
    return [
        Goal(
            f"DDIM decodes, {name} on {grid}: {what}",
            measure,
            20,
            (name, grid),
            (("ddim-inverse", grid), ("DDIM", grid)),
            least,
            aim,
        )
        for name, grid in pairs
    ]


BOTH = ("least", "aim")
GOALS: tuple[Goal, ...] = (
    Goal("round trip, one latent", "round_trip", 10, (AUTO, ""), DDIM, 1 / 1000, ROUNDING, ("aim",)),
    Goal("round trip, one latent", "round_trip", 20, (AUTO, ""), DDIM, 1 / 30, 1 / 300),
    Goal("round trip, one latent", "round_trip", 50, (AUTO, ""), DDIM, 1 / 100, ROUNDING, ("aim",)),
    *(
        Goal("round trip, beside DPM-Solver's inverse", "round_trip", steps, (AUTO, ""), DPM_SOLVER, 1, 1)
        for steps in (10, 20, 50)
    ),
    *(
        Goal("latent", "latent", steps, (AUTO, ""), (*DDIM, ("euler", "log-snr")), 1 / least, 1 / aim)
        for steps, least, aim in ((10, 6, 20), (20, 10, 40), (50, 25, 100))
    ),
    *(Goal("second moment of latents", "moment", steps, (AUTO, ""), DDIM, 0.03, 0.01, BOTH) for steps in (10, 20, 50)),
    *(
        Goal("round trip, two states in float32", "two_states", steps, ("reversible-heun", ""), (), 1e-8, 1e-12, BOTH)
        for steps in (6, 10, 20)
    ),
    *(Goal("decode", "decode", steps, (AUTO, ""), (), 1 / 3, 1 / 5) for steps in (5, 8, 10, 20)),
    *_for_ddim("round_trip", "round trip", 1 / 5, 1 / 25),
    *_for_ddim("latent", "latent", 1, 1),
)
MOST_STEPS, AIM_STEPS = 12, 10
# The curves of the figure: label, name, grid.
_CURVES = (
    ("auto", AUTO, ""),
    ("dpmpp3m on log-snr", "dpmpp3m", "log-snr"),
    ("reab2 on log-snr", "reab2", "log-snr"),
    ("euler on log-snr", "euler", "log-snr"),
)
_PANELS = (
    ("round_trip", "there and back: MSE, pixels in [0, 1]"),
    ("latent", "encoding: RMSE of x_T, which has unit variance"),
    ("decode", "decoding: RMSE, pixels in [-1, 1]"),
)


def verdict(value: float, least: float, aim: float) -> str:
    """``aim`` or ``reached`` where ``value`` is not above the one or the other, else ``missed``."""
    return "aim" if value <= aim else "reached" if value <= least else "missed"


def table(rows: Sequence[ComparisonRow]) -> str:
    """Markdown: a line for each goal that there are rows for, by the trimmed means; ratios also of median and mean.

    Goals are given as ratios too; where there is no ratio, the goal is for the figure itself.
    """
    heads = ("what", "NFE", "baseline", "ours", "ratio", "of medians", "of means", "at least", "aim", "")
    lines = [line for goal in GOALS if (line := _line(rows, goal))]
    return markdown(heads, [*lines, *_steps_line(rows)], words=(0, 2, 3, 9))


def _line(rows: Sequence[ComparisonRow], goal: Goal) -> list[str] | None:
    ours, base = _best(rows, goal.measure, goal.steps, "ddim-ode", (goal.ours,)), _baseline(rows, goal)
    alone = goal.absolute == BOTH
    if ours is None or (base is None and not alone):
        return None
    unit = None if alone or base is None else base.error
    scale = unit.trimmed if unit else 1.0
    limits = [
        value / (scale if name in goal.absolute else 1.0) for name, value in (("least", goal.least), ("aim", goal.aim))
    ]
    columns = ("trimmed", "median", "mean")
    ratios = [f"{getattr(ours.error, of) / getattr(unit, of):.2g}" if unit else "" for of in columns]
    return [
        goal.what,
        str(ours.nfe),
        f"{base.name} {base.grid}: {base.error.trimmed:.2g}" if base else "",
        f"{' '.join(goal.ours).strip()}: {ours.error.trimmed:.2g}",
        *ratios,
        *(f"{limit:.2g}" for limit in limits),
        verdict(ours.error.trimmed / scale, *limits),
    ]


def _baseline(rows: Sequence[ComparisonRow], goal: Goal) -> ComparisonRow | None:
    """The best of what the goal is against; nothing for two states, which diffusers has not."""
    if goal.against:
        return _best(rows, goal.measure, goal.steps, None, goal.against)
    return _best(rows, goal.measure, goal.steps, "diffusers", ())


def _best(
    rows: Sequence[ComparisonRow], measure: str, steps: int, family: str | None, names: Sequence[tuple[str, str]]
) -> ComparisonRow | None:
    """The best row by the trimmed mean, among those of ``family`` and of ``names`` where these are given."""
    found = [
        row
        for row in rows
        if (row.measure, row.steps) == (measure, steps)
        and family in (None, row.family)
        and (not names or any(row.name == name and grid in ("", row.grid) for name, grid in names))
    ]
    return min(found, key=lambda row: row.error.trimmed, default=None)


def _steps_line(rows: Sequence[ComparisonRow]) -> list[list[str]]:
    """How many steps lose as little as DDIM in a thousand."""
    few = sorted((row for row in rows if row.measure == "few"), key=lambda row: row.steps)
    long = [row for row in few if row.family == "diffusers"]
    if not long:
        return []
    target = long[0].error.trimmed
    enough = [row for row in few if row.family == "ddim-ode" and row.error.trimmed <= target]
    steps = enough[0].steps if enough else inf
    ours = f"{AUTO}: {enough[0].error.trimmed:.2g}" if enough else f"not in {few[-2].steps}"
    base = f"{long[0].name} {long[0].grid}: {target:.2g}"
    cells = [
        f"steps that lose as little as DDIM in {long[0].steps}",
        f"{steps:g}",
        base,
        ours,
        f"{steps / long[0].steps:.2g}",
    ]
    limits = [f"{count} steps" for count in (MOST_STEPS, AIM_STEPS)]
    return [[*cells, "", "", *limits, verdict(steps, MOST_STEPS, AIM_STEPS)]]


def plot(rows: Sequence[ComparisonRow]) -> Figure:
    """Round trip, latents and decoding against evaluations, for ours and the best of diffusers."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    for axes, (measure, label) in zip(figure.subplots(1, len(_PANELS)), _PANELS, strict=True):
        _draw(axes, [row for row in rows if row.measure == measure])
        axes.set_xlabel("network evaluations (NFE) one way")
        axes.set_ylabel(label)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    count = max(row.images for row in rows)
    figure.suptitle(f"{count} images or latents, none fitted to: means without the largest twentieth; 95 % intervals")
    return figure


def _draw(axes: Axes, rows: Sequence[ComparisonRow]) -> None:
    steps = sorted({row.steps for row in rows})
    best = [row for s in steps if (row := _best(rows, rows[0].measure, s, "diffusers", ()))]
    drawn = [("best of diffusers", "0.3", "o--", best)]
    for (label, name, grid), colour, marker in zip(_CURVES, COLOURS, MARKERS[1:], strict=False):
        own = [row for row in rows if row.name == name and grid in ("", row.grid)]
        drawn.append((label, colour, f"{marker}-", sorted(own, key=lambda row: row.nfe)))
    for label, colour, style, curve in drawn:
        _curve(axes, curve, label, colour, style)
    counts = sorted({row.nfe for *_, curve in drawn for row in curve})
    if rows[0].measure == "round_trip":
        axes.axhline(ROUNDING, color="0.6", linewidth=1)
        axes.annotate("rounding of 8-bit pixels", (counts[0], ROUNDING), va="bottom", fontsize="small", color="0.4")
    exponent = 2 if rows[0].measure == "round_trip" else 1
    xs = [row.nfe for row in best]
    slope = [best[0].error.trimmed * 1.5 * (xs[0] / x) ** exponent for x in xs]
    axes.loglog(xs, slope, ":", color="0.5", label="first order")
    label_counts(axes, counts)
    axes.grid(visible=True, which="major", alpha=0.3)


def _curve(axes: Axes, rows: Sequence[ComparisonRow], label: str, colour: str, style: str) -> None:
    """The trimmed means of ``rows`` along their evaluations, and their intervals."""
    counts = [row.nfe for row in rows]
    axes.loglog(counts, [row.error.trimmed for row in rows], style, color=colour, label=label)
    shade(axes, counts, [row.error for row in rows], "trimmed", colour)
