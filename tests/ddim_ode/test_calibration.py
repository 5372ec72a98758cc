"""The calibration file: it survives its file, and is refused where it is damaged or of other weights."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from ddim_ode.calibration import Calibration, CalibrationError, Entry, Learned, load_calibration, save_calibration
from ddim_ode.grids import make_grid
from ddim_ode.processes import Flow
from ddim_ode.schedule import make_schedule

SCHEDULE = make_schedule()
GRID = make_grid(SCHEDULE, "log-snr", 3)
UP = Learned(((0.1, -0.2), (1e-17, 0.3, 0.5), (1.0,)), (0.01, 3.0, 157.0), (0.02, 7.0))
FITTED = Entry("reab2", GRID, UP, Learned(((0.0, 0.1),) * 3), {"decode": 0.01})
CALIBRATION = Calibration(
    "abc",
    (
        FITTED,
        Entry("euler", make_grid(SCHEDULE, "log-snr", 5), Learned(), Learned(), {}),
        replace(FITTED, guidance=2.5),
    ),
    {"guidance 1": {"seed": 0}},
)


def test_it_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    save_calibration(CALIBRATION, path)
    assert load_calibration(path, "abc", SCHEDULE) == CALIBRATION
    assert [entry.fitted for entry in CALIBRATION.entries] == [True, False, True]
    with pytest.raises(FileExistsError):
        save_calibration(CALIBRATION, path)


def test_a_file_of_the_first_format_is_for_no_guidance(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    save_calibration(replace(CALIBRATION, entries=CALIBRATION.entries[:2]), path)
    content = json.loads(path.read_text())
    content |= {"format": "ddim-ode calibration 1", "settings": {"seed": 0}}
    for entry in content["entries"].values():
        del entry["guidance"]
    path.write_text(json.dumps(content))
    old = load_calibration(path, "abc", SCHEDULE)
    assert old.entries == CALIBRATION.entries[:2]
    assert old.settings == {"guidance 1.0": {"seed": 0}}


def test_a_file_of_the_second_format_has_nothing_but_weights(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    save_calibration(CALIBRATION, path)
    content = json.loads(path.read_text()) | {"format": "ddim-ode calibration 2"}
    for entry in content["entries"].values():
        entry |= {way: entry[way]["weights"] for way in ("up", "down")}
    path.write_text(json.dumps(content))
    old = load_calibration(path, "abc", SCHEDULE)
    assert old.entries == tuple(replace(e, up=replace(e.up, told=(), sigmas=())) for e in CALIBRATION.entries)


def test_a_grid_that_ends_at_infinity_survives_its_file(tmp_path: Path) -> None:
    path, levels = tmp_path / "calibration.json", Flow().schedule
    grid = make_grid(levels, "trailing", 4, clean_end="sigma-min")
    assert grid.sigma_T == math.inf
    calibration = Calibration("abc", (Entry("angle-ab3", grid, Learned(), Learned(), {}),), {})
    save_calibration(calibration, path)
    assert "Infinity" not in path.read_text()
    assert load_calibration(path, "abc", levels) == calibration


def test_none_where_there_is_no_file(tmp_path: Path) -> None:
    assert load_calibration(tmp_path / "calibration.json", "abc", SCHEDULE) is None


def test_other_weights(tmp_path: Path) -> None:
    save_calibration(CALIBRATION, tmp_path / "calibration.json")
    with pytest.raises(CalibrationError, match=r"was made for other weights \(abc\) than these \(xyz\); make it anew"):
        load_calibration(tmp_path / "calibration.json", "xyz", SCHEDULE)


@pytest.mark.parametrize("spoil", ["format", "entries", "fingerprint", None])
def test_damaged_files(tmp_path: Path, spoil: str | None) -> None:
    path = tmp_path / "calibration.json"
    save_calibration(CALIBRATION, path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k != spoil}) if spoil else path.read_text()[:-9])
    with pytest.raises(CalibrationError, match="is damaged"):
        load_calibration(path, "abc", SCHEDULE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"up": UP.weights[:2]},
            "for each of 3 steps in both directions, or none at all, but there are 2 up and 3 down",
        ),
        ({"down": []}, "but there are 3 up and 0 down"),
        ({"up": []}, "but there are 0 up and 3 down"),
        ({"down": [[0.0, math.nan], [0.0], [0.0]]}, "numbers must be finite, but there is nan"),
        ({"grid": asdict(make_grid(SCHEDULE, "quad", 6)), "up": [], "down": []}, "3 steps has a grid of 6"),
        ({"grid": asdict(GRID) | {"sigmas": [0.0, 1.0, 2.0, math.inf]}}, "numbers must be finite, but there is inf"),
        ({"grid": asdict(GRID) | {"sigmas": [*GRID.sigmas[:3], 1e5]}}, "sigma = 100000 of the grid contradicts its"),
        ({"grid": asdict(GRID) | {"timesteps": [*GRID.timesteps[:3], 1e5]}}, r"timesteps must lie in \[0, 999\]"),
        (
            {"up": {"weights": UP.weights, "told": [0.01, math.inf, 157.0], "sigmas": []}},
            "numbers must be finite, but there is inf",
        ),
        ({"up": {"weights": UP.weights}}, "'told'"),
        ({"up": ["ab"] * 3}, "there must be a list of numbers, but there is 'ab'"),
    ],
)
def test_damaged_entries(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "calibration.json"
    save_calibration(CALIBRATION, path)
    content = json.loads(path.read_text())
    content["entries"]["3"] |= changes
    path.write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match=f"is damaged: .*{words}.*; make it anew with: calibrate"):
        load_calibration(path, "abc", SCHEDULE)
