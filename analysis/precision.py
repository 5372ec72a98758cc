"""What half precision costs: the network in float32, bfloat16 and float16, the state in float64 and float32.

Everything is compared with the network in float32 and the state in float64, in as many steps of the same solver:

``latent_rmse``  latents of images: RMSE, of about unit variance.
``image_rmse``   what the latents of the reference decode to: RMSE, pixels in [-1, 1].
``trip_mse``     images there and back: MSE per dimension, pixels in [0, 1]; with both states of a reversible solver.

``call_seconds`` is the median time of a call of the network with all images. On a CUDA device 'float32' is without
TF32, which torch otherwise takes for convolutions; 'tf32' is with it, for matrices too. Solvers are planned for the
model as it is, with its calibration, whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, nan
from pathlib import Path
from statistics import median

import click
import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode import codec
from ddim_ode.console import one_line
from ddim_ode.images import pixel_mse
from ddim_ode.models import Model
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.session.plan import Plan, plan_encoding
from ddim_ode.session.request import Request
from ddim_ode.speed import products

from .options import ModelChoice, errors_in_a_line, images_option, model_options, out_option
from .pictures import load_images, rms_of_all
from .rows import Results, calibrated, describe
from .tables import markdown
from .timing import machine, timed

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
NETWORKS = ("float32", "tf32", "bfloat16", "float16")
STATES = ("float64", "float32")
METHODS = {
    "auto": Request(),
    "dpmpp3m": Request(solver="dpmpp3m"),
    "reversible-heun": Request(solver="reversible-heun"),
    "exact-euler": Request(exact=True),
}
CALLS = 5  # as many are timed


@dataclass(frozen=True)
class PrecisionRow:
    """One method in one precision; errors are root means and means over all images.

    ``nfe, nfe_back``  evaluations on the way up and down.
    ``why``            of infinite errors: what went wrong.
    """

    network: str
    state: str
    method: str
    steps: int
    nfe: int
    nfe_back: int
    latent_rmse: float
    image_rmse: float
    trip_mse: float
    call_seconds: float
    why: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What it is the row of."""
        return self.network, self.state, self.method, self.steps


class Precision:
    """A model with its network in one dtype, and states in another, by the names of ``DTYPES``."""

    def __init__(self, model: Model, network: str, state: str) -> None:
        self._model, self._network_name = model, network
        self._state = DTYPES[state]

    @cached_property
    def _network(self) -> torch.nn.Module:
        return deepcopy(self._model.network).to(DTYPES[self._network_name])

    def encode(self, x_0: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None, int]:
        """Latents of the images ``x_0``, both ``(B, C, H, W)``, their companions, and the evaluations it took."""
        ode = self._ode()
        with products(tf32=self._network_name == "tf32"):
            found = codec.encode_solution(ode, x_0, plan.grid, plan.solver, dtype=self._state)
        return found.x, found.companion, ode.nfe

    def decode(self, x_T: Tensor, plan: Plan, companion: Tensor | None = None) -> tuple[Tensor, int]:
        """Images of the latents ``x_T``, both ``(B, C, H, W)``, and the evaluations it took."""
        ode = self._ode()
        with products(tf32=self._network_name == "tf32"):
            return codec.decode_solution(ode, x_T, plan.grid, plan.back, companion, dtype=self._state).x, ode.nfe

    def seconds(self, images: Tensor) -> float:
        """The median time of a call with all ``images``, ``(B, C, H, W)``, after a first one."""
        x, t = images.to(DTYPES[self._network_name]), torch.full((len(images),), 500.0, device=images.device)
        with torch.no_grad(), products(tf32=self._network_name == "tf32"):
            return median([timed(lambda: self._network(x, t), images.device) for _ in range(CALLS + 1)][1:])

    def _ode(self) -> ProbabilityFlowODE:
        return ProbabilityFlowODE(self._network, self._model.process)


@dataclass(frozen=True, eq=False)
class Reference:
    """What the others are compared with: latents and the images that they decode to, ``(B, C, H, W)``."""

    x_T: Tensor
    decoded: Tensor


class Bench:
    """Measures a ``model`` on ``images``, ``(B, C, H, W)`` in [-1, 1]."""

    def __init__(self, model: Model, images: Tensor) -> None:
        self._model = model
        self._images = codec.to_device(images, model.device)
        self._best = Precision(model, "float32", precise(model.device))
        self._references: dict[tuple[str, int], Reference] = {}
        self._seconds: dict[str, float] = {}

    def row(self, network: str, state: str, method: str, steps: int) -> PrecisionRow:
        """The row of a ``method`` in ``steps`` steps; where it fails, or the device cannot, with the reason.

        Raises:
            torch.OutOfMemoryError: if there is no room for it.
        """
        own = Precision(self._model, network, state)
        plan = plan_encoding(replace(METHODS[method], steps=steps), self._model)
        try:
            reference = self._reference(method, steps, plan)
            x_T, companion, nfe = own.encode(self._images, plan)
            back, nfe_back = own.decode(x_T, plan, companion)
            decoded, _ = own.decode(reference.x_T, plan)
            seconds = self._time_of(network, own)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of a solver, or of a device that lacks an operation in this dtype
            return PrecisionRow(network, state, method, steps, 0, 0, inf, inf, inf, nan, one_line(error))
        return PrecisionRow(
            network,
            state,
            method,
            steps,
            nfe,
            nfe_back,
            latent_rmse=rms_of_all(x_T - reference.x_T),
            image_rmse=rms_of_all(decoded - reference.decoded),
            trip_mse=float(pixel_mse(self._images, back).mean()),
            call_seconds=seconds,
            why="",
        )

    def _reference(self, method: str, steps: int, plan: Plan) -> Reference:
        if (method, steps) not in self._references:
            x_T, _, _ = self._best.encode(self._images, plan)
            self._references[method, steps] = Reference(x_T, self._best.decode(x_T, plan)[0])
        return self._references[method, steps]

    def _time_of(self, network: str, precision: Precision) -> float:
        if network not in self._seconds:
            self._seconds[network] = precision.seconds(self._images)
        return self._seconds[network]


def precise(device: torch.device) -> str:
    """The most precise dtype of states on ``device``."""
    return next(name for name in STATES if DTYPES[name] == codec.state_dtype(device))


def measure(
    model: Model,
    images: Tensor,
    *,
    networks: Sequence[str] = NETWORKS,
    methods: Sequence[str],
    steps: Sequence[int],
    results: Results[PrecisionRow],
) -> None:
    """A row for each dtype of ``networks`` that the device has, and of states, method and number of steps.

    Those that ``results`` has already are not measured again. Images are ``(B, C, H, W)``, pixels in [-1, 1].
    """
    known = {row.key for row in results.rows}
    networks = [name for name in networks if name != "tf32" or model.device.type == "cuda"]
    states = STATES[STATES.index(precise(model.device)) :]
    keys = [(net, state, method, n) for n in steps for method in methods for net in networks for state in states]
    bench = Bench(model, images)
    for key in tqdm([key for key in keys if key not in known], desc="precisions", disable=None):
        results.add(bench.row(*key))


def table(rows: Sequence[PrecisionRow]) -> str:
    """Markdown: a line for each row."""
    heads = ["method", "steps", "network", "state", "NFE up + down", "latents, RMSE", "images, RMSE"]
    heads += ["there and back, MSE", "ms a call", "why"]
    lines = [
        (
            row.method,
            row.steps,
            row.network,
            row.state,
            f"{row.nfe} + {row.nfe_back}",
            *(f"{value:.2g}" for value in (row.latent_rmse, row.image_rmse, row.trip_mse)),
            f"{1000 * row.call_seconds:.1f}",
            row.why,
        )
        for row in rows
    ]
    return markdown(heads, lines, words=(0, 2, 3, 9))


@click.command(help=__doc__.split("\n")[0])
@model_options
@images_option
@click.option("--count", type=click.IntRange(min=1), default=4, show_default=True, help="Take so many of the images.")
@click.option("--network", "networks", type=click.Choice(NETWORKS), multiple=True, default=NETWORKS, show_default=True)
@click.option(
    "--method", "methods", type=click.Choice(list(METHODS)), multiple=True, default=list(METHODS), show_default=True
)
@click.option("--steps", type=click.IntRange(min=1), multiple=True, default=(10, 20, 50), show_default=True)
@out_option("precision")
@errors_in_a_line()
def main(
    model: ModelChoice,
    images: Path,
    count: int,
    networks: tuple[str, ...],
    methods: tuple[str, ...],
    steps: tuple[int, ...],
    out: Path,
) -> None:
    loaded = model.load()
    pixels, names = load_images(images, loaded, count)
    about = {**machine(), "calibrated": calibrated(loaded)}
    results = Results(PrecisionRow, out, describe(loaded, names, pixels) | about)
    measure(loaded, pixels, networks=networks, methods=methods, steps=steps, results=results)
    click.echo(table(results.rows))


if __name__ == "__main__":
    main()
