"""The figure of a trace: what the network takes for the picture along the way, and the error of each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddim_ode.images import to_picture

from .figures import COLOURS, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from ddim_ode.session.trace import Point, Trace


def plot(trace: Trace) -> Figure:
    """Two strips of pictures, up above and down below, both with noise on the right; and the errors along sigma."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.2), layout="constrained")
    strips = [
        [(point.sigma, point.clean) for point in points if point.clean is not None]
        for points in (trace.up, trace.down[::-1])
    ]
    spec = figure.add_gridspec(3, max(map(len, strips)), height_ratios=(1, 1, 1.9))
    for row, (shown, words) in enumerate(zip(strips, ("up: encoding", "down: decoding"), strict=True)):
        for column, (sigma, clean) in enumerate(shown):
            axes = figure.add_subplot(spec[row, column])
            _draw_picture(axes, sigma, clean)
            if column == 0:
                axes.set_ylabel(words)
    axes = figure.add_subplot(spec[2, :])
    for points, words, colour, marker in zip((trace.up, trace.down), ("up", "down"), COLOURS, MARKERS, strict=False):
        _draw_errors(axes, points, f"steps {words}, at their ends", colour, marker)
    axes.set(xscale="log", yscale="log", xlabel="sigma", ylabel="RMS error of a step, in x")
    axes.grid(alpha=0.3)
    axes.legend()
    solver, back = trace.there.solver.name, trace.back.solver.name
    names = solver if solver == back else f"{solver}, back by {back}"
    axes.set_title(
        f"{trace.name}: {names}, {trace.there.nfe} + {trace.back.nfe} NFE; comes back with MSE {trace.mse:.2g}."
        " The pictures are x_bar - sigma eps; each error is against two finer steps from where the step begins.",
        fontsize=9,
        parse_math=False,  # in the name of a file a dollar is one
    )
    return figure


def _draw_picture(axes: Axes, sigma: float, clean: Tensor) -> None:
    axes.imshow(to_picture(clean), interpolation="nearest", cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(f"sigma {sigma:.3g}", fontsize=9)


def _draw_errors(axes: Axes, points: Sequence[Point], label: str, colour: str, marker: str) -> None:
    ends = [(point.sigma, point.error) for point in points if point.error and point.sigma > 0]
    axes.plot(*zip(*ends, strict=True), color=colour, marker=marker, markersize=4, label=label)
