"""What the tests of hostile inputs share: how a command refuses one, and how inputs are spoilt."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result
from PIL import Image

from ddim_ode.cli import main

# A file's content, or what makes it at a path.
Content = bytes | Callable[[Path], object]
Edit = Callable[[Any], object]


def refused(result: Result, *words: str) -> None:
    """The command ends with one line, which holds all ``words``, and neither a traceback nor a fault of ours."""
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(errors) == 1, result.output
    assert errors[0].startswith("Error: ")
    assert "fault of ddim-ode" not in errors[0]
    assert len(errors[0]) < 2000
    for word in words:
        assert word in errors[0]


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def there(folder: Path) -> dict[str, bytes]:
    """All files in ``folder``, at any depth, with their content; but for locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".ddim-ode.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def make(content: Content, path: Path) -> None:
    path.write_bytes(content) if isinstance(content, bytes) else content(path)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


class Runs:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


PNG = encoded(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), "PNG")

SMALL: Mapping[str, object] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "add_attention": False,
}


def put(value: object, *keys: Any) -> Edit:
    """Put ``value`` under ``keys`` of a content."""

    def edit(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


def drop(*keys: Any) -> Edit:
    """Take away what is under ``keys``."""

    def edit(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit
