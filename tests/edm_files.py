"""Pickles in the layout of NVlabs/edm, written by a stand-in for its code; and the reference that they are held to.

``edm_reference.json`` has names and shapes of weights and outputs of SongUNet and DhariwalUNet as NVIDIA publishes them
under the Apache licence 2.0, in nvidia-physicsnemo 2.2.2, with the weights that ``wave`` makes and on its inputs. The
group normalisation is that of training, which is torch's: in inference that package divides by one less.
"""

from __future__ import annotations

import json
import math
import pickle
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "ddim_ode" / "formats" / "edm_reference.json").read_text()
)


def wave(name: str, shape: tuple[int, ...]) -> Tensor:
    """What looks random and is the same everywhere, for the weight called ``name``."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    seed = sum((k + 1) * ord(letter) for k, letter in enumerate(name)) % 1009
    noise = 2 * (torch.sin(12.9898 * places + seed) * 43758.5453).frac().abs() - 1
    if "norm" in name and name.endswith("weight"):
        noise = 1 + 0.5 * noise
    elif len(shape) > 1:
        noise = noise * math.sqrt(3 / math.prod(shape[1:]))
    return noise.float().reshape(shape)


def weights(case: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of a case of the reference, by their names."""
    along = torch.tensor(case["init_kwargs"].get("resample_filter", [1, 1]), dtype=torch.float32)
    resampling = torch.outer(along, along)[None, None] / along.sum() ** 2
    return {
        name: resampling if name.endswith("resample_filter") else wave(name, tuple(shape))
        for name, shape in case["shapes"].items()
    }


def persistent(content: Any) -> None:
    """Stands for the function that runs the source in a file; here nothing may ever call it."""
    raise SystemExit("code of the file ran")


class EasyDict(dict[str, Any]):
    """A dictionary of theirs."""


class Persistent(nn.Module):
    """A module that is pickled as theirs are: the source of its class, the name of that, and its state."""

    def __init__(self, class_name: str, **init_kwargs: Any) -> None:
        super().__init__()
        self._class_name = class_name
        self._init_args, self._init_kwargs = (), EasyDict(init_kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {
            "type": "class",
            "version": 6,
            "module_src": "raise SystemExit('source of the file ran')",
            "class_name": self._class_name,
            "state": dict(self.__dict__),
        }
        return persistent, (meta,), None


@contextmanager
def their_modules() -> Iterator[None]:
    """Within it pickles name what is above as theirs is named."""
    names = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules |= {name: types.ModuleType(name) for name in names}
    sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj = persistent  # type: ignore[attr-defined]
    sys.modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    persistent.__module__, persistent.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    EasyDict.__module__ = "dnnlib.util"
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def network(case: Mapping[str, Any], **outer: Any) -> Persistent:
    """The network of a ``case``, in its preconditioning; ``outer`` changes what that says."""
    settings = {
        "img_resolution": 8,
        "img_channels": 3,
        "label_dim": case["init_kwargs"]["label_dim"],
        "sigma_data": 0.5,
    }
    class_name = outer.pop("class_name", "EDMPrecond")
    whole = Persistent(class_name, **settings, model_type=case["class_name"])
    said = settings | {"use_fp16": False, "sigma_min": 0, "sigma_max": float("inf")} | outer
    for name, value in said.items():
        setattr(whole, name, value)
    whole.model = Persistent(case["class_name"], img_resolution=8, in_channels=3, out_channels=3, **case["init_kwargs"])
    for name, value in weights(case).items():
        _put(whole.model, name, value)
    return whole


def _put(module: nn.Module, name: str, value: Tensor) -> None:
    *places, last = name.split(".")
    for depth, place in enumerate(places):
        if place not in module._modules:
            inner = nn.ModuleDict() if depth == 0 and place in ("enc", "dec") else _layer()
            module.add_module(place, inner)
        module = module._modules[place]  # type: ignore[assignment]
    if last in ("resample_filter", "freqs"):
        module.register_buffer(last, value)
    else:
        setattr(module, last, nn.Parameter(value))


def _layer() -> Persistent:
    return Persistent("Conv2d", init_weight=np.sqrt(1 / 3), init_bias=np.float32(0.5))


def snapshot(path: Path, net: object) -> Path:
    """A file of a training, as theirs writes it, with ``net`` as its moving average."""
    content = {
        "ema": net,
        "loss_fn": Persistent("EDMLoss", P_mean=-1.2),
        "augment_pipe": Persistent("AugmentPipe", p=0.12),
        "dataset_kwargs": EasyDict(path="cifar10.zip"),
    }
    with their_modules():
        path.write_bytes(pickle.dumps(content))
    return path
