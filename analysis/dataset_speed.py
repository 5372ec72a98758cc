"""Measure data sets of latents: two workers against two encoders side by side, and what the driver itself takes.

``apart``   two processes that each encode half of the pictures, and keep nothing.
``crew``    ``encode_dataset`` with two workers, from when the first shard is done after both have a model, to the last.
``driver``  a run over pictures that are a few bytes, with one worker whose network answers at once: processor time of
            the driver alone, and what its memory grew by.
``again``   a second run over the same, which does nothing.

Each run of the driver is a process of its own. Goals: ``crew`` at 0.9 of ``apart``, and 100 microseconds a picture.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TypeVar

import click
import psutil
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from ddim_ode.images import png
from ddim_ode.session.dataset.crew import Crew
from ddim_ode.session.dataset.encoder import Job, ShardEncoder
from ddim_ode.session.dataset.formats import DEFAULT_FORMAT
from ddim_ode.session.dataset.local import Processes
from ddim_ode.session.dataset.run import SHARD_SIZE, Run, encode_dataset
from ddim_ode.session.dataset.serving import Task
from ddim_ode.session.dataset.shards import Head, Row, Shard, list_shards, shard_name, write_shard
from ddim_ode.session.dataset.sources import Entry
from ddim_ode.session.request import Request
from ddim_ode.session.session import Session

from .figures import COLOURS, MARKERS, save_figure
from .options import ModelChoice, batch_size_option, errors_in_a_line, model_options, out_option
from .rows import Results, calibrated, describe
from .tables import markdown
from .timing import machine

T = TypeVar("T")

SEED, WORKERS = 0, 2
DRIVER_GOAL = 100.0  # in microseconds
_KEY = hashlib.sha256(b"stub").hexdigest()


@dataclass(frozen=True)
class DatasetRow:
    """One run over so many ``pictures``.

    ``seconds``   for those pictures: wall time; of ``driver``, processor time of the driver.
    ``memory_mib``  what the driver's memory grew by, in MiB; 0 where that is not measured.
    """

    task: str
    pictures: int
    repeat: int
    seconds: float
    memory_mib: float


@dataclass
class Pictures:
    """``count`` pictures that are only their own numbers; ``memory`` is what was taken when all had been listed."""

    count: int
    memory: float = 0.0

    def entries(self) -> Iterator[Entry]:
        """All of them."""
        for number in range(self.count):
            yield Entry(f"{number:012}.png")
        self.memory = _memory()

    def read(self, entry: Entry) -> bytes:
        """The content of one of them."""
        return entry.name.encode()

    def close(self) -> None:
        """Nothing is open."""


class _AtOnce(ShardEncoder):
    """Shards of zeros."""

    def __init__(self, output: Path) -> None:
        self.key, self._output = _KEY, output

    def encode_shard(self, jobs: Sequence[Job]) -> Head:
        rows = tuple(Row(job.identity, job.entry.name, (1, 1), "exact", 1) for job in jobs)
        head = Head(shard_name([job.identity for job in jobs], DEFAULT_FORMAT), self.key, rows, ())
        write_shard(self._output, head, torch.zeros(len(jobs), 1, 1, 1), None)
        return head


class _StubTask(Task):
    def encoder(self) -> ShardEncoder:
        return _AtOnce(self.output)


def drive(folder: Path, count: int) -> tuple[float, float, float]:
    """A run over ``count`` stubs in this process: its processor and wall time in seconds, and its memory in MiB."""
    task = _StubTask(Session, Request(), folder, folder, DEFAULT_FORMAT)
    before, begin, busy = _memory(), time.perf_counter(), time.process_time()
    with closing(Crew(Processes(task, [0]))) as crew:
        pictures = Pictures(count)
        Run(folder, pictures, crew, "stubs", SHARD_SIZE, DEFAULT_FORMAT).go()
        return time.process_time() - busy, time.perf_counter() - begin, pictures.memory - before


def _memory() -> float:
    """What this process takes, in MiB."""
    return float(psutil.Process().memory_info().rss / 2**20)


def driver_rows(count: int, repeat: int) -> list[DatasetRow]:
    """A run over ``count`` stubs, and a second one that does nothing."""
    with TemporaryDirectory() as folder:
        busy, _, grown = _alone(drive, Path(folder), count)
        _, wall, again = _alone(drive, Path(folder), count)
    return [DatasetRow("driver", count, repeat, busy, grown), DatasetRow("again", count, repeat, wall, again)]


def _alone(function: Callable[..., T], *arguments: object) -> T:
    """What ``function`` gives in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def opened(marks: Path, choice: ModelChoice, batch_size: int) -> Session:
    """A session, and in ``marks`` a file that says since when there is one in this process."""
    session = Session(choice.name, device=choice.device, batch_size=batch_size)
    (marks / f"{multiprocessing.current_process().pid}").touch()
    return session


def crew_row(
    folder: Path, opener: partial[Session], marks: Path, request: Request, size: int, repeat: int
) -> DatasetRow:
    """A run of ``encode_dataset`` over the pictures in ``folder``.

    Raises:
        ValueError: if there are too few pictures to tell.
    """
    with TemporaryDirectory() as output:
        out = Path(output) / "out"
        encode_dataset(folder, out, opener, request, shard_size=size, workers=WORKERS)
        begin = max(path.stat().st_mtime_ns for path in marks.iterdir())
        done = sorted((path.stat().st_mtime_ns, len(Shard(path).head.rows)) for path in list_shards(out))
    times = [moment for moment, _ in done if moment > begin]
    if len(times) < 2 * WORKERS or len(list(marks.iterdir())) < WORKERS:
        raise ValueError(
            f"{len(done)} shards are too few to tell how fast they are made; take more pictures with --count"
        )
    # The first one only says since when the others are counted.
    made = sum(rows for moment, rows in done if moment > times[0])
    return DatasetRow("crew", made, repeat, (times[-1] - times[0]) / 1e9, 0.0)


def encode_half(marks: Path, opener: partial[Session], paths: Sequence[Path], request: Request) -> float:
    """Encode pictures once all others of ``marks`` have a model too; how long it takes, in seconds."""
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))  # as workers of a crew share the cores
    session = opener()
    while len(list(marks.iterdir())) < WORKERS:
        time.sleep(0.001)
    begin = time.perf_counter()
    for _ in session.encode_all(paths, request):
        pass
    return time.perf_counter() - begin


def apart_row(folder: Path, opener: partial[Session], marks: Path, request: Request, repeat: int) -> DatasetRow:
    """Halves of the pictures in ``folder``, side by side; the time is that of as many at the sum of their rates."""
    paths = sorted(folder.iterdir())
    halves = [paths[number::WORKERS] for number in range(WORKERS)]
    with ProcessPoolExecutor(WORKERS, multiprocessing.get_context("spawn")) as pool:
        seconds = pool.map(partial(encode_half, marks, opener), halves, [request] * WORKERS)
        rate = sum(len(half) / taken for half, taken in zip(halves, seconds, strict=True))
    return DatasetRow("apart", len(paths), repeat, len(paths) / rate, 0.0)


def compared(choice: ModelChoice, count: int, steps: int, batch: int, repeat: int) -> Iterator[DatasetRow]:
    """``count`` pictures of noise, of the size of the model's: by two processes apart, and by a crew of two."""
    request, model = Request(steps=steps), choice.load()
    generator = torch.Generator().manual_seed(SEED)
    with TemporaryDirectory() as folder:
        for number in range(count):
            image = torch.rand((model.channels, model.height, model.width), generator=generator) * 2 - 1
            (Path(folder) / f"{number:06}.png").write_bytes(png(image, settings={}))
        for make in (apart_row, partial(crew_row, size=batch)):
            with TemporaryDirectory() as marks:
                opener = partial(opened, Path(marks), choice, batch)
                yield make(Path(folder), opener, Path(marks), request, repeat=repeat)


def ratio(rows: Sequence[DatasetRow], repeat: int) -> float:
    """The crew's pictures a second in parts of those of two processes apart."""
    crew, apart = (
        next(row.pictures / row.seconds for row in rows if (row.task, row.repeat) == (task, repeat))
        for task in ("crew", "apart")
    )
    return crew / apart


def table(rows: Sequence[DatasetRow]) -> str:
    """Markdown: the crew beside processes apart; then what the driver takes, and a second run."""
    crew = [
        (row.pictures, f"{1000 * row.seconds / row.pictures:.2f}", f"{ratio(rows, row.repeat):.3f}")
        for row in rows
        if row.task == "crew"
    ]
    driver = [
        (
            count,
            f"{1e6 * _median(rows, 'driver', count, 'seconds') / count:.1f}",
            f"{_median(rows, 'driver', count, 'memory_mib'):.0f}",
            f"{_median(rows, 'again', count, 'seconds'):.2f}",
        )
        for count in counts(rows)
    ]
    first = markdown(["pictures", "two workers, ms a picture", "rate / that of two processes apart"], crew, words=())
    heads = ["pictures", "driver, microseconds a picture", "grows by, MiB", "second run, s"]
    second = markdown(heads, driver, words=())
    return "\n\n".join(([first] if crew else []) + ([second] if driver else []))


def counts(rows: Sequence[DatasetRow]) -> list[int]:
    """Numbers of pictures that the driver was measured with."""
    return sorted({row.pictures for row in rows if row.task == "driver"})


def _median(rows: Sequence[DatasetRow], task: str, count: int, of: str) -> float:
    values: list[float] = [getattr(row, of) for row in rows if (row.task, row.pictures) == (task, count)]
    return median(values)


def plot(rows: Sequence[DatasetRow]) -> Figure:
    """What the driver takes against the number of pictures: time and memory."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    (left, right), xs = figure.subplots(1, 2), counts(rows)
    for number, (task, words) in enumerate((("driver", "run, processor time"), ("again", "second run"))):
        style = {"marker": MARKERS[number], "color": COLOURS[number], "label": words}
        left.loglog(xs, [1e6 * _median(rows, task, count, "seconds") / count for count in xs], **style)
        right.loglog(xs, [max(_median(rows, task, count, "memory_mib"), 0.1) for count in xs], **style)
    left.axhline(DRIVER_GOAL, color="0.6", linewidth=1, linestyle="-.", label="goal")
    left.set_ylabel("driver's time, microseconds a picture")
    right.set_ylabel("driver's memory grows by, MiB")
    for axes in (left, right):
        axes.set_xlabel("pictures")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend()
    return figure


def measure(
    choice: ModelChoice,
    *,
    count: int,
    steps: int,
    batch: int,
    sizes: Sequence[int],
    repeats: int,
    results: Results[DatasetRow],
) -> None:
    """``repeats`` rows for each task; those that ``results`` has already are not measured again."""
    known = {(row.task, row.pictures, row.repeat) for row in results.rows}
    compared_in = {row.repeat for row in results.rows if row.task == "crew"}
    for repeat in tqdm(range(repeats), desc="repeats", disable=None):
        if count and repeat not in compared_in:
            results.replace([*results.rows, *compared(choice, count, steps, batch, repeat)])
        for size in sizes:
            if ("driver", size, repeat) not in known:
                results.replace([*results.rows, *driver_rows(size, repeat)])


@click.command(help=__doc__.split("\n")[0])
@model_options
@click.option("--count", type=click.IntRange(min=0), default=512, show_default=True, help="Pictures to encode.")
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True)
@batch_size_option
@click.option(
    "--size",
    "sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(10**4, 10**5, 10**6),
    show_default=True,
    help="Pictures for the driver alone; several times.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True)
@out_option("dataset_speed")
@errors_in_a_line()
def main(
    model: ModelChoice, count: int, steps: int, batch_size: int, sizes: tuple[int, ...], repeats: int, out: Path
) -> None:
    loaded = model.load()
    about = {**describe(loaded), **machine(), "count": count, "steps": steps, "batch_size": batch_size, "seed": SEED}
    about |= {"calibrated": calibrated(loaded)}
    results = Results(DatasetRow, out, about)
    measure(model, count=count, steps=steps, batch=batch_size, sizes=sizes, repeats=repeats, results=results)
    save_figure(plot(results.rows), out / "dataset_speed.png")
    click.echo(table(results.rows))


if __name__ == "__main__":
    main()
