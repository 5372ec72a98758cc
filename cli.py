"""The command line: ``python cli.py COMMAND``, installed as ``ddim-ode``. It parses, calls and reports.

Only click is imported here, and the registries that the options list, which are cheap: torch and the rest are
imported by the command that needs them.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial, wraps
from importlib import import_module
from itertools import groupby
from math import ceil, inf, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click
from click.core import ParameterSource

from analysis import ANALYSES
from ddim_ode.grids import CLEAN_ENDS, DEFAULT_GRID, ENDS, GRIDS, Tau, full_range, grid_of_timesteps, halved, make_grid
from solvers import (
    AUTO,
    DEFAULT_SOLVER,
    SOLVERS,
    ExactInverse,
    Solver,
    SolverError,
    exact_inverse,
    finer,
    fitted,
    get_solver,
    way_back,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_ode.calibration import Entry
    from ddim_ode.check import Check
    from ddim_ode.codec import Solve
    from ddim_ode.grids import Grid
    from ddim_ode.images import Source
    from ddim_ode.latents import Latent
    from ddim_ode.models import Model
    from ddim_ode.ode import ProbabilityFlowODE
    from ddim_ode.schedule import NoiseSchedule
    from ddim_ode.training.checkpoint import Checkpoint
    from solvers import Cost, Solution

DEFAULT_STEPS = 50
# Among these 'reconstruct --target-psnr' looks for the cheapest.
PSNR_CANDIDATES = (AUTO, "dpmpp2m", "reab2")
# The sheet of samples that training leaves at every save.
PREVIEW_IMAGES, PREVIEW_STEPS = 36, 20

T = TypeVar("T")


class OneLineErrors(click.Group):
    """A group whose commands end with one clear line, not with a traceback, where input or machine are to blame."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; ValueError, OSError, RuntimeError and MemoryError become one line and exit status 1."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except click.UsageError as error:
            error.ctx = None  # or else click puts two lines of usage before the one that matters
            raise
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            raise click.ClickException(_one_line(error)) from error


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        click.echo(f"Warning: {message}", err=True)


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


class GridName(click.ParamType):  # type: ignore[type-arg]
    """The name of a grid, or an explicit list of timesteps such as 0,250,500,999."""

    name = "grid"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(sorted(GRIDS))}|T,T,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value in GRIDS:
            return value
        try:
            return tuple(float(t) for t in value.split(","))
        except ValueError:
            self.fail(f"unknown grid '{value}'; choose one of: {', '.join(sorted(GRIDS))}, or timesteps T,T,...")


@dataclass(frozen=True)
class Run:
    """The options that the commands share, each named as on the command line."""

    model: str
    device: str
    batch_size: int
    solver: str | None
    steps: int | None
    grid: str | tuple[float, ...] | None
    clean_end: str | None
    rtol: float | None
    atol: float | None
    max_nfe: int

    def load_model(self) -> Model:
        """The model, on the device."""
        from ddim_ode.devices import find_device
        from ddim_ode.models import load_model

        return load_model(self.model, device=find_device(self.device))

    def make_solver(self, settings: Mapping[str, Any] | None = None) -> Solver:
        """The solver of the options; where they name none, that of ``settings``, and else the default."""
        settings = settings if settings and self.solver in (None, settings["name"]) else {}
        name = self.solver or settings.get("name", AUTO)
        return get_solver(
            DEFAULT_SOLVER if name == AUTO else name,
            rtol=settings.get("rtol") if self.rtol is None else self.rtol,
            atol=settings.get("atol") if self.atol is None else self.atol,
        )

    def most_steps(self, schedule: NoiseSchedule, nfe: int) -> int:
        """The most steps that the solver of the options can take for ``nfe`` evaluations, and on the grid of them."""
        solver = self.make_solver()
        if solver.adaptive:
            raise click.UsageError(f"solver '{solver.name}' chooses its own steps; leave out --target-psnr")
        affordable = (steps for steps in range(nfe, 0, -1) if (solver.nfe(steps) or 0) <= nfe)
        of_timesteps = isinstance(self.grid, str) and isinstance(GRIDS[self.grid], Tau)
        return min(next(affordable, 0), len(schedule) - 1 if of_timesteps else nfe)

    def plan(self, model: Model) -> tuple[Solver, Grid]:
        """Solver and grid of the options, or of the model's calibration."""
        entry = _calibration(model, self.steps or DEFAULT_STEPS) if self._asks_for_calibration() else None
        if entry:
            return _solver_of(entry), entry.grid
        solver = self.make_solver()
        return solver, self.make_grid(model.schedule, solver)

    def _asks_for_calibration(self) -> bool:
        others = (self.grid, self.clean_end, self.rtol, self.atol)
        return self.solver in (None, AUTO) and all(option is None for option in others)

    def make_grid(
        self,
        schedule: NoiseSchedule,
        solver: Solver,
        *,
        name: str = DEFAULT_GRID,
        steps: int = DEFAULT_STEPS,
        clean_end: str | None = None,
        t_end: float | None = None,
    ) -> Grid:
        """The grid of the options; what they leave open is as in the arguments."""
        clean_end = self.clean_end or clean_end or ("sigma-min" if solver.positive else None)
        if solver.adaptive:
            if self.steps or self.grid:
                raise click.UsageError(
                    f"solver '{solver.name}' chooses its own steps and takes no --steps or --grid; "
                    "set --rtol and --atol instead"
                )
            return full_range(schedule, clean_end=clean_end or "sigma-min", t_end=t_end)
        if isinstance(self.grid, tuple):
            grid = grid_of_timesteps(schedule, self.grid, clean_end=clean_end or "zero")
            if self.steps not in (None, grid.steps):
                raise click.UsageError(f"these timesteps make {grid.steps} steps, not {self.steps}; leave out --steps")
        else:
            grid = make_grid(schedule, self.grid or name, self.steps or steps, clean_end=clean_end, t_end=t_end)
        _check_clean_end(solver, grid)
        return grid

    def plan_decoding(self, latent: Latent, model: Model) -> tuple[Solver, Grid, bool]:
        """Solver and grid for a latent: as it was encoded, but for what the options say; and whether its companion
        leads back on them."""
        grid = latent.grid
        steps = DEFAULT_STEPS if grid.name == ENDS else grid.steps
        if self._asks_for_calibration() and AUTO in (self.solver, latent.solver["name"]):
            if latent.solver["name"] == AUTO and self.steps in (None, steps):
                return _calibrated_way_back(latent, model), grid, False
            entry = _calibration(model, self.steps or steps)
            if entry and latent.reached_by(entry.grid):
                return _solver_of(entry), entry.grid, False
        solver = self.make_solver(latent.solver)
        solver = solver if self.solver else way_back(solver)
        needs_steps = grid.name == ENDS and not solver.adaptive
        if needs_steps or self.steps or self.grid or self.clean_end:
            grid = self.make_grid(
                model.schedule,
                solver,
                name=grid.name if grid.name in GRIDS else DEFAULT_GRID,
                steps=steps,
                clean_end=grid.clean_end,
                t_end=grid.timesteps[-1],
            )
        latent.check_reaches(grid)
        _check_clean_end(solver, grid)
        exact = latent.companion is not None and (solver.settings, grid) == (latent.solver, latent.grid)
        return solver, grid, exact

    def plan_interpolation(self, latents: Sequence[Latent], model: Model) -> tuple[Solver, Grid]:
        """Solver to encode with, and grid: those of the first of ``latents``, if there is one, but for what the options
        say."""
        if not latents:
            return self.plan(model)
        back, grid, _ = self.plan_decoding(latents[0], model)
        own = self.make_solver(latents[0].solver)
        return own if way_back(own) == back else back, grid


def _calibration(model: Model, steps: int) -> Entry | None:
    return model.calibration.entries.get(steps) if model.calibration else None


def _solver_of(entry: Entry) -> Solver:
    return fitted(entry.solver, entry.grid.sigmas, entry.up, entry.down)


def _calibrated_way_back(latent: Latent, model: Model) -> Solver:
    from ddim_ode.latents import LatentError

    entry = _calibration(model, latent.grid.steps)
    solver = _solver_of(entry) if entry else None
    if solver is None or solver.settings != latent.solver:
        raise LatentError(
            f"the latent was encoded with a calibration for {latent.grid.steps} steps that model '{model.name}' does "
            f"not have now; name a solver, such as --solver {DEFAULT_SOLVER}"
        )
    return solver


def _check_clean_end(solver: Solver, grid: Grid) -> None:
    if solver.positive and grid.sigmas[0] == 0:
        raise click.UsageError(
            f"solver '{solver.name}' cannot reach sigma = 0, where the clean end 'zero' is; "
            "pass --clean-end sigma-min, or take another solver"
        )


def run_options(command: Callable[..., T]) -> Callable[..., T]:
    """The shared options, handed to the command as one ``Run``."""

    @wraps(command)
    def with_run(**values: Any) -> T:
        run = Run(**{option.name: values.pop(option.name) for option in fields(Run)})
        return command(run, **values)

    options = (
        click.option(
            "--model",
            default="default",
            show_default=True,
            metavar="FOLDER|ORG/NAME",
            help="Model folder in diffusers' format, or a name on the Hub; 'default' is the embedded one.",
        ),
        click.option(
            "--solver",
            type=click.Choice([AUTO, *sorted(SOLVERS)], case_sensitive=False),
            metavar="NAME",
            help=f"How to step: one of those that 'info' lists. Unless a latent says otherwise {AUTO}: what the "
            f"calibration of the model says for the number of steps, and else {DEFAULT_SOLVER}.",
        ),
        click.option(
            "--steps", type=click.IntRange(min=1), help=f"How many; {DEFAULT_STEPS} likewise. For fixed-step solvers."
        ),
        click.option("--grid", type=GridName(), help=f"Where; {DEFAULT_GRID} likewise. For fixed-step solvers."),
        click.option("--clean-end", type=click.Choice(CLEAN_ENDS), help="Noise level at which the image is taken."),
        click.option("--rtol", type=float, help="Relative tolerance (1e-5); for adaptive solvers."),
        click.option("--atol", type=float, help="Absolute tolerance (1e-5); for adaptive solvers."),
        click.option(
            "--max-nfe",
            type=click.IntRange(min=1),
            default=10_000,
            show_default=True,
            help="The most network evaluations for a batch, one way.",
        ),
        click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True),
        click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True),
    )
    for option in reversed(options):
        with_run = option(with_run)
    return with_run


overwrite_option = click.option("--overwrite", is_flag=True, help="Replace output files that exist.")
output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="File for one input; folder for one or several."
)


@dataclass
class Failures:
    """The inputs that failed: each is reported at once, the others go on, and the exit status tells in the end."""

    count: int = field(default=0)

    @contextmanager
    def caught(self, *more: type[Exception]) -> Iterator[None]:
        """Report a ValueError, OSError or one of ``more`` from inside as one line, and go on."""
        kinds: tuple[type[Exception], ...] = (ValueError, OSError, *more)
        try:
            yield
        except kinds as error:
            self.count += 1
            click.echo(f"Error: {_one_line(error)}", err=True)

    def exit(self) -> None:
        """Leave with status 1 if anything failed."""
        if self.count:
            sys.exit(1)


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main() -> None:
    """Encode images to latents and back with a diffusion model, through the ODE of DDIM.

    \b
    Examples:
      python cli.py encode photo.png                              writes photo.latent.pt
      python cli.py decode photo.latent.pt                        writes photo.decoded.png
      python cli.py decode photo.latent.pt --solver euler --steps 20 -o euler.png
      python cli.py reconstruct *.png -o out/                     round trips and their errors
      python cli.py sample -n 64 --seed 1 -o sheet.png            new images
      python cli.py train pictures.zip --minutes 60 -o model      a model of your own
      python cli.py interpolate a.png b.png -n 9                  from one to the other
      python cli.py info                                          the solvers and grids
    """


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMG...")
@run_options
@click.option("--check", is_flag=True, help="Say how good the latents are; four times the evaluations.")
@click.option("--exact", is_flag=True, help="Undo exactly what decoding with --solver, or with euler, will do.")
@output_option
@overwrite_option
def encode(run: Run, images: tuple[Path, ...], check: bool, exact: bool, output: Path | None, overwrite: bool) -> None:
    """Encode pictures to latent files, IMG.latent.pt.

    With --exact each step of a one-step decoder is undone by iteration, so that decoding gives back the picture.
    """
    import torch

    from ddim_ode import codec
    from ddim_ode.latents import Latent, save_latent

    run = replace(run, solver=exact_inverse(run.solver or "euler").name) if exact else run
    failures = Failures()
    targets = list(_targets(images, output, ".latent.pt", overwrite, failures))
    model = run.load_model()
    solver, grid = run.plan(model)
    jobs = _load_pictures(targets, model, failures)
    ode = model.ode(max_nfe=run.max_nfe)
    for chunk in _chunks(jobs, run.batch_size):
        x_0 = torch.cat([x_0 for _, x_0, _ in chunk]).to(model.device)
        with _timed(ode, solver, grid, "encode") as encoding:
            solution = encoding.of(codec.encode_solution(ode, x_0, grid, solver))
        x_T, companion = solution.x, solution.companion
        saved = []
        for i, (target, _, source) in enumerate(chunk):
            with failures.caught():
                latent = Latent(
                    x_T=x_T[i : i + 1].cpu(),
                    grid=grid,
                    solver=solver.settings,
                    schedule=model.schedule,
                    model=model.name,
                    fingerprint=model.fingerprint,
                    source=source,
                    nfe=encoding.nfe_of(i),
                    companion=None if companion is None else companion[i : i + 1].cpu(),
                )
                save_latent(latent, target, overwrite=overwrite)
                saved.append((i, source.name, target))
        found = None
        with failures.caught(RuntimeError):  # by then the latents are saved
            found = _check(run, model, x_0, x_T, companion, grid, solver) if check else None
        for i, name, target in saved:
            click.echo(f"{name} -> {target} ({encoding.report(i)}{_quality(found, i)})")
            if found and bool(found.drifts[i]):
                click.echo(f"Warning: {_drift(name, found, i, solver)}", err=True)
    failures.exit()


def _check(
    run: Run, model: Model, x_0: Tensor, x_T: Tensor, companion: Tensor | None, grid: Grid, solver: Solver
) -> Check:
    from ddim_ode.check import check

    ode = model.ode(max_nfe=4 * run.max_nfe)  # finer steps are twice as many, of an adaptive solver up to four times
    fine_grid = grid if solver.adaptive else halved(grid, model.schedule)
    with _timed(ode, solver, fine_grid, "check"):
        return check(ode, x_0, x_T, grid, finer=(finer(solver), fine_grid), back=way_back(solver), companion=companion)


def _quality(found: Check | None, i: int) -> str:
    """What the check found of the latent number ``i``, as a part of a line; nothing if there was none."""
    if found is None:
        return ""
    return (
        f"; latent RMSE about {float(found.latent_rmse[i]):.2g}, second moment {float(found.second_moment[i]):.4g}, "
        f"reconstruction MSE {float(found.reconstruction_mse[i]):.2g}"
    )


def _drift(name: str, found: Check, i: int, solver: Solver) -> str:
    finer_steps = "smaller tolerances" if solver.adaptive else "twice the steps"
    return (
        f"the latent of '{name}' by '{solver.name}' is wrong: its second moment is {float(found.second_moment[i]):.4g} "
        f"here and {float(found.finer_moment[i]):.4g} with {finer_steps}; take those, or another solver"
    )


@main.command()
@click.argument("latents", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="LATENT...")
@run_options
@click.option("--any-model", is_flag=True, help="Accept another model or schedule than the latent's own.")
@output_option
@overwrite_option
def decode(run: Run, latents: tuple[Path, ...], any_model: bool, output: Path | None, overwrite: bool) -> None:
    """Decode latent files to pictures, NAME.decoded.png.

    Each is decoded with the solver and on the grid it was encoded with, but for what the options say.
    """
    import torch

    from ddim_ode import codec
    from ddim_ode.images import save_image
    from ddim_ode.latents import load_latent

    failures = Failures()
    targets = list(_targets(latents, output, ".decoded.png", overwrite, failures))
    model = run.load_model()
    jobs = []
    for path, target in targets:
        with failures.caught():
            latent = load_latent(path)
            latent.check_fits(model, any_model=any_model)
            jobs.append((target, latent, run.plan_decoding(latent, model)))
    ode = model.ode(max_nfe=run.max_nfe)
    for (solver, grid, exact), group in groupby(jobs, key=lambda job: job[2]):
        for chunk in _chunks(list(group), run.batch_size):
            x_T = torch.cat([latent.x_T for _, latent, _ in chunk]).to(model.device)
            companions = [latent.companion for _, latent, _ in chunk if exact and latent.companion is not None]
            companion = torch.cat(companions).to(model.device) if companions else None
            with _timed(ode, solver, grid, "decode") as decoding:
                images = decoding.of(codec.decode_solution(ode, x_T, grid, solver, companion)).x
            for i, ((target, latent, _), image) in enumerate(zip(chunk, images, strict=True)):
                with failures.caught():
                    save_image(
                        image, target, settings=_settings(model, solver, grid, latent.source.name), overwrite=overwrite
                    )
                    click.echo(f"{latent.source.name} -> {target} ({decoding.report(i)})")
    failures.exit()


@main.command()
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMG...")
@run_options
@click.option(
    "--target-psnr",
    type=click.FloatRange(min=0, min_open=True),
    metavar="DB",
    help="Find the fewest steps in which every picture comes back so well; of --solver, or of a few good ones.",
)
@output_option
@overwrite_option
def reconstruct(
    run: Run, images: tuple[Path, ...], target_psnr: float | None, output: Path | None, overwrite: bool
) -> None:
    """Encode and decode pictures, print the errors, and save both side by side, IMG.reconstruction.png.

    A picture that comes back well does not make its latent a good one: see 'encode --check'.
    """
    import torch

    from ddim_ode import codec
    from ddim_ode.images import pixel_mse, psnr, save_image, tile

    failures = Failures()
    targets = list(_targets(images, output, ".reconstruction.png", overwrite, failures))
    model = run.load_model()
    jobs = _load_pictures(targets, model, failures)
    if target_psnr is not None and jobs:
        run = _cheapest(run, model, [image for _, image, _ in jobs], target_psnr)
    solver, grid = run.plan(model)
    back = way_back(solver)
    ode = model.ode(max_nfe=run.max_nfe)
    for chunk in _chunks(jobs, run.batch_size):
        x_0 = torch.cat([image for _, image, _ in chunk]).to(model.device)
        with _timed(ode, solver, grid, "encode") as encoding:
            solution = encoding.of(codec.encode_solution(ode, x_0, grid, solver))
        x_T, companion = solution.x, solution.companion
        with _timed(ode, back, grid, "decode") as decoding:
            decoded = decoding.of(codec.decode_solution(ode, x_T, grid, back, companion)).x
        errors = pixel_mse(x_0, decoded).tolist()
        notes = [""] * len(chunk)
        if companion is not None:
            ode.reset()
            alone = pixel_mse(x_0, codec.decode(ode, x_T, grid, back)).tolist()
            notes = [f" ({mse:.3g} from x_T alone)" for mse in alone]
        for i, (target, image, source) in enumerate(chunk):
            with failures.caught():
                pair = tile(torch.cat([image, decoded[i : i + 1].cpu()]), columns=2)
                settings = _settings(model, solver, grid, source.name) | {"mse": errors[i]}
                save_image(pair, target, settings=settings, zoom=ceil(256 / model.height), overwrite=overwrite)
                click.echo(
                    f"{source.name}: MSE {errors[i]:.3g} on [0, 1]{notes[i]}, PSNR {psnr(errors[i]):.2f} dB, "
                    f"encode {encoding.report(i)}, decode {decoding.report(i)} -> {target}"
                )
    failures.exit()


def _cheapest(run: Run, model: Model, images: Sequence[Tensor], target: float) -> Run:
    """The options with the solver and the number of steps that bring every image back so well at the least cost."""
    import torch

    from ddim_ode.budget import least, worst_psnr
    from ddim_ode.ode import EvaluationLimitError

    if run.steps or isinstance(run.grid, tuple):
        raise click.UsageError("--target-psnr finds the number of steps; leave out --steps and lists of timesteps")
    batches = [torch.cat(list(chunk)).to(model.device) for chunk in _chunks(images, run.batch_size)]
    ode = model.ode(max_nfe=run.max_nfe)
    tried: list[float] = []

    @cache
    def reached(name: str, steps: int) -> float:
        solver, grid = replace(run, solver=name, steps=steps).plan(model)
        try:
            tried.append(worst_psnr(ode, batches, grid, solver, way_back(solver)))
        except (SolverError, EvaluationLimitError) as error:
            click.echo(f"tried {solver.name}, {steps} steps: {_one_line(error)}")
            return -inf
        click.echo(f"tried {solver.name}, {steps} steps: {tried[-1]:.2f} dB")
        return tried[-1]

    found, limit = None, run.max_nfe
    for name in (run.solver,) if run.solver else PSNR_CANDIDATES:
        most = replace(run, solver=name).most_steps(model.schedule, limit)
        if most and found and reached(name, most) < target:
            continue  # not the cheapest, so there is no need to begin from one step
        steps = least(partial(reached, name), target, most)
        if steps:
            found = replace(run, solver=name, steps=steps)
            limit = (found.make_solver().nfe(steps) or 0) - 1
    if found is None:
        best = f"the best one tried reached {max(tried):.2f} dB" if tried else "nothing came back"
        raise ValueError(
            f"no setting within --max-nfe {run.max_nfe} brings every picture back at {target:g} dB; {best}; "
            "ask for less, or raise the limit"
        )
    return found


@main.command()
@click.option("-n", "--count", type=click.IntRange(min=1), default=16, show_default=True, help="How many images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the latents.")
@click.option("--eta", type=click.FloatRange(0, 1), help="Noise in each step: from 0, DDIM, to 1, DDPM; no --solver.")
@click.option("--sigma-hat", is_flag=True, help="The larger noise of DDPM's other variance; no --solver.")
@run_options
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("samples.png"), show_default=True)
@overwrite_option
def sample(run: Run, count: int, seed: int, eta: float | None, sigma_hat: bool, output: Path, overwrite: bool) -> None:
    """Decode random latents to new images and save them as one sheet.

    With --eta or --sigma-hat not through the ODE but with noise, on the grid 'trailing' unless another is named.
    """
    from ddim_ode import codec
    from ddim_ode.ancestral import Ancestral, seeded_noise
    from ddim_ode.images import check_image_path, save_image, tile

    check_image_path(output, overwrite=overwrite)
    model = run.load_model()
    shape = (model.channels, model.height, model.width)
    noisy, eta = eta is not None or sigma_hat, 1.0 if eta is None else eta
    if noisy and run.solver:
        raise click.UsageError(f"--eta and --sigma-hat are steps of their own; leave out --solver {run.solver}")
    if noisy:
        solver: Solver = replace(replace(run, solver="euler").make_solver(), name="ancestral")  # whose cost is Euler's
        grid = run.make_grid(model.schedule, solver, name="trailing")
    else:
        solver, grid = run.plan(model)

    def walk(members: range) -> Solve:
        return Ancestral(seeded_noise(members, shape, seed=seed), eta, sigma_hat) if noisy else solver

    x_T = codec.draw_latents(count, shape, seed=seed)
    images, report = _decode_all(run, model, x_T, grid, solver, "sample", walk)
    sheet = tile(images, columns=ceil(sqrt(count)))
    settings = _settings(model, solver, grid, "samples") | {"seed": seed, "count": count}
    settings |= {"eta": eta, "sigma_hat": sigma_hat} if noisy else {}
    save_image(sheet, output, settings=settings, zoom=ceil(64 / model.height), overwrite=overwrite)
    noise = f" and noise of eta {eta:g}{', sigma-hat' if sigma_hat else ''}" if noisy else ""
    click.echo(f"{count} images from seed {seed}{noise} -> {output} ({report} for the last batch)")


@main.command()
@click.argument("inputs", nargs=-1, type=click.Path(path_type=Path), metavar="[IMG|LATENT]...")
@click.option("--seed", "seeds", type=click.IntRange(min=0), multiple=True, help="A random latent; give two, or more.")
@click.option("-n", "--count", type=click.IntRange(min=2), default=9, show_default=True, help="Images in a row.")
@run_options
@click.option("--frames", type=click.Path(path_type=Path), metavar="FOLDER", help="Write each image there by itself.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("interpolation.png"), show_default=True)
@overwrite_option
def interpolate(
    run: Run,
    inputs: tuple[Path, ...],
    seeds: tuple[int, ...],
    count: int,
    frames: Path | None,
    output: Path,
    overwrite: bool,
) -> None:
    """Decode the way from one latent to another, on a great circle, and save it as one strip.

    Between two pictures, latent files or --seed, or any of them mixed. Four make a sheet of --count rows: its corners
    are upper left, upper right, lower left, lower right. Latent files are decoded on the grid of the first of them.
    """
    from ddim_ode.corners import corner_errors, count_images, encode_corners, load_corners
    from ddim_ode.images import check_image_path, save_image, tile
    from ddim_ode.interpolation import span

    check_image_path(output, overwrite=overwrite)
    number = count_images(len(inputs) + len(seeds), count)
    targets = _frames(frames, number, output, overwrite) if frames else []
    model = run.load_model()
    corners = load_corners(inputs, seeds, model)
    solver, grid = run.plan_interpolation([c.latent for c in corners if c.latent], model)
    ode = model.ode(max_nfe=run.max_nfe)
    with _timed(ode, solver, grid, "encode") as encoding:
        ends = encode_corners(ode, corners, grid, solver, model.device)
    images, decoding = _decode_all(run, model, span(ends, count), grid, way_back(solver), "decode")
    errors = corner_errors(corners, images)
    names = [corner.name for corner in corners]
    settings = _settings(model, solver, grid, ", ".join(names)) | {"between": names, "count": count, "mse": errors}
    for i, target in enumerate(targets):
        target.parent.mkdir(parents=True, exist_ok=True)
        save_image(images[i], target, settings=settings | {"frame": i}, overwrite=overwrite)
    sheet = tile(images, columns=count)
    save_image(sheet, output, settings=settings, zoom=ceil(64 / model.height), overwrite=overwrite)
    back = f"MSE of the ends {', '.join(f'{mse:.3g}' for mse in errors)} on [0, 1], encode {encoding.report()}, "
    click.echo(
        f"{len(images)} images between {', '.join(names)}: {back if errors else ''}"
        f"decode {decoding} for the last batch -> {output}"
    )


def _frames(folder: Path, count: int, sheet: Path, overwrite: bool) -> list[Path]:
    """The files in ``folder`` for so many images beside their ``sheet``, checked before any work."""
    from ddim_ode.files import check_writable

    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"'{folder}' is a file; name a folder for the frames")
    targets = [folder / f"{i:04}.png" for i in range(count)]
    if sheet.resolve() in (target.resolve() for target in targets):
        raise ValueError(f"'{sheet}' would be one of the frames too; name another file, or another folder for them")
    if folder.is_dir():
        for target in targets:
            check_writable(target, overwrite=overwrite)
    return targets


def _decode_all(
    run: Run,
    model: Model,
    x_T: Tensor,
    grid: Grid,
    solver: Solver,
    label: str,
    walk: Callable[[range], Solve] | None = None,
) -> tuple[Tensor, str]:
    """The images of all latents, ``(B, C, H, W)`` on the CPU, batch by batch; and the report on the last batch.

    ``walk``  what takes the place of ``solver``, for the members of the batch by their numbers.
    """
    import torch

    from ddim_ode import codec

    ode = model.ode(max_nfe=run.max_nfe)
    images = []
    for i, chunk in enumerate(torch.split(x_T, run.batch_size)):
        members = range(i * run.batch_size, i * run.batch_size + len(chunk))
        with _timed(ode, solver, grid, f"{label} {members.start + 1}-{members.stop} of {len(x_T)}") as decoding:
            step = walk(members) if walk else solver
            images.append(codec.decode(ode, chunk.to(model.device), grid, step).cpu())
    return torch.cat(images), decoding.report()


@main.command()
@click.argument("source", type=click.Path(path_type=Path), metavar="FOLDER|ZIP")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the model.")
@click.option("--steps", type=int, help="Length of the run in steps.")
@click.option("--minutes", type=float, help="Length of the run in minutes, over all its parts if it is resumed.")
@click.option("--resume", is_flag=True, help="Go on with the run in the output folder, with its settings.")
@click.option("--unet", type=click.Path(path_type=Path), help="JSON configuration of diffusers' UNet2DModel.")
@click.option("--prediction", metavar="epsilon|v_prediction", default="v_prediction", show_default=True)
@click.option("--schedule", metavar="linear|cosine", default="linear", show_default=True)
@click.option(
    "--gamma",
    metavar="1|1/alpha_bar",
    help="Weights of L_gamma; 1 is the paper's. [default: the plain error: 1 for epsilon, 1/alpha_bar for v]",
)
@click.option("--batch-size", type=int, default=128, show_default=True, help="Of all processes together.")
@click.option("--learning-rate", type=float, default=6e-4, show_default=True)
@click.option("--ema", type=float, default=0.9995, show_default=True, help="Decay of the average of the weights.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--cpu", is_flag=True, help="Do not use a GPU.")
@click.option("--bf16", is_flag=True, help="Compute in bfloat16 where that is safe.")
@click.option("--compile", is_flag=True, help="Use torch.compile: slow to begin, faster afterwards.")
@click.option("--processes", type=int, help="Refuse to run in any other number of processes than this.")
@click.option("--save-minutes", type=float, default=10.0, show_default=True, help="Time from one save to the next.")
@click.option("--licence", default="not stated", show_default=True, help="Licence of the model, for its card.")
def train(
    source: Path,
    output: Path,
    resume: bool,
    unet: Path | None,
    cpu: bool,
    compile: bool,
    processes: int | None,
    save_minutes: float,
    **values: Any,
) -> None:
    """Train a diffusion model on the pictures in a folder or zip file.

    Every save leaves a checkpoint, a model that '--model' takes, its card, its loss and a sheet of samples. On several
    devices or processes: torchrun --nproc_per_node N cli.py train ...
    """
    import torch

    from ddim_ode import codec
    from ddim_ode.training.checkpoint import check_new, load_checkpoint
    from ddim_ode.training.data import describe_skipped, read_training_images
    from ddim_ode.training.loop import Hardware
    from ddim_ode.training.loop import train as run
    from ddim_ode.training.publish import publish
    from ddim_ode.training.settings import Settings, load_unet_config

    checkpoint = load_checkpoint(output) if resume else None
    if checkpoint:
        ctx = click.get_current_context()
        given = {name: values[name] for name in values if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}
        settings = checkpoint.settings.resumed(given | ({"unet": load_unet_config(unet)} if unet else {}))
    else:
        settings = Settings(unet=load_unet_config(unet), **values)
        check_new(output)
    if output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"'{output}' lies in '{source}', and its pictures would be trained on; name another folder")
    shape = settings.image_shape()
    data = read_training_images(source, *shape)
    if data.skipped:
        click.echo(f"Warning: {describe_skipped(data.skipped)}", err=True)

    def save(model: Model, checkpoint: Checkpoint) -> None:
        x_T = codec.draw_latents(PREVIEW_IMAGES, shape, seed=settings.seed)
        grid, solver = make_grid(model.schedule, DEFAULT_GRID, PREVIEW_STEPS), get_solver(DEFAULT_SOLVER)
        batches = torch.split(x_T.to(codec.state_dtype(model.device)), settings.batch_size)
        samples = [codec.decode(model.ode(), batch.to(model.device), grid, solver).cpu() for batch in batches]
        publish(model, checkpoint, data, output, samples=torch.cat(samples))

    hardware = Hardware(cpu=cpu, compile=compile, processes=processes)
    run(settings, data, output, publish=save, hardware=hardware, resume=checkpoint, save_minutes=save_minutes)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@main.command()
@click.option("--model", default="default", show_default=True, metavar="FOLDER|ORG/NAME", help="Model to calibrate.")
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Real images. [default: CIFAR-10's]"
)
@click.option("--steps", type=click.IntRange(min=2), multiple=True, help="One or several. [default: seven, 5 to 20]")
@click.option("--latents", type=click.IntRange(min=4), default=32, show_default=True, help="Half of them for judging.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True)
@click.option(
    "--work",
    type=click.Path(path_type=Path),
    default=Path("demo/calibrate"),
    show_default=True,
    help="Folder for trajectories and results; what is there is not done again.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File. [default: beside the model's weights]")
@overwrite_option
def calibrate(
    model: str,
    images: Path | None,
    steps: tuple[int, ...],
    latents: int,
    seed: int,
    device: str,
    work: Path,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Fit a solver to a model, for '--solver auto'; minutes to an hour.

    What is worse than the default on images and latents that it was not fitted to is refused.
    """
    from analysis.calibrate import BUDGETS, CALIBRATION_IMAGES, Plan, calibrate_in
    from ddim_ode.calibration import FILE, save_calibration
    from ddim_ode.devices import find_device
    from ddim_ode.files import check_writable
    from ddim_ode.models import load_model

    loaded = load_model(model, device=find_device(device))
    if output is None and loaded.folder is None:
        raise click.UsageError(f"model '{model}' is in no folder; name a file with --output")
    target = output or Path(loaded.folder or ".") / FILE
    check_writable(target, overwrite=overwrite)
    plan = Plan((DEFAULT_SOLVER, DEFAULT_GRID), steps or BUDGETS, latents, seed=seed)
    calibration = calibrate_in(loaded, images or CALIBRATION_IMAGES, plan, work)
    save_calibration(calibration, target, overwrite=overwrite)
    for count, entry in calibration.entries.items():
        kind = "fitted" if entry.fitted else "as it is"
        click.echo(f"{count} steps: {entry.solver} on {entry.grid.name}, {kind}; {_gains(entry)}")
    click.echo(f"-> {target}")


def _gains(entry: Entry) -> str:
    """The errors of an entry, as parts of those of the default."""
    names = ("decode", "latent", "round_trip")
    parts = (f"{name} {entry.scores[name] / entry.scores[f'{name} of the default']:.2f}" for name in names)
    return f"errors as parts of the default's: {', '.join(parts)}"


class Analyses(click.Group):
    """The scripts of ``analysis``, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, and 'all'."""
        return ["all", *(name.replace("_", "-") for name in sorted(ANALYSES))]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of the script ``name``; of the report for 'all'."""
        if name not in self.list_commands(ctx):
            return None
        module = "report" if name == "all" else name.replace("-", "_")
        command: click.Command = import_module(f"analysis.{module}").main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, which imports none of them."""
        with formatter.section("Analyses"):
            lines = [(name.replace("_", "-"), text) for name, text in sorted(ANALYSES.items())]
            formatter.write_dl([("all", "All of them but quality, and one report."), *lines])


@main.command(cls=Analyses)
def analyze() -> None:
    """Measure and plot: what solvers and models are good for."""


@main.command()
@click.argument("targets", nargs=-1, metavar="[LATENT|MODEL]...")
def info(targets: tuple[str, ...]) -> None:
    """Say what is in latent files and models; without arguments, list the solvers and grids."""
    if not targets:
        _list_registries()
        return
    failures = Failures()
    for target in targets:
        with failures.caught():
            _describe(target)
    failures.exit()


def _list_registries() -> None:
    click.echo("Solvers (order, NFE per step + those that the first ones take more, source):")
    for name, solver in sorted(SOLVERS.items()):
        click.echo(f"  {name:26} {solver.order:2}  {_cost(solver):8}  {solver.source}")
    click.echo("Grids (clean end unless given, rule):")
    for name, grid in sorted(GRIDS.items()):
        click.echo(f"  {name:26} {grid.clean_end:12}  {grid.source}")


def _cost(solver: Solver) -> str:
    many, one_less = solver.nfe(100), solver.nfe(99)
    if many is None or one_less is None:
        return "adaptive" if solver.adaptive else "iterates"
    more = many - 100 * (many - one_less)
    return f"{many - one_less}{f' + {more}' if more else ''}"


def _describe(target: str) -> None:
    from ddim_ode.latents import load_latent
    from ddim_ode.models import load_model

    if Path(target).is_file() or target.endswith(".pt"):
        click.echo(load_latent(Path(target)).summary())
    else:
        click.echo(load_model(target).summary())


def _targets(
    paths: Sequence[Path], output: Path | None, suffix: str, overwrite: bool, failures: Failures
) -> Iterator[tuple[Path, Path]]:
    """Each input with the file to write, checked before any work: beside the input, or in ``output``."""
    from ddim_ode.files import check_writable
    from ddim_ode.images import check_image_path

    check = check_image_path if suffix.endswith(".png") else check_writable
    if len(paths) > 1 and output:
        output.mkdir(parents=True, exist_ok=True)
    taken: set[Path] = set()
    for path in paths:
        name = path.name.removesuffix(".pt").removesuffix(".latent") if suffix == ".decoded.png" else path.stem
        target = path.with_name(name + suffix)
        if output:
            target = output / target.name if output.is_dir() else output
        with failures.caught():
            if target in taken:
                raise ValueError(f"'{path}' would be written to '{target}' like another input; run it by itself")
            check(target, overwrite=overwrite)
            taken.add(target)
            yield path, target


def _load_pictures(
    targets: Sequence[tuple[Path, Path]], model: Model, failures: Failures
) -> list[tuple[Path, Tensor, Source]]:
    """For each picture that opens: the file to write, its pixels fitted to the model, and where it is from."""
    from ddim_ode.images import load_image

    jobs = []
    for path, target in targets:
        with failures.caught():
            jobs.append((target, *load_image(path, model.channels, model.height, model.width)))
    return jobs


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@dataclass
class Integration:
    """One integration of a batch: ``cost`` is what each member cost, if it has steps of its own."""

    solver: Solver
    grid: Grid
    nfe: int = 0
    seconds: float = 0.0
    cost: Cost | None = None

    def of(self, solution: Solution) -> Solution:
        """The ``solution``, whose cost is kept, and whose notes become warnings."""
        self.cost = solution.cost
        for note in solution.notes:
            click.echo(f"Warning: {note}", err=True)
        return solution

    def nfe_of(self, i: int) -> int:
        """Network evaluations spent on the member number ``i``: its own, or those of the batch."""
        return int(self.cost.evaluations[i]) if self.cost else self.nfe

    def report(self, i: int | None = None) -> str:
        """What was done and what it cost: the batch, and the member number ``i`` if it has steps of its own."""
        solver, grid = self.solver, self.grid
        steps = "adaptive steps" if solver.adaptive else f"{grid.steps} steps on {grid.name}"
        more = ""
        if isinstance(solver, ExactInverse):
            more = f", each step undone to {solver.tolerance:g} unless a warning says otherwise"
        if self.cost and i is not None:
            taken, refused = self.cost.accepted[i], self.cost.rejected[i]
            more = f", {self.nfe_of(i)} of its own in {taken} steps and {refused} rejected"
        return f"{solver.name}, {steps}, {self.nfe} NFE{more}, {self.seconds:.2f} s"


@contextmanager
def _timed(ode: ProbabilityFlowODE, solver: Solver, grid: Grid, label: str) -> Iterator[Integration]:
    """Count and time one integration with a progress bar on a terminal."""
    from tqdm import tqdm

    ode.reset()
    start = time.perf_counter()
    integration = Integration(solver, grid)
    with tqdm(total=solver.nfe(grid.steps), desc=label, unit="NFE", leave=False, disable=None) as bar:
        hook = ode.register_forward_hook(lambda *_: bar.update())
        try:
            yield integration
        finally:
            hook.remove()
            integration.seconds, integration.nfe = time.perf_counter() - start, ode.nfe


def _settings(model: Model, solver: Solver, grid: Grid, source: str) -> dict[str, object]:
    """What made a picture, to be written into it."""
    return {
        "source": source,
        "model": model.name,
        "fingerprint": model.fingerprint,
        "solver": solver.settings,
        "grid": grid.name,
        "clean_end": grid.clean_end,
        "steps": None if solver.adaptive else grid.steps,
        "sigma_T": grid.sigma_T,
    }


if __name__ == "__main__":
    main()
