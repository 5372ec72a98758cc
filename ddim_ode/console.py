"""What the commands share: errors in one line, warnings, inputs that fail one by one, outputs, progress bars."""

from __future__ import annotations

import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click
from click.shell_completion import CompletionItem

from ddim_ode.session.request import PlanError
from ddim_ode.spacings import GRIDS, SCHEDULER

if TYPE_CHECKING:
    from ddim_ode.latents import Latent
    from ddim_ode.session.results import Picture
    from ddim_ode.session.walks import Progress, Walk

T = TypeVar("T")

_WRITERS, _MOST_WAITING = 4, 64

DEVICES = ("auto", "cpu", "cuda", "mps")
device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    default="auto",
    show_default=True,
    help="Device to compute on; 'auto' is the fastest there is.",
)


class OneLineErrors(click.Group):
    """A group whose commands end with one clear line, not with a traceback, where input or machine are to blame."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; ValueError, OSError, RuntimeError and MemoryError become one line and exit status 1.

        Wishes that do not go together end it with exit status 2, like any wrong usage.
        """
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
        except click.ClickException:
            raise
        except PlanError as error:
            raise click.UsageError(one_line(error)) from error
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            raise click.ClickException(one_line(error)) from error
        except Exception as error:
            if os.environ.get(_TRACEBACK):
                raise
            raise click.ClickException(
                f"{type(error).__name__}: {one_line(error)}. This is a fault of ddim-ode; please report it, with the "
                f"command and what it prints with {_TRACEBACK}=1 set"
            ) from error


# Set it in the environment to see where a fault of ours comes from.
_TRACEBACK = "DDIM_ODE_TRACEBACK"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, UserWarning):
        warn(str(message))


def warn(*messages: str) -> None:
    """Print each of the ``messages`` as a warning."""
    for message in messages:
        say(f"Warning: {message}", err=True)


def say(text: str, *, err: bool = False) -> None:
    """Print ``text``, whatever names in it may hold: control codes and what is no character are written as such.

    Where nobody reads any more, as behind ``| head -1``, it is lost, and the work goes on.
    """
    stream = sys.stderr if err else sys.stdout
    coding = getattr(stream, "encoding", None) or "utf-8"
    try:
        click.echo(printable(text).encode(coding, "backslashreplace").decode(coding), err=err)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), (sys.stderr if err else sys.stdout).fileno())


def printable(text: str) -> str:
    """``text`` with what does not belong into a line on a terminal as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def one_line(error: BaseException) -> str:
    """What ``error`` says, in a line; of an error of the system also which file it is about."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"'{error.filename}': "
        text = f"{name}{error.strerror}"
    return printable(" ".join(text.split())) or type(error).__name__


class Failures:
    """The inputs that failed: each is reported at once, the others go on, and the exit status tells in the end."""

    def __init__(self) -> None:
        self.count = 0

    def report(self, error: Exception) -> None:
        """Print ``error`` as one line, and count it."""
        self.count += 1
        say(f"Error: {one_line(error)}", err=True)

    @contextmanager
    def caught(self, *more: type[Exception]) -> Iterator[None]:
        """Report a ValueError, OSError or one of ``more`` from inside, and go on."""
        kinds: tuple[type[Exception], ...] = (ValueError, OSError, *more)
        try:
            yield
        except kinds as error:
            self.report(error)

    def exit(self) -> None:
        """Leave with status 1 if anything failed."""
        if self.count:
            sys.exit(1)


class Writer:
    """Files that are written by threads while the work goes on; ``failures`` hears of those that cannot be.

    What is said of each is said in their order, after it was written. Not more than a few wait to be written.
    """

    def __init__(self, failures: Failures) -> None:
        self._failures = failures
        self._waiting: deque[tuple[Future[None], str]] = deque()

    def __enter__(self) -> Writer:
        self._pool = ThreadPoolExecutor(_WRITERS)
        return self

    def write(self, result: Latent | Picture, target: Path, text: str, *, overwrite: bool) -> None:
        """Write the ``result`` to ``target``, as ``save`` does, and say ``text`` then."""
        self._waiting.append((self._pool.submit(save, result, target, overwrite=overwrite), text))
        if len(self._waiting) > _MOST_WAITING:
            self._finish()

    def _finish(self) -> None:
        """Wait for the one that was begun first."""
        written, text = self._waiting.popleft()
        with self._failures.caught():
            written.result()
            say(text)

    def __exit__(self, *error: object) -> None:
        """Wait for all that was begun."""
        while self._waiting:
            self._finish()
        self._pool.shutdown()


class Bar:
    """A progress bar of network evaluations, on a terminal, for one walk after another."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, progress: Progress) -> None:
        """Show ``progress``, and take the bar away at the end of a walk."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=progress.total, desc=progress.label, unit="NFE", leave=False, disable=None)
        self._bar.update(progress.nfe - self._bar.n)
        if progress.done:
            self._bar.close()
            self._bar = None


# What --grid takes beside timesteps.
GRID_NAMES = sorted([*GRIDS, SCHEDULER])


class GridName(click.ParamType):  # type: ignore[type-arg]
    """The name of a grid, or an explicit list of timesteps such as 0,250,500,999."""

    name = "grid"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(GRID_NAMES)}|T,T,...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value in GRIDS or value == SCHEDULER:
            return value
        try:
            return tuple(float(t) for t in value.split(","))
        except ValueError:
            known = ", ".join(GRID_NAMES)
            self.fail(f"unknown grid '{value}'; choose one of: {known}, or timesteps T,T,...")

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The grids that begin with what is typed."""
        return [CompletionItem(name) for name in GRID_NAMES if name.startswith(incomplete)]


@dataclass(frozen=True)
class Existing:
    """What to do with output files that exist: ``overwrite`` or ``skip`` them; else each is an error.

    Raises:
        PlanError: if both are asked for.
    """

    overwrite: bool
    skip: bool = False

    def __post_init__(self) -> None:
        if self.overwrite and self.skip:
            raise PlanError("--overwrite replaces files that exist, and --skip-existing keeps them; pass one of them")


def find_targets(
    paths: Sequence[Path], output: Path | None, suffix: str, existing: Existing, failures: Failures
) -> list[tuple[Path, Path]]:
    """Each input with the file to write, checked before any work: beside the input, or in ``output``.

    Inputs whose files exist are left out, if so asked for, and counted. Nothing is made yet, not even a folder.
    """
    folder = output if output and (output.is_dir() or len(paths) > 1) else None
    _check_folder(folder)
    wanted: list[tuple[Path, Path]] = []
    for path in paths:
        with failures.caught():
            beside = _beside(path, suffix)
            wanted.append((path, folder / beside.name if folder else output or beside))
    return _free_targets(wanted, suffix, existing, failures, inputs=paths, new_folders=folder is not None)


def find_dataset_targets(
    stems: Mapping[str, Path], output: Path | None, suffix: str, existing: Existing, failures: Failures, *, one: bool
) -> list[tuple[str, Path]]:
    """Each name with the file to write: its stem and the ``suffix``, here or in ``output``, with the stem's folders.

    ``one``  there is a single name, and ``output`` is its file unless it is a folder.

    The rest is as ``find_targets`` says.
    """
    file = output if one and output and not output.is_dir() else None
    folder = Path() if file else output or Path()
    _check_folder(folder)
    wanted = [(name, file or folder / stem.with_name(stem.name + suffix)) for name, stem in stems.items()]
    return _free_targets(wanted, suffix, existing, failures, inputs=(), new_folders=file is None)


def _check_folder(path: Path | None) -> None:
    if path and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"'{path}' is a file; name a folder for several inputs")


def _free_targets(
    wanted: Sequence[tuple[T, Path]],
    suffix: str,
    existing: Existing,
    failures: Failures,
    *,
    inputs: Sequence[Path],
    new_folders: bool,
) -> list[tuple[T, Path]]:
    """Those of the inputs and targets ``wanted`` that can be written, and are none of the ``inputs``.

    ``new_folders``  whether folders are made for them.
    """
    from ddim_ode.files import check_can_be_made, check_writable
    from ddim_ode.images import check_image_path

    check = check_image_path if suffix.endswith(".png") else check_writable
    targets: dict[Path, T] = {}
    taken, skipped = _identities(inputs), 0
    for source, target in wanted:
        with failures.caught():
            _check_output(target, taken)
            if target in targets:
                raise ValueError(f"'{source}' would be written to '{target}' like another input; name its file with -o")
            if existing.skip and target.is_file():
                skipped += 1
                continue
            if not new_folders or target.parent.is_dir():
                check(target, overwrite=existing.overwrite)
            else:
                check_can_be_made(target.parent)
            targets[target] = source
    if skipped:
        say(f"{skipped} of {len(wanted)} files exist already, and are left as they are")
    return [(source, target) for target, source in targets.items()]


def _beside(path: Path, suffix: str) -> Path:
    """The file beside ``path`` with the same name, but for what it ends in."""
    if not path.name:
        raise ValueError(f"'{path}' is a folder; name the files in it")
    name = path.name.removesuffix(".pt").removesuffix(".latent") if suffix == ".decoded.png" else path.stem
    return path.with_name(name + suffix)


class FilePath(click.Path):
    """The name of a file or folder, which is not empty."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("a name must not be empty", param, ctx)
        return super().convert(value, param, ctx)


def check_outputs(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse ``outputs`` that are among the ``inputs``.

    Raises:
        ValueError: for the first that is, by whatever name.
    """
    taken = _identities(inputs)
    for target in outputs:
        _check_output(target, taken)


def _check_output(target: Path, taken: set[tuple[int, int]]) -> None:
    if not taken.isdisjoint(_identities([target])):
        raise ValueError(f"'{target}' is an input too, and would be lost; name another file for the output")


def _identities(paths: Sequence[Path]) -> set[tuple[int, int]]:
    """What tells those ``paths`` that exist from all other files, by whatever name."""
    found = set()
    for path in paths:
        with suppress(OSError, ValueError):  # of names that no file can have
            status = path.stat()
            found.add((status.st_dev, status.st_ino))
    return found


def find_frames(folder: Path, count: int, sheet: Path, overwrite: bool) -> list[Path]:
    """The files in ``folder`` for so many images beside their ``sheet``, checked before any work."""
    from ddim_ode.files import check_can_be_made, check_writable

    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"'{folder}' is a file; name a folder for the frames")
    targets = [folder / f"{i:04}.png" for i in range(count)]
    if sheet.resolve() in (folder.resolve(), *(target.resolve() for target in targets)):
        raise ValueError(
            f"'{sheet}' would be among the frames, or their folder; name another file, or another folder for them"
        )
    check_can_be_made(folder)
    if folder.is_dir():
        for target in targets:
            check_writable(target, overwrite=overwrite)
    return targets


def save(result: Latent | Picture, target: Path, *, overwrite: bool) -> None:
    """Write the ``result``, and make the folder for it if there is none yet."""
    target.parent.mkdir(parents=True, exist_ok=True)
    result.save(target, overwrite=overwrite)


def warn_of(walk: Walk, member: int) -> None:
    """Warn once, with the first ``member`` of a batch, of what the solver could not do as it should."""
    if member == 0:
        warn(*walk.notes)
