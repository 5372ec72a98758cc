"""Pictures there and back with pipelines of diffusers: ours, and what the field does by itself.

``auto``             what this project takes by itself.
``reversible-heun``  which keeps two states, and leads back exactly.
``exact euler``      one state, each step of Euler's method undone by iteration.
``DDIM inverse``     of the variance-preserving family: diffusers' ``DDIMInverseScheduler`` up and its ``DDIMScheduler``
                     down, each given to the pipeline, which runs its own loop. Of the pipeline's configuration they
                     take all they know, but nothing is clipped.
``Euler``            of all others: Euler's method up and down the nodes of the pipeline's own scheduler; in flow
                     matching that is what RF-Inversion does without its controller (Rout et al., arXiv 2410.10792).

Errors are those of the ODE alone: of the state x_0, and of the picture against what the autoencoder alone makes of it.
Our states are in float64; networks are in their own dtype. Guidance is the same on both ways.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from inspect import signature
from math import inf, isinf, nan
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

from ddim_ode.codec import to_device
from ddim_ode.console import device_option, one_line
from ddim_ode.devices import find_device
from ddim_ode.driven import PipelineError
from ddim_ode.grids import VP_END, Grid, make_grid
from ddim_ode.images import pixel_mse, psnr
from ddim_ode.model import Model
from ddim_ode.ode import EvaluationLimitError
from ddim_ode.pipelines import from_pipeline, load_pipeline, scheduler_grid
from ddim_ode.session.plan import plan_encoding
from ddim_ode.session.request import Request
from ddim_ode.solvers import SolverError, get_solver

from .codec import decode, decode_solution, encode, encode_solution
from .figures import save_figure
from .options import errors_in_a_line, out_option
from .pictures import rms
from .round_trips_plot import DDIM_INVERSE, EULER, TripRow, plot, table
from .rows import Results
from .timing import device_name

OURS = {
    "auto": Request(),
    "reversible-heun": Request(solver="reversible-heun"),
    "exact euler": Request(exact=True),
}
REFERENCE = "rk4"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A clean end and the timestep of the noisy end.
End = tuple[str, float]
# What a method is allowed to end with; anything else is an error of this program, or of the machine.
_FAILURES = (ValueError, SolverError, EvaluationLimitError, PipelineError)


@dataclass(frozen=True)
class Asked:
    """What pipelines are asked for.

    ``size``  of the pictures in pixels; None for the pipeline's own.
    ``call``  what else to give them, by their own names; each is given what it takes.
    """

    prompt: str = ""
    size: int | None = None
    call: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """Height and width, if there is a size."""
        return {} if self.size is None else {"height": self.size, "width": self.size}

    def of(self, pipeline: Any) -> Mapping[str, Any]:
        """What of ``call`` the ``pipeline`` takes."""
        taken = signature(type(pipeline).__call__).parameters
        return {name: value for name, value in self.call.items() if name in taken}

    def model(self, pipeline: Any, guidance: float) -> Model:
        """The ``pipeline`` as a model, with this ``guidance``. Errors are those of ``from_pipeline``."""
        call = self.of(pipeline)
        return from_pipeline(
            pipeline, prompt=self.prompt, guidance=guidance, height=self.size, width=self.size, call=call
        )


@dataclass(frozen=True, eq=False)
class Trip:
    """There and back: states ``(1, C, H, W)``, evaluations up and down, and where the way up ended."""

    solver: str
    x_T: Tensor
    x_0: Tensor
    nfe: int
    nfe_back: int
    end: End


@dataclass(frozen=True, eq=False)
class Traveller:
    """A ``pipeline``, and the ``model`` that it is when asked for this with this ``guidance``."""

    pipeline: Any
    model: Model
    asked: Asked
    guidance: float

    def travel(self, method: str, x_0: Tensor, steps: int) -> Trip:
        """The state ``x_0``, ``(1, C, H, W)``, there and back by a ``method``: one of ``OURS``, or the field's own.

        Raises:
            ValueError, SolverError, EvaluationLimitError, PipelineError: if it cannot.
        """
        if method in OURS:
            return self._ours(replace(OURS[method], steps=steps), x_0)
        return (self._ddim if method == DDIM_INVERSE else self._euler)(x_0, steps)

    def _ours(self, request: Request, x_0: Tensor) -> Trip:
        plan, ode = plan_encoding(request, self.model), self.model.ode()
        there = encode_solution(ode, x_0, plan.grid, plan.solver)
        nfe = ode.nfe
        back = decode_solution(ode, there.x, plan.grid, plan.back, there.companion)
        return Trip(plan.solver.name, there.x, back.x, nfe, ode.nfe - nfe, _end(plan.grid))

    def _euler(self, x_0: Tensor, steps: int) -> Trip:
        grid = _with_slopes(scheduler_grid(self.model, steps), self.model)
        solver, ode = get_solver("euler"), self.model.ode()
        x_T = encode(ode, x_0, grid, solver)
        nfe = ode.nfe
        return Trip("euler", x_T, decode(ode, x_T, grid, solver), nfe, ode.nfe - nfe, _end(grid))

    def _ddim(self, x_0: Tensor, steps: int) -> Trip:
        from diffusers import DDIMInverseScheduler, DDIMScheduler

        up, down = (_configured(kind, self.pipeline) for kind in (DDIMInverseScheduler, DDIMScheduler))
        x_T = self._sample(up, x_0, steps)
        back = self._sample(down, x_T, steps)
        clean_end = "zero" if up.config.set_alpha_to_one else VP_END
        return Trip("ddim", x_T, back, len(up.timesteps), len(down.timesteps), (clean_end, float(up.timesteps[-1])))

    def _sample(self, scheduler: Any, latents: Tensor, steps: int) -> Tensor:
        """What the pipeline makes of ``latents``, ``(1, C, H, W)``, with this ``scheduler``; float64 on the CPU."""
        parameter = next(self.model.network.parameters())
        with _borrowed(self.pipeline, scheduler):
            found: Tensor = self.pipeline(
                prompt=[self.asked.prompt],
                guidance_scale=self.guidance,
                latents=latents.to(parameter),
                num_inference_steps=steps,
                output_type="latent",
                return_dict=False,
                **self.asked.of(self.pipeline),
                **self.asked.sizes,
            )[0]
        return found.cpu().double()


def _configured(kind: Any, pipeline: Any) -> Any:
    """A scheduler of the class ``kind`` with all that it knows of the configuration of the pipeline's own."""
    own = {key: value for key, value in pipeline.scheduler.config.items() if key in signature(kind.__init__).parameters}
    spacing = own.get("timestep_spacing", "leading")
    return kind(**own | {"clip_sample": False, "timestep_spacing": "leading" if spacing == "linspace" else spacing})


@contextmanager
def _borrowed(pipeline: Any, scheduler: Any) -> Iterator[None]:
    """The ``pipeline`` with another ``scheduler``, and silent; afterwards it is as it was."""
    own, shows = pipeline.scheduler, getattr(pipeline, "_progress_bar_config", {})
    pipeline.scheduler = scheduler
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipeline.scheduler = own
        pipeline.set_progress_bar_config(**shows)


def _with_slopes(grid: Grid, model: Model) -> Grid:
    """``grid`` without its node at sigma = 0, if the network has no slope there."""
    if grid.sigmas[0] or model.process.at_zero:
        return grid
    return Grid("explicit", "sigma-min", grid.sigmas[1:], grid.timesteps[1:])


def _end(grid: Grid) -> End:
    """Where the way up ``grid`` begins, and the timestep where it ends."""
    return grid.clean_end, grid.timesteps[-1]


class References:
    """The latents of ``x_0``, ``(1, C, H, W)``, by many ``steps`` of a method of high order, for the ends of trips.

    Each is walked to once; without steps there are none.
    """

    def __init__(self, model: Model, x_0: Tensor, steps: int) -> None:
        self._model, self._x_0, self._steps = model, x_0, steps
        self._found: dict[End, Tensor] = {}

    def rmse(self, trip: Trip) -> float:
        """How far the latent of ``trip`` is from that at the same end; not a number if there is none to be had."""
        if not self._steps:
            return nan
        if trip.end not in self._found:
            try:
                self._found[trip.end] = self._walk(*trip.end)
            except _FAILURES:
                return nan
        return float(rms(trip.x_T - self._found[trip.end]))

    def _walk(self, clean_end: str, t_end: float) -> Tensor:
        levels = self._model.schedule
        name = "trailing" if isinf(float(levels.sigma(t_end))) else "log-snr"
        grid = make_grid(levels, name, self._steps, clean_end=clean_end, t_end=t_end)
        return encode(self._model.ode(), self._x_0, grid, get_solver(REFERENCE))


class Judge:
    """Says how well a picture, the one in ``path``, goes there and back.

    ``reference``  so many steps to the latents that others are measured against; 0 for none.

    Raises:
        ImageFileError: if it cannot be read.
    """

    def __init__(self, traveller: Traveller, path: Path, reference: int) -> None:
        read = traveller.model.space.read(path)
        self._traveller, self._image, self._x_0 = traveller, path.name, read.state
        self._references = References(traveller.model, read.state, reference)
        self._own = self._look(read.state)
        self._floor = psnr(float(pixel_mse(read.pixels, self._own)))

    def row(self, name: str, method: str, steps: int) -> TripRow:
        """The row of a ``method`` for the pipeline that is called ``name``."""
        model = self._traveller.model
        start = TripRow(
            name,
            model.fingerprint[:12],
            model.process.family,
            self._image,
            self._traveller.guidance,
            method,
            solver=method,
            steps=steps,
            nfe=0,
            nfe_back=0,
            x_0_mse=inf,
            psnr=-inf,
            autoencoder_psnr=self._floor,
            moment=inf,
            latent_rmse=inf,
            why="",
        )
        try:
            return self._judged(start, self._traveller.travel(method, self._x_0, steps))
        except _FAILURES as error:
            return replace(start, why=one_line(error))

    def _judged(self, start: TripRow, trip: Trip) -> TripRow:
        if not bool(torch.cat([trip.x_T, trip.x_0]).isfinite().all()):
            raise SolverError("it led to numbers that are not finite")
        return replace(
            start,
            solver=trip.solver,
            nfe=trip.nfe,
            nfe_back=trip.nfe_back,
            x_0_mse=float((trip.x_0 - self._x_0).square().mean()),
            psnr=psnr(float(pixel_mse(self._own, self._look(trip.x_0)))),
            moment=float(trip.x_T.square().mean()),
            latent_rmse=self._references.rmse(trip),
        )

    def _look(self, state: Tensor) -> Tensor:
        """What a ``state``, ``(1, C, H, W)``, looks like."""
        model = self._traveller.model
        return model.space.picture(to_device(state, model.device)).cpu()


def measure(
    name: str,
    pipeline: Any,
    pictures: Sequence[Path],
    asked: Asked,
    guidances: Sequence[float],
    steps: Sequence[int],
    *,
    reference: int = 0,
    results: Results[TripRow],
) -> None:
    """A row for every picture, guidance, number of steps and method, of the ``pipeline`` that is called ``name``.

    Those that ``results`` has already are not measured again. For ``reference`` see ``Judge``.

    Raises:
        ValueError: if the pipeline cannot be driven, or a picture cannot be read.
    """
    known = {row.key for row in results.rows}
    for guidance in guidances:
        traveller = Traveller(pipeline, asked.model(pipeline, guidance), asked, guidance)
        model = traveller.model
        methods = [*OURS, DDIM_INVERSE if model.process.family == "vp" else EULER]
        for path in pictures:
            start = (name, model.fingerprint[:12], path.name, guidance)
            missing = [(way, count) for count in steps for way in methods if (*start, way, count) not in known]
            judge = Judge(traveller, path, reference) if missing else None
            for method, count in tqdm(missing, desc=f"{name}, guidance {guidance:g}, {path.name}", disable=None):
                if judge:
                    results.add(judge.row(name, method, count))


def _values(_: click.Context, __: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE, where values are JSON, as a dictionary."""
    try:
        return {name: json.loads(value) for name, _, value in (text.partition("=") for text in texts)}
    except ValueError as error:
        raise click.BadParameter("it must be a name and a value of JSON, such as max_sequence_length=64") from error


@click.command(help=__doc__.split("\n")[0])
@click.option(
    "--pipeline",
    "--model",
    "pipelines",
    multiple=True,
    required=True,
    metavar="FOLDER|ORG/NAME",
    help="A pipeline's folder, or its name on the Hub. May be given more than once.",
)
@click.option("--prompt", default="", help="What all are asked for.  [default: nothing]")
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    required=True,
    help="May be given more than once.",
)
@click.option("--steps", type=click.IntRange(min=1), multiple=True, default=(20,), show_default=True)
@click.option("--guidance", "guidances", type=float, multiple=True, default=(1.0, 5.0), show_default=True)
@click.option("--size", type=click.IntRange(min=1), help="Side of the pictures in pixels. Default: the pipeline's own.")
@click.option(
    "--call",
    multiple=True,
    callback=_values,
    metavar="NAME=JSON",
    help="What else to give those pipelines that take it; such as max_sequence_length=64. May be given more than once.",
)
@click.option(
    "--reference",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Measure latents against those of so many steps of rk4, four evaluations each; 0 does not.",
)
@click.option("--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the networks.")
@device_option
@out_option("round-trips")
@errors_in_a_line()
def main(
    pipelines: tuple[str, ...],
    prompt: str,
    images: tuple[Path, ...],
    steps: tuple[int, ...],
    guidances: tuple[float, ...],
    size: int | None,
    call: dict[str, Any],
    reference: int,
    dtype: str,
    device: str,
    out: Path,
) -> None:
    asked = Asked(prompt, size, call)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in images}
    about = {"prompt": prompt, "size": size, "call": call, "reference": reference, "dtype": dtype}
    chosen = find_device(device)
    about |= {"images": digests, "device": device_name(chosen), "torch": torch.__version__}
    results = Results(TripRow, out, about)
    for name in pipelines:
        pipeline = load_pipeline(name, device=chosen)
        pipeline = pipeline if dtype == "float32" else pipeline.to(DTYPES[dtype])
        short = Path(name).name
        measure(short, pipeline, images, asked, guidances, steps, reference=reference, results=results)
    save_figure(plot(results.rows), out / "round-trips.png")
    click.echo(table(results.rows))


if __name__ == "__main__":
    main()
