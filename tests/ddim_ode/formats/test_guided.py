"""Networks of guided-diffusion against one of our own in their layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
import yaml

from ddim_ode.conditions import UNCONDITIONAL, Condition
from ddim_ode.export import export_pipeline
from ddim_ode.formats.settings import read_settings
from ddim_ode.kinds import ModelError
from ddim_ode.models import load_model
from ddim_ode.schedule import make_schedule

FLAGS: dict[str, Any] = {
    "image_size": 8,
    "num_channels": 32,
    "channel_mult": "1,2",
    "num_res_blocks": 2,
    "attention_resolutions": "4",
    "num_head_channels": 16,
    "learn_sigma": False,
    "class_cond": False,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
    "use_fp16": True,
}


def written(network: torch.nn.Module, folder: Path, **changes: Any) -> tuple[Path, Path]:
    """The file of the ``network`` and that of its flags."""
    torch.save(network.state_dict(), folder / "model.pt")
    (folder / "flags.yml").write_text(yaml.safe_dump(FLAGS | changes))
    return folder / "model.pt", folder / "flags.yml"


@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("new_order", [False, True])
def test_it_answers_what_the_network_answers(updown: bool, scale_shift: bool, new_order: bool, tmp_path: Path) -> None:
    network = layouts.Guided(out=6, updown=updown, scale_shift=scale_shift, new_order=new_order)
    flags = {
        "learn_sigma": True,
        "resblock_updown": updown,
        "use_scale_shift_norm": scale_shift,
        "use_new_attention_order": new_order,
    }
    agrees(network, tmp_path, **flags)


@pytest.mark.parametrize(
    ("network", "flags"),
    [
        ({"heads": 4}, {"num_heads": 4, "num_head_channels": -1}),
        (
            {"heads": 2, "attention": (8, 4), "new_order": True},
            {"num_heads": 2, "num_head_channels": -1, "attention_resolutions": [8, 4], "use_new_attention_order": True},
        ),
        (
            {"mult": (1, 2, 3), "blocks": 1, "attention": (8, 2), "updown": True},
            {
                "channel_mult": [1, 2, 3],
                "num_res_blocks": 1,
                "attention_resolutions": "8,2",
                "resblock_updown": True,
            },
        ),
    ],
)
def test_it_answers_so_with_other_heads_and_levels(network: Any, flags: Any, tmp_path: Path) -> None:
    agrees(layouts.Guided(**network), tmp_path, **flags)


def agrees(network: torch.nn.Module, folder: Path, **flags: Any) -> None:
    layouts.shake(network)
    path, config = written(network, folder, **flags)
    model = load_model(str(path), config=config)
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0.0, 411.5, 999.0])
    expected = network(x, t)[:, :3]
    assert float((model.network(x, t) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_one_with_classes_must_be_asked_for_one(tmp_path: Path) -> None:
    network = layouts.shake(layouts.Guided(classes=5))
    path, config = written(network, tmp_path, class_cond=True)
    model = load_model(str(path), config=config)
    assert model.classes == ("0", "1", "2", "3", "4")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 411.5])
    ode = model.ode(conditions=[model.condition("3"), model.condition(0)])
    got = ode.predictor.network(x, t)
    expected = network(x, t, torch.tensor([3, 0]))
    assert float((got - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert "classes    0, 1, 2, 3, 4; one must be named" in model.summary()
    refused = "trained with a class for every picture; name one of its 5 classes"
    for label, guidance in ((None, 1.0), (2, 2.0)):
        with pytest.raises(ValueError, match=refused):
            model.condition(label, guidance=guidance)
        with pytest.raises(ValueError, match=refused):  # before any call
            model.ode(conditions=[Condition(label, guidance)])
    with pytest.raises(ValueError, match=refused):
        model.ode()(torch.tensor(1.0, dtype=torch.float64), x.double())


def test_labels_are_not_looked_at_in_each_call(tmp_path: Path) -> None:
    """On a GPU that would wait for it; tensors without numbers cannot be looked at."""
    path, config = written(layouts.shake(layouts.Guided(classes=5)), tmp_path, class_cond=True)
    model = load_model(str(path), config=config, device="meta")
    ode = model.ode(conditions=[model.condition("3")])
    assert ode.predictor.network(torch.zeros(1, 3, 8, 8, device="meta"), torch.ones(1, device="meta")).is_meta


def test_it_cannot_be_exported_as_one_of_no_class(tmp_path: Path) -> None:
    path, config = written(layouts.shake(layouts.Guided(classes=5)), tmp_path, class_cond=True)
    model = load_model(str(path), config=config)
    with pytest.raises(ValueError, match="trained with a class for every picture"):
        export_pipeline(model, UNCONDITIONAL, tmp_path / "none")
    export_pipeline(model, model.condition("3"), tmp_path / "three")
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10.0, 411.5])
    got, expected = load_model(str(tmp_path / "three")).network(x, t), model.network.answer(x, t, torch.tensor([3, 3]))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_heads_that_diffusers_cannot_say_are_not_exported(tmp_path: Path) -> None:
    path, config = written(layouts.shake(layouts.Guided()), tmp_path, num_heads=4, num_head_channels=-1)
    export_pipeline(load_model(str(path), config=config), UNCONDITIONAL, tmp_path / "alike")
    network = layouts.Guided(heads=4, attention=(8, 4))
    path, config = written(
        layouts.shake(network), tmp_path, num_heads=4, num_head_channels=-1, attention_resolutions="8,4"
    )
    with pytest.raises(ValueError, match="is no UNet2DModel with a scheduler of diffusers; export one that is"):
        export_pipeline(load_model(str(path), config=config), UNCONDITIONAL, tmp_path / "others")


def test_a_thousand_classes_are_not_all_listed(tmp_path: Path) -> None:
    path, config = written(layouts.shake(layouts.Guided(classes=1000)), tmp_path, class_cond=True)
    model = load_model(str(path), config=config)
    assert "classes    0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 990 more" in model.summary()
    with pytest.raises(ValueError, match="9 9 and 990 more, and 'none'"):
        model.condition("1000")


def test_the_schedule_is_that_of_the_flags(tmp_path: Path) -> None:
    network = layouts.shake(layouts.Guided())
    path, config = written(network, tmp_path, noise_schedule="cosine", diffusion_steps=400, predict_xstart=True)
    model = load_model(str(path), config=config)
    assert model.schedule.matches(make_schedule("squaredcos_cap_v2", timesteps=400))
    assert model.prediction == "sample"
    # What the papers call linear ends where DDPM's does, over as many timesteps as there are.
    (tmp_path / "flags.json").write_text(json.dumps(FLAGS | {"diffusion_steps": 500}))
    model = load_model(str(path), config=tmp_path / "flags.json")
    assert model.schedule.matches(make_schedule("linear", timesteps=500, beta_start=2e-4, beta_end=0.04))
    assert model.prediction == "epsilon"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": None}, "image_size in .* must be an integer from 1 to 8192, but it is None"),
        ({"channel_mult": ""}, "does not say channel_mult, which has no default at image_size 8; add it"),
        ({"channel_mult": "0.5,1"}, "channel_mult in .* must be integers from 1 to 100"),
        ({"channel_mult": "2,2"}, "channel_mult in .* begins with 2; only 1 is supported"),
        ({"num_channels": 64}, "which does not go with"),
        ({"num_head_channels": 24}, "do not divide attention over 64 channels"),
        ({"num_head_channels": 0}, "do not divide attention over 64 channels"),
        ({"num_head_channels": -1, "num_heads": 5}, "do not divide attention over 64 channels"),
        ({"num_heads_upsample": 2}, "num_heads_upsample .* is not supported"),
        ({"learn_sigma": True}, r"'out.2.weight' in .* has the shape \(3, 32, 3, 3\)"),
        ({"learn_sigma": "yes"}, "learn_sigma in .* must be true or false, but it is 'yes'"),
        ({"class_cond": True}, "says class_cond, but .* has no table label_emb.weight"),
        ({"use_scale_shift_norm": False}, "which does not go with"),
        ({"resblock_updown": True}, "lack: input_blocks.3.0.emb_layers"),
        ({"noise_schedule": "square"}, "must be one of linear, cosine, but it is 'square'"),
        ({"diffusion_steps": 4000, "rescale_timesteps": True}, "rescale_timesteps with 4000 diffusion_steps"),
    ],
)
def test_flags_of_another_network_are_refused(changes: Any, said: str, tmp_path: Path) -> None:
    path, config = written(layouts.shake(layouts.Guided()), tmp_path, **changes)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(str(path), config=config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["!!float ''", "!!int ''", "!!bool 'x'", "!!timestamp 'x'", "&a [*a"])
def test_settings_that_yaml_runs_into_are_refused_in_a_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "flags.yml").write_text(f"image_size: {value}\n")
    with pytest.raises(ModelError, match=r"^cannot read '.*flags\.yml': .*; mend it$"):
        read_settings(tmp_path / "flags.yml")
