"""The rows of ``analysis.reconstruction``, and the plot and the table that are made of them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .figures import COLOURS, MARKERS, draw_slopes, label_counts, mark_accuracy, round_counts, shade
from .spread import Spread
from .tables import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A latent whose second moment is farther off is not one that the model knows.
MOMENT_LIMIT = 0.03

# arXiv 2010.02502, Table 2: reconstruction MSE on the test set of CIFAR-10 by S, the number of Euler steps.
PAPER = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}


@dataclass(frozen=True)
class Case:
    """What to measure: names of ``SOLVERS``, ``GRIDS`` and ``CLEAN_ENDS``, and the number of steps each way."""

    solver: str
    grid: str
    clean_end: str
    steps: int


@dataclass(frozen=True)
class ReconstructionRow:
    """One case on one set of images.

    ``nfe``      network evaluations of each image in one direction.
    ``seconds``  wall time for all images, both ways.

    Where a solver left the finite numbers, all errors are infinite.
    """

    model: str
    images: int
    solver: str
    order: int
    grid: str
    clean_end: str
    steps: int
    nfe: int
    sigma_T: float
    seconds: float
    mse: Spread
    latent_rmse: Spread
    decode_mse: Spread
    second_moment: Spread
    moment_error: float

    @property
    def case(self) -> Case:
        """What was measured."""
        return Case(self.solver, self.grid, self.clean_end, self.steps)


def round_trip_order(order: int) -> int:
    """The order of the state after encoding and decoding with a method of ``order``: even ones gain one."""
    return order if order % 2 else order + 1


# Columns, their labels, and the slopes that a method of given order has there. That of the moment goes by the latent's.
_PANELS: tuple[tuple[str, str, Callable[[int], int]], ...] = (
    ("mse", "round trip: MSE, pixels in [0, 1]", lambda order: 2 * round_trip_order(order)),
    ("decode_mse", "decoding a good latent: MSE, pixels in [0, 1]", lambda order: 2 * order),
    ("latent_rmse", "encoding: RMSE of x_T, which has unit variance", lambda order: order),
    ("moment_error", "encoding: second moment of x_T, relative error", lambda order: order),
)


def plot(rows: Sequence[ReconstructionRow], accuracy: float | None = None) -> Figure:
    """Round trip, encoding and decoding against NFE, all logarithmic, with the slopes that theory has.

    Of many curves only the best are drawn, and Euler's: those whose round trips lose least.

    ``accuracy``  RMSE of the reference latents to coarser ones; much below it a latent error says nothing.
    """
    every = _curves(rows)
    curves = _best_curves(every)
    figure = Figure(figsize=(11, 9.5), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (column, label, exponent) in zip(panels.flat, _PANELS, strict=True):
        _draw(axes, curves, column, exponent)
        axes.set_ylabel(label)
        axes.grid(visible=True, which="major", color="0.9")
    for axes in panels[1]:
        axes.set_xlabel("network evaluations (NFE) in one direction")
        label_counts(axes, round_counts(row.nfe for row in rows))
    (round_trip, _), (latent, moment) = panels
    most = max(row.nfe for row in rows)
    shown = {S: mse for S, mse in PAPER.items() if not most < S}
    round_trip.plot(list(shown), list(shown.values()), "x", color="0.35", label="the paper's Table 2 (its own model)")
    handles, labels = round_trip.get_legend_handles_labels()
    handles.append(moment.axhline(MOMENT_LIMIT, color="0.6", linewidth=1))
    labels.append(f"{100 * MOMENT_LIMIT:g} %: more is wrong")
    if accuracy:
        handles.append(mark_accuracy(latent, accuracy))
        labels.append(str(handles[-1].get_label()))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize="small")
    same = [*_shared(rows), *([f"the best {len(curves)} of {len(every)}"] if len(curves) < len(every) else [])]
    legend = "mean (solid), median (dotted) and their 95 % bootstrap intervals (shaded)"
    figure.suptitle("\n".join([", ".join(same), legend] if same else [legend]))
    return figure


def _curves(rows: Sequence[ReconstructionRow]) -> dict[str, list[ReconstructionRow]]:
    """The rows by what tells them apart beside the steps, in the order of NFE."""
    common = _shared(rows)
    curves: dict[str, list[ReconstructionRow]] = {}
    for row in sorted(rows, key=lambda row: row.nfe):
        curves.setdefault(", ".join(part for part in _parts(row) if part not in common), []).append(row)
    return dict(sorted(curves.items()))


def _best_curves(curves: Mapping[str, list[ReconstructionRow]]) -> dict[str, list[ReconstructionRow]]:
    """The best curves by their mean loss in the logarithm, as many as can be told apart, Euler's always among them."""

    def loss(label: str) -> float:
        return sum(log(row.mse.mean or 1e-300) for row in curves[label]) / len(curves[label])

    first = sorted(curves, key=lambda label: (curves[label][0].solver != "euler", loss(label)))
    return {label: curves[label] for label in sorted(first[: len(COLOURS)])}


def _parts(row: ReconstructionRow) -> tuple[str, str, str]:
    return row.solver, f"grid {row.grid}", f"clean end {row.clean_end}"


def _shared(rows: Sequence[ReconstructionRow]) -> list[str]:
    """The part of grid and clean end that all rows have in common."""
    columns = zip(*(_parts(row)[1:] for row in rows), strict=True)
    return [column[0] for column in columns if len(set(column)) == 1]


def _draw(
    axes: Axes,
    curves: Mapping[str, Sequence[ReconstructionRow]],
    column: str,
    exponent: Callable[[int], int],
) -> None:
    """Draw mean and median of ``column``, or itself, for each of ``curves``, and the slope of each order among them."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for i, (label, rows) in enumerate(curves.items()):
        nfe = [row.nfe for row in rows]
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        values = [getattr(row, column) for row in rows]
        spreads = [value for value in values if isinstance(value, Spread)]
        main = [spread.mean for spread in spreads] or values
        axes.plot(nfe, main, marker=marker, markersize=5, linewidth=1.3, color=colour, label=label)
        if spreads:
            axes.plot(nfe, [spread.median for spread in spreads], linewidth=1.3, linestyle=":", color=colour)
            shade(axes, nfe, spreads, "mean", colour)
            shade(axes, nfe, spreads, "median", colour)
    begin = min(rows[0].nfe for rows in curves.values())
    draw_slopes(axes, begin, {row.order: exponent(row.order) for rows in curves.values() for row in rows})


def table(rows: Sequence[ReconstructionRow]) -> str:
    """Markdown: reconstruction MSE by S for the paper, Euler here, and the best other solver here at the same NFE.

    There is a line for each S of the paper that is measured here.

    A solver with n evaluations a step makes S // n steps. Of several curves that is best whose MSE is the smallest in
    the geometric mean over the S that all have; a curve that lacks any of them is no candidate.
    """
    curves = {label: by_S for label, of in _curves(rows).items() if (by_S := _by_S(of))}
    euler = _best({label: by_S for label, by_S in curves.items() if _solver(by_S) == "euler"})
    other = _best({label: by_S for label, by_S in curves.items() if _solver(by_S) != "euler"})
    columns = [(label, curves[label]) for label in (euler, other) if label]
    heads = ["S", "DDIM, Table 2", *(f"{label}, here" for label, _ in columns)]
    lines = []
    for S, paper in PAPER.items():
        cells = [f"{row.mse.mean:.2g}" if (row := by_S.get(S)) else "" for _, by_S in columns]
        if any(cells):
            lines.append([S, f"{paper:g}", *cells])
    return markdown(heads, lines, words=())


def _by_S(rows: Sequence[ReconstructionRow]) -> dict[int, ReconstructionRow]:
    """The ``rows`` of one curve that pay for as many evaluations as the paper's S, by S."""
    return {S: row for row in rows for S in PAPER if S - row.nfe // row.steps < row.nfe <= S}


def _solver(by_S: Mapping[int, ReconstructionRow]) -> str:
    return next(iter(by_S.values())).solver


def _best(curves: Mapping[str, Mapping[int, ReconstructionRow]]) -> str | None:
    """The label of the best curve; None if there is none."""
    full = max((len(by_S) for by_S in curves.values()), default=0)
    scores = {
        label: sum(log(row.mse.mean or 1e-300) for row in by_S.values())
        for label, by_S in curves.items()
        if len(by_S) == full
    }
    return min(scores, key=lambda label: scores[label], default=None)
