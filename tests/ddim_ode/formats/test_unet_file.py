"""Files with a bare ``UNet2DModel`` of diffusers: the same model as the folder that they come from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddim_ode.kinds import ModelError
from ddim_ode.models import load_model

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def alone(folder: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The file of the weights, and the folder of the rest."""
    shutil.copytree(folder, tmp_path / "rest")
    return Path(shutil.move(tmp_path / "rest" / WEIGHTS, tmp_path / "net.safetensors")), tmp_path / "rest"


@pytest.mark.parametrize("kind", ["safetensors", "bin", "of a training"])
@pytest.mark.parametrize("place", ["", "unet"])
def test_it_is_the_folder_that_it_comes_from(kind: str, place: str, folder: Path, alone: tuple[Path, Path]) -> None:
    path, rest = alone
    if kind != "safetensors":
        state = load_file(path)
        path = path.with_suffix(".bin")
        torch.save(state if kind == "bin" else {"state_dict": state, "step": 3}, path)
    model, expected = load_model(str(path), config=rest / place), load_model(str(folder))
    assert (model.name, model.folder) == (str(path), None)
    assert (model.fingerprint, model.prediction, model.height) == (
        expected.fingerprint,
        expected.prediction,
        expected.height,
    )
    assert model.schedule.matches(expected.schedule)
    assert model.calibration is None
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 700.0])
    assert torch.equal(model.network(x, t), expected.network(x, t))


def test_half_precision_is_computed_in_float32(alone: tuple[Path, Path]) -> None:
    path, rest = alone
    whole = load_model(str(path), config=rest)
    save_file({name: value.half() for name, value in load_file(path).items()}, path.with_name("half.safetensors"))
    half = load_model(str(path.with_name("half.safetensors")), config=rest)
    assert {value.dtype for value in half.network.state_dict().values()} == {torch.float32}
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 700.0])
    torch.testing.assert_close(half.network(x, t), whole.network(x, t), rtol=0.01, atol=0.01)


def test_the_old_names_of_attention_are_known(tmp_path: Path) -> None:
    """As google/ddpm-cifar10-32 has them."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4}
    unet = UNet2DModel(**sizes, down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",))
    DDPMPipeline(unet, DDPMScheduler(clip_sample=False)).save_pretrained(tmp_path / "folder")
    state = load_file(tmp_path / "folder" / WEIGHTS)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    torch.save(state, tmp_path / "old.bin")
    old = load_model(str(tmp_path / "old.bin"), config=tmp_path / "folder")
    assert old.fingerprint == load_model(str(tmp_path / "folder")).fingerprint


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda rest: shutil.rmtree(rest / "scheduler"), "has no scheduler_config.json"),
        (lambda rest: shutil.rmtree(rest / "unet"), "is not a model folder"),
        (lambda rest: shutil.rmtree(rest), "must be a folder of diffusers"),
        (lambda rest: (rest / "vae").mkdir(), "has an autoencoder, and"),
        (lambda rest: _edit(rest / "unet/config.json", _class_name="UNet2DConditionModel"), "only diffusers' UNet2DMo"),
        (lambda rest: _edit(rest / "unet/config.json", num_class_embeds=3), "knows classes, whose names"),
        (lambda rest: _edit(rest / "unet/config.json", block_out_channels=[16]), "has the shape"),
        (lambda rest: _edit(rest / "unet/config.json", block_out_channels=[10**9]), "cannot make a U-Net"),
        (lambda rest: _edit(rest / "unet/config.json", layers_per_block=2), "lack: down_blocks.0.resnets.1.conv1"),
        (lambda rest: _edit(rest / "unet/config.json", layers_per_block=10**7), "must be an integer from 1 to 1000"),
        (lambda rest: _edit(rest / "scheduler/scheduler_config.json", beta_end=2), "must lie in"),
        (lambda rest: _edit(rest / "scheduler/scheduler_config.json", _class_name="LCMScheduler"), "no slope"),
    ],
)
def test_a_folder_that_is_not_its_own_is_refused_in_a_line(
    spoil: Callable[[Path], None], said: str, alone: tuple[Path, Path]
) -> None:
    path, rest = alone
    spoil(rest)
    with pytest.raises(ModelError, match=said) as caught:
        load_model(str(path), config=rest)
    assert "\n" not in str(caught.value)


def test_without_a_config_it_says_what_to_add(alone: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match=r"add --config FOLDER, a folder of diffusers with its config.json"):
        load_model(str(alone[0]))


def test_a_config_for_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="a config is of models that are one file"):
        load_model(str(folder), config=folder)


def test_a_file_that_does_not_exist_is_not_looked_for_on_the_hub() -> None:
    with pytest.raises(ModelError, match=r"there is no model file 'models/absent.safetensors'"):
        load_model("models/absent.safetensors")
