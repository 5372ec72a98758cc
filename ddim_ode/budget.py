"""What a wanted quality costs: the least effort that reaches it, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ddim_ode.codec import Solve, decode_pair, encode_pair
from ddim_ode.grids import Grid
from ddim_ode.images import pixel_mse, psnr
from ddim_ode.ode import ProbabilityFlowODE


def least(reaches: Callable[[int], bool], most: int) -> int | None:
    """The least number in [1, ``most``] that ``reaches``, by doubling and then halving; None if none of those tried.

    What is returned has been tried. Where a larger number may reach less, a smaller one that would do may be missed.
    """
    failed, number = 0, min(1, most)
    while number > failed and not reaches(number):
        failed, number = number, min(2 * number, most)
    if number <= failed:
        return None
    while number - failed > 1:
        middle = (failed + number) // 2
        if reaches(middle):
            number = middle
        else:
            failed = middle
    return number


def worst_psnr(ode: ProbabilityFlowODE, batches: Sequence[Tensor], grid: Grid, there: Solve, back: Solve) -> float:
    """The PSNR, in dB, of the image that comes back worst, encoded by ``there`` and decoded by ``back``.

    ``batches``  of images, each ``(B, C, H, W)``, pixels in [-1, 1]. Each way of each batch has the ODE's limit to
                 itself. Errors are those of ``encode``.
    """
    errors: list[float] = []
    for x_0 in batches:
        ode.reset()
        x_T, companion = encode_pair(ode, x_0, grid, there)
        ode.reset()
        errors += pixel_mse(x_0, decode_pair(ode, x_T, companion, grid, back)).tolist()
    return min(map(psnr, errors))
