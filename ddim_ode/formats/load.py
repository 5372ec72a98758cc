"""Files of models told apart by what is in them, and read each by the module of its format."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from ddim_ode.formats.ddpm import is_ddpm, load_ddpm
from ddim_ode.formats.edm import load_edm
from ddim_ode.formats.guided import is_guided, load_guided
from ddim_ode.formats.reading import kind_of, read_weights
from ddim_ode.formats.single_file import has_pipeline
from ddim_ode.formats.unet_file import load_unet_file
from ddim_ode.kinds import ModelError
from ddim_ode.model import Model

# How files of models end.
FILES = (".safetensors", ".bin", ".ckpt", ".pth", ".pt", ".pkl")


def load_file(path: Path, config: str | Path | None, device: torch.device | str) -> Model:
    """The model in the file ``path``, on the ``device``.

    ``config``  what the file does not say: see ``formats``.

    Raises:
        ModelError: if it is of no known format, damaged, or does not go with its config.
    """
    if kind_of(path) == "pickle":
        if config is not None:
            raise ModelError(f"'{path}' is a pickle of EDM, which says all of its configuration; leave config out")
        return load_edm(path, device)
    weights = read_weights(path)
    if has_pipeline(weights):
        raise ModelError(f"'{path}' is a pipeline of text and latents; load it with load_pipeline, or give a prompt")
    if any(".transformer_blocks." in name for name in weights):
        raise ModelError(f"'{path}' is the network of a pipeline alone; name the folder of the pipeline")
    for knows, needs, load in (
        (is_ddpm, "FILE, its YAML file", load_ddpm),
        (is_guided, "FILE, its flags in YAML or JSON", load_guided),
        (_is_unet, "FOLDER, a folder of diffusers with its config.json and scheduler_config.json", load_unet_file),
    ):
        if knows(weights.keys()):
            if config is None:
                raise ModelError(f"'{path}' is one file, and does not say its schedule; add --config {needs}")
            return load(path, weights, Path(config), device)
    some = ", ".join(sorted(weights)[:3])
    raise ModelError(
        f"'{path}' is of no known format, with weights such as {some:.150}; known are networks of diffusers, ddim, "
        "guided-diffusion and EDM; for another one write a factory, and name it package.module:factory"
    )


def _is_unet(names: Collection[str]) -> bool:
    return "time_embedding.linear_1.weight" in names
