"""Whole pipelines in one file, as Stable Diffusion, SDXL, SD3 and FLUX are passed around.

The file holds weights under the names of the code that the model was trained with. What it does not say is in a folder
of diffusers of the same family: its scheduler, its tokenizers and the shapes of its parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from ddim_ode.configs import INDEX, first_line, read_json
from ddim_ode.formats.reading import kind_of, known_names, read_names, read_weights
from ddim_ode.kinds import ModelError, check_finite_weights

_NETWORKS = ("model.diffusion_model.", "double_blocks.", "joint_blocks.")
# What names begin with of the parts beside the network, by what their classes begin with.
_PARTS = {
    "Autoencoder": ("first_stage_model.", "vae."),
    "CLIPText": ("cond_stage_model.", "conditioner.", "text_encoders.clip"),
    "T5": ("text_encoders.t5",),
}
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
    if path.suffix.lower() == ".ckpt" and kind_of(path) == "safetensors":  # diffusers goes by that
        raise ModelError(f"'{path}' is a file of safetensors; rename it to .safetensors")
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
    given = _own_parts(folder, weights)
    del weights
    try:
        with known_names():
            pipeline = kind.from_single_file(str(path), config=str(folder), local_files_only=True, **given)
    except Exception as error:  # files that do not go with the folder fail in diffusers, transformers and torch
        # What diffusers says of weights that nothing filled.
        lacking = "meta tensor" in str(error)
        why = "the file lacks weights of it; give a folder of the same family" if lacking else first_line(error)
        raise ModelError(f"cannot load the pipeline '{path}' with config '{folder}': {why}") from error
    _check_whole(path, folder, pipeline)
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


def _own_parts(folder: Path, weights: Iterable[str]) -> dict[str, Any]:
    """The parts of the pipeline in ``folder`` that a file with these ``weights`` lacks, and the folder has."""
    found = {}
    for part, said in read_json(folder / INDEX).items():
        if not isinstance(said, list) or len(said) != 2 or said[0] not in ("diffusers", "transformers"):
            continue
        prefixes = next((known for kind, known in _PARTS.items() if str(said[1]).startswith(kind)), None)
        there = any(path.suffix in (".safetensors", ".bin") for path in (folder / part).glob("*"))
        if prefixes is None or not there or any(name.startswith(prefixes) for name in weights):
            continue
        try:
            kind = getattr(import_module(said[0]), said[1])
            found[part] = kind.from_pretrained(str(folder / part), local_files_only=True)
        except Exception as error:  # damaged weights fail in diffusers, transformers, safetensors, torch or json
            raise ModelError(f"cannot load '{part}' of '{folder}': {first_line(error)}") from error
    return found


def _check_whole(path: Path, folder: Path, pipeline: Any) -> None:
    """Refuse a pipeline with weights that neither the file nor the folder had: they hold nothing."""
    for part, module in pipeline.components.items():
        tensors = module.state_dict() if isinstance(module, nn.Module) else {}
        empty = [name for name, value in tensors.items() if value.is_meta]
        if empty:
            raise ModelError(
                f"'{path}' lacks {len(empty)} weights of '{part}' as '{folder}' has it, such as {empty[0]}; give a "
                "folder of the same family"
            )


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
