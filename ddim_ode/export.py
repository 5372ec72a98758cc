"""Models as folders of diffusers' pipelines: written whole, and for one class as a pipeline without classes."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ddim_ode.conditions import Condition
from ddim_ode.configs import CLASS_NAMES, INDEX
from ddim_ode.files import reason
from ddim_ode.model import Model
from ddim_ode.networks import ClassUNet, UNet


def save_pipeline(unet: Any, scheduler: Mapping[str, Any], folder: Path, *, classes: Sequence[str] = ()) -> None:
    """Write a ``DDPMPipeline`` of ``unet`` and the ``scheduler`` of this configuration into ``folder``.

    diffusers writes into a folder of its own first; then each file is moved to its place.

    ``classes``  the names of those that the network knows, for its index.

    Raises:
        OSError: if it cannot be written.
    """
    fresh = folder / f".ddim-ode-{os.getpid()}.tmp"
    try:
        pipeline = DDPMPipeline(unet, DDPMScheduler.from_config(scheduler))  # type: ignore[no-untyped-call]
        pipeline.save_pretrained(fresh)  # type: ignore[attr-defined]
        if classes:
            index = json.loads((fresh / INDEX).read_bytes())
            index[CLASS_NAMES] = {str(i): name for i, name in enumerate(classes)}
            (fresh / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        mode = stat.S_IMODE((fresh / INDEX).stat().st_mode)
        for path in sorted(fresh.rglob("*")):
            if path.is_file():
                target = folder / path.relative_to(fresh)
                target.parent.mkdir(exist_ok=True)
                path.chmod(mode)  # safetensors lets nobody but the owner read its files
                os.replace(path, target)
    except Exception as error:  # a disk that is full fails in safetensors, diffusers or Python, each in its own way
        raise OSError(f"cannot write the model into '{folder}': {reason(error):.300}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def export_pipeline(model: Model, condition: Condition, folder: Path) -> None:
    """Write ``model`` under ``condition`` into ``folder`` as a ``DDPMPipeline`` whose network knows no classes.

    Raises:
        ValueError: if the condition has guidance, which takes two networks.
        OSError: if the folder exists and is not empty, or cannot be written.
    """
    if len(condition.terms) > 1:
        raise ValueError(f"guidance {condition.guidance:g} takes two answers of the network; export it without")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"'{folder}' exists and is not an empty folder; name another one for the pipeline")
    if not isinstance(model.network, UNet) or model.scheduler is None:
        raise ValueError(f"model '{model.name}' is no UNet2DModel with a scheduler of diffusers; export one that is")
    folder.mkdir(parents=True, exist_ok=True)
    save_pipeline(without_classes(model.network, condition), model.scheduler, folder)


def without_classes(network: UNet, condition: Condition) -> Any:
    """A ``UNet2DModel`` that knows no classes and answers what ``network`` does under ``condition``.

    The label's embedding is added to that of the time, and so may be a part of its bias.
    """
    unet: Any = network.unet
    weights = {name: value for name, value in unet.state_dict().items() if not name.startswith("class_embedding.")}
    if isinstance(network, ClassUNet):
        label = network.none if condition.terms[0][0] is None else condition.terms[0][0]
        if label >= len(unet.class_embedding.weight):
            raise ValueError(
                "the model was trained with a class for every picture, and answers nothing without; name one"
            )
        bias = "time_embedding.linear_2.bias"
        weights[bias] = weights[bias] + unet.class_embedding.weight[label]
    plain: Any = UNet2DModel.from_config({**unet.config, "num_class_embeds": None})  # type: ignore[no-untyped-call]
    plain.load_state_dict(weights)
    return plain.eval()
