"""Pipelines written out, and those that are told no text: what they compute is what diffusers computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from flows import relative_error
from tiny_pipelines import SIDE, build, picture
from torch import Tensor

from ddim_ode import Session, from_pipeline, load_model
from ddim_ode.codec import decode, encode
from ddim_ode.embeddings import avoided_of, hash_of, prompt_of, same_embedding
from ddim_ode.grids import grid_of_timesteps, make_grid
from ddim_ode.kinds import ModelError
from ddim_ode.model import Model
from ddim_ode.pipelines import scheduler_grid
from ddim_ode.solvers import get_solver

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore::FutureWarning")

STEPS = 6
SIZES = {"height": SIDE, "width": SIDE}
CALLS: dict[str, dict[str, Any]] = {
    "FLUX dev": {"max_sequence_length": 64},
    "FLUX schnell": {"max_sequence_length": 64},
}
# FLUX computes the places of its patches, and its guidance, in float32.
AGREE = {"FLUX dev": 1e-6, "FLUX schnell": 1e-6}
WRITTEN_OUT = ("SD 1.5", "SD 2.1 v", "SD 2.1 zero SNR", "SDXL", "SDXL EDM", "SD3", "FLUX dev", "FLUX schnell")


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def model_of(name: str, *, adapted: bool, double: bool = False, **asked: Any) -> Model:
    call = {**CALLS.get(name, {}), **asked.pop("call", {})}
    pipeline = build(name)
    if double:
        pipeline.to(torch.float64)
    return from_pipeline(pipeline, prompt="a cat", adapted=adapted, call=call, **SIZES, **asked)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("asked", [{}, {"guidance": 6.0}, {"guidance": 6.0, "negative_prompt": "a dog"}])
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_written_out_and_driven_are_one(name: str, asked: dict[str, Any], count: int) -> None:
    if name == "FLUX dev" and "negative_prompt" in asked:
        asked = {**asked, "call": {"true_cfg_scale": 3.0}}
    """In float64, for what single texts and batches of them round to in float32 grows on the way to 3e-6."""
    driven, adapted = (model_of(name, adapted=adapted, double=True, **asked) for adapted in (False, True))
    grid = scheduler_grid(adapted, STEPS)
    assert grid == scheduler_grid(driven, STEPS)
    x_T = noise(count, 4, 16, 16).double()
    found = [decode(model.ode(), x_T, grid, get_solver("euler")) for model in (driven, adapted)]
    assert relative_error(found[1], found[0]) < AGREE.get(name, 1e-10)
    assert adapted.asked == driven.asked
    assert adapted.embedding is not None
    assert driven.embedding is not None
    assert same_embedding(adapted.embedding, driven.embedding)


def test_what_is_asked_for_matters() -> None:
    """Or the test above would prove nothing."""
    wishes: list[dict[str, Any]] = [
        {},
        {"guidance": 6.0},
        {"guidance": 6.0, "negative_prompt": "a dog"},
        {"guidance": 6.0, "negative_prompt": "a dog", "call": {"true_cfg_scale": 3.0}},
    ]
    x, t = noise(1, 4, 16, 16), torch.tensor([500.0])
    for name, different in (("SDXL", wishes[:3]), ("FLUX dev", [wishes[0], wishes[1], wishes[3]])):
        outputs = [model_of(name, adapted=True, **asked).network(x, t) for asked in different]
        assert relative_error(outputs[1], outputs[0]) > 1e-4
        assert relative_error(outputs[2], outputs[1]) > 1e-4


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_gradients_go_through_it(name: str) -> None:
    model = model_of(name, adapted=True, double=True, guidance=3.0)
    grid = make_grid(model.schedule, "trailing", 2, clean_end=None if model.process.at_zero else "sigma-min")
    x_T = noise(1, 4, 16, 16).double().requires_grad_()
    direction = noise(1, 4, 16, 16).double()
    solver = get_solver("heun")
    decode(model.ode(), x_T, grid, solver, differentiable=True).square().mean().backward()
    assert x_T.grad is not None

    def loss(shift: float) -> float:
        return float(decode(model.ode(), x_T.detach() + shift * direction, grid, solver).square().mean())

    assert float((x_T.grad * direction).sum()) == pytest.approx((loss(1e-4) - loss(-1e-4)) / 2e-4, rel=1e-3)


@pytest.mark.parametrize("name", ["SD 1.5", "SD3", "FLUX dev"])
def test_it_is_compiled_whole(name: str) -> None:
    network = model_of(name, adapted=True, guidance=3.0).network
    x, t = noise(2, 4, 16, 16), torch.tensor([500.0, 300.0])
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert relative_error(compiled(x, t), network(x, t)) < 1e-6


def test_members_have_steps_of_their_own() -> None:
    model = model_of("SD 1.5", adapted=True)
    grid, solver = make_grid(model.schedule, "log-snr", 1), get_solver("per-sample-bosh3", rtol=0.1, atol=0.1)
    x_0 = torch.cat([0.1 * noise(1, 4, 16, 16), noise(1, 4, 16, 16)]).double()
    together = encode(model.ode(), x_0, grid, solver)
    assert relative_error(together[1:], encode(model.ode(), x_0[1:], grid, solver)) < 1e-3


@pytest.mark.parametrize(
    ("name", "change", "options", "words"),
    [
        ("PixArt", None, {}, "PixArtAlphaPipeline is not written out; drive it, or take one of: StableDiffusionPipe"),
        ("SD 1.5", None, {"call": {"ip_adapter_image": 1}}, "written out, takes no 'ip_adapter_image'; leave it out"),
        ("SD 1.5", "time_cond_proj_dim", {}, "the network of this StableDiffusionPipeline has time_cond_proj_dim"),
        ("SD 1.5", "encoder_hid_dim_type", {}, "has encoder_hid_dim_type, which is not written out; drive it"),
    ],
)
def test_what_is_not_written_out_says_so(name: str, change: str | None, options: dict[str, Any], words: str) -> None:
    pipeline = build(name)
    if change:
        pipeline.unet.register_to_config(**{change: 5})
    with pytest.raises(ModelError) as caught:
        from_pipeline(pipeline, prompt="a cat", adapted=True, **options, **SIZES)
    assert words in str(caught.value)


def theirs_of(name: str, pipeline: Any, guidance: float, count: int) -> tuple[Tensor, Tensor]:
    """The images of diffusers' own call, pixels in [-1, 1], and the noise they came from."""
    generator = torch.Generator().manual_seed(3)
    options = {"DiT": {"class_labels": [517, 3][:count], "guidance_scale": guidance}}.get(name, {"batch_size": count})
    images = pipeline(**options, generator=generator, num_inference_steps=STEPS, output_type="np").images
    channels = 4 if name == "DiT" else 3
    x_T = torch.randn(count, channels, 16, 16, generator=torch.Generator().manual_seed(3))
    return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1, x_T


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ["DiT", "DiT guided", "LDM", "DDIM"])
def test_those_without_text_are_what_diffusers_samples(name: str, count: int, saved: bool, tmp_path: Path) -> None:
    """From memory and from a folder, with Euler's method on the timesteps of their DDIM."""
    name, guidance = name.removesuffix(" guided"), 4.0 if "guided" in name else 1.0
    pipeline = build(name)
    theirs, x_T = theirs_of(name, pipeline, guidance, count)
    if saved:
        pipeline.save_pretrained(tmp_path)
        model = load_model(str(tmp_path))
    else:
        model = from_pipeline(pipeline)
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(STEPS)
    grid = grid_of_timesteps(model.schedule, sorted(float(t) for t in scheduler.timesteps))
    conditions = [model.condition(label, guidance=guidance) for label in (517, 3)[:count]] if model.classes else None
    states = decode(model.ode(conditions=conditions), x_T, grid, get_solver("euler"))
    ours = model.space.picture(states.float()).clamp(-1, 1)
    assert relative_error(ours, theirs) < 1e-5
    assert float(ours.std()) > 0.1


def test_the_classes_of_a_dit(tmp_path: Path) -> None:
    pipeline = build("DiT")
    model = from_pipeline(pipeline)
    assert model.classes[3] == "fish 3, tench 3"
    assert model.classes[134] == "134"  # diffusers knows one of the cranes alone
    assert model.condition("crane").label == 517
    pipeline.save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).classes[999] == "999"
    index = tmp_path / "model_index.json"
    names = ", ".join(f'"{i}": "{"crane" if i in (134, 517) else f"tench {i}"}"' for i in range(1000))
    index.write_text(index.read_text().replace("{", '{"id2label": {' + names + "},", 1))
    classes = load_model(str(tmp_path)).classes
    assert (classes[0], classes[134], classes[517]) == ("tench 0", "crane (134)", "crane (517)")
    assert from_pipeline(DiffusionPipeline.from_pretrained(tmp_path)).classes == classes


def test_classes_of_a_pipeline_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was loaded by its name there is looked for in the cache."""
    copy = tmp_path / "models--org--dit" / "snapshots" / "0a1"
    (tmp_path / "models--org--dit" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--dit" / "refs" / "main").write_text("0a1")
    copy.mkdir(parents=True)
    (copy / "model_index.json").write_text(json.dumps({"id2label": {str(i): f"bird, kind {i}" for i in range(1000)}}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pipeline = build("DiT")
    pipeline.register_to_config(_name_or_path="org/dit")
    assert from_pipeline(pipeline).classes[999] == "bird, kind 999"


def test_a_latent_of_a_class_whose_name_its_folder_does_not_keep(tmp_path: Path) -> None:
    """diffusers leaves the names out as it saves a pipeline; the number says it all the same."""
    pipeline = build("DiT")
    latent = Session(pipeline).encode(picture(), label="fish 3, tench 3", solver="euler", steps=2)
    pipeline.save_pretrained(tmp_path)
    session = Session(str(tmp_path))
    assert session.decode(latent).image.shape == (3, SIDE, SIDE)
    named = replace(session.model, classes=tuple(f"bird {i}" for i in range(1000)))
    with pytest.raises(
        ValueError, match=r"encoded as class 3, 'fish 3, tench 3', and model .* calls its classes other"
    ):
        Session(named).decode(latent)


@pytest.mark.parametrize("name", ["DiT", "LDM", "DDPM"])
def test_a_session_of_those_without_text(name: str) -> None:
    session = Session(build(name))
    side = 16 if name == "DDPM" else SIDE
    label, guidance = ("crane", 3.0) if name == "DiT" else (None, None)
    found = session.reconstruct(picture(), solver="reversible-heun", steps=4, label=label, guidance=guidance)
    assert found.decoded.shape == (3, side, side)
    assert (found.parts.x_0_mse if found.parts else found.mse) < 1e-15
    with pytest.raises(ValueError, match="is told no text, and has the size that it has; leave out prompts"):
        Session(build(name), prompt="a cat")


def test_a_hash_tells_prompts_apart_and_devices_not() -> None:
    """Rounding to half precision, more than devices differ, turns nearly no bit; another tenth of the numbers does."""
    embedding = noise(77, 768)
    own = hash_of([embedding])
    assert same_embedding(own, hash_of([embedding.half()]))
    assert same_embedding(own, hash_of([embedding.bfloat16()]))
    assert not same_embedding(own, hash_of([embedding + 0.2 * noise(77, 768).flip(0)]))


def test_what_a_network_is_told_of_the_prompt() -> None:
    """Of a batch with guidance the row of the prompt, of one row for all images that, and of anything else nothing."""
    rows = torch.arange(8.0).reshape(4, 2)
    told = {"encoder_hidden_states": rows, "added_cond_kwargs": {"text_embeds": rows[:1], "time_ids": rows}}
    assert [part.tolist() for part in prompt_of(told, 2)] == [[4, 5], [0, 1]]
    assert [part.tolist() for part in avoided_of(told, 2)] == [[0, 1]]
    assert prompt_of({"encoder_hidden_states": [rows], "added_cond_kwargs": None, "pooled_projections": None}, 2) == []


def test_a_latent_that_keeps_its_prompt_to_itself(tmp_path: Path) -> None:
    """It is decoded exactly by who knows the prompt, and others are told."""
    pipeline = build("SD 1.5")

    def session(prompt: str) -> Session:
        return Session(pipeline, prompt=prompt, guidance=2.0)

    latent = session("a cat").encode(picture(), solver="reversible-heun", steps=3).without_prompt()
    assert latent.asked is not None
    assert latent.asked["prompt"] is None
    assert b"a cat" not in latent.to_bytes()
    (again,) = session("a cat").decode_all([latent.to_bytes()])
    assert again.plan.exact
    assert again.plan.why == ()
    other = Session(pipeline, prompt="a cat", negative_prompt="dark and blurred", guidance=2.0)
    (avoiding,) = other.decode_all([latent.to_bytes()])
    assert "told of another prompt than the one it was encoded as" in avoiding.report()
    (other,) = session("a dog on a mat").decode_all([latent.to_bytes()])
    assert "told of another prompt than the one it was encoded as" in other.report()


EDITS: dict[str, Callable[[], Session]] = {
    "driven": lambda: Session(build("SD 1.5"), prompt="a cat", guidance=4.0),
    "written out": lambda: Session(model_of("SD 1.5", adapted=True, guidance=4.0)),
    "flow": lambda: Session(build("SD3"), prompt="a cat", guidance=4.0),
}


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_with_prompts(kind: str) -> None:
    """The picture is encoded without guidance as what it is, and decoded with it as what it should be."""
    session = EDITS[kind]()
    read = session.model.space.read(picture())
    found = session.edit(picture(), "a dog", solver="heun", steps=4, strength=(0.6, 1.0))
    assert (found.own, found.to) == ("'a cat' with guidance 1.0", "'a dog' with guidance 4.0")
    assert [part.strength for part in found.edits] == [0.6, 1.0]
    up, down = (session.model.asked_for(prompt=text, guidance=w) for text, w in (("a cat", 1.0), ("a dog", 4.0)))
    plan = found.edits[1].plan
    x_T = encode(up.ode(), read.state, plan.grid, plan.solver)
    wanted = down.space.picture(decode(down.ode(), x_T, plan.grid, plan.back))
    assert relative_error(found.edits[1].edited, wanted[0]) < 1e-6
    assert relative_error(found.edits[1].edited, found.edits[1].again) > 1e-3
    other = session.edit(picture(), "a dog", label="a bird", guidance=2.0, solver="heun", steps=4)
    assert (other.own, other.to) == ("'a bird' with guidance 1.0", "'a dog' with guidance 2.0")


def test_another_size() -> None:
    session = Session(build("SD 1.5"), prompt="a cat", size=(48, 32))
    latent = session.encode(picture(), solver="euler", steps=2)
    assert tuple(latent.x_T.shape) == (1, 4, 24, 16)
    assert session.decode(latent).image.shape == (3, 48, 32)
    assert session.asked_for(height=32).model.space.shape == (4, 16, 16)
    with pytest.raises(ValueError, match="model 'default' is not a pipeline that is told a text"):
        Session().asked_for(height=32)
