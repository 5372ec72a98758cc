"""What the README tells people to type works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from ddim_ode.analysis.comparison import main as compare
from ddim_ode.analysis.comparison_plot import GOALS
from ddim_ode.analysis.overhead import main as measure_overhead
from ddim_ode.analysis.quality import DistanceRow, ErrorRow, error_table
from ddim_ode.analysis.quality import table as quality_table
from ddim_ode.analysis.recognition import ClassRow, class_table
from ddim_ode.analysis.reconstruction import main as reconstruct
from ddim_ode.analysis.rows import load_rows
from ddim_ode.cli import main
from ddim_ode.models import EMBEDDED, load_model
from ddim_ode.work import load_json

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


@pytest.mark.parametrize(
    ("name", "command", "count"),
    [
        ("reconstruction", reconstruct, 5),
        ("comparison", compare, len(GOALS) + 1),
    ],
)
def test_tables_are_what_was_measured(name: str, command: click.Command, count: int, in_scratch_folder: Path) -> None:
    """The command finds its rows measured; what it prints of them is what the README says."""
    results = in_scratch_folder / "analysis" / "results"
    shutil.copytree(ROOT / "analysis" / "results", results)
    settings = results / name / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"torch": torch.__version__}))
    (options,) = re.findall(rf"^ +python -m analysis\.{name} (.+)$", README.replace("\\\n", " "), flags=re.MULTILINE)
    printed = CliRunner().invoke(command, options.split(), catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    _, *body = [line for line in printed.stdout.splitlines() if line.startswith("| ")]
    assert len(body) == count
    assert all(line in README for line in body)


def test_the_model_that_ships_is_the_one_that_was_measured() -> None:
    folder = ROOT / "analysis" / "results" / "quality"
    errors, distances = load_rows(ErrorRow, folder / "errors.csv"), load_rows(DistanceRow, folder / "distances.csv")
    assert load_json(folder / "settings.json")["models"][EMBEDDED["default"].name] == load_model().fingerprint
    classes = load_rows(ClassRow, folder / "classes.csv")
    for table in (quality_table(distances), error_table(errors), class_table(classes)):
        assert table in README


@pytest.mark.parametrize("name", EMBEDDED)
def test_cards_are_of_the_weights_beside_them(name: str) -> None:
    assert load_model(name).fingerprint in (EMBEDDED[name] / "README.md").read_text(encoding="utf-8")


def test_the_overhead_is_measured_as_it_says(in_scratch_folder: Path) -> None:
    assert "`python -m analysis.overhead`" in README
    quick = ["--solver", "euler", "--steps", "1", "--repeats", "1", "--batch-size", "1"]
    assert CliRunner().invoke(measure_overhead, quick, catch_exceptions=False).exit_code == 0


def test_python(in_scratch_folder: Path) -> None:
    """Each block by itself: a session with the model that ships, and the ODE of a network that is a function."""
    blocks = re.findall(r"```python\n(.+?)```", README, flags=re.DOTALL)
    assert len(blocks) == 2
    for code, expected, most in zip(blocks, ("10", "40"), (1e-4, 1e-5), strict=True):
        run = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        )
        nfe, mse = run.stdout.split()
        assert nfe == expected
        assert float(mse) < most
    assert (in_scratch_folder / "photo.png").stat().st_size > 0


def test_learning_in_python(tiny_model: Path) -> None:
    """With a model that takes seconds."""
    (code,) = re.findall(r"\n\n((?: {6}.*\n|\n)+)", README[README.index("In Python, for pipelines") :])[:1]
    found: dict[str, list[object]] = {}
    exec(textwrap.dedent(code).replace('"default"', repr(str(tiny_model))), found)
    assert len(found["pictures"]) == 16


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
