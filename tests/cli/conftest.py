"""A picture, and a way to call the command line in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ddim_ode.cli import main

Cli = Callable[..., Result]
WITH_MODEL = ("encode", "decode", "reconstruct", "sample", "interpolate", "edit", "trace", "dataset")


@pytest.fixture
def cli(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """``cli("encode", "a.png", ...)`` in an empty folder; uses the tiny model unless one is named."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> Result:
        words = [str(argument) for argument in arguments]
        if words and words[0] in WITH_MODEL and "--model" not in words:
            words += ["--model", str(tiny_model)]
        return CliRunner().invoke(main, words)

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A colourful PNG of 12 x 10 pixels."""
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    return path
