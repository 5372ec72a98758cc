"""Weights under whatever names, put into a ``UNet2DModel`` of diffusers; and files under its own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddim_ode.configs import find_layout, first_line, read_json
from ddim_ode.denoisers import model_of_unet
from ddim_ode.formats.filling import fill
from ddim_ode.formats.reading import Weights
from ddim_ode.kinds import ModelError, check_numbers, find_autoencoder
from ddim_ode.model import Model

# What diffusers called the projections of its attention until 2023.
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def load_unet_file(path: Path, weights: Weights, config: Path, device: torch.device | str) -> Model:
    """The model of diffusers' own ``weights`` from the file ``path``; its ``config`` is a folder of such a model.

    Raises:
        ModelError: if they do not go together, or the model is of a kind that is not supported.
    """
    if not config.is_dir():
        raise ModelError(
            f"the config of '{path}' must be a folder of diffusers, with config.json, but it is '{config}'"
        )
    folder, scheduler = find_layout(config)
    if find_autoencoder(str(path), folder):
        raise ModelError(f"'{config}' has an autoencoder, and '{path}' is one file; name a folder with both")
    settings = read_json(folder / "config.json")
    kind = settings.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ModelError(f"'{folder}' is of a {kind}; only diffusers' UNet2DModel is supported")
    if settings.get("num_class_embeds") is not None:
        raise ModelError(f"'{path}' knows classes, whose names a pipeline's folder says; put it into one")

    def source(name: str) -> str:
        return name if name in weights else _old_name(name)

    unet = assemble_unet(path, settings, weights, source, config=f"'{folder}/config.json'")
    return model_of_unet(str(path), unet, read_json(scheduler), device)


def _old_name(name: str) -> str:
    for new, old in _OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def assemble_unet(
    path: Path,
    settings: Mapping[str, Any],
    weights: Weights,
    source: Callable[[str], str],
    convert: Callable[[str, Tensor], Tensor] | None = None,
    *,
    config: str,
) -> Any:
    """A ``UNet2DModel`` of these ``settings`` with the ``weights`` from ``path``, in float32.

    ``source``   the name that the file has for one of diffusers'.
    ``convert``  what makes diffusers' tensor, of the name that is given first, of the file's.
    ``config``   what messages call the place where the settings stand.

    Raises:
        ModelError: if the network cannot be made, or the weights are not all there, are of other shapes, or not finite.
    """
    unet = _empty_unet(path, settings, config)
    fill(unet, path, weights, source, convert, config=config)
    return unet


def widths(width: int, multiples: Sequence[int], setting: str) -> list[int]:
    """The channels at each level of a network of ``width``: its ``multiples``, which the ``setting`` gives.

    Raises:
        ModelError: unless they begin with 1; the time's embedding hangs on the first one in diffusers.
    """
    if multiples[:1] != (1,):
        raise ModelError(f"{setting} begins with {multiples[0] if multiples else 'nothing'}; only 1 is supported there")
    return [width * multiple for multiple in multiples]


def _empty_unet(path: Path, settings: Mapping[str, Any], config: str) -> Any:
    """A ``UNet2DModel`` without memory for its weights: a wrong number in its settings costs none."""
    from diffusers import UNet2DModel

    check_numbers(str(path), settings)
    try:
        with torch.device("meta"):
            return UNet2DModel.from_config(dict(settings))  # type: ignore[no-untyped-call]
    except Exception as error:  # diffusers and torch, each in its own way
        raise ModelError(f"cannot make a U-Net of {config}: {first_line(error)}; mend it") from error
