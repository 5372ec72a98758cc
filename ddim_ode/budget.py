"""What a wanted quality costs: the least effort that reaches it, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ddim_ode.codec import Method, S, decode_solution, encode_solution
from ddim_ode.grids import Grid
from ddim_ode.images import pixel_mse, psnr
from ddim_ode.ode import ProbabilityFlowODE


def least(quality: Callable[[int], float], target: float, most: int) -> int | None:
    """The least effort in [1, ``most``] whose ``quality`` is ``target`` or more; None if none that it tries is so good.

    By doubling and then halving. What is returned has been tried; a lesser one is missed if between it and this one
    the quality is below the target once more.
    """
    failed, effort = 0, min(1, most)
    while effort > failed and not quality(effort) >= target:
        failed, effort = effort, min(2 * effort, most)
    if effort <= failed:
        return None
    while effort - failed > 1:
        middle = (failed + effort) // 2
        if quality(middle) >= target:
            effort = middle
        else:
            failed = middle
    return effort


def worst_psnr(
    ode: ProbabilityFlowODE, batches: Sequence[Tensor], grid: Grid, there: Method[S], back: Method[S]
) -> float:
    """The PSNR, in dB, of the image that comes back worst, encoded by ``there`` and decoded by ``back``.

    ``batches``  of images, each ``(B, C, H, W)``, pixels in [-1, 1]. Each way of each batch has the ODE's limit to
                 itself. Errors are those of ``encode``.
    """
    errors: list[float] = []
    for x_0 in batches:
        ode.reset()
        found = encode_solution(ode, x_0, grid, there)
        ode.reset()
        errors += pixel_mse(x_0, decode_solution(ode, found.x, grid, back, found.companion).x).tolist()
    return min(map(psnr, errors))
