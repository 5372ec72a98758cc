"""Kinds of models: what a folder in diffusers' format says it is, and why some of them are no DDPM of pixels.

A network of another kind often has the same shapes, and would be run without an error to nothing meaningful.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


class ModelError(ValueError):
    """A model that cannot be loaded; the message says what is missing or not supported."""


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
# Why others are refused, by a part of the name.
_OTHERS: dict[str, str] = {
    "FlowMatch": "is for flow matching, which has no table of betas",
    "EDM": "is for networks with the preconditioning of EDM",
    "ScoreSde": "is for networks that predict a score",
    "CMStochasticIterative": "is for a distilled network, which leads to the image at once and has no slope",
    "LCM": "is for a distilled network, which leads to the image at once and has no slope",
    "TCD": "is for a distilled network, which leads to the image at once and has no slope",
    "VQDiffusion": "is for pictures made of tokens",
    "Wuerstchen": "is for another noise schedule",
}
_AUTOENCODERS = ("vae", "vqvae", "vqgan", "movq")


def check_kind(name: str, folder: Path, scheduler: Mapping[str, Any]) -> None:
    """Refuse a model that is no DDPM of pixels, and warn where its scheduler clips.

    ``folder``     that of the U-Net; ``scheduler`` the content of its ``scheduler_config.json``.

    Raises:
        ModelError: if it is of another kind, with the reason.
    """
    kind = str(scheduler.get("_class_name", ""))
    for part, reason in _OTHERS.items():
        if part in kind:
            raise ModelError(f"model '{name}' is not supported: its scheduler, {kind}, {reason}")
    if kind and kind not in _OF_BETAS:
        raise ModelError(
            f"model '{name}' is not supported: its scheduler, {kind}, is not known; if the network was trained as a "
            "DDPM, give it a scheduler_config.json of a DDPMScheduler"
        )
    if scheduler.get("use_flow_sigmas"):
        reason = _OTHERS["FlowMatch"]
        raise ModelError(f"model '{name}' is not supported: its scheduler asks for use_flow_sigmas, and so {reason}")
    for place in (folder, folder.parent):
        for autoencoder in _AUTOENCODERS:
            if (place / autoencoder).is_dir():
                raise ModelError(
                    f"model '{name}' is not supported: it has an autoencoder, '{autoencoder}', and its network "
                    "works on what that makes of pictures, not on their pixels"
                )
    clips = scheduler.get("clip_sample", _OF_BETAS.get(kind, False))
    for asked, option in ((clips, "clip_sample"), (scheduler.get("thresholding", False), "thresholding")):
        if asked:
            warnings.warn(
                f"the scheduler of model '{name}' asks for {option}; nothing is clipped here, "
                "because a clipped step is no step of the ODE",
                stacklevel=3,
            )


# What diffusers' network takes without a look, and fails on when it is called: the least value, and whether integers.
_NUMBERS = {
    "norm_eps": (0.0, False),
    "freq_shift": (-1e3, False),
    "mid_block_scale_factor": (1e-6, False),
    "dropout": (0.0, False),
    "norm_num_groups": (1, True),
    "attn_norm_num_groups": (1, True),
    "attention_head_dim": (1, True),
    "layers_per_block": (1, True),
    "downsample_padding": (0, True),
}
_MOST = 1000


def check_numbers(name: str, config: Mapping[str, Any]) -> None:
    """Refuse numbers in the ``config`` of a U-Net that no network can have.

    Raises:
        ModelError: for one that is no number, not finite or out of range; those that are None are left to diffusers.
    """
    for key, (least, whole) in _NUMBERS.items():
        value = config.get(key, least)
        kinds = (int,) if whole else (int, float)
        if value is None and key in ("attn_norm_num_groups", "attention_head_dim"):
            continue
        if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= _MOST:
            what = "an integer" if whole else "a number"
            raise ModelError(
                f"model '{name}' has {key} {f'{value!r:.60}'}; it must be {what} from {least:g} to {_MOST}; mend its "
                "config.json"
            )


def check_finite_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not all finite numbers.

    Raises:
        ModelError: with the name of the first that is not.
    """
    for key, value in state.items():
        if not bool(value.isfinite().all()):
            raise ModelError(f"the weights in '{folder}' are damaged: '{key}' holds NaN or infinity")


def check_weights(folder: Path, missing: list[str], unexpected: list[str]) -> None:
    """Refuse weights that are not those of the ``config.json`` beside them.

    Raises:
        ModelError: if names are ``missing`` or ``unexpected``; it names some, and a prefix that all of these have.
    """
    if not missing and not unexpected:
        return
    parts = [f"the weights in '{folder}'"]
    if missing:
        parts.append(f"lack: {_some(missing)}")
    if unexpected:
        parts.append(
            f"{'and ' if missing else ''}have names that its config.json does not ask for: {_some(unexpected)}"
        )
    prefix = next((p for p in ("module.", "_orig_mod.", "unet.", "model.") if _all_begin(unexpected, p)), "")
    hint = f"; all of these begin with '{prefix}': save them without it" if prefix else ""
    raise ModelError(" ".join(parts) + hint)


def _all_begin(names: list[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _some(names: list[str]) -> str:
    """Five of them, and how many more there are."""
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(sorted(names)[:5]) + more
