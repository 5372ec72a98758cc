"""The notebooks run from top to bottom, in a reduced setting."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_pipelines import build

NOTEBOOKS = sorted((Path(__file__).parents[2] / "analysis" / "notebooks").glob("*.py"))
REDUCED = {"DDIM_ODE_IMAGES": "1", "DDIM_ODE_STRIDE": "100", "DDIM_ODE_STEPS": "5", "MPLBACKEND": "agg"}


def test_there_are_five() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion, whose pictures mean nothing."""
    folder = tmp_path_factory.mktemp("pipeline") / "stable-diffusion"
    build("SD 1.5").save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, pipeline: Path, tmp_path: Path) -> None:
    places = {"DDIM_ODE_OUT": str(tmp_path), "DDIM_ODE_PIPELINE": str(pipeline), "PYTHONPATH": str(path.parents[2])}
    done = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, **REDUCED, **places},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    if path.stem.startswith("01"):
        assert all(float(line.split()[-1]) < 1e-4 for line in done.stdout.splitlines() if "largest" in line)
    if path.stem.startswith("05"):
        for part in (
            "the ODE alone: MSE",
            "| stable-diffusion | vp | 5 | 5 | DDIM inverse",
            "asked      'a photo of a horse'",
        ):
            assert part in done.stdout
