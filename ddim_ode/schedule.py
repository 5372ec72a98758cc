"""The noise schedule: how much noise there is at each timestep of training.

Notation, after Song et al., "Denoising Diffusion Implicit Models" (arXiv 2010.02502):

``t``          index of training, 0 ... T - 1; index 0 already has noise. Fractional values are allowed.
``alpha_bar``  prod_{i<=t} (1 - beta_i), falling from about 1 to about 0. DDIM calls it alpha_t.
``sigma``      sqrt((1 - alpha_bar) / alpha_bar), rising: the noise level of x_bar = x / sqrt(alpha_bar).

alpha_bar may end at 0, with zero terminal SNR (Lin et al., arXiv 2305.08891): sigma is infinite there.

Between the indices log sigma is linear in t, as in k-diffusion, and 1 / sigma before an infinite one. sigma = 0, the
clean image, lies below index 0; its timestep is 0, because that is the least noise a network has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class NoiseSchedule:
    """``alpha_bar`` for each timestep of training: float64 on the CPU, shape ``(T,)``, strictly falling in (0, 1).

    The last one may be 0.

    Raises:
        ValueError: if the table is not such a one.
    """

    def __init__(self, name: str, alpha_bar: Tensor) -> None:
        if not alpha_bar.is_floating_point():
            raise ValueError(f"alpha_bar of schedule '{name}' must be of real numbers, but it is {alpha_bar.dtype}")
        alpha_bar = alpha_bar.detach().to("cpu", torch.float64)
        if alpha_bar.ndim != 1 or len(alpha_bar) < 2:
            raise ValueError(f"alpha_bar must have shape (T,) with T >= 2, but its shape is {tuple(alpha_bar.shape)}")
        if not bool(((alpha_bar[:-1] > 0) & (alpha_bar[:-1] < 1) & (alpha_bar[-1] >= 0)).all()):
            raise ValueError(
                f"alpha_bar of schedule '{name}' must lie strictly between 0 and 1, or be 0 at its end, but it spans "
                f"[{float(alpha_bar.min()):g}, {float(alpha_bar.max()):g}]"
            )
        if not bool((alpha_bar.diff() < 0).all()):
            raise ValueError(f"alpha_bar of schedule '{name}' must fall strictly with t")
        self.name = name
        self.alpha_bar = alpha_bar
        self._log_sigma = ((1 - alpha_bar) / alpha_bar).log() / 2

    def __len__(self) -> int:
        """The number T of timesteps of training."""
        return len(self.alpha_bar)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``levels.levels_from`` makes the same schedule of."""
        return {"kind": "table", "name": self.name, "alpha_bar": self.alpha_bar}

    @property
    def sigma_min(self) -> float:
        """The smallest sigma of training, at t = 0."""
        return float(self._log_sigma[0].exp())

    @property
    def sigma_max(self) -> float:
        """The largest sigma of training, at t = T - 1; infinite where alpha_bar is 0."""
        return float(self._log_sigma[-1].exp())

    def sigma(self, t: Tensor | float) -> Tensor:
        """sigma at timestep ``t``, any shape, within [0, T - 1]; float64, same shape.

        Raises:
            ValueError: if a timestep lies outside [0, T - 1].
        """
        t = check_timesteps(t, len(self))
        left = t.floor().long().clamp(max=len(self) - 2)
        low, high, part = self._log_sigma[left], self._log_sigma[left + 1], t - left
        return torch.where(high.isinf(), low - torch.log1p(-part), low + part * (high - low).nan_to_num(posinf=0)).exp()

    def t(self, sigma: Tensor | float) -> Tensor:
        """Timestep of ``sigma``, any shape; float64, same shape, within [0, T - 1].

        The inverse of ``sigma(t)``; below sigma_min it is 0 and above sigma_max T - 1, the ends of training. That
        holds below sigma = 0 too, where adaptive methods look when they step over the clean end.
        """
        log_sigma = torch.as_tensor(sigma, dtype=torch.float64, device="cpu").clamp(min=0).log()
        log_sigma = log_sigma.clamp(float(self._log_sigma[0]), float(self._log_sigma[-1]))
        right = torch.searchsorted(self._log_sigma, log_sigma).clamp(1, len(self) - 1)
        low, high = self._log_sigma[right - 1], self._log_sigma[right]
        part = torch.where(high.isinf(), 1 - (low - log_sigma).exp(), (log_sigma - low) / (high - low))
        return right - 1 + part

    def matches(self, other: object) -> bool:
        """Whether both have the same table, up to the rounding of its making."""
        if not isinstance(other, NoiseSchedule):
            return False
        return len(self) == len(other) and torch.allclose(self.alpha_bar, other.alpha_bar, rtol=1e-9, atol=0)


def check_timesteps(t: Tensor | float, count: int) -> Tensor:
    """``t``, any shape, in float64 on the CPU; ValueError if some of it lies outside of the ``count`` timesteps."""
    t = torch.as_tensor(t, dtype=torch.float64, device="cpu")
    if not bool(((t >= 0) & (t <= count - 1)).all()):
        raise ValueError(f"timesteps must lie in [0, {count - 1}], but they span [{float(t.min())}, {float(t.max())}]")
    return t


def _linear(beta_start: float, beta_end: float, steps: int) -> Tensor:
    return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)


def _scaled_linear(beta_start: float, beta_end: float, steps: int) -> Tensor:
    return torch.linspace(math.sqrt(beta_start), math.sqrt(beta_end), steps, dtype=torch.float64) ** 2


def _cosine(beta_start: float, beta_end: float, steps: int) -> Tensor:
    """Nichol and Dhariwal, arXiv 2102.09672, Eq. (17); the two betas play no part."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def _sigmoid(beta_start: float, beta_end: float, steps: int) -> Tensor:
    ramp = torch.linspace(-6, 6, steps, dtype=torch.float64)
    return torch.sigmoid(ramp) * (beta_end - beta_start) + beta_start


# Betas by the name that diffusers gives them.
BETA_SCHEDULES: dict[str, Callable[[float, float, int], Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "sigmoid": _sigmoid,
}


def make_schedule(
    name: str = "linear", *, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
) -> NoiseSchedule:
    """A named schedule with ``timesteps`` = T indices; the defaults are DDPM's (Ho et al., arXiv 2006.11239, 4).

    Raises:
        ValueError: for an unknown name, fewer than 2 timesteps, or betas that are not inside (0, 1).
    """
    if name not in BETA_SCHEDULES:
        raise ValueError(f"unknown schedule '{name}'; choose one of: {', '.join(sorted(BETA_SCHEDULES))}")
    if timesteps < 2:
        raise ValueError(f"a schedule needs at least 2 timesteps, but it has {timesteps}")
    return _from_betas(f"{name}-{timesteps}", BETA_SCHEDULES[name](beta_start, beta_end, timesteps))


def schedule_from_diffusers(config: Mapping[str, object]) -> NoiseSchedule:
    """The schedule of a diffusers ``scheduler_config.json``; absent keys have the defaults of diffusers.

    Raises:
        ValueError: for a schedule that is unknown here, or is none.
    """
    plain = _without_rescaling(config)
    if not config.get("rescale_betas_zero_snr"):
        return plain
    # Lin et al., arXiv 2305.08891, Algorithm 1: sqrt(alpha_bar) is shifted to end at 0, and scaled to begin as before.
    root = plain.alpha_bar.sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return NoiseSchedule(f"{plain.name}-zero-snr", root**2)


def _without_rescaling(config: Mapping[str, object]) -> NoiseSchedule:
    betas = config.get("trained_betas")
    if betas is not None:
        try:
            table = torch.as_tensor(betas, dtype=torch.float64)
        except TypeError as error:
            raise ValueError(f"trained_betas must be a list of numbers: {error}") from error
        if table.ndim != 1:
            raise ValueError(f"trained_betas must have shape (T,) with T >= 2, but its shape is {tuple(table.shape)}")
        return _from_betas(f"trained_betas-{len(table)}", table)
    return make_schedule(
        str(config.get("beta_schedule", "linear")),
        timesteps=_whole(config, "num_train_timesteps", 1000),
        beta_start=_number(config, "beta_start", 1e-4),
        beta_end=_number(config, "beta_end", 0.02),
    )


_MOST_TIMESTEPS = 1_000_000


def _whole(config: Mapping[str, object], key: str, default: int) -> int:
    value = _number(config, key, default)
    if value != int(value):
        raise ValueError(f"{key} must be an integer, but it is {value!r}")
    return int(value)


def _number(config: Mapping[str, object], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise ValueError(f"{key} must be a number, but it is {f'{value!r:.60}'}")
    if abs(value) > _MOST_TIMESTEPS:
        raise ValueError(f"{key} must be {_MOST_TIMESTEPS} at most, but it is {f'{value!r:.60}'}")
    return value


def _from_betas(name: str, betas: Tensor) -> NoiseSchedule:
    if not bool(((betas > 0) & (betas < 1)).all()):
        raise ValueError(f"betas of '{name}' must lie in (0, 1), but span [{float(betas.min())}, {float(betas.max())}]")
    return NoiseSchedule(name, torch.cumprod(1 - betas, dim=0))
