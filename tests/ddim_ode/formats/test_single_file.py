"""Whole pipelines in one file: the same to the last bit as the folder that they were made of, and read offline."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import compvis
import numpy as np
import pytest
import tiny_pipelines
import torch
from safetensors.torch import save_file
from torch import nn

from ddim_ode.kinds import ModelError
from ddim_ode.models import load_model
from ddim_ode.pipelines import from_pipeline, is_pipeline, load_pipeline

# diffusers' Euler scheduler makes arrays of tensors in a way that numpy will not know for ever.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module", params=["SD 1.5", "SDXL"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    """Of SDXL, whose file does not say which text encoder is which, with encoders of two widths."""
    if request.param == "SD 1.5":
        return tiny_pipelines.build(request.param)
    return tiny_pipelines.filled(tiny_pipelines.sdxl(width=40))


@pytest.fixture(scope="module")
def folder(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's folder without any weights."""
    folder = tmp_path_factory.mktemp("family")
    pipeline.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def file(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "tiny.safetensors"
    save_file(compvis.single_file(pipeline), path)
    return path


class ModelCheckpoint:
    """What stands for the class that files of the first Stable Diffusion name."""


def lightning(pipeline: Any, path: Path) -> Path:
    """A training's file, with what Lightning leaves in it: numbers of numpy's, and of its own."""
    content = {
        "state_dict": compvis.single_file(pipeline),
        "global_step": 3,
        "callbacks": {ModelCheckpoint: {"best": np.float64(1.0), "of": np.int64(2)}},
        "pytorch-lightning_version": "1.4.2",
    }
    place = "pytorch_lightning.callbacks.model_checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        module = types.ModuleType(place)
        patch.setattr(module, "ModelCheckpoint", ModelCheckpoint, raising=False)
        patch.setattr(ModelCheckpoint, "__module__", place)
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, place, module)
        torch.save(content, path)
    return path


def same(a: Any, b: Any) -> None:
    """Weights to the last bit; what is computed of them depends on how they lie in memory."""
    for part, module in a.components.items():
        if isinstance(module, nn.Module):
            theirs = getattr(b, part).state_dict()
            assert module.state_dict().keys() == theirs.keys()
            assert all(torch.equal(value, theirs[name]) for name, value in module.state_dict().items())
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    kwargs = {"latents": latents, "num_inference_steps": 2, "output_type": "latent", "guidance_scale": 3.0}
    torch.testing.assert_close(a("a cat", **kwargs).images, b("a cat", **kwargs).images, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.vae.decode(latents).sample, b.vae.decode(latents).sample, rtol=1e-5, atol=1e-5)
    assert type(a.scheduler) is type(b.scheduler)
    assert dict(a.scheduler.config).items() <= {**b.scheduler.config, **a.scheduler.config}.items()


def test_a_file_is_the_pipeline_that_it_was_made_of(pipeline: Any, file: Path, folder: Path) -> None:
    read = load_pipeline(str(file), config=folder)
    read.set_progress_bar_config(disable=True)
    same(pipeline, read)
    ours, theirs = from_pipeline(read, prompt="a cat"), from_pipeline(pipeline, prompt="a cat")
    assert (ours.fingerprint, ours.fingerprints) == (theirs.fingerprint, theirs.fingerprints)
    assert ours.name == str(file)


def test_a_file_of_lightning_is_read(pipeline: Any, folder: Path, tmp_path: Path) -> None:
    path = lightning(pipeline, tmp_path / "tiny.ckpt")
    assert is_pipeline(str(path))
    read = load_pipeline(str(path), config=str(folder))
    read.set_progress_bar_config(disable=True)
    same(pipeline, read)


def test_what_the_file_lacks_is_read_from_the_folder(pipeline: Any, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "whole")
    path = tmp_path / "unet.safetensors"
    weights = compvis.single_file(pipeline)
    save_file({k: v for k, v in weights.items() if k.startswith("model.diffusion_model.")}, path)
    read = load_pipeline(str(path), config=tmp_path / "whole")
    read.set_progress_bar_config(disable=True)
    same(pipeline, read)


def test_it_is_known_for_a_pipeline_without_being_loaded(file: Path, tmp_path: Path) -> None:
    assert is_pipeline(str(file))
    save_file({"conv_in.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "empty.safetensors").touch()
    for name in ("other.safetensors", "empty.safetensors", "absent.safetensors"):
        assert not is_pipeline(str(tmp_path / name))


def test_without_a_config_it_says_what_to_add(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match=r"is one file, and does not say its schedule; add --config FOLDER, a folder"):
        load_pipeline(str(file))


def test_without_a_config_the_family_is_fetched(
    pipeline: Any, file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[str] = []

    def fetched(repository: str, **_: Any) -> str:
        asked.append(repository)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    read = load_pipeline(str(file))
    read.set_progress_bar_config(disable=True)
    same(pipeline, read)
    assert asked == [asked[0]]
    assert "/" in asked[0]


def test_load_model_says_what_it_is(file: Path) -> None:
    with pytest.raises(ModelError, match="is a pipeline of text and latents; load it with load_pipeline"):
        load_model(str(file))


@pytest.mark.parametrize("spoil", ["no index", "another pipeline", "no class", "a file", "other shapes"])
def test_a_folder_that_is_not_its_family_is_refused_in_a_line(
    spoil: str, file: Path, folder: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    index = wrong / "model_index.json"
    if spoil == "no index":
        index.unlink()
    elif spoil == "another pipeline":
        index.write_text('{"_class_name": "DDPMPipeline"}')
    elif spoil == "no class":
        index.write_text('{"_class_name": 3}')
    elif spoil == "a file":
        wrong = index
    else:
        config = wrong / "unet" / "config.json"
        config.write_text(config.read_text().replace('"sample_size"', '"norm_eps_": 1, "sample_size"'))
        config.write_text(config.read_text().replace("    16,\n    32\n", "    8,\n    16\n"))
    with pytest.raises(ModelError) as caught:
        load_pipeline(str(file), config=wrong)
    assert "\n" not in str(caught.value)
    assert str(wrong) in str(caught.value)


def test_a_file_under_the_name_of_another_format_is_refused(file: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "tiny.ckpt")
    with pytest.raises(ModelError, match=r"is a file of safetensors; rename it to .safetensors"):
        load_pipeline(str(tmp_path / "tiny.ckpt"), config=folder)
    shutil.copy(file, tmp_path / "tiny.pt")
    with pytest.raises(ModelError, match=r"must end in .safetensors or .ckpt"):
        load_pipeline(str(tmp_path / "tiny.pt"), config=folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(value: float, pipeline: Any, folder: Path, tmp_path: Path) -> None:
    weights = compvis.single_file(pipeline)
    weights["first_stage_model.decoder.conv_in.weight"].view(-1)[3] = value
    save_file(weights, tmp_path / "tiny.safetensors")
    with pytest.raises(ModelError, match=r"'first_stage_model.decoder.conv_in.weight' holds NaN or infinity"):
        load_pipeline(str(tmp_path / "tiny.safetensors"), config=folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.out.2.weight",
        "first_stage_model.decoder.conv_in.weight",
        "text_model.encoder.layers.1.mlp.fc1.weight",
    ],
)
@pytest.mark.parametrize("how", ["missing", "of another shape"])
def test_weights_that_are_not_those_of_the_family_are_refused(
    name: str, how: str, pipeline: Any, folder: Path, tmp_path: Path
) -> None:
    weights = compvis.single_file(pipeline)
    name = next(full for full in weights if full.endswith(name))
    if how == "missing":
        del weights[name]
    else:
        weights[name] = torch.ones(3, 3)
    save_file(weights, tmp_path / "tiny.safetensors")
    with pytest.raises(ModelError) as caught:
        load_pipeline(str(tmp_path / "tiny.safetensors"), config=folder)
    assert ("lacks" in str(caught.value)) == (how == "missing")
    assert "\n" not in str(caught.value)


def test_a_config_for_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="a config is of models that are one file"):
        load_pipeline(str(folder), config=folder)
