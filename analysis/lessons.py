"""What the notebooks compute and show that is no measurement: formulas as they stand in the paper, and pictures.

Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502, Eq. (12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ddim_ode.grids import make_grid
from ddim_ode.images import tile
from ddim_ode.interpolation import slerp
from ddim_ode.models import Model
from ddim_ode.solvers import SOLVERS

from .codec import decode
from .figures import COLOURS, MARKERS, label_counts


def ddim(ode: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, sigmas: Tensor) -> Tensor:
    """DDIM's Eq. (12) without noise, in x, from ``x_T``, ``(B, C, H, W)``, down the ``sigmas``, ``(steps + 1,)``.

    ``ode``  gives eps of a sigma and x / sqrt(alpha_bar). The result is ``(B, C, H, W)`` at the last sigma.
    """
    x = x_T
    for sigma, sigma_next in pairwise(sigmas):
        a, a_next = 1 / (1 + sigma**2), 1 / (1 + sigma_next**2)
        with torch.no_grad():
            eps = ode(sigma, x / a.sqrt())
        x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = a_next.sqrt() * x_0 + (1 - a_next).sqrt() * eps
    return x


def decode_errors(
    model: Model, x_T: Tensor, truth: Tensor, solvers: Sequence[str], steps: Sequence[int]
) -> dict[str, list[float]]:
    """The RMSE, pixels in [-1, 1], of the images to ``truth``, by solver and number of steps on 'log-snr'.

    ``x_T``, ``truth``  latents and images, ``(B, C, H, W)``.
    """

    def error(name: str, count: int) -> float:
        images = decode(model.ode(), x_T, make_grid(model.schedule, "log-snr", count), SOLVERS[name])
        return float((images - truth).square().mean().sqrt())

    return {name: [error(name, count) for count in steps] for name in solvers}


def plot_errors(errors: Mapping[str, Sequence[float]], steps: Sequence[int]) -> Figure:
    """The ``errors`` of each solver against ``steps``, and a line of slope -1 through the first one's first."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour, marker in zip(errors.items(), COLOURS, MARKERS, strict=False):
        axes.loglog(steps, curve, color=colour, marker=marker, label=name)
    begin = next(iter(errors.values()))[0]
    slope = [begin * steps[0] / count for count in steps]
    axes.loglog(steps, slope, "--", color="0.5", linewidth=1, label="slope -1")
    label_counts(axes, steps)
    axes.set_xlabel("network evaluations")
    axes.set_ylabel("RMSE, pixels in [-1, 1]")
    axes.legend()
    return figure


def radii(a: Tensor, b: Tensor, count: int) -> dict[str, list[float]]:
    """RMS of ``count`` latents from ``a`` to ``b``, both ``(C, H, W)``, on the great circle and on the line."""
    weights = torch.linspace(0, 1, count, dtype=torch.float64)
    paths = {"slerp": [slerp(a[None], b[None], w) for w in weights], "line": [a + w * (b - a) for w in weights]}
    return {name: [float(x.square().mean().sqrt()) for x in path] for name, path in paths.items()}


def plot_radii(found: Mapping[str, Sequence[float]]) -> Figure:
    """What ``radii`` found, against the weight of the second latent."""
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, curve), colour, marker in zip(found.items(), COLOURS, MARKERS, strict=False):
        weights = [i / (len(curve) - 1) for i in range(len(curve))]
        axes.plot(weights, curve, color=colour, marker=marker, label=name)
    axes.set_xlabel("weight w")
    axes.set_ylabel("RMS of x_T")
    axes.legend()
    return figure


def show(images: Tensor, columns: int) -> Figure:
    """``images``, ``(B, C, H, W)``, pixels in [-1, 1], side by side."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns, rows), layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        ((tile(images, columns=columns) + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1
    )
    axes.axis("off")
    return figure
