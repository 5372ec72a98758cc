"""What adaptive solvers share: tolerances and a chart; and for the adapters the watch over each slope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from .base import Solver, check_finite, check_grid
from .charts import ASINH, Chart, chart_named

if TYPE_CHECKING:
    from torch import Tensor

    from .base import Field

# The first trial step, as a part of the interval in the chart. Backends that guess it for themselves may probe
# the field outside the interval; a step that is too long is rejected, one that is too short soon grows.
FIRST_STEP = 0.01


@dataclass(frozen=True, kw_only=True)
class AdaptiveSolver(Solver):
    """A method that chooses its steps from an estimate of their error; of the grid it uses only the two ends.

    ``rtol``, ``atol``   bounds on the error of one step, relative to the state and absolute.
    ``chart``            the variable in which the steps are chosen.

    The adapters choose them for the batch as a whole: a member's result depends, within tolerance, on its batch.
    """

    adaptive: ClassVar[bool] = True
    tunable: ClassVar[tuple[str, ...]] = ("rtol", "atol")

    rtol: float = 1e-5
    atol: float = 1e-5
    chart: Chart = ASINH

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not 1e-13 <= value < 1:
                raise ValueError(f"{name} must be at least 1e-13 and below 1, but it is {value:g}")

    def nfe(self, steps: int) -> None:
        return None

    @property
    def settings(self) -> dict[str, str | float]:
        return {**super().settings, "chart": self.chart.name}

    def tuned(self, settings: Mapping[str, object]) -> Solver:
        """Beside the tolerances, ``chart`` by its name."""
        numbers = {key: value for key, value in settings.items() if key != "chart"}
        chart = chart_named(str(settings["chart"])) if "chart" in settings else self.chart
        same = super().tuned(numbers)
        return replace(same, chart=chart, positive=chart.positive)  # type: ignore[call-arg]  # it is of this class


class Watch:
    """A field that remembers the last sigma it was asked for, and refuses to return NaN or infinity.

    ``inside``  True while the field runs, and for good once it has raised.
    """

    def __init__(self, field: Field, name: str, grid: Tensor) -> None:
        check_grid(grid)
        self._field = field
        self._name = name
        self.sigma = float(grid[0])
        self.inside = False
        self._end = float(grid[-1])

    def __call__(self, sigma: Tensor, x: Tensor) -> Tensor:
        """The slope of the field at ``sigma``, shape ``()``, and ``x``, shape ``(B, ...)``; the shape of ``x``."""
        self.sigma = float(sigma)
        self.inside = True
        slope = self._field(sigma, x)
        self.inside = False
        check_finite(slope, self._name, "slope", sigma)
        return slope

    def stopped(self, message: str) -> str:
        """The sentence for a backend that gave up with ``message``."""
        return f"{self._name} stopped at sigma = {self.sigma:.6g} of {self._end:.6g}: {message}. Try a larger rtol."
