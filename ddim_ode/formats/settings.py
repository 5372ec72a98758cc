"""Settings that stand in a file beside weights, in YAML or JSON: read as plain values, and taken out by their names."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from ddim_ode.files import read_file
from ddim_ode.kinds import ModelError

_MOST = 1_000_000
_ABSENT = object()


def read_settings(path: Path) -> Settings:
    """The settings in the file ``path``, in JSON if it ends so, else in YAML.

    Raises:
        ModelError: if there is no such file, or it holds no settings, or some that would run code.
    """
    content = _parse(path)
    if not isinstance(content, Mapping):
        raise ModelError(f"'{path}' must hold settings by their names, but it holds a {type(content).__name__}")
    return Settings(path, content)


class Settings:
    """Settings, the ``content`` of the file ``path``; a dot in a name, as in 'model.ch', leads into a group."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self._content = content

    def get(self, name: str, default: object = _ABSENT) -> Any:
        """What it says under ``name``, or else the ``default``.

        Raises:
            ModelError: if it says nothing, and there is no default.
        """
        value: Any = self._content
        for part in name.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT:
            return value
        if default is _ABSENT:
            raise ModelError(f"'{self.path}' does not say {name}; add it")
        return default

    def whole(self, name: str, default: object = _ABSENT, *, least: int = 1, most: int = _MOST) -> int:
        """The integer ``name``, from ``least`` to ``most``.

        Raises:
            ModelError: if it is none.
        """
        value = _as_whole(self.get(name, default))
        if value is None or not least <= value <= most:
            raise self._wrong(name, f"an integer from {least} to {most}", default)
        return value

    def number(self, name: str, default: object = _ABSENT) -> float:
        """The number ``name``; '1e-4', which YAML takes for a text, is one.

        Raises:
            ModelError: if it is none, or not finite.
        """
        value = self.get(name, default)
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not isfinite(number):
            raise self._wrong(name, "a number", default)
        return number

    def truth(self, name: str, default: object = _ABSENT) -> bool:
        """Whether ``name`` is true.

        Raises:
            ModelError: if it is neither true nor false.
        """
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", default)
        return value

    def one_of(self, name: str, known: tuple[str, ...], default: object = _ABSENT) -> str:
        """The text ``name``, which is one of the ``known`` ones.

        Raises:
            ModelError: if it is another.
        """
        value = self.get(name, default)
        if not isinstance(value, str) or value not in known:
            raise self._wrong(name, f"one of {', '.join(known)}", default)
        return value

    def numbers(self, name: str, default: object = _ABSENT, *, most: int = _MOST) -> tuple[int, ...]:
        """The integers ``name``, from 1 to ``most``: a list, one alone, or a text such as '1,2,2,2'; 64 at the most.

        Raises:
            ModelError: if they are none.
        """
        value = self.get(name, default)
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        found = [_as_whole(part) for part in parts[:65]]
        wholes = [number for number in found if number is not None and 1 <= number <= most]
        if len(wholes) < len(found) or len(found) > 64:
            raise self._wrong(name, f"integers from 1 to {most}, 64 at the most", default)
        return tuple(wholes)

    def _wrong(self, name: str, allowed: str, default: object) -> ModelError:
        fallback = None if default is _ABSENT else default
        value = " ".join(reprlib.repr(self.get(name, fallback)).split())
        return ModelError(f"{name} in '{self.path}' must be {allowed}, but it is {value:.80}; mend it")


def _as_whole(value: object) -> int | None:
    if isinstance(value, str) and len(value) < 10 and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _parse(path: Path) -> object:
    import yaml

    text = read_file(path, "file of settings", ModelError)
    try:
        content: object = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        said = " ".join(str(error.problem).split())
        raise ModelError(
            f"'{path}' holds more than plain values: {said:.150}; nothing of it is run: write it without tags"
        ) from error
    except Exception as error:  # PyYAML runs into KeyError, IndexError and AttributeError too
        raise ModelError(f"cannot read '{path}': {' '.join(str(error).split()):.200}; mend it") from error
    return content
