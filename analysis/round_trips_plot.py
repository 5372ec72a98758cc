"""The rows of ``analysis.round_trips``, and the table and the figure that are made of them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from .figures import COLOURS, MARKERS
from .tables import markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DDIM_INVERSE, EULER = "DDIM inverse", "Euler"
# The methods in the order of table and figure; the last two are the field's own, one of them for each family.
METHODS = ("auto", "reversible-heun", "exact euler", DDIM_INVERSE, EULER)
# Where values begin to be drawn that are zero, or nearly so.
_LEAST = 1e-34


@dataclass(frozen=True)
class TripRow:
    """One picture there and back. What failed has infinite errors, and says ``why``.

    ``pipeline, fingerprint``  its name, and the first digits of that of its network's weights.
    ``solver``         what ``auto`` and the others are here.
    ``nfe, nfe_back``  evaluations of the network, guided and all, on the way up and down.
    ``x_0_mse``        of the state, per dimension: of the ODE alone.
    ``psnr``           of the picture against the autoencoder's own reconstruction, in dB: of the ODE alone too.
    ``autoencoder_psnr``  of that reconstruction against the picture, in dB.
    ``moment``         the second moment of the latent, which should be near 1.
    ``latent_rmse``    of the latent against that of many steps to the same noise level; not a number if there is none.
    """

    pipeline: str
    fingerprint: str
    family: str
    image: str
    guidance: float
    method: str
    solver: str
    steps: int
    nfe: int
    nfe_back: int
    x_0_mse: float
    psnr: float
    autoencoder_psnr: float
    moment: float
    latent_rmse: float
    why: str

    @property
    def key(self) -> tuple[str, str, str, float, str, int]:
        """What it is the row of."""
        return self.pipeline, self.fingerprint, self.image, self.guidance, self.method, self.steps


def table(rows: Sequence[TripRow]) -> str:
    """Markdown: a line for each pipeline, guidance, number of steps and method, with medians over the pictures."""
    heads = ["pipeline", "family", "guidance", "steps", "method", "NFE up + down", "MSE in x_0", "PSNR, dB"]
    heads += ["moment of x_T", "error of x_T", "why"]
    groups: dict[tuple[str, float, int, int], list[TripRow]] = {}
    for row in rows:
        groups.setdefault((row.pipeline, row.guidance, row.steps, METHODS.index(row.method)), []).append(row)
    order = list(dict.fromkeys(row.pipeline for row in rows))
    keys = sorted(groups, key=lambda key: (order.index(key[0]), *key[1:]))
    return markdown(heads, [_line(groups[key]) for key in keys], words=(0, 1, 4, 10))


def _line(rows: Sequence[TripRow]) -> list[str]:
    arrived = [row for row in rows if not row.why]
    first = (arrived or rows)[0]
    return [
        first.pipeline,
        first.family,
        f"{first.guidance:g}",
        str(first.steps),
        first.method if first.method == first.solver else f"{first.method} ({first.solver})",
        f"{median(row.nfe for row in arrived):g} + {median(row.nfe_back for row in arrived):g}" if arrived else "",
        _number([row.x_0_mse for row in rows], ".2g"),
        _number([row.psnr for row in rows], ".1f"),
        _number([row.moment for row in rows], ".3f"),
        _number([row.latent_rmse for row in rows], ".2g"),
        _reason([row.why for row in rows]),
    ]


def _reason(whys: Sequence[str]) -> str:
    """The first of the reasons ``whys``, where some are empty, and for how many pictures there is one."""
    known = [why for why in whys if why]
    of = f"{len(known)} of {len(whys)}: " if len(whys) > 1 else ""
    return f"{of}{known[0]}" if known else ""


def _number(values: Sequence[float], digits: str) -> str:
    """The median of the ``values``; nothing where they are not numbers."""
    known = [value for value in values if value == value]
    return f"{median(known):{digits}}" if known else ""


def plot(rows: Sequence[TripRow]) -> Figure:
    """What the ODE alone loses there and back, by pipeline and method, in a panel for each guidance."""
    guidances = sorted({row.guidance for row in rows})
    pipelines = list(dict.fromkeys(row.pipeline for row in rows))
    width = min(max(3 + 0.8 * len(pipelines) * len(guidances), 8), 14)
    figure = Figure(figsize=(width, 5), layout="constrained")
    panels = figure.subplots(1, len(guidances), sharey=True, squeeze=False)[0]
    for axes, guidance in zip(panels, guidances, strict=True):
        _draw(axes, [row for row in rows if row.guidance == guidance], pipelines)
        axes.set_title(f"guidance {guidance:g}")
    panels[0].set_ylabel("MSE in x_0 there and back, of the ODE alone")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    steps = ", ".join(str(count) for count in sorted({row.steps for row in rows}))
    images = len({row.image for row in rows})
    figure.suptitle(f"{steps} steps; medians over images, of which there are {images}; what failed is at the top")
    return figure


def _draw(axes: Axes, rows: Sequence[TripRow], pipelines: Sequence[str]) -> None:
    axes.set_yscale("log")
    for method, colour, marker in zip(METHODS, COLOURS, MARKERS, strict=False):
        own = [row for row in rows if row.method == method]
        found = {name: [row.x_0_mse for row in own if row.pipeline == name] for name in pipelines}
        middle = {name: median(values) for name, values in found.items() if values}
        drawn = {name: max(value, _LEAST) for name, value in middle.items() if isfinite(value)}
        axes.plot([pipelines.index(name) for name in drawn], list(drawn.values()), marker, color=colour, label=method)
        failed = [pipelines.index(name) for name in middle if name not in drawn]
        if failed:
            top = [1.0] * len(failed)
            axes.plot(failed, top, marker, color=colour, transform=axes.get_xaxis_transform(), clip_on=False)
    axes.set_xticks(range(len(pipelines)), pipelines, rotation=35, ha="right")
    axes.set_xlim(-0.5, len(pipelines) - 0.5)
    axes.grid(visible=True, axis="y", alpha=0.3)
