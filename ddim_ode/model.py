"""A model: a network with what is needed to use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddim_ode.asked import guidance_of
from ddim_ode.calibration import FILE as CALIBRATION_FILE
from ddim_ode.calibration import Calibration, load_calibration
from ddim_ode.conditioned import Bound, Conditioned, check_answers
from ddim_ode.conditions import NO_CLASS, UNCONDITIONAL, Asked, Condition, Label
from ddim_ode.devices import device_of
from ddim_ode.embeddings import Told
from ddim_ode.fingerprints import Fingerprints
from ddim_ode.levels import Levels
from ddim_ode.networks import KnowingClasses
from ddim_ode.ode import ProbabilityFlowODE
from ddim_ode.processes import Process
from ddim_ode.spaces import AutoencoderSpace, PixelSpace

# What its fingerprint is known by; those of what is beside it by their names.
_NETWORK = ""


@dataclass(frozen=True, eq=False)
class Model:
    """A network with what is needed to use it; images are ``(B, channels, height, width)``.

    ``process``  how the network wants to be asked, and what it answers.
    ``folder``   where it was read from, if it was.
    ``classes``  the names of the classes that the network knows, by their numbers; none if it knows none.
    ``autoencoder``  of diffusers, if images are its latents, and not pixels; a picture is ``factor`` times as high.
    ``beside``     what else has a part in it, by name: of a pipeline its autoencoder and its text encoders.
    ``asked``      what a pipeline is asked for: its prompt, and what goes with that; ``ask`` makes a model that is
                   asked for something else.
    ``scheduler``  the configuration of diffusers' scheduler that it came with.
    ``shared``     whether somebody else holds its modules too, and may change their weights.
    """

    name: str
    network: nn.Module
    process: Process
    channels: int
    height: int
    width: int
    folder: Path | None = None
    classes: tuple[str, ...] = ()
    scheduler: Mapping[str, Any] | None = None
    autoencoder: Any = None
    factor: int = 1
    beside: Mapping[str, nn.Module] = field(default_factory=dict)
    asked: Mapping[str, str | float | None] | None = None
    ask: Callable[[Mapping[str, Any]], Model] | None = None
    shared: bool = False

    def ode(self, *, max_nfe: int | None = None, conditions: Sequence[Asked] | None = None) -> ProbabilityFlowODE:
        """A fresh ODE of this model, with its count of evaluations at zero.

        ``conditions``  one for each member of the batches that it is for; None for no class, and any batch.

        Raises:
            ValueError: if there are conditions, but the network knows no classes.
        """
        if conditions is not None and not self.classes:
            raise ValueError(f"model '{self.name}' knows no classes; leave the conditions out")
        network = self.network if conditions is None else Conditioned(self.network, conditions)
        return ProbabilityFlowODE(network, self.process, max_nfe=max_nfe)

    def condition(self, label: Label | None, *, guidance: float = 1.0) -> Condition:
        """What to ask of the network for a class, by its name or its number; None or 'none' for no class.

        A class that is itself called 'none' has its number.

        Raises:
            ValueError: if there is no such class, guidance is not finite, or the network knows only classes and none is
                asked for, or guidance.
        """
        condition = self._condition(label, guidance)
        if isinstance(self.network, KnowingClasses):
            check_answers(self.network, [condition])
        return condition

    def _condition(self, label: Label | None, guidance: float) -> Condition:
        if label in (None, NO_CLASS):
            return Condition(None, guidance)
        number = self.classes.index(label) if isinstance(label, str) and label in self.classes else label
        if isinstance(number, str) and number.isdecimal():
            number = int(number)
        if not isinstance(number, int) or not 0 <= number < len(self.classes):
            known = _listed([f"{i} {name}" for i, name in enumerate(self.classes)]) or "no classes at all"
            raise ValueError(f"model '{self.name}' knows no class '{label}'; it knows: {known}, and '{NO_CLASS}'")
        return Condition(number, guidance, self.classes[number])

    def strength(self, condition: Condition) -> float:
        """The guidance that a calibration must be for: of ``condition``, or what a pipeline is asked for."""
        return condition.strength if self.asked is None else guidance_of(self.asked)

    def calibrated(self, calibration: Calibration) -> Model:
        """The same model with ``calibration``, which comes before what it was calibrated for until now.

        Raises:
            CalibrationError: if it was made for other weights.
        """
        calibration.check_made_for(self.fingerprint)
        same = copy(self)
        vars(same)["calibration"] = calibration.joined(self.calibration) if self.calibration else calibration
        return same

    def bound(self, condition: Condition) -> Model:
        """This model as one that knows no classes, and answers under ``condition``; itself for no class.

        Raises:
            ValueError: if a class is asked for, but the network knows none.
        """
        if condition.terms == UNCONDITIONAL.terms:
            return self
        if not self.classes:
            raise ValueError(f"model '{self.name}' knows no classes; leave the class out")
        network = Bound(self.network, condition).to(self.device).eval().requires_grad_(False)
        bound = replace(self, name=f"{self.name}, {condition}", network=network, folder=None, classes=())
        if self.calibration:
            own = (entry for entry in self.calibration.entries if entry.guidance == condition.strength)
            entries = tuple(replace(entry, guidance=1.0) for entry in own)
            vars(bound)["calibration"] = replace(self.calibration, fingerprint=bound.fingerprint, entries=entries)
        return bound

    def asked_for(
        self,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> Model:
        """The same pipeline, asked for something else, or for pictures of another size in pixels.

        What is None stays as it is.

        Raises:
            ValueError: if this model is of no pipeline that is told a text, or the pipeline does not take it.
        """
        if self.ask is None:
            raise ValueError(f"model '{self.name}' is not a pipeline that is told a text; leave prompts and sizes out")
        wishes = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "guidance": guidance,
            "height": height,
            "width": width,
        }
        model = self.ask({key: value for key, value in wishes.items() if value is not None})
        # Of the same weights, which take a while to read.
        vars(model)["_known"] = self._known
        if "calibration" in vars(self) and model.space.shape == self.space.shape:
            vars(model)["calibration"] = self.calibration
        return model

    @property
    def embedding(self) -> str | None:
        """What the network of a pipeline has been told instead of the prompt, as a hash; None before its first walk."""
        return self.network.embedding if isinstance(self.network, Told) else None

    @property
    def schedule(self) -> Levels:
        """The noise levels of its training."""
        return self.process.schedule

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        return self.process.prediction

    @property
    def space(self) -> PixelSpace | AutoencoderSpace:
        """What the state of the ODE is of a picture."""
        if self.autoencoder is not None:
            return AutoencoderSpace(self.autoencoder, self.channels, self.height, self.width, self.factor)
        return PixelSpace(self.channels, self.height, self.width)

    @property
    def device(self) -> torch.device:
        """The device that the network computes on; of one without parameters the CPU."""
        return device_of(self.network)

    @cached_property
    def _known(self) -> Fingerprints:
        return Fingerprints(watched=self.shared)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes and values of the weights; the same in every file format and folder."""
        return self._known.of(_NETWORK, self.network)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Those of what is ``beside`` the network, by name; and, if something is, what it says beside its weights."""
        found = {name: self._known.of(name, module) for name, module in self.beside.items()}
        if self.autoencoder is not None:
            found |= {"prediction": self.prediction, "scaling of latents": AutoencoderSpace.numbers(self.autoencoder)}
        return found

    def with_fingerprints_of(self, model: Model) -> Model:
        """This model itself, whose weights are those of ``model`` in another form, and go by the fingerprints of that.

        They must have been found out already.
        """
        vars(self)["_known"] = model._known.of_others({_NETWORK: self.network, **self.beside})
        return self

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration beside the weights, if there is one.

        Raises:
            CalibrationError: if it is damaged, or was made for other weights.
        """
        if self.folder is None:
            return None
        return load_calibration(self.folder / CALIBRATION_FILE, self.fingerprint, self.schedule)

    def summary(self) -> str:
        """What it is, in a few lines for people to read."""
        schedule = self.schedule
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        entries = self.calibration.entries if self.calibration else ()
        must = isinstance(self.network, KnowingClasses) and not self.network.knows_none
        calibrated = ", ".join(
            f"{entry.grid.steps} steps{'' if entry.guidance == 1 else f' at guidance {entry.guidance:g}'}"
            for entry in entries
        )
        return "\n".join(
            (
                f"model '{self.name}'",
                f"  images     {self.channels} x {self.height} x {self.width}",
                f"  network    {parameters / 1e6:.2f} M parameters, predicts {self.prediction}",
                *(
                    (f"  classes    {_listed(self.classes)}; {'one must be' if must else 'none unless'} named",)
                    if self.classes
                    else ()
                ),
                *((f"  family     {self.process.family}",) if self.process.family != "vp" else ()),
                f"  schedule   {schedule.name}: sigma from {schedule.sigma_min:.6g} to {schedule.sigma_max:.6g}",
                f"  weights    {self.fingerprint}",
                *(f"  {name:<10} {own}" for name, own in self.fingerprints.items()),
                f"  calibrated {calibrated or 'none'}",
            )
        )


def _listed(names: Sequence[str]) -> str:
    """All of the ``names``, or of many the first ones and how many more there are."""
    return ", ".join(names) if len(names) <= 100 else f"{', '.join(names[:10])} and {len(names) - 10} more"
