"""diffusers' own schedulers, driven as its pipelines do it: images from latents, and images there and back.

States are in float32, as diffusers keeps them. Cost is counted in calls of the network, by the network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ddim_ode.models import Model
from ddim_ode.predictions import PREDICTIONS

from .families import table_of
from .reference import End

SPACINGS: dict[str, dict[str, object]] = {
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
# The class in diffusers, settings, and spacings that it knows: those that follow this ODE. Left out, as far behind with
# an earlier model, are KDPM2Discrete, DPMSolverSinglestep of order 2 and the spacing 'beta'.
THEIRS: tuple[tuple[str, dict[str, object], tuple[str, ...]], ...] = (
    ("DDIMScheduler", {}, ("trailing",)),
    ("DPMSolverMultistepScheduler", {"solver_order": 2}, ("trailing", "karras", "exponential", "lu")),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}, ("trailing", "karras", "exponential", "lu")),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}, ("karras", "exponential")),
    ("UniPCMultistepScheduler", {"solver_order": 2}, ("trailing", "karras", "exponential")),
    ("UniPCMultistepScheduler", {"solver_order": 3}, ("trailing", "karras", "exponential")),
    ("DEISMultistepScheduler", {"solver_order": 2}, ("trailing", "karras", "exponential")),
    ("DEISMultistepScheduler", {"solver_order": 3}, ("trailing", "karras", "exponential")),
    ("EulerDiscreteScheduler", {}, ("trailing", "karras", "exponential")),
    ("HeunDiscreteScheduler", {}, ("trailing", "karras", "exponential")),
    ("LMSDiscreteScheduler", {}, ("trailing", "karras", "exponential")),
    ("PNDMScheduler", {"skip_prk_steps": True}, ("trailing",)),
)


def schedulers() -> Iterator[tuple[str, str, str, dict[str, object]]]:
    """Give each scheduler and spacing as a label, the name of the spacing, the class in diffusers, and its settings."""
    for kind, settings, spacings in THEIRS:
        label = " ".join([kind.removesuffix("Scheduler"), *(str(value) for value in settings.values())])
        for spacing in spacings:
            yield label, spacing, kind, settings | SPACINGS[spacing]


class Counted(nn.Module):
    """A network that counts its ``calls``."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        self.calls += 1
        output: Tensor = self.network(x, t)
        return output


def decode_with_scheduler(
    model: Model, x_T: Tensor, kind: str, options: Mapping[str, object], budget: int
) -> tuple[Tensor, str, int]:
    """Images ``(B, C, H, W)`` of the latents ``x_T``, the clean end they are at, and the calls of the network.

    With the scheduler ``kind``, a class of diffusers, as its pipelines use it, and the most steps that ``budget`` calls
    pay for. Where the scheduler fails, as some do on some schedules and spacings, the images are infinite; a warning
    says why.
    """
    import diffusers

    known = getattr(diffusers, kind)
    make = partial(known, **_schedule(model), prediction_type=model.prediction, **_known(known, options))
    make()  # of other settings than it takes it is not the scheduler that fails
    try:
        return _decode_with_scheduler(model, x_T, make, budget)
    except _NOT_THEIRS:
        raise
    except Exception as error:  # IndexError, AssertionError, and whatever else schedulers of diffusers run into
        return _lost(kind, budget, error, x_T), "zero", budget


_NOT_THEIRS = (torch.OutOfMemoryError, MemoryError)


def _lost(kind: str, budget: int, error: Exception, like: Tensor) -> Tensor:
    """The images of a scheduler of the class ``kind`` that fails: infinite, shaped ``like`` others. Warns of it."""
    warnings.warn(f"{kind} fails in {budget} evaluations: {type(error).__name__}: {error}", stacklevel=3)
    return torch.full_like(like, torch.inf, dtype=torch.float64)


def _decode_with_scheduler(model: Model, x_T: Tensor, make: Callable[[], Any], budget: int) -> tuple[Tensor, str, int]:
    """The same with the scheduler that ``make`` makes; fails as it does."""
    best: tuple[Tensor, str, int] | None = None
    for steps in (budget, budget // 2, budget // 2 + 1):
        scheduler = make()
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) > budget or (best and len(scheduler.timesteps) <= best[2]):
            continue
        network = Counted(model.network)
        x = x_T.float().to(model.device) * float(scheduler.init_noise_sigma)
        with torch.no_grad():
            for t in scheduler.timesteps:
                output = network(scheduler.scale_model_input(x, t), t.to(model.device).expand(len(x)))
                x = scheduler.step(output, t, x).prev_sample
        best = x.cpu().double(), "zero", network.calls
    if best is None:
        raise ValueError(f"it makes no image with {budget} evaluations")
    return best


def invert_with_ddim(model: Model, images: Tensor, spacing: str, steps: int) -> tuple[Tensor, End]:
    """The latents of ``images``, both ``(B, C, H, W)``, by ``DDIMInverseScheduler``, and where the walk to them ended.

    It is handed eps, whatever the network predicts: it would read the v of a timestep with the alpha_bar of the one
    before, and with an earlier model lose five to seven times as much on the way there and back.

    ``spacing``  of the timesteps, as diffusers calls it.
    """
    from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler(
        **_schedule(model), clip_sample=False, set_alpha_to_one=True, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    x = images.float().to(model.device)
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = model.network(x, t.to(model.device).expand(len(x)))
            eps = PREDICTIONS[model.prediction].eps(output, x, model.schedule.sigma(t.double()).to(x))
            x = scheduler.step(eps, t, x).prev_sample
    return x.cpu().double(), ("zero", int(scheduler.timesteps[-1]))


def there_and_back_with_ddim(model: Model, images: Tensor, spacing: str, steps: int) -> tuple[Tensor, Tensor, End, int]:
    """Latents by ``invert_with_ddim``, and what DDIM makes of them, both ``(B, C, H, W)`` like ``images``.

    With them come where the way to them ended, and the calls of both ways.
    """
    x_T, end = invert_with_ddim(model, images, spacing, steps)
    back, _, calls = decode_with_scheduler(model, x_T, "DDIMScheduler", SPACINGS[spacing], steps)
    return x_T, back, end, steps + calls


def there_and_back_with_dpm_solver(model: Model, images: Tensor, order: int, spacing: str, steps: int) -> Tensor:
    """What DPM-Solver++ of this ``order`` makes of the latents that its inverse makes of ``images``, ``(B, C, H, W)``.

    ``spacing``  a key of ``SPACINGS``. Each way takes a call of the network a step. Where the scheduler fails, or
    leads to no numbers, the images are infinite.
    """
    from diffusers.schedulers.scheduling_dpmsolver_multistep_inverse import DPMSolverMultistepInverseScheduler

    options = {"solver_order": order} | SPACINGS[spacing]
    scheduler = DPMSolverMultistepInverseScheduler(**_schedule(model), prediction_type=model.prediction, **options)
    scheduler.set_timesteps(steps)
    x = images.float().to(model.device)
    try:
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(model.network(x, t.to(model.device).expand(len(x))), t, x).prev_sample
    except _NOT_THEIRS:
        raise
    except Exception as error:  # where two of its timesteps round to one, IndexError
        return _lost("DPMSolverMultistepInverseScheduler", steps, error, images)
    back = decode_with_scheduler(model, x.cpu().double(), "DPMSolverMultistepScheduler", options, steps)[0]
    return back.nan_to_num(nan=torch.inf)


def _schedule(model: Model) -> dict[str, Any]:
    """The noise schedule of ``model`` as diffusers' schedulers take it, which do not count the betas."""
    alpha_bar = table_of(model).alpha_bar
    betas = torch.cat([1 - alpha_bar[:1], 1 - alpha_bar[1:] / alpha_bar[:-1]])
    return {"trained_betas": betas.tolist(), "num_train_timesteps": len(betas)}


def _known(kind: Any, options: Mapping[str, object]) -> dict[str, object]:
    """``options``, and of those that make a scheduler follow the ODE the ones that it knows."""
    fixed = {"clip_sample": False, "set_alpha_to_one": True, "lower_order_final": True}
    return {**{key: value for key, value in fixed.items() if key in signature(kind.__init__).parameters}, **options}
