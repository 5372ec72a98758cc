"""Models in every layout that diffusers writes, the embedded one, and folders that are no models."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddim_ode import schedulers
from ddim_ode.models import EMBEDDED, Model, ModelError, load_model
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule

SAFETENSORS = "diffusion_pytorch_model.safetensors"
PICKLE = "diffusion_pytorch_model.bin"
KNOWN = ", ".join(sorted(PREDICTIONS))


def make_unet(seed: int = 0, **config: Any) -> UNet2DModel:
    """A U-Net of some thousand weights."""
    torch.manual_seed(seed)
    smallest = {
        "sample_size": 8,
        "block_out_channels": (8,),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",),
        "add_attention": False,
    }
    return UNet2DModel(**(smallest | config))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline folder with weights as safetensors."""
    return make_pipeline(tmp_path / "pipeline")


def make_pipeline(folder: Path, unet: UNet2DModel | None = None, **scheduler: Any) -> Path:
    DDIMPipeline(unet or make_unet(), DDIMScheduler(**({"clip_sample": False} | scheduler))).save_pretrained(folder)
    return folder


def use_pickle(folder: Path) -> Path:
    """The same pipeline with its weights as a pickle of tensors."""
    torch.save(load_file(folder / "unet" / SAFETENSORS), folder / "unet" / PICKLE)
    (folder / "unet" / SAFETENSORS).unlink()
    return folder


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "unet" / SAFETENSORS)
    edit(weights)
    save_file(weights, folder / "unet" / SAFETENSORS)


def output_of(model: Model) -> Tensor:
    x = torch.linspace(-1, 1, model.channels * model.height * model.width)
    with torch.no_grad():
        return model.network(x.reshape(1, model.channels, model.height, model.width), torch.tensor([123.4]))


def test_a_pipeline_folder(pipeline: Path) -> None:
    model = load_model(str(pipeline))
    assert (model.channels, model.height, model.width) == (3, 8, 8)
    assert model.name == str(pipeline)
    assert model.prediction == "epsilon"
    assert model.schedule.matches(make_schedule())
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    x = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    with torch.no_grad():
        expected = make_unet().eval()(x, torch.tensor([123.4])).sample
    torch.testing.assert_close(output_of(model), expected)


def test_every_layout_is_the_same_model(pipeline: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    shutil.copytree(pipeline / "unet", flat)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", flat)
    half_flat = tmp_path / "half flat"
    shutil.copytree(pipeline / "unet", half_flat / "unet")
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", half_flat)
    model = load_model(str(pipeline))
    for folder in (pipeline / "unet", flat, half_flat):
        other = load_model(str(folder))
        assert other.fingerprint == model.fingerprint
        assert other.schedule.matches(model.schedule)
        torch.testing.assert_close(output_of(other), output_of(model))


def test_weights_may_be_a_pickle_of_tensors(pipeline: Path) -> None:
    model = load_model(str(pipeline))
    other = load_model(str(use_pickle(pipeline)))
    assert other.fingerprint == model.fingerprint
    torch.testing.assert_close(output_of(other), output_of(model))


def test_weights_may_come_in_parts(pipeline: Path) -> None:
    model = load_model(str(pipeline))
    (pipeline / "unet" / SAFETENSORS).unlink()
    make_unet().save_pretrained(pipeline / "unet", max_shard_size="10KB")
    assert not (pipeline / "unet" / SAFETENSORS).exists()
    assert load_model(str(pipeline)).fingerprint == model.fingerprint


def test_safetensors_are_preferred_and_the_pickle_is_not_touched(pipeline: Path) -> None:
    fingerprint = load_model(str(pipeline)).fingerprint
    (pipeline / "unet" / PICKLE).write_text("not even a pickle")
    assert load_model(str(pipeline)).fingerprint == fingerprint


def test_weights_of_half_precision_beside_a_pickle_do_not_hide_it(pipeline: Path) -> None:
    fingerprint = load_model(str(use_pickle(pipeline))).fingerprint
    save_file(make_unet(seed=1).half().state_dict(), pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert load_model(str(pipeline)).fingerprint == fingerprint


def test_the_fingerprint_is_that_of_the_weights(pipeline: Path) -> None:
    model = load_model(str(pipeline))
    edit_json(pipeline / "scheduler" / "scheduler_config.json", beta_end=0.03)
    assert load_model(str(pipeline)).fingerprint == model.fingerprint
    edit_weights(pipeline, lambda weights: weights["conv_in.bias"][0].add_(1e-6))
    assert load_model(str(pipeline)).fingerprint != model.fingerprint


def test_a_network_with_a_number_among_its_weights_has_a_fingerprint() -> None:
    network = nn.BatchNorm2d(3)
    model = Model("norm", network, VariancePreserving(make_schedule(), "epsilon"), 3, 4, 4)
    before = model.fingerprint
    network.num_batches_tracked.add_(1)
    assert Model("norm", network, VariancePreserving(make_schedule(), "epsilon"), 3, 4, 4).fingerprint != before


def test_threads_that_ask_at_once_have_weights_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[nn.Module] = []

    def slow(module: nn.Module) -> str:
        hashed.append(module)
        time.sleep(0.05)
        return "found"

    monkeypatch.setattr("ddim_ode.fingerprints.fingerprint", slow)
    model = Model("norm", nn.BatchNorm2d(3), VariancePreserving(make_schedule(), "epsilon"), 3, 4, 4)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: model.fingerprint, range(4))) == ["found"] * 4
    assert hashed == [model.network]
    assert copy.deepcopy(model).fingerprint == "found"


@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8)), ((8, 16), (8, 16)), ([16, 8], (16, 8))])
def test_images_may_be_square_or_not(size: object, shape: tuple[int, int], tmp_path: Path) -> None:
    model = load_model(str(make_pipeline(tmp_path / "model", make_unet(sample_size=size))))
    assert (model.height, model.width) == shape
    assert output_of(model).shape == (1, 3, *shape)


def test_of_a_learned_variance_the_mean_is_kept(tmp_path: Path) -> None:
    unet = make_unet(out_channels=6)
    model = load_model(str(make_pipeline(tmp_path / "model", unet)))
    x = torch.linspace(-1, 1, 192).reshape(1, 3, 8, 8)
    with torch.no_grad():
        expected = unet.eval()(x, torch.tensor([123.4])).sample[:, :3]
    torch.testing.assert_close(output_of(model), expected)


def test_grey_images_and_v_prediction(tmp_path: Path) -> None:
    unet = make_unet(in_channels=1, out_channels=1)
    model = load_model(str(make_pipeline(tmp_path / "model", unet, prediction_type="v_prediction")))
    assert model.channels == 1
    assert model.prediction == "v_prediction"
    ode = model.ode(max_nfe=1)
    assert ode(torch.tensor(1.0), torch.ones(2, 1, 8, 8, dtype=torch.float64)).shape == (2, 1, 8, 8)
    assert ode.nfe == ode.max_nfe == 1
    assert model.ode().nfe == 0


def test_clip_sample_is_not_obeyed_and_that_is_said(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "model", clip_sample=True)
    with pytest.warns(UserWarning, match="asks for clip_sample; nothing is clipped here") as caught:
        load_model(str(folder))
    assert caught[0].filename == __file__


def remove(*parts: str) -> Callable[[Path], None]:
    return lambda folder: folder.joinpath(*parts).unlink()


def scheduler(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", **values)


def unet_config(**values: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "unet" / "config.json", **values)


def write(text: str, *parts: str) -> Callable[[Path], object]:
    return lambda folder: folder.joinpath(*parts).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (remove("unet", SAFETENSORS), f"holds no weights: neither {SAFETENSORS} nor {PICKLE}"),
        (remove("unet", "config.json"), "is not a model folder: it has neither unet/config.json nor config.json"),
        (remove("scheduler", "scheduler_config.json"), "has no scheduler_config.json, so the noise schedule of its"),
        (write("{", "unet", "config.json"), "config.json': Expecting property name"),
        (write("[1]", "unet", "config.json"), "config.json' must hold a JSON object, but it holds a list"),
        (write("", "scheduler", "scheduler_config.json"), "scheduler_config.json': Expecting value"),
        (unet_config(_class_name="UNet2DConditionModel"), "is a UNet2DConditionModel; only diffusers' UNet2DModel is"),
        (unet_config(down_block_types=["NoBlock"]), "cannot load the U-Net of model"),
        (unet_config(block_out_channels=[16]), "cannot load the U-Net of model"),
        (unet_config(sample_size=None), "does not say its image size; write sample_size into its config.json"),
        (
            scheduler(prediction_type="flow"),
            f"predicts 'flow', which is not supported; supported are: {', '.join(sorted(PREDICTIONS))}",
        ),
        (
            scheduler(rescale_betas_zero_snr=True),
            "predicts 'epsilon' says nothing of the image where there is only noise",
        ),
        (scheduler(beta_schedule="laplace"), "unknown schedule 'laplace'; choose one of: linear"),
        (scheduler(beta_end=None), "beta_end must be a number, but it is None"),
        (scheduler(trained_betas="few"), "trained_betas must be a list of numbers"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(
    pipeline: Path, spoil: Callable[[Path], object], words: str
) -> None:
    spoil(pipeline)
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        load_model(str(pipeline))
    assert str(pipeline) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_class_embeds": 1}, "has num_class_embeds 1; it must be 2 or more, a class and a label for none"),
        ({"class_embed_type": "timestep"}, "has class_embed_type 'timestep'; that is not supported"),
        ({"time_embedding_type": "fourier"}, "has time_embedding_type 'fourier'; only 'positional' is supported"),
        (
            {"time_embedding_type": "learned", "num_train_timesteps": 1000},
            "has time_embedding_type 'learned'; only 'positional' is supported",
        ),
        ({"out_channels": 4}, "turns 3 channels into 4; it should be 3, or 6 with a learned variance"),
    ],
)
def test_a_network_that_is_no_function_of_image_and_time_is_refused(
    config: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        load_model(str(make_pipeline(tmp_path / "model", make_unet(**config))))


def test_weights_that_are_not_all_there_are_refused(pipeline: Path) -> None:
    """diffusers would fill the gap with random numbers."""
    edit_weights(pipeline, lambda weights: weights.pop("conv_in.weight"))
    with pytest.raises(ModelError, match=r"the weights in '.*unet' lack: conv_in\.weight"):
        load_model(str(pipeline))


@pytest.mark.parametrize("part", [0, 0.0001, 0.01, 0.5, 0.9999])
@pytest.mark.parametrize("prepare", [lambda folder: folder, use_pickle], ids=["safetensors", "pickle"])
def test_truncated_weights_are_refused(pipeline: Path, prepare: Callable[[Path], Path], part: float) -> None:
    (path,) = (prepare(pipeline) / "unet").glob("diffusion_pytorch_model.*")
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(ModelError, match="cannot load the U-Net of model '") as caught:
        load_model(str(pipeline))
    assert "\n" not in str(caught.value)


class Bomb:
    """Whoever unpickles it creates a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_bomb_does_not_go_off(pipeline: Path, tmp_path: Path) -> None:
    crater = tmp_path / "crater"
    path = use_pickle(pipeline) / "unet" / PICKLE
    torch.save(torch.load(path, weights_only=True) | {"bomb": Bomb(crater)}, path)
    with pytest.raises(ModelError, match="cannot load the U-Net of model '"):
        load_model(str(pipeline))
    assert not crater.exists()
    torch.load(path, weights_only=False)
    assert crater.exists(), "the bomb was none"


@pytest.mark.parametrize("name", ["nowhere", "./no/where", "/no/where", "a/b/c", "org/na me"])
def test_a_name_that_is_neither_folder_nor_hub_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(ModelError, match=f"there is no model folder '{name}', and it is not a Hub name of the form"):
        load_model(name)


def test_a_hub_name_without_a_network_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(name: str, **options: object) -> str:
        raise OSError("Cannot reach the Hub\nand many more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    words = "there is no model folder 'org/name', and it could not be fetched from the Hub: Cannot reach the Hub"
    with pytest.raises(ModelError, match=f"^{words}$"):
        load_model("org/name")


def test_a_hub_name_with_a_network_is_a_folder(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append(name)
        return str(pipeline)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = load_model("org/name")
    assert asked == ["org/name"]
    assert model.name == "org/name"
    assert model.fingerprint == load_model(str(pipeline)).fingerprint


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_embedded_models_are_there_and_quick(name: str) -> None:
    """Computed in float32, whatever the precision of the file."""
    start = time.perf_counter()
    model = load_model(name)
    assert time.perf_counter() - start < 10
    assert model.name == name
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    assert model.calibration is not None
    assert len(model.classes) == 10
    assert (model.channels, model.height, model.width) == (3, 32, 32)
    assert model.device.type == "cpu"
    assert len(model.schedule) == 1000
    for part in (f"model '{name}'", "3 x 32 x 32", f"predicts {model.prediction}", "157.407", model.fingerprint):
        assert part in model.summary()


def test_the_embedded_model_is_a_pipeline_of_diffusers() -> None:
    """Its own pipelines ask for no class; ``export`` makes one that they sample."""
    unet = DDIMPipeline.from_pretrained(EMBEDDED["default"]).unet.to(memory_format=torch.channels_last)  # as ours is
    model, x, t = load_model(), torch.ones(2, 3, 32, 32), torch.tensor([500.0, 20.0])
    for label in (10, 7):
        labels = torch.tensor([label, label])
        with torch.no_grad():
            theirs = unet(x, t, class_labels=labels).sample
            torch.testing.assert_close(theirs, model.network.answer(x, t, labels))
    with torch.no_grad():
        torch.testing.assert_close(model.network(x, t), unet(x, t, class_labels=torch.tensor([10, 10])).sample)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"_class_name": "FlowMatchLCMScheduler"}, "is for a distilled network"),
        ({"_class_name": "SCMScheduler"}, "is for a distilled network"),
        (
            {"_class_name": "EDMEulerScheduler", "prediction_type": "sample"},
            "predicts 'sample', which is not supported",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "sigma_data": 0},
            "sigma_data must be a finite number above 0, but it is 0",
        ),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": "x"}, "sigma_min must be a number, but it is 'x'"),
        ({"_class_name": "ScoreSdeVeScheduler"}, "only 'fourier' is supported for networks of the family 've'"),
        ({"_class_name": "CMStochasticIterativeScheduler"}, "is for a distilled network"),
        ({"_class_name": "LCMScheduler"}, "is for a distilled network"),
        ({"_class_name": "TCDScheduler"}, "is for a distilled network"),
        ({"_class_name": "VQDiffusionScheduler"}, "is for pictures made of tokens"),
        ({"_class_name": "DDPMWuerstchenScheduler"}, "is for another noise schedule"),
        ({"_class_name": "SomeScheduler"}, "SomeScheduler, is not known"),
        (
            {"use_flow_sigmas": True, "num_train_timesteps": 1},
            "there must be from 2 to 1000000 timesteps, but there are 1",
        ),
        ({"num_train_timesteps": float("inf")}, "num_train_timesteps must be a number, but it is inf"),
        ({"beta_start": True}, "beta_start must be a number, but it is True"),
    ],
)
def test_a_scheduler_of_another_kind_is_refused_with_the_reason(
    pipeline: Path, values: dict[str, object], words: str
) -> None:
    scheduler(**values)(pipeline)
    with pytest.raises(ModelError, match=re.escape(words)):
        load_model(str(pipeline))


# Of networks that none of ours is: refused because they are not known.
STRANGERS = {"CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "CosineDPMSolverMultistepScheduler", "UnCLIPScheduler"}


def test_every_scheduler_of_diffusers_is_of_one_kind_or_the_other() -> None:
    """Those for betas have betas; of the others none is taken for one of them."""
    names = {name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith("Flax")}
    names = {name for name in names if "dummy" not in getattr(diffusers, name).__module__}  # for want of a library
    of_betas = names & set(schedulers._OF_BETAS)
    assert not {name for name in of_betas if any(part in name for part in schedulers._OTHERS)}
    assert not of_betas & STRANGERS
    for name in of_betas - {"IPNDMScheduler"}:
        assert {"beta_start", "trained_betas"} & set(signature(getattr(diffusers, name)).parameters), name
    clipping = {name for name in of_betas if "clip_sample" in signature(getattr(diffusers, name)).parameters}
    by_default = {n for n in clipping if signature(getattr(diffusers, n)).parameters["clip_sample"].default is True}
    assert by_default == {name for name in of_betas if schedulers._OF_BETAS[name]}


@pytest.mark.parametrize("name", ["vqgan", "movq"])
def test_a_network_of_an_unknown_autoencoders_latents_is_refused(pipeline: Path, name: str) -> None:
    """Also where its U-Net is named by itself."""
    (pipeline / name).mkdir()
    for folder in (pipeline, pipeline / "unet"):
        with pytest.raises(ModelError, match=f"it has an autoencoder, '{name}', and its network works on what that"):
            load_model(str(folder))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, r"config.json' does not exist"),
        ('{"_class_name": "AutoencoderDC"}', "is a AutoencoderDC; it must be an AutoencoderKL or a VQModel"),
        ('{"_class_name": "VQModel"}', "holds no weights"),
    ],
)
def test_a_damaged_autoencoder_is_refused(pipeline: Path, config: str | None, words: str) -> None:
    (pipeline / "vqvae").mkdir()
    if config is not None:
        (pipeline / "vqvae" / "config.json").write_text(config)
    with pytest.raises(ModelError, match=words):
        load_model(str(pipeline))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_weights_with_a_prefix_are_refused_in_a_line(pipeline: Path, prefix: str) -> None:
    def rename(weights: dict[str, Tensor]) -> None:
        for name in list(weights):
            weights[prefix + name] = weights.pop(name)

    edit_weights(pipeline, rename)
    with pytest.raises(ModelError, match=rf"and \d+ more; all of these begin with '{prefix}': save") as caught:
        load_model(str(pipeline))
    assert str(caught.value).count(",") < 20


def test_weights_that_the_network_does_not_ask_for_are_refused(pipeline: Path) -> None:
    edit_weights(pipeline, lambda weights: weights.update({"extra.weight": torch.zeros(1)}))
    with pytest.raises(ModelError, match=r"have names that its config.json does not ask for: extra\.weight$"):
        load_model(str(pipeline))


@pytest.mark.parametrize("size", [8.0, "ab", ["8", "8"], [8], 0, [8, -8], {"a": 1}])
def test_a_size_that_is_none_is_refused(pipeline: Path, size: object) -> None:
    unet_config(sample_size=size)(pipeline)
    with pytest.raises(ModelError, match=r"sample_size of '.*' must be a positive integer, or|cannot load the U-Net"):
        load_model(str(pipeline))


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_channels_that_no_picture_has_are_refused(tmp_path: Path, channels: int) -> None:
    folder = make_pipeline(tmp_path / "model", make_unet(in_channels=channels, out_channels=channels))
    with pytest.raises(ModelError, match=f"takes {channels} channels; pictures have 1, of grey, or 3, of colour"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("values", "option"),
    [({"thresholding": True}, "thresholding"), ({"clip_sample": None}, "clip_sample")],
)
def test_a_scheduler_that_clips_gets_a_warning_by_its_default_too(
    pipeline: Path, values: dict[str, object], option: str
) -> None:
    """The key is taken away where its value here is None: the default of diffusers is to clip."""
    path = pipeline / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.warns(UserWarning, match=f"asks for {option}; nothing is clipped here"):
        load_model(str(pipeline))


def test_weights_in_half_precision_alone_are_loaded(pipeline: Path) -> None:
    whole = load_model(str(pipeline))
    half = {name: value.half() for name, value in load_file(pipeline / "unet" / SAFETENSORS).items()}
    save_file(half, pipeline / "unet" / SAFETENSORS.replace(".safetensors", ".fp16.safetensors"))
    (pipeline / "unet" / SAFETENSORS).unlink()
    model = load_model(str(pipeline))
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([7.0])
    torch.testing.assert_close(model.network(x, t), whole.network(x, t), rtol=1e-2, atol=1e-2)
