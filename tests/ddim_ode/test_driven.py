"""Pipelines, driven: Euler on the scheduler's own nodes is the pipeline's own sampling, and nothing is left behind."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
)
from flows import relative_error
from PIL import Image
from tiny_pipelines import PIPELINES, SIDE, build, mask, picture
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddim_ode import Session, from_pipeline, load_latent
from ddim_ode.codec import decode, encode
from ddim_ode.driven import THREAD, PipelineError
from ddim_ode.grids import Grid, make_grid
from ddim_ode.kinds import ModelError
from ddim_ode.latents import LatentError
from ddim_ode.model import Model
from ddim_ode.pipelines import scheduler_grid
from ddim_ode.solvers import get_solver

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore::FutureWarning")

STEPS = 8
SIZES = {"height": SIDE, "width": SIDE}
# What each is given beside prompt and guidance.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "FLUX dev": lambda: {"max_sequence_length": 64},
    "FLUX schnell": lambda: {"max_sequence_length": 64},
    "PixArt": lambda: {"clean_caption": False, "use_resolution_binning": False},
    "ControlNet": lambda: {"image": picture()},
    "inpainting": lambda: {
        "image": picture(),
        "mask_image": mask(),
        "strength": 1.0,
        "generator": torch.Generator().manual_seed(3),
    },
}
GUIDANCES = {"FLUX dev": 3.5, "FLUX schnell": 1.0}
# What fingerprints say beside weights.
SAID = ("prediction", "scaling of latents")
each_pipeline = pytest.mark.parametrize("name", PIPELINES)


def call_of(name: str) -> dict[str, Any]:
    return CALLS.get(name, dict)()


def noise(count: int) -> Tensor:
    return torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(7))


def model_of(pipeline: Any, name: str, guidance: float, prompt: str = "a cat") -> Model:
    return from_pipeline(pipeline, prompt=prompt, guidance=guidance, call=call_of(name), **SIZES)


def unit_of(pipeline: Any, model: Model, grid: Grid) -> float:
    """The deviation of the pipeline's noise, as a part of that of ours."""
    if type(pipeline.scheduler).__name__ not in ("EulerDiscreteScheduler", "EDMEulerScheduler"):
        return 1.0
    pipeline.scheduler.set_timesteps(STEPS)
    return float(pipeline.scheduler.init_noise_sigma) / math.sqrt(1 + grid.sigma_T**2)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("guided", [False, True])
@each_pipeline
def test_euler_is_what_the_pipeline_does(name: str, guided: bool, count: int) -> None:
    pipeline = build(name)
    guidance = GUIDANCES.get(name, 6.0 if guided else 1.0)
    theirs = pipeline(
        ["a cat"] * count,
        latents=model_pack(pipeline, noise(count)),
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        output_type="latent",
        return_dict=False,
        **SIZES,
        **call_of(name),
    )[0]
    model = model_of(pipeline, name, guidance)
    grid = scheduler_grid(model, STEPS)
    assert grid.steps == STEPS
    grid.check_belongs(model.schedule)
    ours = decode(model.ode(), noise(count) * unit_of(pipeline, model, grid), grid, get_solver("euler"))
    assert relative_error(model_pack(pipeline, ours.float()), theirs) < 1e-5
    assert relative_error(model_pack(pipeline, noise(count)), theirs) > 0.1


def model_pack(pipeline: Any, x: Tensor) -> Tensor:
    return pipeline._pack_latents(x, *x.shape) if hasattr(pipeline, "_pack_latents") else x.clone()


def state_of(pipeline: Any) -> tuple[object, ...]:
    notes = {name: value for name, value in vars(pipeline).items() if name.startswith("_") and name != "_internal_dict"}
    return pipeline.scheduler, pipeline.config["scheduler"], {name: repr(value) for name, value in notes.items()}


@each_pipeline
def test_there_and_back_exactly(name: str) -> None:
    """To the latent and back in few steps with guidance: to rounding, but for last digits of float32."""
    pipeline = build(name)
    before = state_of(pipeline)
    model = model_of(pipeline, name, GUIDANCES.get(name, 5.0))
    session = Session(model, batch_size=2)
    found = session.reconstruct(picture(), solver="reversible-heun", steps=4)
    assert found.parts is not None
    assert found.parts.x_0_mse < 1e-15
    assert found.parts.ode_mse < 1e-9
    assert found.parts.autoencoder_mse > 1e-3  # of random weights
    assert "the ODE alone: MSE" in found.report()
    assert found.decoded.shape == (3, SIDE, SIDE)
    assert state_of(pipeline) == before
    assert THREAD not in {thread.name for thread in threading.enumerate()}


def test_what_a_pipeline_notes_of_its_own_call_stays() -> None:
    pipeline = build("SD 1.5")
    pipeline("a dog", num_inference_steps=3, guidance_scale=2.0, output_type="latent", **SIZES)
    before = state_of(pipeline)
    Session(pipeline, prompt="a cat").encode(picture(), solver="euler", steps=2)
    assert (pipeline.num_timesteps, pipeline.guidance_scale) == (3, 2.0)
    assert state_of(pipeline) == before


def test_a_session_of_a_pipeline() -> None:
    pipeline = build("SD 1.5")
    session = Session(pipeline, prompt="a cat", guidance=2.0)
    with pytest.warns(UserWarning, match="guidance 2 makes encoding unsure: 'picture' comes back with an MSE of"):
        latent = session.encode(picture(), solver="dpmpp3m", steps=5)
    assert tuple(latent.x_T.shape) == (1, 4, 16, 16)
    assert session.decode(latent).image.shape == (3, 32, 32)
    assert len(list(session.sample(2, steps=2))) == 2
    (pair,) = session.encode_batches([picture()])
    assert float(pair.check().reconstruction_mse[0]) < 0.5
    with pytest.raises(ValueError, match="prompts, their guidance and sizes are of pipelines"):
        Session(prompt="a cat")


def test_the_prompt_is_asked_for() -> None:
    pipeline = build("SD 1.5")
    x_T = noise(1)
    images = []
    for prompt, guidance in (("a cat", 5.0), ("a dog", 5.0), ("a cat", 1.0)):
        model = model_of(pipeline, "SD 1.5", guidance, prompt)
        images.append(decode(model.ode(), x_T, make_grid(model.schedule, "trailing", 3), get_solver("euler")))
    assert relative_error(images[1], images[0]) > 1e-3
    assert relative_error(images[2], images[0]) > 1e-3


def test_an_error_of_the_pipeline_is_ones_own_and_leaves_nothing() -> None:
    pipeline = build("SD 1.5")
    before = state_of(pipeline)
    model = model_of(pipeline, "SD 1.5", 5.0)
    grid = make_grid(model.schedule, "trailing", 3)
    calls = 0

    def broken(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("out of luck")

    forward, pipeline.unet.forward = pipeline.unet.forward, broken
    with pytest.raises(RuntimeError, match="out of luck"):
        decode(model.ode(), noise(1), grid, get_solver("euler"))
    pipeline.unet.forward = forward
    assert calls == 1
    assert state_of(pipeline) == before
    assert THREAD not in {thread.name for thread in threading.enumerate()}
    assert bool(decode(model.ode(), noise(1), grid, get_solver("euler")).isfinite().all())


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_nothing(interruption: type[BaseException]) -> None:
    pipeline = build("SD 1.5")
    before = state_of(pipeline)
    model = model_of(pipeline, "SD 1.5", 5.0)

    def stopped(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        field(sigmas[0], x)
        assert state_of(pipeline) != before
        assert THREAD in {thread.name for thread in threading.enumerate()}
        raise interruption

    with pytest.raises(interruption):
        decode(model.ode(), noise(1), make_grid(model.schedule, "trailing", 3), stopped)
    assert state_of(pipeline) == before
    assert THREAD not in {thread.name for thread in threading.enumerate()}


def test_two_walks_of_one_pipeline_are_refused() -> None:
    pipeline = build("SD 1.5")
    model = model_of(pipeline, "SD 1.5", 1.0)
    grid = make_grid(model.schedule, "trailing", 2)

    def meanwhile(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        field(sigmas[0], x)
        other = model_of(pipeline, "SD 1.5", 5.0)
        with pytest.raises(PipelineError, match="at work for another walk"):
            decode(other.ode(), x, grid, get_solver("euler"))
        return get_solver("euler")(field, x, sigmas)

    assert bool(decode(model.ode(), noise(1), grid, meanwhile).isfinite().all())
    assert bool(decode(model.ode(), noise(1), grid, get_solver("euler")).isfinite().all())


def test_where_all_are_at_one_timestep_no_device_is_waited_for() -> None:
    """In the thread that asks: whether they are is known without a look at a tensor on the device."""
    ode = model_of(build("SD 1.5"), "SD 1.5", 1.0).ode()
    looked: list[torch.dtype] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                looked.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    sigma = torch.tensor(1.0, dtype=torch.float64)
    with Watching(), torch.no_grad():
        ode(sigma, noise(2))
        looked.clear()
        ode(sigma, noise(2))
    ode.close()
    assert looked == [torch.float64]  # sigma, on the CPU


def test_members_with_steps_of_their_own_are_refused_in_a_batch_alone() -> None:
    model = model_of(build("SD 1.5"), "SD 1.5", 1.0)
    grid = make_grid(model.schedule, "log-snr", 1)
    solver = get_solver("per-sample-bosh3", rtol=0.1, atol=0.1)
    x_0 = torch.cat([0.1 * noise(1), noise(1)]).double()
    assert encode(model.ode(), x_0[:1], grid, solver).shape == (1, 4, 16, 16)
    with pytest.raises(PipelineError, match="members of the batch are at several"):
        encode(model.ode(), x_0, grid, solver)


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (None, {"height": 30}, "height and width must be multiples of 4, two of its latents, but there is 30"),
        (None, {"call": {"latents": 1}}, "'latents' of StableDiffusionPipeline is what drives it, and cannot be given"),
        (None, {"call": {"prompt": "a"}}, "'prompt' is not for the call; say it as prompt=..."),
        (None, {"call": {"guidance_scale": 2}}, "'guidance_scale' is not for the call; say it as guidance=..."),
        (None, {"call": {"callback_on_step_end": print}}, "depends on the number of a step, and there is none"),
        (
            None,
            {"guidance": 0.5},
            "StableDiffusionPipeline must be 1, for none, or more, but it is 0.5",
        ),
        (None, {"call": {"height": 64}}, "'height' is not for the call; say it as height=..."),
        (None, {"guidance": math.nan}, "guidance must be a finite number, but it is nan"),
        (None, {"call": {"control": 1}}, "StableDiffusionPipeline takes no 'control'; it takes: prompt, height"),
        (lambda p: setattr(p, "scheduler", LCMScheduler()), {}, "its scheduler, LCMScheduler, is for a distilled"),
        (
            lambda p: p.vae.add_module("time", torch.nn.Conv3d(1, 1, 1)),
            {},
            "AutoencoderKL, is for videos, and is not",
        ),
    ],
)
def test_what_cannot_be_driven_says_why(
    change: Callable[[Any], None] | None, options: dict[str, Any], words: str
) -> None:
    pipeline = build("SD 1.5")
    if change:
        change(pipeline)
    with pytest.raises(ModelError) as caught:
        from_pipeline(pipeline, prompt="a cat", **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["SD 1.5", "DDPM"])
def test_a_warning_of_its_scheduler_is_for_whom_makes_the_model(name: str) -> None:
    pipeline = build(name)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=True)
    with pytest.warns(UserWarning, match="the model's scheduler asks for clip_sample") as told:
        from_pipeline(pipeline)
    assert [warning.filename for warning in told] == [__file__]


def test_what_is_no_pipeline_is_refused() -> None:
    with pytest.raises(ModelError, match="EDMEulerScheduler takes no latents, and cannot be driven"):
        Session(EDMEulerScheduler())


@each_pipeline
def test_the_autoencoder_is_asked_as_the_pipeline_asks_it(name: str) -> None:
    """What latents decode to is what the pipeline makes of them."""
    pipeline = build(name)
    model = model_of(pipeline, name, GUIDANCES.get(name, 1.0))
    x_0 = 0.3 * noise(2)
    latents = x_0 / pipeline.vae.config.scaling_factor + (pipeline.vae.config.shift_factor or 0.0)
    theirs = pipeline.vae.decode(latents).sample
    torch.testing.assert_close(model.space.picture(x_0), theirs, rtol=0, atol=1e-5)
    read = model.space.read(Image.new("RGB", (SIDE, SIDE), (200, 100, 50)))
    assert read.state.shape == (1, 4, 16, 16)
    assert float(read.pixels[0, 0, 0, 0]) == pytest.approx(200 / 127.5 - 1)


def test_nodes_that_are_not_known_and_models_without_any() -> None:
    pipeline = build("SD 1.5")
    before = state_of(pipeline)
    model = model_of(pipeline, "SD 1.5", 1.0)
    scheduler_grid(model, 3)
    assert state_of(pipeline) == before
    pipeline.scheduler = PNDMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="the nodes of PNDMScheduler are not known here"):
        scheduler_grid(model, STEPS)
    with pytest.raises(ValueError, match="'default' is not of a pipeline, and has no scheduler"):
        scheduler_grid(Session().model, 3)


def test_a_latent_says_what_the_pipeline_was_asked_for() -> None:
    """And is decoded as something else where one asks for that, which is an edit, and said."""
    pipeline = build("SD 1.5")
    session = Session(pipeline, prompt="a cat", negative_prompt="a dog", guidance=2.0)
    latent = load_latent(session.encode(picture(), solver="reversible-heun", steps=3).to_bytes())
    assert latent.asked == {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "guidance": 2.0,
        "guidance_kind": "cfg",
        "call": None,
    }
    assert set(latent.fingerprints) == {"vae", "text_encoder", *SAID}
    assert "asked      'a cat' and not 'a dog' with guidance 2.0" in latent.summary()
    (again,) = session.decode_all([latent])
    assert again.plan.exact
    assert again.plan.why == ()
    (edited,) = Session(pipeline, prompt="a bird", guidance=5.0).decode_all([latent])
    assert not edited.plan.exact
    assert "asked for 'a bird' with guidance 5.0, and encoded as 'a cat' and not 'a dog'" in edited.report()
    assert edited.picture.settings["asked"]["prompt"] == "a bird"
    assert relative_error(edited.picture.image, again.picture.image) > 1e-3
    with torch.no_grad():
        pipeline.vae.decoder.conv_out.bias += 1
    with pytest.raises(LatentError, match="encoded with another vae than model 'StableDiffusionPipeline' has now"):
        Session(pipeline, prompt="a cat", negative_prompt="a dog", guidance=2.0).decode(latent)


def test_the_guidance_of_a_distilled_network_is_told_apart() -> None:
    model = model_of(build("FLUX dev"), "FLUX dev", 3.5)
    assert model.asked is not None
    assert (model.asked["guidance"], model.asked["guidance_kind"]) == (3.5, "distilled")
    assert set(model.fingerprints) == {"vae", "text_encoder", "text_encoder_2", *SAID}


def test_another_thread_is_refused_and_disturbs_nothing() -> None:
    model = model_of(build("SD 1.5"), "SD 1.5", 1.0)
    grid, refused = make_grid(model.schedule, "trailing", 3), []

    def other() -> None:
        try:
            decode(model.ode(), noise(1), grid, get_solver("euler"))
        except PipelineError as error:
            refused.append(str(error))

    def disturbed(field: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigmas: Tensor) -> Tensor:
        slope = field(sigmas[0], x)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert torch.equal(field(sigmas[0], x), slope)
        return get_solver("euler")(field, x, sigmas)

    found = decode(model.ode(), noise(1), grid, disturbed)
    assert len(refused) == 1
    assert "at work for another thread" in refused[0]
    assert torch.equal(found, decode(model.ode(), noise(1), grid, get_solver("euler")))


def test_a_pipeline_that_changes_latents_between_steps_is_refused() -> None:
    """Inpainting with a network of four channels puts the picture back after each step."""
    parts = build("SD 1.5").components
    parts["scheduler"] = EulerDiscreteScheduler.from_config(parts["scheduler"].config)
    parts.pop("image_encoder", None)
    pipeline = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    model = from_pipeline(pipeline, prompt="a cat", call=call_of("inpainting"), **SIZES)
    with pytest.raises(PipelineError, match="changes latents between its steps"):
        decode(model.ode(), noise(1), make_grid(model.schedule, "trailing", 3), get_solver("euler"))
    assert THREAD not in {thread.name for thread in threading.enumerate()}


def test_what_is_beside_the_network_of_a_controlnet() -> None:
    model = model_of(build("ControlNet"), "ControlNet", 1.0)
    assert set(model.fingerprints) == {"vae", "text_encoder", "controlnet", *SAID}


def test_weights_that_are_kept_elsewhere_are_refused() -> None:
    """As sequential offloading keeps them."""
    pipeline = build("SD 1.5")
    pipeline.unet.conv_in.to("meta")
    with pytest.raises(ModelError, match="weights of this pipeline are kept elsewhere, layer by layer"):
        _ = from_pipeline(pipeline, prompt="a cat", **SIZES).fingerprint


def test_a_latent_of_another_prediction_or_scaling_is_refused() -> None:
    """What a pipeline says beside its weights changes the picture as much as they do."""
    pipeline = build("SD 1.5")
    latent = Session(pipeline, prompt="a cat").encode(picture(), solver="euler", steps=3)
    own = pipeline.scheduler
    pipeline.scheduler = DDIMScheduler.from_config(own.config, prediction_type="v_prediction")
    with pytest.raises(LatentError, match="encoded with another prediction than"):
        Session(pipeline, prompt="a cat").decode(latent)
    pipeline.scheduler = own
    pipeline.vae.register_to_config(scaling_factor=0.13025)
    with pytest.raises(LatentError, match="encoded with another scaling of latents than"):
        Session(pipeline, prompt="a cat").decode(latent)


def test_what_was_asked_for_otherwise_is_said_to_whom_decodes() -> None:
    pipeline = build("SD 1.5")
    latent = Session(pipeline, prompt="a cat").encode(picture(), solver="euler", steps=2)
    with pytest.warns(UserWarning, match="asked for 'a dog' with guidance 1.0, and encoded as 'a cat' with guidance"):
        Session(pipeline, prompt="a dog").decode(latent)
    with pytest.raises(ValueError, match="guidance 3 of a pipeline is towards its prompt; say it to the session"):
        Session(pipeline, prompt="a cat").decode(latent, guidance=3)
    with pytest.raises(ValueError, match=r"height, width., two positive integers, but it is"):
        Session(pipeline, prompt="a cat", size=(64,))


def test_a_model_of_a_pipeline_is_asked_for_something_else() -> None:
    model = model_of(build("SD 1.5"), "SD 1.5", 1.0)
    asked = Session(model, prompt="a bird", guidance=2.0).model.asked
    assert asked is not None
    assert (asked["prompt"], asked["guidance"]) == ("a bird", 2.0)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context")
@pytest.mark.parametrize("kind", [HeunDiscreteScheduler, KDPM2DiscreteScheduler])
def test_nodes_of_schedulers_of_two_calls_a_step(kind: Any) -> None:
    """They are those of Euler's scheduler of the same settings, each once."""
    pipeline = build("SD 1.5")
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config)
    grid = Session(pipeline, prompt="a cat").encode(picture(), solver="euler", grid="scheduler", steps=STEPS).grid
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    wanted = scheduler_grid(model_of(pipeline, "SD 1.5", 1.0), STEPS)
    assert grid.steps == STEPS
    assert grid.sigmas == pytest.approx(wanted.sigmas)


def test_nodes_of_a_scheduler_with_the_settings_of_another_kind_are_not_taken() -> None:
    pipeline = build("SD 1.5")
    pipeline.scheduler = IPNDMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="the nodes of IPNDMScheduler are not known here"):
        scheduler_grid(model_of(pipeline, "SD 1.5", 1.0), STEPS)
