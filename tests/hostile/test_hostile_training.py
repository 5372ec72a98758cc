"""Networks to train, and checkpoints, that are hostile: one line, and nothing else happens.

To add one, add a line to ``NETWORKS`` or ``CHECKPOINTS``.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import PNG, SMALL, Edit, Runs, call, drop, put, refused, there

NETWORKS: Mapping[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "no text": b"\xff\xfe\xfa",
    "deep": b"[" * 100_000,
    **{
        f"{key} {value!r}": json.dumps({**SMALL, key: value}).encode()
        for key, value in {
            "sample_size": 8.5,
            "in_channels": 5,
            "out_channels": 6,
            "norm_num_groups": 0,
            "norm_eps": "x",
            "freq_shift": float("nan"),
            "layers_per_block": "two",
            "block_out_channels": [],
            "down_block_types": ["SideBlock2D"],
            "num_class_embeds": 10,
        }.items()
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_to_train(name: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    good.rename(tmp_path / "pictures" / "good.png")
    (tmp_path / "BAD.json").write_bytes(NETWORKS[name])
    before = there(tmp_path)
    refused(call("train", "pictures", "-o", "run", "--steps", "1", "--unet", "BAD.json", "--cpu"), "BAD.json")
    assert there(tmp_path) == before


def first(kind: str, value: object) -> Edit:
    """Put ``value`` in the place of the first tensor of a state dict."""

    def edit(content: dict[str, Any]) -> None:
        state = content[kind]
        state[next(iter(state))] = value

    return edit


CHECKPOINTS: Mapping[str, bytes | Edit] = {
    "empty": b"",
    "text": b"no checkpoint",
    "pickle": pickle.dumps(Runs()),
    "another format": put("mine", "format"),
    "no format": drop("format"),
    "a field more": put(1, "more"),
    **{f"no {field}": drop(field) for field in ("settings", "data", "step", "unet", "average", "optimizer", "losses")},
    **{f"{field} None": put(None, field) for field in ("settings", "data", "machine", "step", "seconds", "unet")},
    "step a string": put("1", "step"),
    "step negative": put(-1, "step"),
    "step of 1e9": put(10**9, "step"),
    "step true": put(True, "step"),
    "seconds NaN": put(float("nan"), "seconds"),
    "losses of strings": put(["a", "b"], "losses"),
    "losses NaN": put([float("nan")] * 2, "losses"),
    "losses missing": put([], "losses"),
    "unet empty": put({}, "unet"),
    "unet of numbers": first("unet", 1.0),
    "unet of another shape": first("unet", torch.zeros(3)),
    "average empty": put({}, "average"),
    "average of another shape": lambda content: content["average"]["shadow_params"].reverse(),
    "average decaying by a string": put("slowly", "average", "decay"),
    "average NaN": lambda content: content["average"]["shadow_params"][0].fill_(torch.nan),
    "optimizer empty": put({}, "optimizer"),
    "optimizer without moments": put({}, "optimizer", "state"),
    "optimizer of another shape": put(torch.zeros(3), "optimizer", "state", 0, "exp_avg"),
    "optimizer of strings": put("abc", "optimizer", "state", 0, "exp_avg"),
    "settings of another kind": put([], "settings"),
    "steps a string": put("2", "settings", "steps"),
    "batch size a float": put(2.5, "settings", "batch_size"),
    "batch size 0": put(0, "settings", "batch_size"),
    "learning rate a string": put("fast", "settings", "learning_rate"),
    "seed a float": put(0.5, "settings", "seed"),
    "bf16 a number": put(1, "settings", "bf16"),
    "licence a list": put([], "settings", "licence"),
    "prediction unknown": put("score", "settings", "prediction"),
    "network empty": put({}, "settings", "unet"),
    "network a string": put("small", "settings", "unet"),
    "network of 0 groups": put(0, "settings", "unet", "norm_num_groups"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "good.png").write_bytes(PNG)
    (folder / "unet.json").write_text(json.dumps(SMALL))
    words = ("train", folder / "pictures", "-o", folder / "run", "--steps", "2", "--batch-size", "2", "--cpu")
    result = call(*words, "--unet", folder / "unet.json")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name: str, trained: Path, tmp_path: Path) -> None:
    """Nothing is trained, and nothing of the run is written anew."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    bad, path = CHECKPOINTS[name], tmp_path / "run" / "checkpoint.pt"
    if isinstance(bad, bytes):
        path.write_bytes(bad)
    else:
        content = torch.load(path, weights_only=True)
        bad(content)
        torch.save(content, path)
    before = there(tmp_path)
    refused(call("train", "pictures", "-o", "run", "--resume", "--cpu"), "checkpoint")
    assert there(tmp_path) == before
