"""Families of models: one ODE for all of them, against a mixture of Gaussians and diffusers' own schedulers."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from flows import MIXTURE, level, relative_error
from PIL import Image
from torch import Tensor

from ddim_ode import Session, from_module, load_latent
from ddim_ode.codec import decode, encode
from ddim_ode.grids import Grid, grid_of_timesteps, halved, make_grid
from ddim_ode.latents import LatentError
from ddim_ode.levels import FlowLevels, GeometricLevels, Levels, levels_from
from ddim_ode.models import ModelError, load_model
from ddim_ode.ode import EvaluationLimitError, ProbabilityFlowODE
from ddim_ode.processes import EDM, Flow, Process, VarianceExploding, VariancePreserving
from ddim_ode.schedule import make_schedule, schedule_from_diffusers
from ddim_ode.session.plan import PlanError
from ddim_ode.solvers import SOLVERS, get_solver

SD = 0.5
ZERO_SNR = schedule_from_diffusers({"rescale_betas_zero_snr": True})
# The mean of the mixture, by its weights.
MEAN = torch.einsum(
    "k,kchw->chw",
    torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64),
)


@dataclass(frozen=True, eq=False)
class Family:
    """A process, and what the best network for the mixture answers: (x_bar, sigma, eps) to the output."""

    process: Process
    sigma: Callable[[Tensor], Tensor]
    x_bar: Callable[[Tensor, Tensor], Tensor]
    output: Callable[[Tensor, Tensor, Tensor], Tensor]
    at_infinity: Callable[[Tensor], Tensor] | None = None

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        if bool(sigma.isinf().any()):
            assert self.at_infinity is not None
            return self.at_infinity(x)
        x_bar = self.x_bar(x, level(sigma, x))
        return self.output(x_bar, level(sigma, x), MIXTURE.field(sigma, x_bar))

    @property
    def ode(self) -> ProbabilityFlowODE:
        return ProbabilityFlowODE(self.network, self.process)


def _vp(schedule: object, prediction: str, output: Callable[..., Tensor], end: Callable[[Tensor], Tensor]) -> Family:
    return Family(
        VariancePreserving(schedule, prediction), schedule.sigma, lambda x, s: x * (1 + s**2).sqrt(), output, end
    )


def _v(x_bar: Tensor, s: Tensor, eps: Tensor) -> Tensor:
    return (eps - s * (x_bar - s * eps)) / (1 + s**2).sqrt()


def _x_0(x_bar: Tensor, s: Tensor, eps: Tensor) -> Tensor:
    return x_bar - s * eps


def _raw(x_bar: Tensor, s: Tensor, eps: Tensor) -> Tensor:
    """F of the denoised image D = c_skip x_bar + c_out F."""
    w = (s**2 + SD**2).sqrt()
    return (x_bar - s * eps - SD**2 / w**2 * x_bar) / (s * SD / w)


def _log(t: Tensor) -> Tensor:
    return (4 * t).exp()


def _same(t: Tensor) -> Tensor:
    return t


FAMILIES = {
    "vp-eps": _vp(make_schedule(), "epsilon", lambda x, s, e: e, lambda x: x),
    "vp-v": _vp(make_schedule("squaredcos_cap_v2", timesteps=4000), "v_prediction", _v, lambda x: x),
    "vp-v-zero-snr": _vp(ZERO_SNR, "v_prediction", _v, lambda x: -MEAN.expand_as(x)),
    "vp-x_0-zero-snr": _vp(ZERO_SNR, "sample", _x_0, lambda x: MEAN.expand_as(x)),
    "flow": Family(
        Flow(),
        lambda t: t / 1000 / (1 - t / 1000),
        lambda x, s: x * (1 + s),
        lambda x, s, e: e - (x - s * e),
        lambda x: x - MEAN,
    ),
    "flow-of-u": Family(
        Flow(label_scale=1.0),
        lambda t: t / (1 - t),
        lambda x, s: x * (1 + s),
        lambda x, s, e: e - (x - s * e),
        lambda x: x - MEAN,
    ),
    "edm-F": Family(EDM(), _log, lambda x, s: x * (s**2 + SD**2).sqrt(), _raw),
    "edm-minus-F": Family(
        EDM(prediction="v_prediction"), _log, lambda x, s: x * (s**2 + SD**2).sqrt(), lambda *a: -_raw(*a)
    ),
    "edm-D": Family(EDM(prediction="sample"), _same, lambda x, s: x, _x_0),
    "ve": Family(VarianceExploding(), _same, lambda x, s: x, lambda x, s, e: -e / s),
}
ENDLESS = {name: f for name, f in FAMILIES.items() if math.isinf(f.process.schedule.sigma_max)}
each_family = pytest.mark.parametrize("name", FAMILIES)
each_endless = pytest.mark.parametrize("name", ENDLESS)


@each_family
def test_the_slope_is_that_of_the_mixture_up_to_both_ends(name: str) -> None:
    family = FAMILIES[name]
    levels = family.process.schedule
    # Below the smallest sigma of a table, and at zero in flow matching alone, networks are told nothing new.
    sigmas = [levels.sigma_min, 0.3, 1.7, 12.0, levels.sigma_max if math.isfinite(levels.sigma_max) else 5e3]
    for sigma in (0.0, *sigmas) if family.process.family == "flow" else sigmas:
        x_bar = MIXTURE.at(sigma)
        at = torch.tensor(sigma, dtype=torch.float64)
        torch.testing.assert_close(family.ode(at, x_bar), MIXTURE.field(at, x_bar), rtol=1e-10, atol=1e-10)
    each = torch.tensor([0.5, 20.0], dtype=torch.float64)
    x_bar = torch.cat([MIXTURE.at(0.5)[:1], MIXTURE.at(20.0)[1:]])
    torch.testing.assert_close(family.ode(each, x_bar), MIXTURE.field(each, x_bar), rtol=1e-10, atol=1e-10)


@each_family
@pytest.mark.parametrize("solver", ["euler", "dpmpp3m", "reversible-heun"])
def test_all_families_go_the_same_way(name: str, solver: str) -> None:
    sigmas = 0.02 * 3000 ** (torch.arange(21, dtype=torch.float64) / 20)
    there = SOLVERS[solver](FAMILIES[name].ode, MIXTURE.at(0.02), sigmas)
    assert relative_error(there, SOLVERS[solver](MIXTURE.field, MIXTURE.at(0.02), sigmas)) < 1e-10
    back = SOLVERS[solver](FAMILIES[name].ode, there, sigmas.flip(0))
    assert relative_error(back, SOLVERS[solver](MIXTURE.field, there, sigmas.flip(0))) < 1e-10


@each_family
def test_at_infinity_there_is_the_mean_or_nothing(name: str) -> None:
    ode = FAMILIES[name].ode
    if name not in ENDLESS:
        with pytest.raises(ValueError, match="the noise levels of this model end at sigma = "):
            ode.origin(MIXTURE.data)
        return
    torch.testing.assert_close(ode.origin(MIXTURE.data), MEAN.expand_as(MIXTURE.data), rtol=1e-12, atol=1e-12)
    assert ode.nfe == 1
    limited = ProbabilityFlowODE(FAMILIES[name].network, FAMILIES[name].process, max_nfe=1)
    limited.origin(MIXTURE.data)
    with pytest.raises(EvaluationLimitError, match="at sigma = inf"):
        limited.origin(MIXTURE.data)


@each_endless
@pytest.mark.parametrize("solver", ["euler", "rk4", "dpmpp3m", "reab3", "unipc3-bh2-data", "abam3", "per-sample-bosh3"])
def test_images_come_from_infinity_and_go_there(name: str, solver: str) -> None:
    """In many steps both ways are near those that scipy goes, from a sigma that is as good as infinity."""
    family, far = FAMILIES[name], 1e7
    levels = family.process.schedule
    x_T = MIXTURE.at(far) / far
    low, high = levels.sigma_min, float(levels.sigma(len(levels) - 2))
    steps = 1 if SOLVERS[solver].adaptive else 199
    grid = nodes([*(low * (high / low) ** (i / steps) for i in range(steps + 1)), math.inf], levels, "sigma-min")
    x_0 = MIXTURE.at(grid.sigmas[0])
    most = 0.05 if solver == "euler" else 2e-3
    assert relative_error(decode(family.ode, x_T, grid, SOLVERS[solver]), x_0) < most
    ode = family.ode
    assert relative_error(encode(ode, x_0, grid, SOLVERS[solver]), x_T) < most
    if not SOLVERS[solver].adaptive:
        assert ode.nfe == SOLVERS[solver].nfe(200)


def test_one_step_to_infinity_is_for_those_who_take_it() -> None:
    family = FAMILIES["flow"]
    grid = make_grid(family.process.schedule, "log-snr", 1, clean_end="zero")
    assert grid.sigmas == (0.0, math.inf)
    torch.testing.assert_close(decode(family.ode, MIXTURE.data, grid, get_solver("euler")), MEAN.expand(2, 1, 2, 2))
    with pytest.raises(ValueError, match="one step alone leads to or from sigma = infinity"):
        decode(family.ode, MIXTURE.data, grid, get_solver("dpmpp2m"))


@pytest.mark.parametrize("levels", [FlowLevels(), ZERO_SNR], ids=["flow", "zero-snr"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("name", ["log-snr", "karras", "capped-100", "trailing", "ays-sd"])
@pytest.mark.parametrize("clean_end", ["zero", "sigma-min"])
def test_grids_to_infinity_have_as_many_steps_as_asked(levels: Levels, steps: int, name: str, clean_end: str) -> None:
    grid = make_grid(levels, name, steps, clean_end=clean_end)
    assert grid.steps == steps
    assert math.isinf(grid.sigma_T)
    assert (grid.sigmas[0] == 0) == (clean_end == "zero")
    grid.check_belongs(levels)
    fine = halved(grid, levels)
    assert fine.steps == 2 * steps
    assert set(grid.sigmas) <= set(fine.sigmas)
    if clean_end == "sigma-min":  # half of the step to zero is at no timestep
        fine.check_belongs(levels)


@pytest.mark.parametrize("levels", [FlowLevels(), FlowLevels(50), GeometricLevels(0.002, 80.0), ZERO_SNR])
def test_levels_and_timesteps_undo_each_other(levels: Levels) -> None:
    t = torch.linspace(0, len(levels) - 1, 301, dtype=torch.float64)
    sigma = levels.sigma(t)
    assert bool((sigma.diff() > 0).all())
    torch.testing.assert_close(levels.t(sigma), t, rtol=0, atol=1e-8)
    assert float(sigma[0]) == pytest.approx(levels.sigma_min)
    assert float(sigma[-1]) == levels.sigma_max
    assert levels_from(levels.settings).matches(levels)
    assert not make_schedule().matches(levels)
    assert not levels.matches(FlowLevels(49))
    with pytest.raises(ValueError, match=r"timesteps must lie in \[0, "):
        levels.sigma(-1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FlowLevels(1), "there must be from 2 to 1000000 timesteps, but there are 1"),
        (
            lambda: GeometricLevels(0.0, 1.0),
            "sigma must rise from a number above 0 to a finite one, but goes",
        ),
        (lambda: GeometricLevels(1.0, math.inf), "but goes from 1 to inf"),
        (lambda: Flow(label_scale=0), "label_scale must be a finite number above 0, but it is 0"),
        (
            lambda: EDM(prediction="eps"),
            "unknown prediction 'eps' of EDM; choose one of: epsilon,",
        ),
        (lambda: EDM(sigma_data=-1), "sigma_data must be a finite number above 0, but it is -1"),
        (lambda: VariancePreserving(ZERO_SNR, "epsilon"), "networks with zero terminal SNR predict v or x_0"),
        (lambda: ProbabilityFlowODE(torch.tanh, Flow(), prediction="epsilon"), "leave out the prediction 'epsilon'"),
        (lambda: levels_from({"kind": "cosine"}), "noise levels of the kind 'cosine' are not known; there are: table"),
        (lambda: levels_from({"kind": "flow", "timesteps": 2.5}), "'timesteps' of the noise levels must be a number"),
        (lambda: from_module(torch.tanh, process=Flow(), shape=(3, 0, 4)), "shape must be (C, H, W), three positive"),
    ],
)
def test_what_is_no_family_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        make()


# ------------------------------------------------------------------------------------------------- beside diffusers


def network(x: Tensor, t: Tensor) -> Tensor:
    """One that is none of a family's in particular, and whose answer depends on all that it is told."""
    return torch.tanh(1.3 * x) * (0.6 + 0.3 * torch.sin(t.to(x) / 200).reshape(-1, *[1] * (x.ndim - 1)))


def walked(scheduler: object, x: Tensor) -> Tensor:
    """What diffusers' loop makes of the noise ``x``, with the network above."""
    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    x = x if flow else x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = network(x if flow else scheduler.scale_model_input(x, t), t.double().expand(len(x)))
        x = scheduler.step(output, t, x).prev_sample
    return x.double()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def nodes(sigmas: list[float], levels: Levels, clean_end: str) -> Grid:
    rising = sorted(sigmas)
    return Grid(
        "explicit", clean_end, tuple(rising), tuple(levels.t(torch.tensor(rising, dtype=torch.float64)).tolist())
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_diffusers_flow_matching(shift: float) -> None:
    """From infinity to the image, on the scheduler's own nodes."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(10)
    process, u = Flow(), scheduler.sigmas.double().tolist()
    assert u[0] == 1
    assert u[-1] == 0
    grid = nodes([math.inf if v == 1 else v / (1 - v) for v in u], process.schedule, "zero")
    ours = decode(ProbabilityFlowODE(network, process), noise(2, 3, 4, 4), grid, get_solver("euler"))
    torch.testing.assert_close(ours, walked(scheduler, noise(2, 3, 4, 4)), rtol=0, atol=2e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_is_diffusers_edm(prediction: str) -> None:
    """Its noise has the deviation sqrt(sigma^2 + 1), as our latents do."""
    scheduler = EDMEulerScheduler(prediction_type=prediction)
    scheduler.set_timesteps(10)
    process = EDM(prediction=prediction)
    grid = nodes(scheduler.sigmas.double().tolist(), process.schedule, "zero")
    ours = decode(ProbabilityFlowODE(network, process), noise(2, 3, 4, 4), grid, get_solver("euler"))
    theirs = walked(scheduler, noise(2, 3, 4, 4))
    assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_euler_is_diffusers_ddim_with_zero_terminal_snr(prediction: str) -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    scheduler = DDIMScheduler(prediction_type=prediction, **config)
    scheduler.set_timesteps(10)
    process = VariancePreserving(schedule_from_diffusers(config), prediction)
    grid = grid_of_timesteps(process.schedule, sorted(scheduler.timesteps.tolist()))
    assert math.isinf(grid.sigma_T)
    ours = decode(ProbabilityFlowODE(network, process), noise(2, 3, 4, 4), grid, get_solver("euler"))
    assert relative_error(ours, walked(scheduler, noise(2, 3, 4, 4))) < 1e-5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_clean_end_of_stable_diffusion(prediction: str) -> None:
    """Where diffusers takes the image as x at the first timestep, sqrt(alpha_bar) x_bar; and there and back."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    config = {**betas, "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}
    scheduler = DDIMScheduler(prediction_type=prediction, **config)
    scheduler.set_timesteps(10)
    process = VariancePreserving(schedule_from_diffusers(config), prediction)
    tau = sorted(float(t) for t in scheduler.timesteps)
    ode = ProbabilityFlowODE(network, process)
    grid = grid_of_timesteps(process.schedule, [0.0, *tau], clean_end="sigma-min-vp")
    ours = decode(ode, noise(2, 3, 4, 4), grid, get_solver("euler"))
    theirs = walked(scheduler, noise(2, 3, 4, 4))
    assert relative_error(ours, theirs) < 1e-5
    other = grid_of_timesteps(process.schedule, [0.0, *tau], clean_end="sigma-min")
    assert relative_error(decode(ode, noise(2, 3, 4, 4), other, get_solver("euler")), theirs) > 3e-4
    exact = encode(ode, ours, grid, get_solver("exact-euler"))
    assert relative_error(decode(ode, exact, grid, get_solver("euler")), ours) < 1e-5


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers with numpy 2
def test_euler_is_diffusers_own_with_its_unit_of_noise() -> None:
    """Its 'linspace' multiplies noise by sigma_T, where our latents have sqrt(1 + sigma_T^2)."""
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(10)
    process = VariancePreserving(make_schedule("scaled_linear", beta_start=0.00085, beta_end=0.012), "epsilon")
    grid = nodes(scheduler.sigmas.double().tolist(), process.schedule, "zero")
    unit = float(scheduler.init_noise_sigma) / math.sqrt(1 + grid.sigma_T**2)
    assert unit != pytest.approx(1, abs=1e-3)
    ours = decode(ProbabilityFlowODE(network, process), noise(2, 3, 4, 4) * unit, grid, get_solver("euler"))
    assert relative_error(ours, walked(scheduler, noise(2, 3, 4, 4))) < 1e-5


# ------------------------------------------------------------------------------------------------------ in sessions


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, 100, 255 - level))


@pytest.fixture(scope="module")
def flow_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A U-Net in a folder whose scheduler is of flow matching."""
    return with_scheduler(tiny_model, tmp_path_factory.mktemp("flow") / "model", FlowMatchEulerDiscreteScheduler())


def with_scheduler(model: Path, folder: Path, scheduler: object) -> Path:
    shutil.copytree(model, folder)
    scheduler.save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize("solver", ["reversible-heun", "mccallum-foster-midpoint", "o-belm"])
def test_exactly_to_infinity_and_back(flow_model: Path, solver: str) -> None:
    found = Session(flow_model).reconstruct(grey(120), solver=solver, steps=20)
    assert found.mse < (1e-12 if solver == "o-belm" else 1e-20)  # whose steps grow the rounding
    assert math.isinf(found.plan.grid.sigma_T)


def test_the_inverse_to_infinity(flow_model: Path) -> None:
    """In float64, as near as its tolerance."""
    session = Session(flow_model)
    session.model.network.double()
    assert session.reconstruct(grey(120), solver="euler", steps=20).mse > 1e-5
    assert session.reconstruct(grey(120), solver="exact-euler", steps=20).mse < 1e-8


@pytest.mark.parametrize("solver", ["bdia", "edict"])
def test_who_cannot_come_back_from_infinity_says_so(flow_model: Path, solver: str) -> None:
    with pytest.raises(PlanError, match=f"'{solver}' cannot begin at sigma = infinity, .* take reversible-heun"):
        Session(flow_model).encode(grey(120), solver=solver, steps=20)


@pytest.mark.parametrize("solver", ["auto", "euler", "per-sample-bosh3", "torchdiffeq-dopri5", "reversible-heun"])
def test_latents_of_flow_models_travel(flow_model: Path, tiny_model: Path, solver: str, tmp_path: Path) -> None:
    session = Session(flow_model)
    steps = None if SOLVERS.get(solver, get_solver("euler")).adaptive else 40
    latent = session.encode(grey(90), solver=solver, steps=steps)
    latent.save(tmp_path / "latent.pt")
    read = load_latent(tmp_path / "latent.pt")
    assert (read.family, read.grid, read.schedule) == ("flow", latent.grid, FlowLevels())
    assert "family flow" in read.summary()
    picture = session.decode(tmp_path / "latent.pt")
    image, *_ = session.model.space.read(grey(90))
    assert float((picture.image - image[0]).square().mean()) < 1e-2
    with pytest.raises(LatentError, match=r"of the family 'flow', but model .* is of the family 'vp'"):
        Session(tiny_model).decode(latent)


def test_noise_in_each_step_is_of_ddpms(flow_model: Path) -> None:
    with pytest.raises(PlanError, match="noise in each step is DDPM's"):
        list(Session(flow_model).sample(1, eta=1.0))
    with pytest.raises(PlanError, match="the clean end sigma-min-vp is of the family 'vp'"):
        Session(flow_model).encode(grey(90), clean_end="sigma-min-vp")


def test_the_third_clean_end_in_a_session(tiny_model: Path) -> None:
    session = Session(tiny_model)
    latent = session.encode(grey(90), steps=20, clean_end="sigma-min-vp", solver="reversible-heun")
    image, *_ = session.model.space.read(grey(90))
    torch.testing.assert_close(session.decode(load_latent(latent.to_bytes())).image, image[0], rtol=0, atol=1e-10)
    assert latent.grid.clean_end == "sigma-min-vp"


@pytest.mark.parametrize("name", ["edm-F", "flow", "ve", "vp-v-zero-snr"])
def test_a_module_of_ones_own(name: str) -> None:
    """A function and its process are a model: what it encodes decodes again, as good as the solver is."""
    family = FAMILIES[name]
    session = Session(from_module(family.network, process=family.process, shape=(1, 2, 2), name="mine"))
    found = session.reconstruct(Image.new("L", (2, 2), 200), steps=80)
    assert found.mse < 1e-6
    samples = list(session.sample(3, steps=20, seed=1))
    assert all(bool(sample.picture.image.isfinite().all()) for sample in samples)
    assert session.model.device.type == "cpu"


def test_a_factory_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets_of_mine.py").write_text(
        "from ddim_ode import Flow, from_module\n"
        "def make():\n    return from_module(lambda x, t: x.tanh(), process=Flow(), shape=(3, 8, 8))\n"
        "def number():\n    return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    model = load_model("nets_of_mine:make")
    assert (model.name, model.process.family) == ("nets_of_mine:make", "flow")
    for name, words in (
        ("nets_of_mine:number", "'nets_of_mine:number' returns a int; it should return a Model"),
        ("nets_of_mine:other", "cannot make a model with 'nets_of_mine:other': AttributeError"),
        ("no_such_module:make", "cannot make a model with 'no_such_module:make': ModuleNotFoundError"),
    ):
        with pytest.raises(ModelError, match=words):
            load_model(name)


def test_folders_of_each_family(tiny_model: Path, tmp_path: Path) -> None:
    edm = load_model(str(with_scheduler(tiny_model, tmp_path / "edm", EDMEulerScheduler(sigma_data=0.4))))
    assert (edm.process.family, edm.schedule.sigma_max) == ("edm", 80.0)
    assert "family     edm" in edm.summary()
    zero = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False)
    snr = load_model(str(with_scheduler(tiny_model, tmp_path / "snr", zero)))
    assert math.isinf(snr.schedule.sigma_max)
    assert Session(snr).reconstruct(grey(60), solver="reversible-heun", steps=10).mse < 1e-20
    scheduler = tmp_path / "snr" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"use_flow_sigmas": True}))
    assert load_model(str(tmp_path / "snr")).process.family == "flow"


@pytest.mark.parametrize(
    ("options", "solver", "grid"),
    [
        ({}, "angle-ab3", "trailing"),
        ({"solver": "auto"}, "angle-ab3", "trailing"),
        ({"solver": "euler"}, "euler", "trailing"),
        ({"solver": "fireflow"}, "fireflow", "trailing"),
        ({"solver": "dpmpp3m"}, "dpmpp3m", "log-snr"),
        ({"grid": "log-snr"}, "dpmpp3m", "log-snr"),
        ({"grid": "linspace"}, "angle-ab3", "linspace"),
    ],
)
def test_what_is_taken_for_flow_matching(flow_model: Path, options: dict[str, str], solver: str, grid: str) -> None:
    latent = Session(flow_model).encode(grey(90), steps=10, **options)
    assert (latent.solver["name"], latent.grid.name, latent.grid.steps) == (solver, grid, 10)
