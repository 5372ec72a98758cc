"""The notebooks run from top to bottom, in a reduced setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "analysis" / "notebooks").glob("*.py"))
REDUCED = {"DDIM_ODE_IMAGES": "1", "DDIM_ODE_STRIDE": "100", "DDIM_ODE_STEPS": "5", "MPLBACKEND": "agg"}


def test_there_are_four() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, **REDUCED, "DDIM_ODE_OUT": str(tmp_path), "PYTHONPATH": str(path.parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if path.stem.startswith("01"):
        assert all(float(line.split()[-1]) < 1e-4 for line in done.stdout.splitlines() if "largest" in line)
