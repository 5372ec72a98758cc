"""What data sets cost: the driver is measured over stubs, and the crew beside processes that know nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ddim_ode.analysis import dataset_speed
from ddim_ode.analysis.dataset_speed import DatasetRow, compared, drive, main, ratio, table
from ddim_ode.analysis.options import ModelChoice
from ddim_ode.analysis.rows import load_rows
from ddim_ode.session.dataset.manifest import read_lines
from ddim_ode.session.dataset.shards import Shard, list_shards


def test_the_driver_is_measured_over_a_whole_data_set(tmp_path: Path) -> None:
    """Of stubs: each has a row, and a line of the manifest; a second run writes nothing."""
    for _ in range(2):
        busy, wall, _ = drive(tmp_path, 600)
        assert busy > 0
        assert wall > 0
        assert sorted(len(Shard(path).head.rows) for path in list_shards(tmp_path)) == [88, 256, 256]
        assert len({line.identity for line in read_lines(tmp_path)}) == 600


def test_rows_figure_and_table(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_speed, "_alone", lambda function, *arguments: function(*arguments))
    options = ["--model", str(tiny_model), "--out", str(tmp_path), "--count", "0", "--size", "100", "--repeats", "1"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 0, result.output
    assert [(row.task, row.pictures) for row in load_rows(DatasetRow, tmp_path / "rows.csv")] == [
        ("driver", 100),
        ("again", 100),
    ]
    assert (tmp_path / "dataset_speed.png").exists()
    assert "| 100 |" in result.output
    again = CliRunner().invoke(main, options)
    assert again.output == result.output


def test_a_crew_and_processes_apart_encode_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call of the network takes a fifth of a second, and so do pictures of either."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.setenv("SEEN", str(tmp_path))
    choice = ModelChoice("killed_networks:slow", "cpu")
    apart, crew = compared(choice, 60, 2, 2, repeat=3)
    assert (apart.task, apart.pictures, apart.repeat) == ("apart", 60, 3)
    assert (crew.task, crew.repeat) == ("crew", 3)
    assert 8 <= crew.pictures <= 58
    # On a busy machine it takes longer.
    assert 0.09 < apart.seconds / apart.pictures < 0.4
    assert 0.09 < crew.seconds / crew.pictures < 0.4
    with pytest.raises(ValueError, match="2 shards are too few to tell how fast they are made"):
        list(compared(choice, 4, 2, 2, repeat=3))


def test_the_ratio_is_of_rates() -> None:
    rows = [DatasetRow("apart", 100, 1, 10.0, 0.0), DatasetRow("crew", 90, 1, 10.0, 0.0)]
    assert ratio(rows, 1) == pytest.approx(0.9)
    assert "| 90 | 111.11 | 0.900 |" in table(rows)
