"""Whole pipelines in one file, as Stable Diffusion, SDXL, SD3 and FLUX are passed around.

The file holds weights under the names of the code that the model was trained with. What it does not say is in a folder
of diffusers of the same family: its scheduler, its tokenizers and the shapes of its parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ddim_ode.configs import INDEX, first_line, read_json
from ddim_ode.formats.reading import kind_of, known_names, read_names, read_weights
from ddim_ode.kinds import ModelError, check_finite_weights

_NETWORKS = ("model.diffusion_model.", "double_blocks.", "joint_blocks.")
_AUTOENCODERS = ("first_stage_model.", "vae.")
_SUFFIXES = (".safetensors", ".ckpt")


def has_pipeline(names: Iterable[str]) -> bool:
    """Whether weights of these ``names`` are those of a pipeline, or of its network, as they are passed around."""
    return any(name.startswith(_NETWORKS) for name in names)


def is_pipeline_file(path: Path) -> bool:
    """Whether ``path`` is a file of a pipeline; reads its header, and of one of torch's the list of its weights."""
    try:
        return path.is_file() and kind_of(path) in ("safetensors", "zip") and has_pipeline(read_names(path))
    except ModelError:  # which loading it will say
        return False


def load_pipeline_file(path: Path, config: str | Path | None) -> Any:
    """The diffusers pipeline in the file ``path``, on the CPU.

    ``config``  a folder of diffusers of the same family; without one diffusers' choice is fetched from the Hub. Parts
                that the file lacks are read there, if it has their weights.

    Raises:
        ModelError: if the file is damaged or of no pipeline, there is no config, or they do not go together.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise ModelError(f"'{path}' must end in {' or '.join(_SUFFIXES)}, as files of pipelines do; rename it")
    weights = read_weights(path)
    if not has_pipeline(weights):
        raise ModelError(f"'{path}' is no pipeline of text and latents; leave the prompt out")
    check_finite_weights(path, weights)
    folder = _fetch_config(path, weights) if config is None else Path(config)
    if not (folder / INDEX).is_file():
        raise ModelError(
            f"the config of '{path}' must be a folder of a diffusers pipeline of the same family, with {INDEX}, but it "
            f"is '{folder}'"
        )
    kind = _pipeline_class(folder)
    given = {} if any(name.startswith(_AUTOENCODERS) for name in weights) else _own_autoencoder(folder)
    del weights
    try:
        with known_names():
            pipeline = kind.from_single_file(str(path), config=str(folder), local_files_only=True, **given)
    except Exception as error:  # files that do not go with the folder fail in diffusers, transformers and torch
        raise ModelError(f"cannot load the pipeline '{path}' with config '{folder}': {first_line(error)}") from error
    pipeline.register_to_config(_name_or_path=str(path))
    return pipeline


def _pipeline_class(folder: Path) -> Any:
    """The class of diffusers that the folder's index names."""
    import diffusers

    name = read_json(folder / INDEX).get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Pipeline") else None
    if not hasattr(kind, "from_single_file"):
        raise ModelError(f"'{folder}' is of {f'{name!r:.60}'}, which diffusers does not read from one file")
    return kind


def _own_autoencoder(folder: Path) -> dict[str, Any]:
    """The autoencoder of the ``folder``, if it has the weights of one."""
    from diffusers import AutoModel

    place = folder / "vae"
    if not any(place.glob("*.safetensors")) and not any(place.glob("*.bin")):
        return {}
    try:
        vae = AutoModel.from_pretrained(place, local_files_only=True)  # type: ignore[no-untyped-call]
    except Exception as error:  # damaged weights fail in diffusers, safetensors, torch or json, each in its own way
        raise ModelError(f"cannot load the autoencoder of '{folder}': {first_line(error)}") from error
    return {"vae": vae}


def _fetch_config(path: Path, weights: dict[str, Any]) -> Path:
    """The configurations of the family that diffusers takes these ``weights`` for, from the Hub or its cache."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from huggingface_hub import snapshot_download

    repository = str(fetch_diffusers_config(weights)["pretrained_model_name_or_path"])  # type: ignore[no-untyped-call]
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    patterns = ["*.json", "**/*.json", "*.txt", "**/*.txt", "**/*.model"]
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:  # the Hub's client raises many kinds, from HTTP to validation
        raise ModelError(
            f"'{path}' is one file, and does not say its schedule; add --config FOLDER, a folder of diffusers of the "
            f"same family ({repository} could not be fetched from the Hub)"
        ) from error
