"""Sessions of pipelines: what is asked for, remembered and said."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tiny_pipelines import build, picture
from torch import nn

from ddim_ode import Request, Session, fingerprints, from_pipeline
from ddim_ode.latents import Latent, LatentError
from ddim_ode.model import Model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation", "ignore::FutureWarning")
QUICK: dict[str, Any] = {"solver": "euler", "steps": 2}


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A Stable Diffusion, which no test changes."""
    return build("SD 1.5")


def latent_of(pipeline: Any, prompt: str) -> Latent:
    return Session(pipeline, prompt=prompt).encode(picture(), **QUICK)


@pytest.mark.parametrize("first", ["a cat", "a dog"])
def test_corners_that_were_asked_for_something_else_are_told_of(pipeline: Any, first: str) -> None:
    """Whichever of them it is, and each once."""
    corners = [latent_of(pipeline, prompt) for prompt in (first, "a cat", "a bird", "a bird")]
    with pytest.warns(UserWarning, match="asked for .* and encoded as ") as told:
        found = Session(pipeline, prompt="a cat").interpolate(corners, count=2)
    assert [str(warning.message) for warning in told] == [
        f"asked for 'a cat' with guidance 1.0, and encoded as '{other}' with guidance 1.0"
        for other in (("a bird",) if first == "a cat" else ("a dog", "a bird"))
    ]
    assert "and encoded as 'a bird' with guidance 1.0" in found.report()


def test_corners_that_leave_their_prompt_out_are_told_of_by_their_hash(pipeline: Any) -> None:
    corners = [latent_of(pipeline, prompt).without_prompt() for prompt in ("a cat", "a dog on a mat")]
    with pytest.warns(UserWarning, match="told of another prompt than the one it was encoded as"):
        Session(pipeline, prompt="a cat").interpolate(corners, count=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Session(pipeline, prompt="a cat").interpolate(corners[:1], seeds=[0], count=2)


def load_adapter(pipeline: Any) -> None:
    """A LoRA beside a weight, as it is loaded: the names of weights change, and none of their numbers."""
    pipeline.unet.conv_in.lora_A = nn.Linear(4, 2, bias=False)


def fuse(pipeline: Any) -> None:
    """A LoRA in a weight, as it is fused: in place, and past torch's count of changes."""
    weights = dict(pipeline.text_encoder.named_parameters())
    (name,) = [name for name in weights if name.endswith("encoder.layers.0.self_attn.q_proj.weight")]
    weights[name].data += 0.01 * torch.ones(32, 32)


def set_one(pipeline: Any) -> None:
    """One number alone, in place."""
    pipeline.vae.get_parameter("decoder.conv_in.weight")[1, 1, 1, 1] += 1


@pytest.mark.parametrize(("change", "who"), [(load_adapter, "model"), (fuse, "text_encoder"), (set_one, "vae")])
def test_weights_that_change_between_walks_have_another_fingerprint(change: Any, who: str) -> None:
    pipeline = build("SD 1.5")
    session = Session(pipeline, prompt="a cat")
    before = session.encode(picture(), **QUICK)
    assert session.encode(picture(), **QUICK).fingerprints == before.fingerprints
    change(pipeline)
    after, asked = session.encode(picture(), **QUICK), session.asked_for(prompt="a dog").model
    for found in (after, asked):
        assert (found.fingerprint != before.fingerprint) == (who == "model")
        assert {part for part, own in found.fingerprints.items() if before.fingerprints[part] != own} == {who} - {
            "model"
        }
    with pytest.raises(
        LatentError, match=r"has other weights \(" if who == "model" else f"encoded with another {who} than"
    ):
        session.decode(before)


def test_weights_that_stay_are_hashed_once(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they are laid out otherwise, as on another device."""
    hashed: list[nn.Module] = []
    monkeypatch.setattr("ddim_ode.fingerprints.fingerprint", lambda module: hashed.append(module) or "")
    model: Model = Session(pipeline, prompt="a cat").model
    for _ in range(2):
        assert model.fingerprint == model.asked_for(prompt="a dog").fingerprint
        pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.unet.to(memory_format=torch.contiguous_format)
    assert hashed == [model.network]


def test_weights_are_looked_at_once_for_a_latent_and_for_a_batch(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the network, the autoencoder and the text encoder; that each time is a pass over all of them."""
    session = Session(pipeline, prompt="a cat")
    latents = [encoded.latent for encoded in session.encode_all([picture()] * 3, Request(**QUICK))]
    looked: list[nn.Module] = []
    stamp = fingerprints.stamp
    monkeypatch.setattr(fingerprints, "stamp", lambda module: looked.append(module) or stamp(module))
    latents[0].check_fits(session.model)
    assert len(looked) == 3
    for work in (
        lambda: session.decode_all(latents, any_model=True),
        lambda: session.reconstruct_all([picture()] * 3, Request(**QUICK)),
        lambda: session.sample(3, **QUICK),
    ):
        looked.clear()
        assert len(list(work())) == 3
        assert looked == [session.model.network]


@pytest.mark.parametrize(("name", "one"), [("SD 1.5", True), ("SD3", True), ("SDXL", False)])
def test_to_avoid_nothing_and_the_empty_text_are_one_where_networks_are_told_the_same(name: str, one: bool) -> None:
    """SDXL is told zeros where nothing is said, and the embedding of the empty text where that is."""
    pipeline = build(name)
    nothing, empty = (Session(pipeline, prompt="a cat", negative_prompt=text, guidance=3.0) for text in (None, ""))
    latents = [session.encode(picture(), solver="reversible-heun", steps=2) for session in (nothing, empty)]
    assert torch.equal(latents[0].x_T, latents[1].x_T) == one
    assert (nothing.model.asked == empty.model.asked) == one
    (back,) = empty.decode_all(latents[:1])
    assert back.plan.exact == one


def test_a_model_keeps_the_guidance_that_it_has(pipeline: Any) -> None:
    model = from_pipeline(pipeline, prompt="a cat", negative_prompt="a dog", guidance=4.0)
    for given, kept in (({"prompt": "a bird"}, ("a bird", "a dog", 4.0)), ({"guidance": 1.0}, ("a cat", "a dog", 1.0))):
        asked = Session(model, **given).model.asked
        assert asked is not None
        assert (asked["prompt"], asked["negative_prompt"], asked["guidance"]) == kept
    assert Session(pipeline, prompt="a cat").model.asked == from_pipeline(pipeline, prompt="a cat", guidance=1.0).asked
