"""What the README tells people to type works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def in_scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, but for the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands(in_scratch_folder: Path) -> None:
    commands = re.findall(r"^\$ python cli\.py (.+)$", README, flags=re.MULTILINE)
    assert len(commands) >= 6
    for command in commands:
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 0, f"{command}\n{result.output}"
    for name in ("photo.latent.pt", "photo.decoded.png", "photo.euler.png", "pair.png", "samples.png"):
        assert (in_scratch_folder / name).stat().st_size > 0


def test_python(in_scratch_folder: Path) -> None:
    (code,) = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
    )
    nfe, mse = run.stdout.split()
    assert nfe == "40"
    assert float(mse) < 1e-3


def test_set_up_by_hand_is_what_make_does() -> None:
    makefile = (
        (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(VENV)", ".venv").replace("$(PYTHON)", "python3")
    )
    by_hand = re.findall(r"^    (python3 -m venv .+|\.venv/bin/python -m pip .+)$", README, flags=re.MULTILINE)
    assert len(by_hand) == 2
    for line in by_hand:
        assert line.replace("install -c", "install --quiet -c") in makefile
    for target in re.findall(r"^    make (\w+)$", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile
