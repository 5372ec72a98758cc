"""The overhead script measures each solver and splits its time."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from analysis.common import load_rows
from analysis.overhead import Row, main


def test_rows_and_table(tiny_model: Path, tmp_path: Path) -> None:
    options = ["--model", str(tiny_model), "--out", str(tmp_path), "--solver", "euler", "--solver", "rk4"]
    result = CliRunner().invoke(main, [*options, "--steps", "3", "--repeats", "2", "--batch-size", "2"])
    assert result.exit_code == 0, result.output
    rows = load_rows(Row, tmp_path / "rows.csv")
    assert [(row.solver, row.nfe, row.repeat) for row in rows] == [
        ("euler", 3, 0),
        ("rk4", 12, 0),
        ("euler", 3, 1),
        ("rk4", 12, 1),
    ]
    for row in rows:
        assert row.solve > row.inside > 0
        assert row.stub < row.solve
    assert "| euler | 3 |" in result.output
