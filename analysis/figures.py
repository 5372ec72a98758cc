"""What the figures share: colours and markers, axes of counts, intervals, and how a figure is saved."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddim_ode.files import strict_json, write_file
from ddim_ode.work import load_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from .spread import Spread

# Okabe and Ito's colours, which colour-blind readers can tell apart; yellow, too pale for a line, is left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")


def label_counts(axes: Axes, counts: Sequence[int]) -> None:
    """Ticks of a logarithmic x axis at ``counts`` alone, as plain numbers."""
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xticks([], minor=True)


def shade(axes: Axes, xs: Sequence[float], spreads: Sequence[Spread], of: str, colour: str) -> None:
    """The 95 % interval of the mean, median or trimmed mean, whatever ``of`` names, along ``xs``."""
    low, high = ([getattr(spread, f"{of}_{end}") for spread in spreads] for end in ("low", "high"))
    axes.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def mark_accuracy(axes: Axes, accuracy: float) -> Line2D:
    """A line at the RMSE of the reference to a coarser one: much below it an error says nothing."""
    label = "how far the reference is from a coarser one"
    return axes.axhline(accuracy, color="0.6", linewidth=1, linestyle="-.", label=label)


def round_counts(values: Iterable[float]) -> list[int]:
    """The numbers of 1, 2, 5, 10, 20, 50, ... that lie in the range of the ``values``, which are at least 1."""
    low, high = min(values := list(values)), max(values)
    return [n for n in (m * 10**e for e in range(len(str(int(high)))) for m in (1, 2, 5)) if low <= n <= high]


def draw_slopes(axes: Axes, begin: float, exponents: Mapping[int, int]) -> None:
    """A fan of short lines from the NFE ``begin`` on, with the slopes ``-exponents`` by order: below all that is drawn,
    and so short that the labels beside it are inside the axes."""
    factor = min(2.0, (axes.get_xlim()[1] / begin) ** 0.35)
    error, _ = axes.get_ylim()
    for exponent in sorted(set(exponents.values())):
        orders = " and ".join(str(order) for order in sorted(exponents) if exponents[order] == exponent)
        end = error / factor**exponent
        axes.plot([begin, factor * begin], [error, end], linestyle="--", linewidth=1, color="0.5")
        axes.annotate(
            f"order {orders}: slope -{exponent}",
            (1.05 * factor * begin, end),
            ha="left",
            va="center",
            color="0.3",
            fontsize=8,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as a PNG file, in place of an older one; above it and in the file stands what it was made with,
    according to the ``settings.json`` beside it.
    """
    settings = load_json(path.parent / "settings.json")
    write_file(path, png(figure, settings), overwrite=True)


def png(figure: Figure, settings: Mapping[str, Any]) -> bytes:
    """The content of a PNG file of ``figure``; above it and in the file stand the ``settings`` it was made with."""
    figure.text(0.01, 1.01, _caption(settings), va="bottom", fontsize="x-small", color="0.4")
    buffer = io.BytesIO()
    about = {"ddim-ode": strict_json(settings)}
    figure.savefig(buffer, format="png", dpi=150, metadata=about, bbox_inches="tight")  # with what stands above it
    return buffer.getvalue()


def _caption(settings: Mapping[str, Any]) -> str:
    """Model, images and seed, as far as the ``settings`` name them."""
    weights = settings.get("models", {settings.get("model"): settings.get("fingerprint")})
    parts = [f"model '{model}', weights {fingerprint[:12]}" for model, fingerprint in weights.items() if fingerprint]
    parts += [f"{len(settings['images'])} images"] if settings.get("images") else []
    parts += [f"seed {settings['seed']}"] if settings.get("seed") is not None else []
    return ", ".join(parts)
