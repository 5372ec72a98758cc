"""Kinds of models: what a folder in diffusers' format says it is, and why some of them are no model of pixels.

A network of another kind often has the same shapes, and would be run without an error to nothing meaningful.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


class ModelError(ValueError):
    """A model that cannot be loaded; the message says what is missing or not supported."""


# The folders of autoencoders, and whether theirs are supported.
_AUTOENCODERS = {"vae": True, "vqvae": True, "vqgan": False, "movq": False}


def find_autoencoder(name: str, folder: Path) -> Path | None:
    """The folder of the autoencoder whose latents are the images of the network in ``folder``; None if it has none.

    Raises:
        ModelError: if it is one of another kind.
    """
    for place in (folder, folder.parent):
        for part, supported in _AUTOENCODERS.items():
            if (place / part).is_dir():
                if supported:
                    return place / part
                raise ModelError(
                    f"model '{name}' is not supported: it has an autoencoder, '{part}', and its network works on what "
                    "that makes of pictures, not on their pixels"
                )
    return None


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


def check_finite_weights(place: Path, state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not all finite numbers.

    Raises:
        ModelError: with the name of the first that is not.
    """
    for key, value in state.items():
        # torch asks numbers of one byte only when they are wider.
        if not bool((value.float() if value.dtype.itemsize == 1 else value).isfinite().all()):
            raise ModelError(f"the weights in '{place}' are damaged: '{key}' holds NaN or infinity")


def check_weights(place: Path, missing: list[str], unexpected: list[str], *, config: str = "its config.json") -> None:
    """Refuse weights, found in ``place``, that are not those of the ``config`` that goes with them.

    Raises:
        ModelError: if names are ``missing`` or ``unexpected``; it names some, and a prefix that all of these have.
    """
    if not missing and not unexpected:
        return
    parts = [f"the weights in '{place}'"]
    if missing:
        parts.append(f"lack: {_some(missing)}")
    if unexpected:
        parts.append(f"{'and ' if missing else ''}have names that {config} does not ask for: {_some(unexpected)}")
    prefix = next((p for p in ("module.", "_orig_mod.", "unet.", "model.") if _all_begin(unexpected, p)), "")
    hint = f"; all of these begin with '{prefix}': save them without it" if prefix else ""
    raise ModelError(" ".join(parts) + hint)


def _all_begin(names: list[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def _some(names: list[str]) -> str:
    """Five of them, and how many more there are."""
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(sorted(names)[:5]) + more
