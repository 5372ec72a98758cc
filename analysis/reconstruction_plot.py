"""The plot and the table of ``analysis.reconstruction``, from its rows alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from analysis.common import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from analysis.reconstruction import Row

# arXiv 2010.02502, Table 2: reconstruction MSE on the test set of CIFAR-10 by S, the number of Euler steps.
PAPER = {10: 0.014, 20: 0.0065, 50: 0.0023, 100: 0.0009, 200: 0.0004, 500: 0.0001, 1000: 0.0001}


def round_trip_order(order: int) -> int:
    """The order of the state after encoding and decoding with a method of ``order``: even ones gain one."""
    return order if order % 2 else order + 1


def plot(rows: Sequence[Row], accuracy: float | None = None) -> Figure:
    """Reconstruction MSE and latent RMSE against NFE, both logarithmic, with the slopes that theory has.

    ``accuracy``  RMSE of the reference latents to coarser ones; much below it a latent error says nothing.
    """
    curves = _curves(rows)
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    _draw(left, curves, lambda row: (row.mse_mean, row.mse_median), lambda order: 2 * round_trip_order(order))
    left.plot(list(PAPER), list(PAPER.values()), "x", color="0.35", label="the paper's Table 2 (its own model)")
    left.set_ylabel("reconstruction MSE per dimension, pixels in [0, 1]")
    _draw(right, curves, lambda row: (row.latent_rmse_mean, row.latent_rmse_median), lambda order: order)
    right.set_ylabel("latent RMSE per dimension, x_T of unit variance")
    for axes in (left, right):
        axes.set_xlabel("network evaluations (NFE) in one direction")
        axes.grid(visible=True, which="major", color="0.9")
    handles, labels = left.get_legend_handles_labels()
    if accuracy:
        handles.append(right.axhline(accuracy, color="0.6", linewidth=1, linestyle="-."))
        labels.append("how far the reference is from a coarser one")
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize="small")
    same = "".join(f", {what}" for what in _shared(rows))
    figure.suptitle(f"model '{rows[0].model}', {rows[0].images} images{same}; mean (solid) and median (dotted)")
    return figure


def _curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by what tells them apart beside the steps, in the order of NFE."""
    common = _shared(rows)
    curves: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.nfe):
        curves.setdefault(", ".join(part for part in _parts(row) if part not in common), []).append(row)
    return dict(sorted(curves.items()))


def _parts(row: Row) -> tuple[str, str, str]:
    return row.solver, f"grid {row.grid}", f"clean end {row.clean_end}"


def _shared(rows: Sequence[Row]) -> list[str]:
    """Of grid and clean end, what all rows have in common."""
    columns = zip(*(_parts(row)[1:] for row in rows), strict=True)
    return [column[0] for column in columns if len(set(column)) == 1]


def _draw(
    axes: Axes,
    curves: Mapping[str, Sequence[Row]],
    errors: Callable[[Row], tuple[float, float]],
    exponent: Callable[[int], int],
) -> None:
    """A curve of ``errors``, mean and median, for each of ``curves``, and the slope of each order among them."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for i, (label, rows) in enumerate(curves.items()):
        nfe = [row.nfe for row in rows]
        means, medians = zip(*(errors(row) for row in rows), strict=True)
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        axes.plot(nfe, means, marker=marker, markersize=5, linewidth=1.3, color=colour, label=label)
        axes.plot(nfe, medians, linewidth=1.3, linestyle=":", color=colour)
    begin = min(rows[0].nfe for rows in curves.values())
    _draw_slopes(axes, begin, {row.order: exponent(row.order) for rows in curves.values() for row in rows})


def _draw_slopes(axes: Axes, begin: float, exponents: Mapping[int, int]) -> None:
    """A fan of short lines from the NFE ``begin`` on, with the slopes ``-exponents`` by order, in the lower left
    corner, which falling curves leave free."""
    low, high = axes.get_ylim()
    error = low * (high / low) ** 0.35
    for exponent in sorted(set(exponents.values())):
        orders = " and ".join(str(order) for order in sorted(exponents) if exponents[order] == exponent)
        end = error / 2**exponent
        axes.plot([begin, 2 * begin], [error, end], linestyle="--", linewidth=1, color="0.5")
        axes.annotate(
            f" order {orders}: slope -{exponent}", (2 * begin, end), ha="left", va="center", color="0.4", fontsize=8
        )


def table(rows: Sequence[Row]) -> str:
    """Markdown: reconstruction MSE by S for the paper, Euler here, and the best other solver here at the same NFE.

    A solver with n evaluations a step makes S // n steps. Of several curves that is best whose MSE is the smallest in
    the geometric mean over the S that all have; a curve that lacks any of them is no candidate.
    """
    curves = {label: by_S for label, of in _curves(rows).items() if (by_S := _by_S(of))}
    euler = _best({label: by_S for label, by_S in curves.items() if _solver(by_S) == "euler"})
    other = _best({label: by_S for label, by_S in curves.items() if _solver(by_S) != "euler"})
    columns = [(label, curves[label]) for label in (euler, other) if label]
    heads = ["S", "DDIM, Table 2", *(f"{label}, here" for label, _ in columns)]
    lines = [f"| {' | '.join(heads)} |", f"|{'---:|' * len(heads)}"]
    for S, paper in PAPER.items():
        cells = [f"{row.mse_mean:.2g}" if (row := by_S.get(S)) else "" for _, by_S in columns]
        lines.append(f"| {' | '.join([str(S), f'{paper:g}', *cells])} |")
    return "\n".join(lines)


def _by_S(rows: Sequence[Row]) -> dict[int, Row]:
    """Those of the ``rows`` of one curve that pay for as many evaluations as the paper's S."""
    return {S: row for row in rows for S in PAPER if S - row.nfe // row.steps < row.nfe <= S}


def _solver(by_S: Mapping[int, Row]) -> str:
    return next(iter(by_S.values())).solver


def _best(curves: Mapping[str, Mapping[int, Row]]) -> str | None:
    """The label of the best curve; None if there is none."""
    full = max((len(by_S) for by_S in curves.values()), default=0)
    scores = {
        label: sum(log(row.mse_mean or 1e-300) for row in by_S.values())
        for label, by_S in curves.items()
        if len(by_S) == full
    }
    return min(scores, key=lambda label: scores[label], default=None)
