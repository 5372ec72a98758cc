"""Reading a data set: its latents one after another, or one by the name of its picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path

from ddim_ode.images import Source
from ddim_ode.latents import Latent
from ddim_ode.session.dataset.encoder import TEMPLATE as TEMPLATE
from ddim_ode.session.dataset.home import HOME, read_home, read_template
from ddim_ode.session.dataset.manifest import Line, read_lines
from ddim_ode.session.dataset.shards import Shard
from ddim_ode.work import WorkError

# As many are open at a time, since neighbours in a manifest may be in one or another.
_OPEN = 8


class LatentDataset:
    """The latents in ``folder``, by the names of their pictures; what is in memory are the names.

    Raises:
        WorkError, LatentError: if there is no data set, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not is_dataset(self.folder):
            raise WorkError(f"'{folder}' is no data set: there is no '{HOME}' in it; make one with: dataset")
        self._format: str = read_home(self.folder)["shards"]
        self._lines = {line.name: line for line in read_lines(self.folder)}
        self._done = {name: line for name, line in self._lines.items() if line.shard is not None}
        self._shard = lru_cache(_OPEN)(lambda name: Shard(self.folder / name))

    @cached_property
    def _template(self) -> Latent:
        return read_template(self.folder)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the pictures that have a latent."""
        return tuple(self._done)

    @property
    def failed(self) -> dict[str, str]:
        """Why others have none, by their names."""
        return {name: line.reason for name, line in self._lines.items() if line.reason is not None}

    def __len__(self) -> int:
        return len(self._done)

    def __iter__(self) -> Iterator[Latent]:
        return (self._latent(line) for line in self._done.values())

    def __getitem__(self, name: str) -> Latent:
        """The latent of the picture called ``name``.

        Raises:
            WorkError: if there is none, or its shard is damaged.
        """
        return self._latent(self._line(name))

    def stem(self, name: str) -> Path:
        """What to call files that are made of the latent of the picture ``name``, but for their endings.

        It is the name without its ending, or with it where others differ from it in nothing else; relative, and never
        above the folder that it is put in: an absolute name becomes a relative one, and '..' is written 'up'.

        Raises:
            WorkError: if there is no such latent.
        """
        self._line(name)
        whole = _downwards(name)
        stem = whole.with_suffix("")
        return stem if self._stems[stem] == 1 else whole

    @cached_property
    def _stems(self) -> Counter[Path]:
        """How many of the names would be called so, with their endings and without."""
        wholes = [_downwards(name) for name in self._done]
        return Counter(path for whole in wholes for path in {whole, whole.with_suffix("")})

    def _line(self, name: str) -> Line:
        line = self._lines.get(name)
        if line is None:
            some = ", ".join(f"'{other}'" for other in [*self._lines][:3])
            raise WorkError(f"there is no picture '{name}' in '{self.folder}'; there are {len(self)}, such as {some}")
        if line.reason is not None:
            raise WorkError(f"there is no latent of '{name}' in '{self.folder}': {line.reason}")
        return line

    def _latent(self, line: Line) -> Latent:
        shard, index = self._shard(line.shard), line.row or 0
        rows = shard.head.rows
        if index >= len(rows) or rows[index].identity != line.identity:
            raise WorkError(f"the manifest of '{self.folder}' is damaged: shard '{line.shard}' holds no '{line.name}'")
        x_T, companion = shard.tensors(index)
        row = rows[index]
        source = Source(line.name, row.size, row.fit)
        return replace(self._template, x_T=x_T, companion=companion, source=source, nfe=row.nfe)

    def summary(self) -> str:
        """What is in it, in a few lines for people to read."""
        shards = Counter(line.shard for line in self._done.values())
        latents = len({line.identity for line in self._done.values()})
        lines = [
            f"data set '{self.folder}'",
            f"  pictures   {len(self._lines)}, {len(self.failed)} of them without a latent",
            f"  latents    {latents} in {len(shards)} shards, {self._format}",
        ]
        if self._done:
            own = next(iter(self)).summary().splitlines()[1:]
            lines += [line for line in own if not line.startswith("  x_T")]
        return "\n".join(lines)


def _downwards(name: str) -> Path:
    """The path ``name``, made relative, and without leading up."""
    path = Path(name)
    return Path(*("up" if part == ".." else part for part in path.relative_to(path.anchor).parts))


def is_dataset(folder: Path) -> bool:
    """Whether there is a data set in ``folder``."""
    return (folder / HOME).is_file()


def load_dataset(folder: str | Path) -> LatentDataset:
    """The data set in ``folder``; what it gives are ``Latent`` objects, each read when it is asked for.

    Raises:
        WorkError, LatentError: if there is none, or it is damaged.
    """
    return LatentDataset(folder)
