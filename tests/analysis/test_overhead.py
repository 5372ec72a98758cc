"""The overhead script measures each solver and splits its time."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from click.testing import CliRunner
from torch import nn

from ddim_ode.analysis.overhead import OverheadRow, main
from ddim_ode.analysis.rows import load_rows
from ddim_ode.analysis.timing import Stopwatch


def test_rows_and_table(tiny_model: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny_model), "--out", str(tmp_path), "--solver", "euler", "--solver", "rk4"]
    result = CliRunner().invoke(main, [*options, "--steps", "3", "--repeats", "2", "--batch-size", "2"])
    assert result.exit_code == 0, result.output
    rows = load_rows(OverheadRow, tmp_path / "rows.csv")
    assert [(row.solver, row.nfe, row.repeat) for row in rows] == [
        ("euler", 3, 0),
        ("rk4", 12, 0),
        ("euler", 3, 1),
        ("rk4", 12, 1),
    ]
    for row in rows:
        assert row.solve > row.inside > 0
    assert sum(row.stub for row in rows) < sum(row.solve for row in rows)
    assert "| euler | 3 |" in result.output


def test_goes_on_where_it_was_stopped(tiny_model: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny_model), "--out", str(tmp_path), "--steps", "1", "--batch-size", "1"]
    CliRunner().invoke(main, [*options, "--solver", "euler", "--repeats", "1"], catch_exceptions=False)
    before = load_rows(OverheadRow, tmp_path / "rows.csv")
    more = [*options, "--solver", "euler", "--solver", "rk4", "--repeats", "2"]
    assert CliRunner().invoke(main, more, catch_exceptions=False).exit_code == 0
    rows = load_rows(OverheadRow, tmp_path / "rows.csv")
    assert rows[:1] == before
    assert {(row.solver, row.repeat) for row in rows} == {(name, i) for name in ("euler", "rk4") for i in (0, 1)}
    assert len(rows) == 4


def test_a_stopwatch_runs_inside_of_its_module_alone() -> None:
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return x

    module = Slow()
    with Stopwatch(module) as watch:
        module(torch.zeros(1))
        time.sleep(0.5)
        module(torch.zeros(1))
    assert 0.04 <= watch.seconds < 0.5
    before = watch.seconds
    module(torch.zeros(1))
    assert watch.seconds == before
