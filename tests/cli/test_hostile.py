"""Hostile inputs, over every command that takes them: one line that names the file, and nothing else happens.

To add an input, add a line to the table of its kind: to ``PICTURES``, ``LATENTS``, ``MODELS``, ``NETWORKS``,
``CHECKPOINTS``, ``WORK`` or ``OPTIONS``. Every command in the list below the table is tried with it.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

from cli import main
from ddim_ode.calibration import Calibration, Entry, save_calibration
from ddim_ode.grids import make_grid
from ddim_ode.models import load_model

# A file's content, or what makes it at a path.
Content = bytes | Callable[[Path], object]
Edit = Callable[[Any], object]


def refused(result: Result, *words: str) -> None:
    """The command ends with one line, which holds all ``words``, and neither a traceback nor a fault of ours."""
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    errors = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(errors) == 1, result.output
    assert errors[0].startswith("Error: ")
    assert "fault of ddim-ode" not in errors[0]
    assert len(errors[0]) < 2000
    for word in words:
        assert word in errors[0]


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def there(folder: Path) -> dict[str, bytes]:
    """All files in ``folder``, at any depth, with their content; but for locks."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".ddim-ode.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def make(content: Content, path: Path) -> None:
    path.write_bytes(content) if isinstance(content, bytes) else content(path)


def encoded(pixels: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


class Runs:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.png"
    path.write_bytes(PNG)
    return path


# -- pictures ---------------------------------------------------------------------------------------------------------

PNG = encoded(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), "PNG")
JPEG = encoded(np.zeros((16, 16, 3), dtype=np.uint8), "JPEG")

PICTURES: Mapping[str, Content] = {
    "empty.png": b"",
    "zeros.png": bytes(1000),
    "text.png": b"no picture at all",
    "json.png": b"{}",
    "header.png": PNG[:8],
    "cut.png": PNG[:200],
    "flipped.png": PNG[:60] + bytes(byte ^ 255 for byte in PNG[60:90]) + PNG[90:],
    "cut.jpg": JPEG[:120],
    "header.jpg": JPEG[:20],
    "cut.gif": encoded(np.zeros((16, 16), dtype=np.uint8), "GIF")[:20],
    "cut.bmp": encoded(np.zeros((16, 16), dtype=np.uint8), "BMP")[:60],
    "cut.tif": encoded(np.zeros((16, 16), dtype=np.uint8), "TIFF")[:100],
    "cut.webp": encoded(np.zeros((16, 16, 3), dtype=np.uint8), "WEBP")[:30],
    "header.dds": b"DDS " + bytes(200),
    "header.avif": b"\0\0\0\x1cftypavif" + bytes(300),
    "nan.tif": encoded(np.full((16, 16), np.nan, dtype=np.float32), "TIFF"),
    "infinite.tif": encoded(np.full((16, 16), np.inf, dtype=np.float32), "TIFF"),
    "range.tif": encoded(np.full((16, 16), 255, dtype=np.float32), "TIFF"),
    "wide.tif": encoded(np.full((16, 16), 100_000, dtype=np.int32), "TIFF"),
    "pickle.png": pickle.dumps(Runs()),
    "folder.png": Path.mkdir,
    "pipe.png": os.mkfifo,
    "device.png": lambda path: path.symlink_to("/dev/zero"),
    "nowhere.png": lambda path: path.symlink_to(path.with_name("missing")),
    "missing.png": lambda path: None,
    "control\x1b[31m.png": b"",
}
PICTURE_COMMANDS: Sequence[Sequence[str]] = (
    ("encode", "BAD", "--steps", "1"),
    ("encode", "BAD", "--steps", "1", "-o", "out"),
    ("reconstruct", "BAD", "--steps", "1"),
    ("interpolate", "BAD", "good.png", "--steps", "1"),
    ("interpolate", "good.png", "BAD", "--steps", "1", "--frames", "frames"),
)


def shown(name: str) -> str:
    """``name`` as the commands print it."""
    return name.replace("\x1b", "\\x1b")


@pytest.mark.parametrize("words", PICTURE_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", PICTURES)
def test_pictures(name: str, words: Sequence[str], good: Path, tiny_model: Path, tmp_path: Path) -> None:
    make(PICTURES[name], tmp_path / name)
    before = there(tmp_path) if "device" not in name else None
    result = call(*(name if word == "BAD" else word for word in words), "--model", tiny_model)
    refused(result, shown(name))
    assert not (tmp_path / "executed").exists()
    if before is not None:
        assert there(tmp_path) == before


@pytest.mark.parametrize("name", sorted(set(PICTURES) - {"missing.png"}))
def test_pictures_among_those_of_a_data_set(name: str, good: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Whoever asks for a folder is told of each that cannot be taken; what is no file or no picture is not asked."""
    folder = tmp_path / "set"
    folder.mkdir()
    shutil.copy(good, folder)
    make(PICTURES[name], folder / name)
    skipped = name in ("folder.png", "pipe.png", "device.png", "nowhere.png")
    if not skipped:
        (tmp_path / "unet.json").write_text(json.dumps(SMALL))
        refused(call("train", folder, "-o", "run", "--steps", "1", "--unet", "unet.json", "--cpu"), shown(name))
        assert not (tmp_path / "run").exists()
    refused(call("calibrate", "--model", tiny_model, "--images", folder, "--steps", "2", "--latents", "1"))


# -- latents ----------------------------------------------------------------------------------------------------------


def put(value: object, *keys: Any) -> Edit:
    """Put ``value`` under ``keys`` of a content."""

    def edit(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


def drop(*keys: Any) -> Edit:
    """Take away what is under ``keys``."""

    def edit(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit


def scaled(factor: float) -> Edit:
    """A latent multiplied by ``factor``."""
    return lambda content: content.update(x_T=content["x_T"] * factor)


LATENTS: Mapping[str, bytes | Edit] = {
    "empty": b"",
    "zeros": bytes(1000),
    "text": b"no latent at all",
    "picture": PNG,
    "pickle": pickle.dumps(Runs()),
    "pickle of a dict": pickle.dumps({"format": "ddim-ode latent", "x_T": Runs()}),
    "another format": put("jpeg", "format"),
    "no format": drop("format"),
    "version 99": put(99, "version"),
    "version true": put(True, "version"),
    "dtype another": put("float16", "dtype"),
    "schedule complex": put(torch.full((1000,), 0.5 + 0.1j), "schedule", "alpha_bar"),
    "size negative": put((-5, -6), "source", "size"),
    "nfe negative": put(-7, "nfe"),
    "solver in capitals": put("EULER", "solver", "name"),
    "no version": drop("version"),
    "no x_T": drop("x_T"),
    "x_T a list": put([0.0], "x_T"),
    "x_T of 3 dimensions": put(torch.zeros(3, 8, 8), "x_T"),
    "x_T of 5 channels": put(torch.zeros(1, 5, 8, 8).double(), "x_T"),
    "x_T empty": put(torch.zeros(1, 3, 0, 8).double(), "x_T"),
    "x_T of integers": put(torch.zeros(1, 3, 8, 8, dtype=torch.int64), "x_T"),
    "x_T complex": put(torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "x_T"),
    "x_T sparse": put(torch.zeros(1, 3, 8, 8).to_sparse(), "x_T"),
    "x_T without values": put(torch.zeros(1, 3, 8, 8, device="meta"), "x_T"),
    "x_T larger than the file": put(torch.zeros(1).expand(1, 3, 20_000, 20_000), "x_T"),
    "x_T of 8 bits": put(torch.zeros(1, 3, 8, 8).to(torch.float8_e4m3fn), "x_T"),
    "schedule larger than the file": put(torch.full((1,), 0.5).expand(10**9), "schedule", "alpha_bar"),
    "x_T NaN": scaled(float("nan")),
    "x_T of 1e6": scaled(1e6),
    "x_T of 1e300": scaled(1e300),
    "no grid": drop("grid"),
    "grid None": put(None, "grid"),
    "sigmas a number": put(1.0, "grid", "sigmas"),
    "sigmas empty": put([], "grid", "sigmas"),
    "sigma of 1e5": put(1e5, "grid", "sigmas", -1),
    "sigma of 1e155": put(1e155, "grid", "sigmas", -1),
    "sigma infinite": put(float("inf"), "grid", "sigmas", -1),
    "sigma NaN": put(float("nan"), "grid", "sigmas", -1),
    "sigma negative": put(-1.0, "grid", "sigmas", 0),
    "timestep NaN": put(float("nan"), "grid", "timesteps", -1),
    "timestep of 1e9": put(1e9, "grid", "timesteps", -1),
    "timestep of another sigma": put(500.0, "grid", "timesteps", -1),
    "timestep a string": put("last", "grid", "timesteps", -1),
    "clean end unknown": put("one", "grid", "clean_end"),
    "clean end the other": put("zero", "grid", "clean_end"),
    "solver a string": put("euler", "solver"),
    "solver unknown": put("perpetual", "solver", "name"),
    "solver with noise": put("ancestral", "solver", "name"),
    "solver calibrated": put("auto", "solver", "name"),
    "solver with steps of its own": put("ends", "grid", "name"),
    "solver with a setting it has not": put(1e-3, "solver", "rtol"),
    "solver with a wrong setting": put(["x"], "solver", "rtol"),
    "no schedule": drop("schedule"),
    "schedule rising": put(torch.linspace(0.1, 0.9, 1000), "schedule", "alpha_bar"),
    "schedule NaN": put(torch.full((1000,), torch.nan), "schedule", "alpha_bar"),
    "schedule a string": put("linear", "schedule", "alpha_bar"),
    "of another model": put("0" * 64, "model", "fingerprint"),
    "no model": drop("model"),
    "size of one number": put([640], "source", "size"),
    "nfe infinite": put(float("inf"), "nfe"),
    "companion of another shape": put(torch.zeros(1, 3, 4, 4), "companion"),
    "companion a string": put("friend", "companion"),
}
# What only a model can know, or a solver: 'info' tells what is in the file.
BY_MODEL = {"of another model", "x_T of 5 channels", "x_T empty"}
BY_MODEL |= {
    f"solver {what}" for what in ("unknown", "in capitals", "with noise", "calibrated", "with steps of its own")
}
BY_MODEL |= {"solver with a setting it has not"}
LATENT_COMMANDS: Sequence[Sequence[str]] = (
    ("decode", "BAD.pt"),
    ("decode", "BAD.pt", "-o", "out"),
    ("info", "BAD.pt"),
    ("interpolate", "BAD.pt", "--seed", "1", "--steps", "1"),
)


@pytest.fixture(scope="module")
def latent(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of a latent file."""
    path = tmp_path_factory.mktemp("latent") / "good.png"
    path.write_bytes(PNG)
    result = call("encode", path, "--steps", "2", "--solver", "euler", "--model", tiny_model)
    assert result.exit_code == 0, result.output
    content: dict[str, Any] = torch.load(path.with_name("good.latent.pt"), weights_only=True)
    return content


@pytest.mark.parametrize("words", LATENT_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", LATENTS)
def test_latents(name: str, words: Sequence[str], latent: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    bad = LATENTS[name]
    if isinstance(bad, bytes):
        (tmp_path / "BAD.pt").write_bytes(bad)
    else:
        content = copy.deepcopy(latent)
        bad(content)
        torch.save(content, tmp_path / "BAD.pt")
    before = there(tmp_path)
    of_model = () if words[0] == "info" else ("--model", tiny_model)
    result = call(*words, *of_model)
    if words[0] == "info" and name in BY_MODEL:
        assert result.exit_code == 0
    elif words[0] == "interpolate" and "solver " in name:
        assert result.exit_code in (0, 1)  # the steps are asked for, and perhaps the solver is not needed
        return
    else:
        refused(result)
    assert there(tmp_path) == before


# -- models -----------------------------------------------------------------------------------------------------------


def config(**changes: object) -> Edit:
    """Change the configuration of the network."""
    return _json("unet/config.json", changes)


def scheduler(**changes: object) -> Edit:
    """Change the scheduler."""
    return _json("scheduler/scheduler_config.json", changes)


def _json(name: str, changes: Mapping[str, object]) -> Edit:
    def edit(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def written(name: str, content: bytes) -> Edit:
    """Put another content into a file."""

    def edit(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return edit


def renamed(prefix: str) -> Edit:
    """Weights with a prefix before their names."""

    def edit(folder: Path) -> None:
        path = folder / WEIGHTS
        save_file({prefix + name: value for name, value in load_file(path).items()}, path)

    return edit


def _replace(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _spoil(folder: Path, value: float) -> None:
    """Put ``value`` into one of the weights."""
    state = load_file(folder / WEIGHTS)
    next(iter(state.values())).view(-1)[0] = value
    save_file(state, folder / WEIGHTS)


def _calibrate(folder: Path, corrections: tuple[tuple[float, ...], ...], solver: str = "reab3") -> None:
    """Write a calibration for 50 steps."""
    model = load_model(str(folder))
    entry = Entry(solver, make_grid(model.schedule, "log-snr", 50), corrections, corrections, {})
    save_calibration(Calibration(model.fingerprint, {50: entry}, {}), folder / "calibration.json")


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
MODELS: Mapping[str, Edit] = {
    "nothing in it": lambda folder: shutil.rmtree(folder / "unet"),
    "no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights empty": written(WEIGHTS, b""),
    "weights zeros": written(WEIGHTS, bytes(1000)),
    "weights a text": written(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"),
    "weights of a module": renamed("module."),
    "weights compiled": renamed("_orig_mod."),
    "config empty": written("unet/config.json", b""),
    "config a list": written("unet/config.json", b"[]"),
    "config no text": written("unet/config.json", b"\xff\xfe\xfa"),
    "scheduler empty": written("scheduler/scheduler_config.json", b""),
    "scheduler a number": written("scheduler/scheduler_config.json", b"1"),
    "another network": config(_class_name="UNet2DConditionModel"),
    "size of 8.0": config(sample_size=8.0),
    "size a string": config(sample_size="ab"),
    "size two strings": config(sample_size=["8", "8"]),
    "size 0": config(sample_size=0),
    "size None": config(sample_size=None),
    "2 channels": config(in_channels=2, out_channels=2),
    "4 channels": config(in_channels=4, out_channels=4),
    "5 channels": config(in_channels=5, out_channels=5),
    "norm_num_groups 0": config(norm_num_groups=0),
    "norm_num_groups -1": config(norm_num_groups=-1),
    "norm_num_groups true": config(norm_num_groups=True),
    "norm_eps a string": config(norm_eps="x"),
    "norm_eps NaN": config(norm_eps=float("nan")),
    "freq_shift None": config(freq_shift=None),
    "freq_shift a list": config(freq_shift=[[1]]),
    "mid_block_scale_factor 0": config(mid_block_scale_factor=0),
    "layers of 1e7": config(layers_per_block=10_000_000),
    "size of 1e6": config(sample_size=1_000_000),
    "config deep": written("unet/config.json", b"[" * 100_000),
    "scheduler deep": written("scheduler/scheduler_config.json", b"[" * 100_000),
    "config a device": lambda folder: _replace(folder / "unet/config.json", "/dev/zero"),
    "weights NaN": lambda folder: _spoil(folder, torch.nan),
    "weights infinite": lambda folder: _spoil(folder, torch.inf),
    "timesteps of 30 digits": scheduler(num_train_timesteps=10**30),
    "timesteps of 400 digits": scheduler(num_train_timesteps=10**400),
    "timesteps broken": scheduler(num_train_timesteps=1000.5),
    "norm_num_groups 3": config(norm_num_groups=3),
    "layers a string": config(layers_per_block="two"),
    "blocks empty": config(block_out_channels=[]),
    "block unknown": config(down_block_types=["SideBlock2D"]),
    "classes": config(num_class_embeds=10),
    "timesteps infinite": scheduler(num_train_timesteps=float("inf")),
    "timesteps a string": scheduler(num_train_timesteps="1000"),
    "timesteps 1": scheduler(num_train_timesteps=1),
    "timesteps negative": scheduler(num_train_timesteps=-5),
    "beta of 2": scheduler(beta_end=2.0),
    "beta NaN": scheduler(beta_start=float("nan")),
    "betas empty": scheduler(trained_betas=[]),
    "betas nested": scheduler(trained_betas=[[0.1, 0.2], [0.3, 0.4]]),
    "betas strings": scheduler(trained_betas=["a", "b"]),
    "betas an object": scheduler(trained_betas={"a": 1}),
    "schedule unknown": scheduler(beta_schedule="exponential-ish"),
    "prediction unknown": scheduler(prediction_type="score"),
    "prediction a list": scheduler(prediction_type=["epsilon"]),
    "flow prediction": scheduler(prediction_type="flow_prediction"),
    "flow sigmas": scheduler(use_flow_sigmas=True),
    "zero SNR": scheduler(rescale_betas_zero_snr=True),
    **{
        f"scheduler {name}": scheduler(_class_name=name)
        for name in (
            "FlowMatchEulerDiscreteScheduler",
            "EDMEulerScheduler",
            "ScoreSdeVeScheduler",
            "CMStochasticIterativeScheduler",
            "LCMScheduler",
            "TCDScheduler",
            "VQDiffusionScheduler",
            "DDPMWuerstchenScheduler",
        )
    },
    "autoencoder": written("vae/config.json", b"{}"),
    "quantizer": written("vqvae/config.json", b"{}"),
    "calibration for 50 steps with wrong corrections": lambda folder: _calibrate(folder, ((0.0,) * 4,) * 50),
    "calibration for 50 steps without corrections": lambda folder: _calibrate(folder, ((),) * 50),
    "calibration for 50 steps by another kind of solver": lambda folder: _calibrate(folder, (), "scipy-RK45"),
    "calibration empty": written("calibration.json", b""),
    "calibration a list": written("calibration.json", b"[]"),
    "calibration of another format": written("calibration.json", b'{"format": "mine"}'),
    "calibration a folder": lambda folder: (folder / "calibration.json").mkdir(),
}
MODEL_COMMANDS: Sequence[Sequence[str]] = (
    ("encode", "good.png"),
    ("decode", "good.pt", "--solver", "auto"),
    ("reconstruct", "good.png"),
    ("sample", "-n", "1"),
    ("interpolate", "--seed", "1", "--seed", "2"),
    ("info", "--", "MODEL"),
    ("calibrate", "--images", ".", "--steps", "2", "--latents", "4"),
    ("analyze", "cross-solver", "--images", ".", "--count", "1", "--nfe", "1", "--out", "rows"),
)


@pytest.mark.parametrize("words", MODEL_COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("name", MODELS)
def test_models(
    name: str, words: Sequence[str], good: Path, latent: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    torch.save(latent, tmp_path / "good.pt")
    shutil.copytree(tiny_model, tmp_path / "BAD")
    MODELS[name](tmp_path / "BAD")
    before = there(tmp_path)
    of_model = () if words[0] == "info" else ("--model", "BAD")
    result = call(*("BAD" if word == "MODEL" else word for word in words), *of_model)
    if "calibration" in name and words[0] in ("calibrate", "analyze"):
        return  # which make a new one, or have no use for it
    if "for 50 steps" in name and words[0] in ("decode", "info"):
        return  # which take another number of them, or none
    refused(result)
    assert there(tmp_path) == before


# -- training ---------------------------------------------------------------------------------------------------------

SMALL: Mapping[str, object] = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "add_attention": False,
}
NETWORKS: Mapping[str, bytes] = {
    "empty": b"",
    "a list": b"[]",
    "no text": b"\xff\xfe\xfa",
    "deep": b"[" * 100_000,
    **{
        f"{key} {value!r}": json.dumps({**SMALL, key: value}).encode()
        for key, value in {
            "sample_size": 8.5,
            "in_channels": 5,
            "out_channels": 6,
            "norm_num_groups": 0,
            "norm_eps": "x",
            "freq_shift": float("nan"),
            "layers_per_block": "two",
            "block_out_channels": [],
            "down_block_types": ["SideBlock2D"],
            "num_class_embeds": 10,
        }.items()
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_to_train(name: str, good: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    good.rename(tmp_path / "pictures" / "good.png")
    (tmp_path / "BAD.json").write_bytes(NETWORKS[name])
    before = there(tmp_path)
    refused(call("train", "pictures", "-o", "run", "--steps", "1", "--unet", "BAD.json", "--cpu"), "BAD.json")
    assert there(tmp_path) == before


def first(kind: str, value: object) -> Edit:
    """Put ``value`` in the place of the first tensor of a state dict."""

    def edit(content: dict[str, Any]) -> None:
        state = content[kind]
        state[next(iter(state))] = value

    return edit


CHECKPOINTS: Mapping[str, bytes | Edit] = {
    "empty": b"",
    "text": b"no checkpoint",
    "pickle": pickle.dumps(Runs()),
    "another format": put("mine", "format"),
    "no format": drop("format"),
    "a field more": put(1, "more"),
    **{f"no {field}": drop(field) for field in ("settings", "data", "step", "unet", "average", "optimizer", "losses")},
    **{f"{field} None": put(None, field) for field in ("settings", "data", "machine", "step", "seconds", "unet")},
    "step a string": put("1", "step"),
    "step negative": put(-1, "step"),
    "step of 1e9": put(10**9, "step"),
    "step true": put(True, "step"),
    "seconds NaN": put(float("nan"), "seconds"),
    "losses of strings": put(["a", "b"], "losses"),
    "losses NaN": put([float("nan")] * 2, "losses"),
    "losses missing": put([], "losses"),
    "unet empty": put({}, "unet"),
    "unet of numbers": first("unet", 1.0),
    "unet of another shape": first("unet", torch.zeros(3)),
    "average empty": put({}, "average"),
    "average of another shape": lambda content: content["average"]["shadow_params"].reverse(),
    "average decaying by a string": put("slowly", "average", "decay"),
    "average NaN": lambda content: content["average"]["shadow_params"][0].fill_(torch.nan),
    "optimizer empty": put({}, "optimizer"),
    "optimizer without moments": put({}, "optimizer", "state"),
    "optimizer of another shape": put(torch.zeros(3), "optimizer", "state", 0, "exp_avg"),
    "optimizer of strings": put("abc", "optimizer", "state", 0, "exp_avg"),
    "settings of another kind": put([], "settings"),
    "steps a string": put("2", "settings", "steps"),
    "batch size a float": put(2.5, "settings", "batch_size"),
    "batch size 0": put(0, "settings", "batch_size"),
    "learning rate a string": put("fast", "settings", "learning_rate"),
    "seed a float": put(0.5, "settings", "seed"),
    "bf16 a number": put(1, "settings", "bf16"),
    "licence a list": put([], "settings", "licence"),
    "prediction unknown": put("score", "settings", "prediction"),
    "network empty": put({}, "settings", "unet"),
    "network a string": put("small", "settings", "unet"),
    "network of 0 groups": put(0, "settings", "unet", "norm_num_groups"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures and a run of two steps."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "good.png").write_bytes(PNG)
    (folder / "unet.json").write_text(json.dumps(SMALL))
    words = ("train", folder / "pictures", "-o", folder / "run", "--steps", "2", "--batch-size", "2", "--cpu")
    result = call(*words, "--unet", folder / "unet.json")
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints(name: str, trained: Path, tmp_path: Path) -> None:
    """Nothing is trained, and nothing of the run is written anew."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    bad, path = CHECKPOINTS[name], tmp_path / "run" / "checkpoint.pt"
    if isinstance(bad, bytes):
        path.write_bytes(bad)
    else:
        content = torch.load(path, weights_only=True)
        bad(content)
        torch.save(content, path)
    before = there(tmp_path)
    refused(call("train", "pictures", "-o", "run", "--resume", "--cpu"), "checkpoint")
    assert there(tmp_path) == before


# -- work files -------------------------------------------------------------------------------------------------------

WORK: Mapping[str, bytes] = {"empty": b"", "text": b"no work at all", "a list": b"[]", "no text": b"\xff\xfe\xfa"}


WORK_COMMANDS = (
    "calibrate --images /pictures --steps 2 --latents 4 --work /work -o /calibration.json",
    "analyze curvature --images /pictures --count 1 --points 2 --reference-steps 10 --out /rows",
)


def work(line: str, folder: Path, model: Path) -> Result:
    """Run a command in whose words / stands for ``folder``."""
    return call(*(folder / word[1:] if word.startswith("/") else word for word in line.split()), "--model", model)


@pytest.fixture(scope="module")
def worked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the work of a calibration and of an analysis."""
    folder = tmp_path_factory.mktemp("worked")
    (folder / "pictures").mkdir()
    for name in "abcd":
        (folder / "pictures" / f"{name}.png").write_bytes(PNG)
    for line in WORK_COMMANDS:
        result = work(line, folder, tiny_model)
        assert result.exit_code == 0, result.output
    (folder / "calibration.json").unlink()
    return folder


@pytest.mark.parametrize("content", WORK)
def test_work_files(content: str, worked: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Each file that a job has left is spoilt in turn."""
    shutil.copytree(worked, tmp_path, dirs_exist_ok=True)
    for line, folder in zip(WORK_COMMANDS, ("work", "rows"), strict=True):
        spoilt = [path for path in sorted((tmp_path / folder).iterdir()) if path.suffix in (".pt", ".json", ".csv")]
        assert len(spoilt) >= 2
        for path in spoilt:
            kept = path.read_bytes()
            path.write_bytes(WORK[content])
            result = work(line, tmp_path, tiny_model)
            refused(result, path.name)
            assert path.read_bytes() == WORK[content]
            path.write_bytes(kept)


# -- options ----------------------------------------------------------------------------------------------------------

OPTIONS: Sequence[str] = (
    "encode good.png --steps 1000000000",
    "encode good.png --steps 20000",
    "encode good.png --steps 20000 --exact",
    "encode good.png --steps 100 --solver heun --max-nfe 150",
    "encode good.png --steps 0",
    "encode good.png --steps nan",
    "encode good.png --rtol nan --solver per-sample-bosh3",
    "encode good.png --atol inf --solver per-sample-bosh3",
    "encode good.png --rtol -1 --solver scipy-RK45",
    "encode good.png --grid nan,5",
    "encode good.png --grid 5,inf",
    "encode good.png --grid 5,1e30",
    "encode good.png --grid ,",
    "encode good.png --grid nowhere",
    "encode good.png --batch-size 100000000000000000000",
    "encode good.png -o good.png",
    "encode good.png -o nowhere/good.pt",
    "encode good.png -o /proc/good.pt",
    "encode good.png --model nowhere",
    "encode good.png --model no/such/model",
    "encode good.png -o " + 300 * "long",
    "reconstruct good.png --steps 20000",
    "reconstruct good.png --target-psnr nan",
    "reconstruct good.png --target-psnr inf",
    "reconstruct good.png --target-psnr -3",
    "reconstruct good.png --target-psnr 0",
    "sample -n 1000000000",
    "sample -n 100000000000000000000000",
    "sample -n 0",
    "sample --steps 1000000000",
    "sample --steps 20000",
    "sample --eta nan",
    "sample --eta 2",
    "sample --seed -1",
    "sample --seed 100000000000000000000000",
    "sample --seed 100000000000000000000000 --eta 1",
    "sample -o good.png",
    "sample -o sheet.jpg",
    "sample -o nowhere/sheet.png",
    "interpolate --seed 1 --seed 2 -n 1000000000",
    "interpolate --seed 1 --seed 2 --seed 3 --seed 4 -n 100000",
    "interpolate --seed 1 --seed 2 -n 1000000000 --frames frames",
    "interpolate --seed 1 --seed 2 --steps 20000",
    "interpolate --seed 1 --seed 100000000000000000000000",
    "interpolate --seed 1",
    "decode nowhere.pt",
    "info nowhere.pt",
    "info nowhere",
    "train pictures -o run --steps 1 --save-minutes nan",
    "train pictures -o run --steps 1 --save-minutes -1",
    "train pictures -o run --steps 1 --save-minutes inf",
    "train pictures -o run --minutes nan",
    "train pictures -o run --minutes inf",
    "train pictures -o run --steps 0",
    "train pictures -o run --steps -1",
    "train pictures -o run --steps 1 --batch-size 0",
    "train pictures -o run --steps 1 --learning-rate nan",
    "train pictures -o run --steps 1 --ema nan",
    "train pictures -o run --steps 1 --seed 100000000000000000000000",
    "train pictures -o good.png --steps 1",
    "train pictures -o pictures/run --steps 1",
    "train pictures -o run --resume",
    "train nowhere -o run --steps 1",
    "train /dev/zero -o run --steps 1",
    "train pictures -o run --steps 1 --batch-size 1000000000000",
    "interpolate --seed 1 --seed 2 --frames nn.png -o nn.png",
    "interpolate good.png --seed 1 -o good.png --overwrite",
    "encode good.png -o loop --overwrite",
    "calibrate --images pictures --work good.png",
    "reconstruct good.png --target-psnr 1e308",
    "calibrate --images pictures --steps 2 --steps 2",
    "analyze overhead --batch-size 10000000000000000000 --out rows",
    "analyze consistency --seed 100000000000000000000000 --out rows",
    "calibrate --images pictures --latents 1000000000",
    "calibrate --images pictures --steps 1000000000",
    "calibrate --images pictures --steps 1",
    "calibrate --images pictures --seed 100000000000000000000000",
    "calibrate --images nowhere",
    "calibrate --images empty",
    "analyze curvature --images empty --out rows",
    "analyze curvature --images pictures --out good.png",
)
WITH_MODEL = ("encode", "reconstruct", "sample", "interpolate", "decode", "calibrate", "analyze")


@pytest.mark.parametrize("line", OPTIONS)
def test_options(line: str, good: Path, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    shutil.copy(good, tmp_path / "pictures")
    (tmp_path / "unet.json").write_text(json.dumps(SMALL))
    before = there(tmp_path)
    words = line.split()
    if words[0] in WITH_MODEL and "--model" not in words:
        words += ["--model", str(tiny_model)]
    if words[0] == "train":
        words += ["--cpu"] if "--resume" in words else ["--unet", "unet.json", "--cpu"]
    refused(call(*words))
    assert there(tmp_path) == before
