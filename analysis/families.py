"""Families: the measurements are of DDPMs, beside which diffusers' schedulers and the paper's tables can be put."""

from __future__ import annotations

from math import isinf

from ddim_ode.models import Model
from ddim_ode.schedule import NoiseSchedule


def table_of(model: Model) -> NoiseSchedule:
    """The noise schedule of ``model``, whose last sigma is finite.

    Raises:
        ValueError: if it has none.
    """
    schedule = model.schedule
    if model.process.family != "vp" or not isinstance(schedule, NoiseSchedule) or isinf(schedule.sigma_max):
        end = " and ends at sigma = infinity" if isinf(schedule.sigma_max) else ""
        raise ValueError(
            f"model '{model.name}' is of the family '{model.process.family}'{end}; what is measured here are DDPMs "
            "with a table of betas and a finite end"
        )
    return schedule
