"""Reading files of weights without running anything that they say."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from zipfile import is_zipfile

import torch
from safetensors import safe_open
from torch import Tensor

from ddim_ode.configs import first_line
from ddim_ode.kinds import ModelError

Weights = dict[str, Tensor]

# How torch's files began before they were zip files: a pickle of a number.
_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
_MOST_NESTED = 4
_LONGEST_NAME = 200


class _Unused:
    """What stands for what training leaves in its files beside weights, and nobody needs to use them."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_OF_TRAINING = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
)


def known_names() -> AbstractContextManager[None]:
    """Within it torch's reader of weights takes a few names that trainers leave in files; it makes nothing of them."""
    return torch.serialization.safe_globals([(_Unused, name) for name in _OF_TRAINING])


def kind_of(path: Path) -> str:
    """How the file ``path`` is written: 'safetensors', 'zip' or 'old' by torch, or another 'pickle'.

    Raises:
        ModelError: if it is none of them, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(f"cannot read the file '{path}': {error.strerror}") from error
    if not head:
        raise ModelError(f"'{path}' is empty; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise ModelError(f"'{path}' only says where git-lfs has the file; fetch it with: git lfs pull")
    if head[8:9] == b"{":
        return "safetensors"
    if head.startswith(b"PK"):
        return "zip"
    if head.startswith(_OLD_TORCH):
        return "old"
    if head.startswith(b"\x80"):
        return "pickle"
    raise ModelError(f"'{path}' is no file of weights: it is neither safetensors, nor of torch, nor a pickle")


def read_names(path: Path) -> set[str]:
    """The names of the weights in ``path``; cheap, for of safetensors only the header is read, and of zip files little.

    Raises:
        ModelError: if it cannot be read.
    """
    if kind_of(path) != "safetensors":
        return set(read_weights(path))
    try:
        with safe_open(path, "pt") as file:
            return set(file.keys())
    except Exception as error:  # of safetensors' own kind, which is not public
        raise ModelError(f"cannot read '{path}': {first_line(error)}; fetch it again") from error


def read_weights(path: Path) -> Weights:
    """The weights in ``path``, on the CPU: of safetensors all, of a training's file those of its moving average.

    A prefix that all names have because the network was wrapped in another, such as 'module.', is left out.

    Raises:
        ModelError: if it cannot be read, asks for more than tensors, or holds no weights.
    """
    kind = kind_of(path)
    content = _read_safetensors(path) if kind == "safetensors" else _read_torch(path, mapped=kind == "zip")
    weights = _find_weights(content, _MOST_NESTED)
    if weights is None:
        raise ModelError(f"'{path}' holds no weights of a network, which are tensors under names; name another file")
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in weights):
            weights = {name[len(prefix) :]: value for name, value in weights.items()}
    check_plain(path, weights)
    return weights


def check_plain(path: Path, weights: Weights) -> None:
    """Refuse ``weights`` from ``path`` that are no ordinary numbers in memory, or whose names nobody could print.

    Raises:
        ModelError: with the name of the first.
    """
    for name, value in weights.items():
        if not name.isprintable() or len(name) > _LONGEST_NAME:
            raise ModelError(f"'{path}' has a weight called {name!r:.60}, which is no name; fetch it again")
        if value.layout != torch.strided or value.is_meta or value.is_complex() or value.is_quantized:
            raise ModelError(f"'{name}' in '{path}' is no plain tensor of real numbers; save it as one")


def _read_safetensors(path: Path) -> Weights:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # of safetensors' own kind, which is not public
        raise ModelError(f"cannot read '{path}': {first_line(error)}; fetch it again") from error


def _read_torch(path: Path, *, mapped: bool) -> object:
    if path.suffix.lower() == ".safetensors":  # which torch goes by
        raise ModelError(f"'{path}' is a file of torch, and not of safetensors; rename it to .ckpt")
    if mapped and not is_zipfile(path):
        raise ModelError(f"cannot read '{path}': it begins as a zip file, and does not end as one; fetch it again")
    try:
        with known_names(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged files fail in torch, pickle, zipfile and Python
        asked = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
        if asked:
            raise ModelError(
                f"'{path}' asks for '{asked[1]:.100}', which may run code and is not read; save its weights alone, "
                "as safetensors"
            ) from error
        raise ModelError(f"cannot read '{path}' as weights of torch: {_plainly(error)}; fetch it again") from error
    return content


def _plainly(error: Exception) -> str:
    """What torch says after its advice to trust the file."""
    return f"{' '.join(str(error).partition('WeightsUnpickler error:')[2].split()) or first_line(error):.200}"


def _find_weights(content: object, depth: int) -> Weights | None:
    """The weights in ``content``, however they are wrapped; of several the moving average."""
    if depth == 0:
        return None
    if isinstance(content, Mapping):
        if content and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
            return dict(content)
        parts = [content.get(key) for key in ("ema", "model_ema", "ema_state_dict", "state_dict", "model")]
    elif isinstance(content, Sequence) and not isinstance(content, str):
        parts = list(reversed(content))
    else:
        return None
    found = (_find_weights(part, depth - 1) for part in parts)
    return next((weights for weights in found if weights is not None), None)
