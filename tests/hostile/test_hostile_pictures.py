"""Pictures that are hostile, over every command that takes them: one line, and nothing else happens.

To add one, add a line to ``PICTURES``.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import PNG, SMALL, Content, Runs, call, encoded, make, refused, there

from ddim_ode import load_dataset

JPEG = encoded(np.zeros((16, 16, 3), dtype=np.uint8), "JPEG")

PICTURES: Mapping[str, Content] = {
    "empty.png": b"",
    "zeros.png": bytes(1000),
    "text.png": b"no picture at all",
    "json.png": b"{}",
    "header.png": PNG[:8],
    "cut.png": PNG[:200],
    "flipped.png": PNG[:60] + bytes(byte ^ 255 for byte in PNG[60:90]) + PNG[90:],
    "cut.jpg": JPEG[:120],
    "header.jpg": JPEG[:20],
    "cut.gif": encoded(np.zeros((16, 16), dtype=np.uint8), "GIF")[:20],
    "cut.bmp": encoded(np.zeros((16, 16), dtype=np.uint8), "BMP")[:60],
    "cut.tif": encoded(np.zeros((16, 16), dtype=np.uint8), "TIFF")[:100],
    "cut.webp": encoded(np.zeros((16, 16, 3), dtype=np.uint8), "WEBP")[:30],
    "header.dds": b"DDS " + bytes(200),
    "avif.png": b"\0\0\0\x1cftypavif" + bytes(300),
    "nan.tif": encoded(np.full((16, 16), np.nan, dtype=np.float32), "TIFF"),
    "infinite.tif": encoded(np.full((16, 16), np.inf, dtype=np.float32), "TIFF"),
    "range.tif": encoded(np.full((16, 16), 255, dtype=np.float32), "TIFF"),
    "wide.tif": encoded(np.full((16, 16), 100_000, dtype=np.int32), "TIFF"),
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\n{} loop\n",
    "lab.tif": lambda path: Image.new("LAB", (16, 16)).save(path),
    "pickle.png": pickle.dumps(Runs()),
    "folder.png": Path.mkdir,
    "pipe.png": os.mkfifo,
    "device.png": lambda path: path.symlink_to("/dev/zero"),
    "nowhere.png": lambda path: path.symlink_to(path.with_name("missing")),
    "missing.png": lambda path: None,
    "control\x1b[31m.png": b"",
}
PICTURE_COMMANDS: Sequence[Sequence[str]] = (
    ("encode", "BAD", "--steps", "1"),
    ("encode", "BAD", "--steps", "1", "-o", "out"),
    ("reconstruct", "BAD", "--steps", "1"),
    ("trace", "BAD", "--steps", "1"),
    ("interpolate", "BAD", "good.png", "--steps", "1"),
    ("interpolate", "good.png", "BAD", "--steps", "1", "--frames", "frames"),
)


def shown(name: str) -> str:
    """``name`` as the commands print it."""
    return name.replace("\x1b", "\\x1b")


@pytest.mark.parametrize("words", PICTURE_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, words: Sequence[str], good: Path, tiny_model: Path, tmp_path: Path) -> None:
    make(PICTURES[name], tmp_path / name)
    before = there(tmp_path) if "device" not in name else None
    result = call(*(name if word == "BAD" else word for word in words), "--model", tiny_model)
    refused(result, shown(name))
    assert not (tmp_path / "executed").exists()
    if before is not None:
        assert there(tmp_path) == before


@pytest.mark.parametrize("name", sorted(set(PICTURES) - {"missing.png"}))
def test_pictures_among_those_of_a_data_set(name: str, good: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Whoever asks for a folder is told of each that cannot be taken; what is no file or no picture is not asked."""
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(good, folder)
    make(PICTURES[name], folder / name)
    skipped = name in ("folder.png", "pipe.png", "device.png", "nowhere.png")
    if not skipped:
        (tmp_path / "unet.json").write_text(json.dumps(SMALL))
        refused(call("train", folder, "-o", "run", "--steps", "1", "--unet", "unet.json", "--cpu"), shown(name))
        assert not (tmp_path / "run").exists()
    refused(call("calibrate", "--model", tiny_model, "--images", folder, "--steps", "2", "--latents", "1"))


def test_pictures_of_a_data_set_of_latents(good: Path, tiny_model: Path, tmp_path: Path) -> None:
    """All of them at once: one line with their number, a reason for each in the manifest, and the other's latent."""
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(good, folder)
    for name, content in PICTURES.items():
        make(content, folder / name)
    result = call("dataset", folder, "-o", "out", "--steps", "1", "--workers", "0", "--model", tiny_model)
    bad = set(PICTURES) - {"folder.png", "missing.png"}
    refused(result, f"{len(bad)} of {len(bad) + 1} pictures have no latent")
    found = load_dataset("out")
    assert found.names == ("good.png",)
    assert found.failed.keys() == bad
    assert all(name in reason for name, reason in found.failed.items())
    assert not (tmp_path / "executed").exists()
