"""An empty folder, a picture in it, and the content of a latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import PNG, call


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.png"
    path.write_bytes(PNG)
    return path


@pytest.fixture(scope="session")
def latent(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a latent file."""
    path = tmp_path_factory.mktemp("latent") / "good.png"
    path.write_bytes(PNG)
    result = call("encode", path, "--steps", "2", "--solver", "euler", "--model", tiny_model)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = torch.load(path.with_name("good.latent.pt"), weights_only=True)
    return content
