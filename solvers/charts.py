"""Changes of the independent variable: integrate in u(sigma) what is given in sigma.

    dx/du = (dsigma/du) field(sigma(u), x)

Sources of error live on very different scales of sigma; a variable that stretches the small ones lets an
adaptive method take steps of comparable size over the whole range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from solvers.base import Field


@dataclass(frozen=True)
class Chart:
    """A smooth, increasing change of variable u(sigma); all three maps take and return tensors of shape ``()``."""

    name: str
    u: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    dsigma_du: Callable[[Tensor], Tensor]

    def pull_back(self, field: Field) -> Field:
        """The same flow as ``field``, with u in place of sigma."""

        def field_in_u(u: Tensor, x: Tensor) -> Tensor:
            return self.dsigma_du(u) * field(self.sigma(u), x)

        return field_in_u


# Linear at 0, so that sigma = 0 is an ordinary point, and logarithmic from about 1 on.
ASINH = Chart("asinh", u=lambda s: s.asinh(), sigma=lambda u: u.sinh(), dsigma_du=lambda u: u.cosh())
