"""What tests of data sets share: pictures, and whether their latents are those that a session gives alone."""

from __future__ import annotations

import atexit
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddim_ode import Request, Session, load_dataset
from ddim_ode.session.dataset.manifest import read_lines
from ddim_ode.session.dataset.run import Summary
from ddim_ode.session.dataset.serving import Task
from ddim_ode.session.dataset.shards import Shard, list_shards


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 200, (10, 12, 3), dtype=np.uint8)).save(path)
    return path


def counts(done: Summary) -> tuple[int, int, int, int, int]:
    return done.pictures, done.encoded, done.kept, done.again, done.failed


def rows(folder: Path) -> list[str]:
    """The identities of all rows of all shards."""
    return [row.identity for path in list_shards(folder) for row in Shard(path).head.rows]


def check_latents(folder: Path, pictures: Path, session: Session, request: Request) -> None:
    """Each latent is the one of its picture, but for rounding, and there is one row for each."""
    found = load_dataset(folder)
    assert (
        len(set(rows(folder))) == len(rows(folder)) == len({line.identity for line in read_lines(folder) if line.shard})
    )
    for name, latent in zip(found.names, found, strict=True):
        alone = session.encode(pictures / name, solver=request.solver, steps=request.steps)
        torch.testing.assert_close(latent.x_T, alone.x_T, rtol=1e-6, atol=1e-6)
        if alone.companion is not None:
            torch.testing.assert_close(latent.companion, alone.companion, rtol=1e-6, atol=1e-6)
        same = ("grid", "solver", "model", "fingerprint", "nfe", "condition", "family")
        assert all(getattr(latent, part) == getattr(alone, part) for part in same)
        assert (latent.source.name, latent.source.size) == (name, (12, 10))


class CountingThreads(Task):
    """A task whose key is how many threads torch has in the process."""

    def encoder(self) -> Any:
        return SimpleNamespace(key=str(torch.get_num_threads()))


class Leaving(Task):
    """A task whose processes leave a file ``left`` in the output, if they end by themselves."""

    def encoder(self) -> Any:
        atexit.register((self.output / "left").touch)
        return SimpleNamespace(key="0")
