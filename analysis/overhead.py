"""Measure what a solver and the ODE cost beside the network they call: the aim is at most 2 % in a batch of 16.

Each repeat encodes once with each solver, between calls of the bare network on the same shapes, because the speed of
a machine drifts. There are three figures, all in parts of the time of as many bare calls:

``ratio``   the time of the solve: 1 for no overhead. Noise of the network is in it.
``beside``  the time of the solve that was not spent inside of the network, which the network's noise does not enter.
``stub``    the time of the same solve with a network that answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import click
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ddim_ode.models import Model
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.session.plan import plan_encoding
from ddim_ode.session.request import Request
from ddim_ode.solvers import SOLVERS

from .codec import encode
from .options import FIXED_STEP, ModelChoice, batch_size_option, errors_in_a_line, model_options, out_option
from .rows import Results, describe
from .tables import markdown
from .timing import Stopwatch, machine, timed

DEFAULT = ("euler", "heun", "ab4", "rk4", "torchdiffeq-rk4")
SEED = 0


@dataclass(frozen=True)
class OverheadRow:
    """One solve; all times are wall times in seconds.

    ``bare``    median time of one call of the bare network, before and after the solve.
    ``solve``   time of the solve.
    ``inside``  the part of it inside of the network.
    ``stub``    time of the solve with a network that answers at once.
    """

    solver: str
    steps: int
    nfe: int
    repeat: int
    bare: float
    solve: float
    inside: float
    stub: float


class Stub(nn.Module):
    """A network of the same dtype that answers at once with ``output``, ``(B, C, H, W)``."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = nn.Parameter(output, requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        return self.output


def measure(
    model: Model, solvers: Sequence[str], *, steps: int, batch_size: int, repeats: int, results: Results[OverheadRow]
) -> None:
    """``repeats`` rows for each of ``solvers``, interleaved, for encoding random images in ``steps`` steps.

    Those that ``results`` has already are not measured again.
    """
    known = {(row.solver, row.steps, row.repeat) for row in results.rows}
    cases = [(solver, repeat) for repeat in range(repeats) for solver in solvers]
    missing = [(solver, repeat) for solver, repeat in cases if (solver, steps, repeat) not in known]
    generator = torch.Generator().manual_seed(SEED)
    shape = (batch_size, model.channels, model.height, model.width)
    images = torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1
    if missing:
        _measure(model, images, steps, *missing[0])  # the first calls of all are slower
    for solver, repeat in tqdm(missing, desc="solves", disable=None):
        results.add(_measure(model, images, steps, solver, repeat))


def _measure(model: Model, images: Tensor, steps: int, solver: str, repeat: int) -> OverheadRow:
    grid = plan_encoding(Request(solver, steps, "linear"), model).grid
    stub = Stub(torch.zeros_like(images, dtype=torch.float32)).to(model.device)
    nfe = SOLVERS[solver].nfe(grid.steps) or 0
    bare = _bare_calls(model, images, nfe // 2 + 1)
    with Stopwatch(model.network) as watch:
        solve = timed(lambda: encode(model.ode(), images, grid, SOLVERS[solver]), model.device)
    bare += _bare_calls(model, images, nfe // 2 + 1)
    answered = ProbabilityFlowODE(stub, model.process)
    stubbed = timed(lambda: encode(answered, images, grid, SOLVERS[solver]), model.device)
    return OverheadRow(solver, grid.steps, nfe, repeat, median(bare), solve, watch.seconds, stubbed)


def _bare_calls(model: Model, images: Tensor, count: int) -> list[float]:
    """The times of ``count`` calls of the network on ``images``, ``(B, C, H, W)``."""
    x = images.float().to(model.device)
    t = torch.full((len(images),), len(model.schedule) / 2, device=model.device)
    with torch.no_grad():
        return [timed(lambda: model.network(x, t), model.device) for _ in range(count)]


def table(rows: Sequence[OverheadRow]) -> str:
    """Markdown: for each solver the median of each figure and, in brackets, its quartiles; overheads in per cent."""
    lines = []
    for solver, nfe in dict.fromkeys((row.solver, row.nfe) for row in rows):
        own = [row for row in rows if (row.solver, row.nfe) == (solver, nfe)]
        ratio = [row.solve / (row.nfe * row.bare) for row in own]
        beside = [100 * (row.solve - row.inside) / (row.nfe * row.bare) for row in own]
        stub = [100 * row.stub / (row.nfe * row.bare) for row in own]
        lines.append([solver, nfe, _spread(ratio, 3), _spread(beside, 2), _spread(stub, 2)])
    return markdown(["solver", "NFE", "ratio", "beside the network, %", "with a stub, %"], lines)


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option(
    "--solver",
    "solvers",
    type=click.Choice(FIXED_STEP),
    multiple=True,
    default=DEFAULT,
    show_default=True,
    help="May be given more than once.",
)
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True)
@batch_size_option
@click.option("--repeats", type=click.IntRange(min=1), default=7, show_default=True)
@out_option("overhead")
@errors_in_a_line()
def main(model: ModelChoice, solvers: tuple[str, ...], steps: int, batch_size: int, repeats: int, out: Path) -> None:
    loaded = model.load()
    results = Results(OverheadRow, out, {**describe(loaded), **machine(), "batch_size": batch_size, "seed": SEED})
    measure(loaded, solvers, steps=steps, batch_size=batch_size, repeats=repeats, results=results)
    click.echo(table(results.rows))


if __name__ == "__main__":
    main()
