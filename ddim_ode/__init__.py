"""Encode, decode and sample with diffusion models through the ODE of DDIM (arXiv 2010.02502, Eq. (14)).

    from ddim_ode import Session

    session = Session("default")
    latent = session.encode("photo.jpg", steps=10)
    picture = session.decode(latent)

Importing this package is cheap; a name brings its module, and torch, when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddim_ode.ancestral import Ancestral as Ancestral
    from ddim_ode.ancestral import seeded_noise as seeded_noise
    from ddim_ode.calibration import Calibration as Calibration
    from ddim_ode.calibration import load_calibration as load_calibration
    from ddim_ode.calibration import save_calibration as save_calibration
    from ddim_ode.codec import decode as decode
    from ddim_ode.codec import decode_solution as decode_solution
    from ddim_ode.codec import encode as encode
    from ddim_ode.codec import encode_solution as encode_solution
    from ddim_ode.conditions import Condition as Condition
    from ddim_ode.family import ForwardProcess as ForwardProcess
    from ddim_ode.family import forward_process as forward_process
    from ddim_ode.grids import Grid as Grid
    from ddim_ode.grids import full_range as full_range
    from ddim_ode.grids import grid_of_timesteps as grid_of_timesteps
    from ddim_ode.grids import make_grid as make_grid
    from ddim_ode.images import load_image as load_image
    from ddim_ode.images import save_image as save_image
    from ddim_ode.interpolation import slerp as slerp
    from ddim_ode.interpolation import span as span
    from ddim_ode.latents import Latent as Latent
    from ddim_ode.latents import load_latent as load_latent
    from ddim_ode.latents import save_latent as save_latent
    from ddim_ode.model import Model as Model
    from ddim_ode.models import load_model as load_model
    from ddim_ode.modules import from_module as from_module
    from ddim_ode.ode import ProbabilityFlowODE as ProbabilityFlowODE
    from ddim_ode.pipelines import from_pipeline as from_pipeline
    from ddim_ode.processes import EDM as EDM
    from ddim_ode.processes import Flow as Flow
    from ddim_ode.processes import VarianceExploding as VarianceExploding
    from ddim_ode.processes import VariancePreserving as VariancePreserving
    from ddim_ode.schedule import NoiseSchedule as NoiseSchedule
    from ddim_ode.schedule import make_schedule as make_schedule
    from ddim_ode.session.calibrate import learn_solver as learn_solver
    from ddim_ode.session.dataset.load import LatentDataset as LatentDataset
    from ddim_ode.session.dataset.load import load_dataset as load_dataset
    from ddim_ode.session.dataset.run import encode_dataset as encode_dataset
    from ddim_ode.session.plan import Plan as Plan
    from ddim_ode.session.request import PlanError as PlanError
    from ddim_ode.session.request import Request as Request
    from ddim_ode.session.session import Session as Session
    from ddim_ode.session.walks import Progress as Progress

__version__ = "0.1.0"

# In a clone `solvers`, `analysis` and `cli.py` lie beside this package, in an installed one inside it, so that they are
# `ddim_ode.solvers`, `ddim_ode.analysis` and `ddim_ode.cli` in both.
if not (Path(__file__).parent / "solvers").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

_MODULES = {
    "ancestral": ("Ancestral", "seeded_noise"),
    "calibration": ("Calibration", "load_calibration", "save_calibration"),
    "codec": ("decode", "decode_solution", "encode", "encode_solution"),
    "conditions": ("Condition",),
    "family": ("ForwardProcess", "forward_process"),
    "grids": ("Grid", "full_range", "grid_of_timesteps", "make_grid"),
    "images": ("load_image", "save_image"),
    "interpolation": ("slerp", "span"),
    "latents": ("Latent", "load_latent", "save_latent"),
    "model": ("Model",),
    "models": ("load_model",),
    "modules": ("from_module",),
    "ode": ("ProbabilityFlowODE",),
    "pipelines": ("from_pipeline",),
    "processes": ("EDM", "Flow", "VarianceExploding", "VariancePreserving"),
    "schedule": ("NoiseSchedule", "make_schedule"),
    "session.calibrate": ("learn_solver",),
    "session.dataset.load": ("LatentDataset", "load_dataset"),
    "session.dataset.run": ("encode_dataset",),
    "session.plan": ("Plan",),
    "session.request": ("PlanError", "Request"),
    "session.session": ("Session",),
    "session.walks": ("Progress",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ddim_ode' has no attribute '{name}'")
    return getattr(import_module(f"ddim_ode.{_HOMES[name]}"), name)
