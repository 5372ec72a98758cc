"""Measure speed: network calls, what a walk adds to them, and images per second at equal error beside diffusers.

Each network is measured as it is and compiled, in each dtype; loops are timed whole, with their own state and step.

``network``  bare calls on random states, one after another.
``ours``     20 steps of the default solver from latents to images, and what they take more than as many bare calls.

At equal error each way of solving takes as many calls as it needs: to decode latents within an RMSE of a fine
reference, pixels in [-1, 1], and to bring images back within an MSE, pixels in [0, 1]. Calls are counted. diffusers'
schedulers are driven as its pipelines do it: those that ``analysis.comparison`` finds good at some number of calls, and
DDIM with its inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from statistics import median

import click
import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode import codec
from ddim_ode.dtypes import DTYPES
from ddim_ode.images import pixel_mse
from ddim_ode.models import Model
from ddim_ode.session.plan import plan_encoding
from ddim_ode.session.request import Request
from ddim_ode.solvers import AUTO, DEFAULT_SOLVER
from ddim_ode.speed import compiled, in_dtype, products

from .options import ModelChoice, errors_in_a_line, images_option, model_options, out_option
from .pictures import load_images, rms_of_all
from .reference import REFERENCES, decoded_references
from .rows import Results, calibrated, describe
from .schedulers import decode_with_scheduler, schedulers, there_and_back_with_ddim
from .tables import markdown
from .timing import machine, timed

SEED, STEPS = 0, 20
DECODE_TARGETS, TRIP_TARGETS = (0.02,), (1e-3, 1e-5)
BUDGETS = (*range(5, 21), 25, 30, 40, 50, 75, 100, 150, 200, 300, 400, 600, 1000)
# By name and spacing, as ``schedulers`` has them.
GOOD = (
    ("DDIM", "trailing"),
    ("DPMSolverMultistep 2", "karras"),
    ("DPMSolverMultistep 3", "exponential"),
    ("UniPCMultistep 2", "karras"),
    ("UniPCMultistep 3", "trailing"),
)
THEIRS: Mapping[str, tuple[str, dict[str, object]]] = {
    f"{label} {spacing}": (kind, options) for label, spacing, kind, options in schedulers() if (label, spacing) in GOOD
}
# There and back, by the spacing.
DDIM = {f"DDIM {spacing}": spacing for spacing in ("trailing", "leading")}
OURS = (DEFAULT_SOLVER, AUTO, "reversible-heun")


@dataclass(frozen=True)
class SpeedRow:
    """One way of solving with a network in one ``dtype``, ``compiled`` or not (0), for a batch.

    ``task``      'network' or 'ours', for calls; or what was reached, as 'decode' or 'there and back'.
    ``target``    the error that was to be reached; 0 for calls.
    ``nfe``       network calls of the batch; 0 where the target is not reached.
    ``seconds``   the median time of the whole; infinite where the target is not reached.
    ``error``     what was reached.
    ``peak_mib``  the most memory of a GPU that was taken, in MiB; 0 on a CPU.
    """

    task: str
    way: str
    dtype: str
    compiled: int
    batch: int
    target: float
    nfe: int
    seconds: float
    error: float
    peak_mib: float

    @property
    def key(self) -> tuple[object, ...]:
        """What it is the row of."""
        return self.task, self.way, self.dtype, self.compiled, self.batch, self.target


Reached = dict[tuple[str, str, int], tuple[float, int]]


class Bench:
    """A ``model`` whose network computes in ``dtype``, and is compiled or not.

    ``reached``  what errors were found in this dtype, and in how many calls, by task, way and budget; a compiled
                 network has the same.
    """

    def __init__(self, model: Model, dtype: str, whole: bool, reached: Reached) -> None:
        self.model = compiled(model) if whole else model
        self._dtype, self._compiled = dtype, whole
        self._reached = reached

    def calls(self, batch: int, repeats: int) -> Iterator[SpeedRow]:
        """A row for bare calls of a ``batch``, and one for a walk of as many."""
        model, shape = self.model, (batch, *self.model.space.shape)
        x_T = codec.to_device(codec.draw_latents(batch, shape[1:], seed=SEED), model.device)
        dtype = next(model.network.parameters()).dtype
        x, t = x_T.to(dtype), torch.full((batch,), 500.0, device=model.device)

        def bare() -> None:
            for _ in range(STEPS):
                model.network(x, t)

        plan = plan_encoding(Request(DEFAULT_SOLVER, steps=STEPS), model)
        found = self._times((bare, lambda: codec.decode(model.ode(), x_T, plan.grid, plan.back)), repeats)
        for task, (seconds, peak) in zip(("network", "ours"), found, strict=True):
            yield self._row(task, DEFAULT_SOLVER if task == "ours" else "", batch, 0.0, STEPS, seconds, 0.0, peak)

    def ways(self, task: str) -> list[str]:
        """What can do the ``task``."""
        return [*OURS, *(THEIRS if task == "decode" else DDIM)]

    def solve(self, task: str, way: str, x: Tensor, budget: int) -> tuple[Tensor, str, int]:
        """What ``x``, ``(B, C, H, W)``, becomes in ``budget`` steps each way, at which clean end, in how many calls.

        Raises:
            ValueError: if the way cannot be gone in so few steps.
        """
        model = self.model
        if task == "decode" and way in THEIRS:
            return decode_with_scheduler(model, x, *THEIRS[way], budget)
        if way in DDIM:
            _, found, (clean_end, _), calls = there_and_back_with_ddim(model, x, DDIM[way], budget)
            return found, clean_end, calls
        plan, ode = plan_encoding(Request(way, steps=budget), model), model.ode()
        state = codec.to_device(x, model.device)
        if task == "decode":
            back = codec.decode(ode, state, plan.grid, plan.back)
            return back.cpu(), plan.grid.clean_end, ode.nfe
        there = codec.encode_solution(ode, state, plan.grid, plan.solver)
        back = codec.decode_solution(ode, there.x, plan.grid, plan.back, there.companion).x
        return back.cpu(), plan.grid.clean_end, ode.nfe

    def at_equal_error(
        self, task: str, way: str, x: Tensor, target: float, error: Callable[[Tensor, str], float], repeats: int
    ) -> SpeedRow:
        """The row of a ``way`` with the fewest calls that reach the ``target``, for ``x``, ``(B, C, H, W)``."""
        for budget in BUDGETS:
            key = task, way, budget
            if key not in self._reached:
                self._reached[key] = self._error_of(task, way, x, budget, error)
            reached, calls = self._reached[key]
            if reached <= target:
                ((seconds, peak),) = self._times((partial(self.solve, task, way, x, budget),), repeats)
                return self._row(task, way, len(x), target, calls, seconds, reached, peak)
        return self._row(task, way, len(x), target, 0, inf, inf, 0.0)

    def _error_of(
        self, task: str, way: str, x: Tensor, budget: int, error: Callable[[Tensor, str], float]
    ) -> tuple[float, int]:
        """The error in ``budget`` steps, infinite where that cannot be done, and the calls it takes."""
        try:
            found, end, calls = self.solve(task, way, x, budget)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError):  # fewer steps than it needs, or it diverges
            return inf, 0
        return error(found, end), calls

    def _row(
        self, task: str, way: str, batch: int, target: float, nfe: int, seconds: float, error: float, peak: float
    ) -> SpeedRow:
        return SpeedRow(task, way, self._dtype, int(self._compiled), batch, target, nfe, seconds, error, peak)

    def _times(self, works: Sequence[Callable[[], object]], repeats: int) -> list[tuple[float, float]]:
        """For each of the ``works`` the median time in seconds, after a first one, and the most memory in MiB.

        They take turns, so that a machine that grows slower is as slow for all.
        """
        times, peaks = [list[float]() for _ in works], [0.0 for _ in works]
        with torch.no_grad(), products(tf32=self._dtype == "tf32"):
            for _ in range(repeats + 1):
                for i, work in enumerate(works):
                    seconds, peak = self._once(work)
                    times[i].append(seconds)
                    peaks[i] = max(peaks[i], peak)
        return [(median(own[1:]), peak) for own, peak in zip(times, peaks, strict=True)]

    def _once(self, work: Callable[[], object]) -> tuple[float, float]:
        """The time of ``work`` in seconds, and the most memory in MiB."""
        device = self.model.device
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(work, device)
        return seconds, torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else 0.0


def measure(
    choice: ModelChoice,
    networks: Sequence[tuple[str, bool]],
    batches: Sequence[int],
    images: Tensor,
    *,
    equal: Sequence[tuple[str, bool]],
    stride: int,
    repeats: int,
    results: Results[SpeedRow],
) -> None:
    """Rows for each of ``networks``, a dtype and whether it is compiled; of ``equal`` those at equal error as well.

    Those that ``results`` has already are not measured again. Images are ``(B, C, H, W)``, pixels in [-1, 1].
    """
    known = {row.key for row in results.rows}
    errors = _errors(choice.load(), images, stride) if equal else {}
    reached: dict[str, Reached] = {dtype: {} for dtype, _ in networks}
    for dtype, whole in tqdm(networks, desc="networks", disable=None):
        bench = Bench(in_dtype(choice.load(), dtype), dtype, whole, reached[dtype])
        for batch in batches:
            if ("network", "", dtype, int(whole), batch, 0.0) not in known:
                for row in bench.calls(batch, repeats):
                    results.add(row)
        for task, (x, targets, error) in errors.items() if (dtype, whole) in equal else ():
            for way, target in product(bench.ways(task), targets):
                if (task, way, dtype, int(whole), len(x), target) not in known:
                    results.add(bench.at_equal_error(task, way, x, target, error, repeats))


Task = tuple[Tensor, Sequence[float], Callable[[Tensor, str], float]]


def _errors(model: Model, images: Tensor, stride: int) -> dict[str, Task]:
    """What each task begins with, ``(B, C, H, W)``, the targets, and the error of what it ends with."""
    x_T = codec.draw_latents(len(images), model.space.shape, seed=SEED)
    with products(tf32=False):
        fine = decoded_references(model, x_T, folder=REFERENCES, stride=stride)
    return {
        "decode": (x_T, DECODE_TARGETS, lambda found, end: rms_of_all(found - fine.at[end])),
        "there and back": (images, TRIP_TARGETS, lambda found, _: float(pixel_mse(images.double(), found).mean())),
    }


def table(rows: Sequence[SpeedRow]) -> str:
    """Markdown: calls and the walk for each network and batch; then what is reached at equal error."""
    return f"{calls_table(rows)}\n\n{equal_table(rows)}"


def calls_table(rows: Sequence[SpeedRow]) -> str:
    """Markdown: time of a call and images x calls a second, and the walk's time as a multiple of as many calls."""
    walks = {row.key[2:]: row for row in rows if row.task == "ours"}
    lines = [
        (
            row.dtype,
            "yes" if row.compiled else "no",
            row.batch,
            f"{1000 * row.seconds / row.nfe:.2f}",
            f"{row.batch * row.nfe / row.seconds:,.0f}",
            f"{walks[row.key[2:]].seconds / row.seconds:.3f}",
            f"{row.peak_mib:.0f}",
        )
        for row in rows
        if row.task == "network"
    ]
    heads = ["network", "compiled", "images", "ms a call", "images x calls / s", "walk / calls", "peak MiB"]
    return markdown(heads, lines, words=(0, 1))


def equal_table(rows: Sequence[SpeedRow]) -> str:
    """Markdown: calls, time and images per second of each way that reaches a target."""
    lines = [
        (
            f"{row.task} {row.target:g}",
            row.way,
            row.dtype,
            "yes" if row.compiled else "no",
            row.nfe or "not reached",
            f"{row.batch / row.seconds:.3g}",
        )
        for row in rows
        if row.target
    ]
    return markdown(["task", "way", "network", "compiled", "calls", "images / s"], lines, words=(0, 1, 2, 3))


@click.command(help=__doc__.split("\n")[0])
@model_options
@images_option
@click.option("--count", type=click.IntRange(min=1), default=16, show_default=True, help="Images at equal error.")
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, default=(1, 16), show_default=True)
@click.option("--dtype", "dtypes", type=click.Choice([*DTYPES]), multiple=True, default=("float32",), show_default=True)
@click.option("--compile/--no-compile", "compiling", default=True, help="Measure compiled networks too.")
@click.option("--equal/--no-equal", default=True, help="Measure images per second at equal error, in float32.")
@click.option("--stride", type=click.IntRange(min=1), default=4, show_default=True, help="Of the reference's steps.")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@out_option("speed")
@errors_in_a_line()
def main(
    model: ModelChoice,
    images: Path,
    count: int,
    batches: tuple[int, ...],
    dtypes: tuple[str, ...],
    compiling: bool,
    equal: bool,
    stride: int,
    repeats: int,
    out: Path,
) -> None:
    loaded = model.load()
    pixels, names = load_images(images, loaded, count)
    networks = [(dtype, whole) for dtype in dtypes for whole in ((False, True) if compiling else (False,))]
    about = {**machine(), "calibrated": calibrated(loaded), "seed": SEED, "stride": stride, "repeats": repeats}
    results = Results(SpeedRow, out, describe(loaded, names, pixels) | about)
    measure(
        model,
        networks,
        batches,
        pixels,
        equal=[network for network in networks if equal and network[0] == "float32"],
        stride=stride,
        repeats=repeats,
        results=results,
    )
    click.echo(table(results.rows))


if __name__ == "__main__":
    main()
