"""Rows: two analyses in one folder do not lose each other's."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ddim_ode.analysis import rows
from ddim_ode.analysis.rows import Results, load_rows
from ddim_ode.work import WorkError, load_json

ROOT = Path(__file__).parents[2]
OTHER = """
import sys
from pathlib import Path
from tests.analysis.test_rows import Number
from ddim_ode.analysis.rows import Results
Results(Number, Path(sys.argv[1]), {"seed": 0}).add(Number(2))
"""


@dataclass(frozen=True)
class Number:
    """A row."""

    value: int


def test_an_analysis_keeps_its_folder_to_itself(tmp_path: Path) -> None:
    """And once it has ended another one adds to its rows."""

    def other() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", OTHER, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    results = Results(Number, tmp_path, {"seed": 0})
    results.add(Number(1))
    assert f"WorkError: another process is at work in '{tmp_path}'" in other().stderr
    results.add(Number(3))
    del results
    assert other().returncode == 0
    assert [row.value for row in load_rows(Number, tmp_path / "rows.csv")] == [1, 3, 2]


def test_settings_say_with_which_commits_rows_were_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, commit in enumerate(("one", "two", "one")):
        monkeypatch.setattr(rows, "git_commit", lambda commit=commit: commit)
        results = Results(Number, tmp_path, {"seed": 0})
        results.add(Number(i))
        del results
    assert load_json(tmp_path / "settings.json") == {"seed": 0, "commits": ["one", "two"]}
    Results(Number, tmp_path, {"seed": 0}).replace([])
    assert load_rows(Number, tmp_path / "rows.csv") == []


@pytest.mark.parametrize("text", ["value\n1\nx\n", "value\n1,2\n", 'value\n"1\n', "value\n\n"])
def test_damaged_rows_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(WorkError, match=r"rows\.csv' is damaged: .*; delete it"):
        load_rows(Number, tmp_path / "rows.csv")
