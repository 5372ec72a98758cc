"""What a pipeline is asked for, as latent files and pictures say it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
from PIL import Image
from torch import Generator, Tensor

# What guidance is: two answers mixed, what a distilled network is told, or two answers of one that may be told as well.
CFG, DISTILLED, TRUE_CFG = "cfg", "distilled", "true cfg"
# The prompt is None where it is left out of a file; ``call`` is what else the pipeline was given, as JSON.
AskedFor = Mapping[str, str | float | None]
_KINDS: dict[str, tuple[type, ...]] = {
    "prompt": (str, type(None)),
    "negative_prompt": (str, type(None)),
    "guidance": (float,),
    "guidance_kind": (str,),
    "call": (str, type(None)),
}


def check_table(what: str, table: Any, kinds: Mapping[str, tuple[type, ...]]) -> None:
    """Raise ValueError unless ``table`` has a value of one of its ``kinds`` for each name, and no others."""
    if not isinstance(table, dict) or table.keys() != kinds.keys():
        raise ValueError(f"{what} must be a table of {', '.join(kinds)}, but it is {table!r:.60}")
    for key, value in table.items():
        if type(value) not in kinds[key]:
            raise ValueError(f"{key!r:.60} of {what} must be text or a number, but it is {value!r:.60}")


def check_asked(asked: Any) -> None:
    """Raise ValueError unless ``asked`` is what a pipeline may be asked for."""
    check_table("what was asked for", asked, _KINDS)
    if not isfinite(asked["guidance"]):
        raise ValueError(f"guidance must be finite, but it is {asked['guidance']}")


def guidance_of(asked: AskedFor) -> float:
    """The guidance that a pipeline is ``asked`` for."""
    guidance = asked["guidance"]
    if not isinstance(guidance, float):
        raise TypeError(f"guidance must be a float, but it is {guidance!r}")
    return guidance


def without_text(asked: AskedFor) -> AskedFor:
    """The same with neither the prompt nor what is to be avoided; what else was given, which may be text, as a hash."""
    call = asked["call"]
    hashed = None if call is None else f"sha256:{hashlib.sha256(str(call).encode()).hexdigest()[:16]}"
    return {**asked, "prompt": None, "negative_prompt": None, "call": hashed}


def same_asked(own: AskedFor, asked: AskedFor) -> bool:
    """Whether a latent that was encoded as ``own`` is decoded as the same; its text may be left out of its file."""
    return own == asked or (own["prompt"] is None and own == without_text(asked))


def describe(asked: AskedFor) -> str:
    """What a pipeline was ``asked`` for, in a line."""
    negative, call = asked["negative_prompt"], asked["call"]
    text = "a prompt that is left out" if asked["prompt"] is None else f"'{asked['prompt']}'"
    without = f" and not '{negative}'" if negative else ""
    kind = "a guidance it is told of" if asked["guidance_kind"] == DISTILLED else "guidance"
    return f"{text}{without} with {kind} {asked['guidance']}{f' and {call}' if call else ''}"


def describe_call(call: Mapping[str, Any]) -> str | None:
    """What else a pipeline is given, as JSON: numbers and texts as they are, of pictures and tensors a hash."""
    return json.dumps({key: _plain(value) for key, value in sorted(call.items())}) if call else None


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, Generator):
        value = value.get_state()
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy()
    if isinstance(value, np.ndarray | Image.Image):
        array = np.ascontiguousarray(value)
        return f"sha256:{hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()[:16]}"
    return type(value).__name__
