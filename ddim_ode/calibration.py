"""The calibration of a model: which solver and grid serve it best at a number of steps, with corrections fitted to it.

It is a JSON file beside the weights, ``calibration.json``, and says for which weights it holds. The numbers in it come
from solutions of the model's ODE; what they mean to a solver, this module does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite, isinf
from pathlib import Path
from typing import Any

from ddim_ode.files import read_file, write_file
from ddim_ode.grids import Grid
from ddim_ode.levels import Levels

FILE = "calibration.json"
# In the first one all was for guidance 1.
# In the second one there was nothing but weights.
FORMATS = ("ddim-ode calibration 1", "ddim-ode calibration 2", "ddim-ode calibration 3")

_INFINITE = "infinity"

# For each step the weights of the newest slopes and of the state.
Weights = tuple[tuple[float, ...], ...]


class CalibrationError(ValueError):
    """A calibration that is damaged, or was made for other weights."""


@dataclass(frozen=True)
class Learned:
    """What the steps in one direction of a grid were taught, in the order in which they are taken.

    ``weights``  corrections of each step; empty if the solver is taken as it is.
    ``told``     the noise level that the network is told in each step; empty if it is that of the node.
    ``sigmas``   the noise levels, rising, where they begin and end, between the ends of the grid; empty if they are
                 those of the grid.
    """

    weights: Weights = ()
    told: tuple[float, ...] = ()
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Entry:
    """What to take for the number of steps that ``grid`` has.

    ``solver``      its name.
    ``up, down``    what was learned for the two directions.
    ``scores``      errors on what it was not fitted to, and those of the default solver and grid, by name.
    ``guidance``    the one that it holds for.

    Raises:
        ValueError: if there are corrections, but not for each step in both directions.
    """

    solver: str
    grid: Grid
    up: Learned
    down: Learned
    scores: Mapping[str, float]
    guidance: float = 1.0

    def __post_init__(self) -> None:
        up, down = len(self.up.weights), len(self.down.weights)
        if (up, down) not in ((0, 0), (self.grid.steps, self.grid.steps)):
            raise ValueError(
                f"there must be corrections for each of {self.grid.steps} steps in both directions, or none at all, "
                f"but there are {up} up and {down} down"
            )
        for told in (self.up.told, self.down.told):
            if len(told) not in (0, up) or not all(sigma > 0 for sigma in told):
                raise ValueError(
                    f"there must be a noise level above 0 for each of {up} steps, or none, but they are {told}"
                )

    @property
    def fitted(self) -> bool:
        """Whether the steps of the solver are corrected."""
        return bool(self.up.weights)

    @property
    def name(self) -> str:
        """The number of steps, with the guidance where it is not 1."""
        return f"{self.grid.steps}" if self.guidance == 1 else f"{self.grid.steps} at guidance {self.guidance!r}"


@dataclass(frozen=True)
class Calibration:
    """The entries, one for each number of steps at a guidance, that hold for the weights of this ``fingerprint``.

    ``settings``  say how they were made, by the names of those that were made together.
    """

    fingerprint: str
    entries: tuple[Entry, ...]
    settings: Mapping[str, Any]

    def check_made_for(self, fingerprint: str, what: str = "the calibration") -> None:
        """Raise CalibrationError if it was made for weights of another ``fingerprint``."""
        if self.fingerprint != fingerprint:
            raise CalibrationError(
                f"{what} was made for other weights ({self.fingerprint[:12]}) than these ({fingerprint[:12]}); make it "
                "anew with: calibrate"
            )

    def joined(self, before: Calibration) -> Calibration:
        """This one, and the entries of ``before``, of the same weights, for other steps or guidance."""
        new = {(entry.grid.steps, entry.guidance) for entry in self.entries}
        kept = tuple(entry for entry in before.entries if (entry.grid.steps, entry.guidance) not in new)
        return replace(self, entries=self.entries + kept, settings={**before.settings, **self.settings})

    def find(self, steps: int, guidance: float = 1.0) -> Entry | None:
        """The entry for so many steps at this guidance, if there is one."""
        return next((e for e in self.entries if (e.grid.steps, e.guidance) == (steps, guidance)), None)


def join_calibration(calibration: Calibration, path: Path, schedule: Levels) -> Calibration:
    """``calibration``, and what the file ``path`` holds of other steps or guidance for the same weights, if it does."""
    try:
        before = load_calibration(path, calibration.fingerprint, schedule)
    except CalibrationError:  # to be replaced
        return calibration
    return calibration if before is None else calibration.joined(before)


def save_calibration(calibration: Calibration, path: Path | str, *, overwrite: bool = False) -> None:
    """Write the file ``path``; it is there whole or not at all.

    Raises:
        OSError: if it exists and ``overwrite`` is false, or cannot be written.
    """
    content = {
        "format": FORMATS[-1],
        "fingerprint": calibration.fingerprint,
        "settings": dict(calibration.settings),
        "entries": {entry.name: entry_content(entry) for entry in calibration.entries},
    }
    write_file(Path(path), (json.dumps(content, indent=1) + "\n").encode(), overwrite=overwrite)


def load_calibration(path: Path | str, fingerprint: str, schedule: Levels) -> Calibration | None:
    """The calibration in ``path`` for the weights of this ``fingerprint``; None if there is no such file.

    ``schedule``  the one of the weights, to which its grids must belong.

    Raises:
        CalibrationError: if it is damaged, or was made for other weights.
    """
    path = Path(path)
    if not path.exists():
        return None
    content = read_file(path, "calibration", CalibrationError)
    try:
        content = json.loads(content)
        if content["format"] not in FORMATS:
            raise ValueError(f"it is not of the format '{FORMATS[-1]}'")
        entries = tuple(map(read_entry, content["entries"].values()))
        for name, entry in zip(content["entries"], entries, strict=True):
            if name != entry.name:
                raise ValueError(f"the entry for {name:.60} steps has a grid of {entry.name}")
            entry.grid.check_belongs(schedule)
        settings = dict(content["settings"])
        if content["format"] == FORMATS[0]:
            settings = {f"guidance {1.0!r}": settings}
        calibration = Calibration(str(content["fingerprint"]), entries, settings)
    except Exception as error:  # whatever a wrong structure provokes
        raise CalibrationError(f"the calibration '{path}' is damaged: {error}; make it anew with: calibrate") from error
    calibration.check_made_for(fingerprint, f"the calibration '{path}'")
    return calibration


def entry_content(entry: Entry) -> dict[str, Any]:
    """What JSON holds of an ``entry``: names, numbers, and lists of them."""
    content = asdict(entry)
    # JSON has no infinity, which is where noise alone is.
    content["grid"]["sigmas"] = [_INFINITE if isinf(sigma) else sigma for sigma in entry.grid.sigmas]
    return content


def read_entry(content: Mapping[str, Any]) -> Entry:
    """The entry of such a ``content``. Whatever a wrong structure provokes is left to the caller."""
    grid = content["grid"]
    *sigmas, last = grid["sigmas"]
    return Entry(
        solver=str(content["solver"]),
        grid=Grid(
            str(grid["name"]),
            str(grid["clean_end"]),
            (*_numbers(sigmas), *([inf] if last == _INFINITE else _numbers([last]))),
            _numbers(grid["timesteps"]),
        ),
        up=_learned(content["up"]),
        down=_learned(content["down"]),
        scores=dict(zip(content["scores"], _numbers(list(content["scores"].values())), strict=True)),
        guidance=_numbers([content.get("guidance", 1.0)])[0],
    )


def _learned(content: Mapping[str, Any] | list[Any]) -> Learned:
    if isinstance(content, list):  # of the older formats
        content = {"weights": content, "told": [], "sigmas": []}
    weights = tuple(map(_numbers, content["weights"]))
    return Learned(weights, _numbers(content["told"]), _numbers(content["sigmas"]))


def _numbers(content: list[Any]) -> tuple[float, ...]:
    if not isinstance(content, list):
        raise ValueError(f"there must be a list of numbers, but there is {f'{content!r:.60}'}")
    numbers = tuple(map(float, content))
    if not all(map(isfinite, numbers)):
        raise ValueError(f"numbers must be finite, but there is {next(x for x in numbers if not isfinite(x))}")
    return numbers
