"""The latent file ``latent.pt``: one latent and all that is needed to decode it rightly.

It is a dict of tensors, numbers, strings, lists and dicts, so that ``torch.load(path, weights_only=True)`` opens it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import inf, isclose, isfinite
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ddim_ode.asked import AskedFor, check_asked, check_table, describe, without_text
from ddim_ode.conditions import MEANING, UNCONDITIONAL, Condition
from ddim_ode.embeddings import is_hash
from ddim_ode.files import read_file, reason, write_file
from ddim_ode.grids import Grid
from ddim_ode.images import Source
from ddim_ode.levels import Levels, levels_from
from ddim_ode.models import Model
from ddim_ode.processes import FAMILIES

FORMAT = "ddim-ode latent"
# In the first version there were no conditions, in the first two all models were of the family 'vp', and in the first
# three nothing said what a pipeline was told beside its texts.
VERSIONS = (1, 2, 3, 4)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# In a file, tensors counted as one; those of a walk of a thousand steps are a few thousand.
_MOST_PARTS = 1_000_000
# Far outside of what has unit variance: normal noise reaches 7 at most.
LARGEST = 100.0
SCALE = "unit variance: x_T = x_bar_T / sqrt(1 + sigma_T^2)"


class LatentError(ValueError):
    """A file that is no latent, is damaged, or belongs to another model."""


@dataclass(frozen=True, eq=False)
class Latent:
    """A latent with its history.

    ``x_T``            ``(1, C, H, W)``, about unit variance, float64 or float32.
    ``grid``           the grid it was encoded on; its last sigma is the noise level of x_T.
    ``solver``         the settings of the solver, ``name`` among them.
    ``schedule``       the noise levels of the model.
    ``model``, ``fingerprint``  the name of the model and the fingerprint of its weights.
    ``source``         the picture it was made from.
    ``nfe``            network evaluations spent on it.
    ``companion``      the second state of a reversible solver, of the shape and dtype of x_T; None for all others.
    ``condition``      what the network was asked for; a class with its name.
    ``family``         that of the model's process.
    ``asked``          what a pipeline was asked for, its prompt among it; None of all other models.
    ``embedding``      the hash of what its network was told of the prompt.
    ``fingerprints``   of what is beside the network of a pipeline, by name.

    Raises:
        LatentError: if x_T or its companion has another shape, or holds NaN, infinity or values far too large.
    """

    x_T: Tensor
    grid: Grid
    solver: Mapping[str, str | float]
    schedule: Levels
    model: str
    fingerprint: str
    source: Source
    nfe: int
    companion: Tensor | None = None
    condition: Condition = UNCONDITIONAL
    family: str = "vp"
    asked: AskedFor | None = None
    embedding: str | None = None
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.x_T.layout != torch.strided or self.x_T.is_meta:
            raise LatentError("x_T must be an ordinary tensor, which holds each of its values; encode the image again")
        if self.x_T.ndim != 4 or self.x_T.shape[0] != 1 or self.x_T.dtype not in _DTYPES:
            raise LatentError(
                f"x_T must be a float tensor of shape (1, C, H, W), but it is {self.x_T.dtype} {tuple(self.x_T.shape)}"
            )
        if self.companion is not None and (
            (self.companion.shape, self.companion.dtype) != (self.x_T.shape, self.x_T.dtype)
        ):
            raise LatentError("the companion of x_T must be of its shape and dtype; encode the image again")
        for name, state in (("x_T", self.x_T), ("its companion", self.companion)):
            if state is not None and not bool((state.abs() <= LARGEST).all()):
                raise LatentError(
                    f"{name} should have about unit variance, but holds {_worst(state):g}; encode the image again, in "
                    "more steps if the solver has diverged"
                )

    def check_fits(self, model: Model, *, any_model: bool = False) -> None:
        """Raise LatentError unless ``model`` can decode this latent rightly.

        ``any_model``  accept other weights and another schedule; the shape must fit all the same.
        """
        expected = (1, model.channels, model.height, model.width)
        if tuple(self.x_T.shape) != expected:
            if model.ask is not None and self.x_T.shape[1] == model.channels:
                raise LatentError(_of_another_size(self.x_T.shape, model))
            raise LatentError(
                f"the latent has shape {tuple(self.x_T.shape)}, but model '{model.name}' takes {expected}; "
                f"decode it with the model it names: '{self.model}'"
            )
        if any_model:
            return
        if self.family != model.process.family:
            raise LatentError(
                f"the latent was encoded with a model of the family '{self.family}', but model '{model.name}' is of "
                f"the family '{model.process.family}'; decode it with the model it names: '{self.model}'"
            )
        if not self.schedule.matches(model.schedule):
            raise LatentError(
                f"the latent was encoded with schedule '{self.schedule.name}', sigma up to {self.grid.sigma_T:.6g}, "
                f"but model '{model.name}' has '{model.schedule.name}', up to {model.schedule.sigma_max:.6g}; "
                f"decode it with the model it names: '{self.model}'"
            )
        weights, parts = model.fingerprint, model.fingerprints  # each time all weights are looked at
        if self.fingerprint != weights:
            raise LatentError(
                f"the latent was encoded with model '{self.model}' (weights {self.fingerprint[:12]}), but "
                f"'{model.name}' has other weights ({weights[:12]}); decode it with the model it names"
            )
        changed = [part for part, own in self.fingerprints.items() if parts.get(part) != own]
        if changed:
            raise LatentError(
                f"the latent was encoded with another {' and '.join(changed)} than model '{model.name}' has now; "
                "decode it with that"
            )
        label = self.condition.label
        # Where nobody names a class, its number is its name.
        names = {self.condition.name, *model.classes[label : label + 1]} - {str(label)} if label is not None else set()
        if label is not None and (label >= len(model.classes) or len(names) > 1):
            raise LatentError(
                f"the latent was encoded as class {label}, '{self.condition.name}', and model '{model.name}' calls "
                f"its classes otherwise: {', '.join(model.classes) or 'it knows none'}; restore their names"
            )

    def reached_by(self, grid: Grid) -> bool:
        """Whether decoding on ``grid`` begins at this latent's noise level."""
        return isclose(grid.sigma_T, self.grid.sigma_T, rel_tol=1e-9)

    def check_reaches(self, grid: Grid) -> None:
        """Raise LatentError unless decoding on ``grid`` begins at this latent's noise level."""
        if not self.reached_by(grid):
            raise LatentError(
                f"the latent lies at sigma = {self.grid.sigma_T:.6g} (t = {self.grid.timesteps[-1]:g}), but grid "
                f"'{grid.name}' with {grid.steps} steps begins at {grid.sigma_T:.6g} (t = {grid.timesteps[-1]:g}); "
                "take one that reaches any end, such as linspace or log-snr"
            )

    def without_prompt(self) -> Latent:
        """The same without what a pipeline was asked for in words; decoding it needs them, and finds out others."""
        return self if self.asked is None else replace(self, asked=without_text(self.asked))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the latent file ``path``, as ``save_latent`` does."""
        save_latent(self, path, overwrite=overwrite)

    def to_bytes(self) -> bytes:
        """The content of a latent file."""
        return _content(self)

    def summary(self) -> str:
        """What is in it, in a few lines for people to read."""
        solver = ", ".join(f"{key} {value}" if key != "name" else str(value) for key, value in self.solver.items())
        width, height = self.source.size
        moment = float((self.x_T**2).mean())
        grid, schedule = _short(self.grid.name), _short(self.schedule.name)
        return "\n".join(
            (
                f"latent of '{_short(self.source.name)}' ({width} x {height}; {self.source.fit})",
                f"  x_T        {tuple(self.x_T.shape)} {self.x_T.dtype}, second moment {moment:.4f}"
                + (", with a companion: decodes exactly" if self.companion is not None else ""),
                f"  sigma_T    {self.grid.sigma_T:.6g} at t = {self.grid.timesteps[-1]:g}; scale: {SCALE}",
                f"  grid       {grid}, {self.grid.steps} steps, clean end {self.grid.clean_end}",
                f"  solver     {solver}, {self.nfe} NFE",
                f"  condition  {_short(str(self.condition))}",
                *((f"  asked      {_short(describe(self.asked))}",) if self.asked else ()),
                f"  model      {_short(self.model)}, weights {self.fingerprint[:12]}, schedule {schedule}"
                + ("" if self.family == "vp" else f", family {self.family}"),
            )
        )


def _of_another_size(shape: Sequence[int], model: Model) -> str:
    """That a latent of this ``shape``, (1, C, H, W), is of another size than the pipeline of ``model`` is asked for."""
    height, width = (model.factor * side for side in shape[2:])
    return (
        f"the latent is of a picture of {height}x{width} pixels, and pipeline '{model.name}' is asked for one of "
        f"{model.factor * model.height}x{model.factor * model.width}; ask it for {height}x{width}"
    )


def _short(name: str) -> str:
    """``name`` as a part of a line."""
    return f"{' '.join(name.split()):.200}"


def _worst(state: Tensor) -> float:
    """What is least like a number of unit variance in ``state``, of any shape."""
    sizes = state.abs().nan_to_num(nan=inf)
    return float(state.flatten()[sizes.flatten().argmax()])


def save_latent(latent: Latent, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the latent file; it is there whole or not at all.

    Raises:
        OSError: if the file exists and ``overwrite`` is false, or cannot be written.
    """
    write_file(Path(path), latent.to_bytes(), overwrite=overwrite)


def _content(latent: Latent) -> bytes:
    content = {
        "format": FORMAT,
        "version": VERSIONS[-1],
        "x_T": latent.x_T.detach().cpu().clone(),
        "dtype": _name_of(latent.x_T.dtype),
        "scale": SCALE,
        "sigma_T": latent.grid.sigma_T,
        "grid": {
            "name": latent.grid.name,
            "clean_end": latent.grid.clean_end,
            "sigmas": list(latent.grid.sigmas),
            "timesteps": list(latent.grid.timesteps),
        },
        "solver": dict(latent.solver),
        "family": latent.family,
        "asked": None if latent.asked is None else dict(latent.asked),
        "embedding": latent.embedding,
        "fingerprints": dict(latent.fingerprints),
        "schedule": latent.schedule.settings,
        "model": {"name": latent.model, "fingerprint": latent.fingerprint},
        "source": asdict(latent.source),
        "nfe": latent.nfe,
        "condition": {**asdict(latent.condition), "meaning": MEANING},
        "companion": None if latent.companion is None else latent.companion.detach().cpu().clone(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_latent(file: str | Path | bytes) -> Latent:
    """Read a latent file, by its path or its content; nothing in it is ever executed.

    Raises:
        LatentError: if it is missing, empty, truncated, no latent file, of another version, or inconsistent.
    """
    name = "latent" if isinstance(file, bytes) else str(file)
    data = file if isinstance(file, bytes) else read_file(Path(file), "latent file", LatentError)
    content = _unpickle(data, name)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise LatentError(f"'{name}' is not a latent file of ddim-ode; make one with: encode")
    try:
        _check_parts(content, len(data))  # before any of them is written into a message
    except ValueError as error:
        raise LatentError(f"the latent file '{name}' is damaged: {error}") from error
    version = content.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise LatentError(
            f"'{name}' has format version {version!s:.60}, but this program reads the versions "
            f"{', '.join(map(str, VERSIONS[:-1]))} and {VERSIONS[-1]}; use the version of ddim-ode that wrote it"
        )
    try:
        latent = _from_content(content)
        if content["dtype"] != _name_of(latent.x_T.dtype):
            raise ValueError(f"x_T is said to be {content['dtype']!r:.60}, but it is {latent.x_T.dtype}")
    except Exception as error:  # whatever a wrong structure provokes
        raise LatentError(f"the latent file '{name}' is damaged: {reason(error):.300}") from error
    return latent


def _unpickle(content: bytes, name: str) -> object:
    if not content:
        raise LatentError(f"'{name}' is empty")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or malicious pickle provokes
        raise LatentError(
            f"'{name}' is not a latent file, or a truncated one: torch.load(weights_only=True) refuses it"
        ) from error


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_parts(content: dict[str, Any], size: int) -> None:
    """Raise ValueError if a file of this ``size`` in bytes holds more than it has room for, or than belongs there.

    A tensor can be written as one number that is repeated, and a list can stand in many places of another.
    """
    schedule = content.get("schedule")
    alpha_bar = schedule.get("alpha_bar") if isinstance(schedule, dict) else None
    held = (content.get("x_T"), content.get("companion"), alpha_bar)
    parts, count = [cast(Any, content)], 0
    while parts:
        part = parts.pop()
        if isinstance(part, Tensor):
            if not any(part is tensor for tensor in held):
                raise ValueError(f"there is a tensor of the shape {tuple(part.shape)} where none belongs")
            if part.numel() * part.element_size() > size:
                raise ValueError(f"a tensor of the shape {tuple(part.shape)} has no room in {size} bytes")
        elif isinstance(part, dict | list | tuple | set | frozenset):
            within = [*part.keys(), *part.values()] if isinstance(part, dict) else part
            count += len(within)
            if count > _MOST_PARTS:
                raise ValueError(f"it holds more than {_MOST_PARTS} things")
            parts += within


def _from_content(content: dict[str, Any]) -> Latent:
    nodes = content["grid"]
    grid = Grid(
        str(nodes["name"]),
        str(nodes["clean_end"]),
        tuple(float(sigma) for sigma in nodes["sigmas"]),
        tuple(float(t) for t in nodes["timesteps"]),
    )
    schedule = levels_from(content["schedule"])
    grid.check_belongs(schedule)
    for key, right in (("sigma_T", grid.sigma_T), ("scale", SCALE)):
        if content[key] != right:
            raise ValueError(f"{key} is {content[key]!r}, but must be {right!r}")
    width, height = content["source"]["size"]
    return Latent(
        x_T=content["x_T"],
        grid=grid,
        solver=_solver_settings(content["solver"]),
        schedule=schedule,
        model=str(content["model"]["name"]),
        fingerprint=str(content["model"]["fingerprint"]),
        source=Source(
            name=str(content["source"]["name"]),
            size=(_count(width, 1), _count(height, 1)),
            fit=str(content["source"]["fit"]),
        ),
        nfe=_count(content["nfe"], 0),
        companion=content.get("companion"),
        condition=UNCONDITIONAL if content["version"] == 1 else _condition(content["condition"]),
        **(_of_family(content) if content["version"] > 2 else {}),
    )


def _condition(content: dict[str, Any]) -> Condition:
    """The condition in a file: a class with its number and its name, or none of them."""
    label, guidance, name = content["label"], content["guidance"], content["name"]
    if type(guidance) not in (int, float) or content["meaning"] != MEANING:
        raise ValueError(f"guidance must be a number that means {MEANING!r}, but there is {content!r:.60}")
    if (label is None) != (name is None) or not isinstance(name, str | None):
        raise ValueError(f"a class must have a number and a name, but there are {label!r:.60} and {name!r:.60}")
    return Condition(label if label is None else _count(label, 0), float(guidance), name)


def _of_family(content: dict[str, Any]) -> dict[str, Any]:
    """What a file says of the family of its model, and of a pipeline."""
    family, asked, fingerprints = content["family"], content["asked"], content["fingerprints"]
    if family not in FAMILIES:
        raise ValueError(f"the family must be one of {', '.join(FAMILIES)}, but it is {family!r:.60}")
    embedding = content["embedding"] if content["version"] > 3 else None
    if asked is not None:
        asked = asked if content["version"] > 3 else {**asked, "call": None}
        check_asked(asked)
    if embedding is not None and not is_hash(embedding):
        raise ValueError(f"the hash of what the network was told must have 256 digits, but it is {embedding!r:.60}")
    check_table("fingerprints", fingerprints, {key: (str,) for key in fingerprints})
    return {"family": family, "asked": asked, "embedding": embedding, "fingerprints": fingerprints}


def _count(value: Any, least: int) -> int:
    """The ``value``, an integer from ``least`` on."""
    if type(value) is not int or value < least:
        raise ValueError(f"there must be an integer from {least} on, but there is {value!r:.60}")
    return value


def _solver_settings(content: dict[str, Any]) -> dict[str, str | float]:
    """The settings in a file: strings and numbers, a name that is a string, and tolerances that are numbers."""
    if not isinstance(content["name"], str):
        raise ValueError(f"the name of the solver must be a string, but it is {content['name']!r}")
    for key, value in content.items():
        allowed = (int, float) if key in ("rtol", "atol") else (str, int, float)
        if not isinstance(value, allowed):
            kinds = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"the setting '{key}' of the solver must be {kinds}, but it is {value!r}")
        if not isinstance(value, str):
            _check_finite(key, value)
    return {str(key): value for key, value in content.items()}


def _check_finite(key: str, value: float) -> None:
    try:
        finite = isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise ValueError(f"the setting '{key}' of the solver must be a finite number, but it is {value!r:.60}")
