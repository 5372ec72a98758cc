"""Schedulers of diffusers: what their configurations say of a network, and which networks have no ODE.

A network of another kind often has the same shapes, and would be run without an error to nothing meaningful.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ddim_ode.kinds import ModelError
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.processes import EDM, EDM_PREDICTIONS, Flow, Process, VarianceExploding, VariancePreserving
from ddim_ode.schedule import schedule_from_diffusers

# Schedulers for networks of the variance-preserving process over a table of betas, by the class in diffusers; and
# whether they clip the prediction of x_0 unless told otherwise.
_OF_BETAS: dict[str, bool] = {
    "DDPMScheduler": True,
    "DDPMParallelScheduler": True,
    "DDIMScheduler": True,
    "DDIMParallelScheduler": True,
    "DDIMInverseScheduler": True,
    "RePaintScheduler": True,
    "PNDMScheduler": False,
    "DPMSolverMultistepScheduler": False,
    "DPMSolverMultistepInverseScheduler": False,
    "DPMSolverSinglestepScheduler": False,
    "DPMSolverSDEScheduler": False,
    "UniPCMultistepScheduler": False,
    "DEISMultistepScheduler": False,
    "SASolverScheduler": False,
    "EulerDiscreteScheduler": False,
    "EulerAncestralDiscreteScheduler": False,
    "HeunDiscreteScheduler": False,
    "LMSDiscreteScheduler": False,
    "KDPM2DiscreteScheduler": False,
    "KDPM2AncestralDiscreteScheduler": False,
    "IPNDMScheduler": False,
}
_OF_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_OF_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_OF_SCORES = ("ScoreSdeVeScheduler",)
_DISTILLED = "is for a distilled network, which leads to the image at once and has no slope"
# Why others are refused, by a part of the name.
_OTHERS: dict[str, str] = {
    "CMStochasticIterative": _DISTILLED,
    "LCM": _DISTILLED,
    "TCD": _DISTILLED,
    "SCM": _DISTILLED,
    "ScoreSdeVp": "is for a score in continuous time",
    "VQDiffusion": "is for pictures made of tokens",
    "Wuerstchen": "is for another noise schedule",
}


def process_of_scheduler(what: str, config: Mapping[str, Any], *, depth: int = 1) -> Process:
    """The process of the networks that a scheduler of this ``config``, its ``scheduler_config.json``, is for.

    Without a class it is a DDPM. It warns where the scheduler clips, which is no step of the ODE.

    ``what``   came with it, for messages.
    ``depth``  of the caller below the one that the warning is for.

    Raises:
        ModelError: for networks that have no ODE, or are not known, with the reason.
    """
    try:
        process = _process(config)
    except ValueError as error:
        raise ModelError(f"{what} is not supported: {error}") from error
    _warn_of_clipping(config, depth)
    return process


def _process(config: Mapping[str, Any]) -> Process:
    kind = str(config.get("_class_name", ""))
    reason = next((reason for part, reason in _OTHERS.items() if part in kind), None)
    if reason:
        raise ValueError(f"its scheduler, {kind}, {reason}")
    prediction = str(config.get("prediction_type", "epsilon"))
    if kind in _OF_FLOW or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        return Flow(timesteps=_number(config, "num_train_timesteps", 1000, whole=True))
    if kind in _OF_EDM:
        _check_prediction(prediction, EDM_PREDICTIONS[:2])
        ends = {name: _number(config, name, default) for name, default in (("sigma_min", 0.002), ("sigma_max", 80.0))}
        return EDM(prediction=prediction, sigma_data=_number(config, "sigma_data", 0.5), **ends)
    if kind in _OF_SCORES:
        ends = {name: _number(config, name, default) for name, default in (("sigma_min", 0.01), ("sigma_max", 1348.0))}
        return VarianceExploding(**ends)
    if kind and kind not in _OF_BETAS:
        raise ValueError(
            f"its scheduler, {kind}, is not known; if the network was trained as a DDPM, give it a "
            "scheduler_config.json of a DDPMScheduler"
        )
    _check_prediction(prediction, sorted(PREDICTIONS))
    return VariancePreserving(schedule_from_diffusers(config), prediction)


def _check_prediction(prediction: str, known: tuple[str, ...] | list[str]) -> None:
    if prediction not in known:
        raise ValueError(f"it predicts '{prediction}', which is not supported; supported are: {', '.join(known)}")


def _number(config: Mapping[str, Any], key: str, default: float, *, whole: bool = False) -> Any:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not abs(value) < 1e9:
        raise ValueError(f"{key} must be {'an integer' if whole else 'a number'}, but it is {f'{value!r:.60}'}")
    return value


def _warn_of_clipping(config: Mapping[str, Any], depth: int) -> None:
    clips = config.get("clip_sample", _OF_BETAS.get(str(config.get("_class_name", "")), False))
    for asked, option in ((clips, "clip_sample"), (config.get("thresholding", False), "thresholding")):
        if asked:
            warnings.warn(
                f"the model's scheduler asks for {option}; nothing is clipped here, because a clipped step is no step "
                "of the ODE",
                stacklevel=3 + depth,
            )
