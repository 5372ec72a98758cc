"""Runs: they learn, they can be killed, and what they leave opens in diffusers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMPipeline, UNet2DModel
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ddim_ode.models import Model, load_model
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.session.session import Session
from ddim_ode.training.checkpoint import FILE, Checkpoint, CheckpointError, load_checkpoint, remove_left_overs
from ddim_ode.training.data import read_training_images
from ddim_ode.training.loop import DivergedError, Hardware, train
from ddim_ode.training.publish import publish, smoothed
from ddim_ode.training.settings import Settings
from ddim_ode.training.start import begun_with, first_network, first_weights

MakeSettings = Callable[..., Settings]
CPU = Hardware(cpu=True)
ROOT = Path(__file__).parents[3]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(
    settings: Settings,
    pictures: Path,
    folder: Path,
    *,
    resume: bool = False,
    save_minutes: float = 10.0,
    begin: dict[str, Tensor] | None = None,
) -> None:
    data = read_training_images(pictures, 3, 8, 8)

    def save(model: Model, checkpoint: Checkpoint) -> None:
        publish(model, checkpoint, data, folder, samples=torch.zeros(4, 3, 8, 8), columns=2)

    checkpoint = load_checkpoint(folder) if resume else None
    train(
        settings,
        data,
        folder,
        publish=save,
        hardware=CPU,
        resume=checkpoint,
        save_minutes=save_minutes,
        begin=begin,
    )


def write_config(folder: Path) -> Path:
    path = folder / "unet.json"
    path.write_text(
        '{"sample_size": 8, "block_out_channels": [8], "layers_per_block": 1, "norm_num_groups": 4,'
        ' "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "add_attention": false}'
    )
    return path


def call(command: list[str]) -> None:
    """Run it with one thread; where it fails, show what it said."""
    result = subprocess.run(command, env=ONE_THREAD, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def weights(folder: Path) -> dict[str, Tensor]:
    return load_model(str(folder)).network.state_dict()


def test_a_run_learns(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    run(make_settings(steps=300, batch_size=16, learning_rate=3e-3), pictures, tmp_path / "run")
    losses = load_checkpoint(tmp_path / "run").losses
    assert len(losses) == 300
    assert sum(losses[-30:]) < 0.6 * sum(losses[:30])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_result_opens_in_diffusers_and_here(
    make_settings: MakeSettings, pictures: Path, tmp_path: Path, prediction: str
) -> None:
    folder = tmp_path / "run"
    run(make_settings(prediction=prediction, schedule="cosine", licence="CC0"), pictures, folder)
    pipeline = DDPMPipeline.from_pretrained(folder)
    assert pipeline.scheduler.config.prediction_type == prediction
    model = load_model(str(folder))
    assert model.prediction == prediction
    assert torch.allclose(pipeline.scheduler.alphas_cumprod.double(), model.schedule.alpha_bar, rtol=1e-4)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([7.0, 70.0])
    theirs = pipeline.unet.to(memory_format=torch.channels_last)(x, t).sample  # as ours is laid out
    assert theirs.equal(model.network(x, t))
    card = (folder / "README.md").read_text()
    for text in (model.fingerprint, "10 images of `pictures`", "24 in 6 steps", "CC0", f'"prediction": "{prediction}"'):
        assert text in card
    for text in ("hours, in 1 process(es) with", "| precision | float32 |", "Adam, betas (0.9, 0.99)", "Python 3."):
        assert text in card
    assert (folder / "loss.csv").read_text().startswith("step,loss\n1,")
    assert not list(folder.glob(".*"))


def test_the_published_weights_are_the_moving_average(
    make_settings: MakeSettings, pictures: Path, tmp_path: Path
) -> None:
    """With a decay of 0 they are the last weights, with a larger one they lag behind."""
    run(make_settings(ema=0.0), pictures, tmp_path / "none")
    run(make_settings(ema=0.9), pictures, tmp_path / "some")
    for name, is_last in (("none", True), ("some", False)):
        last = load_checkpoint(tmp_path / name).unet
        averaged = weights(tmp_path / name)
        assert all(averaged[f"unet.{key}"].equal(last[key]) for key in last) is is_last


def test_seeds_decide_a_run(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(make_settings(seed=seed), pictures, tmp_path / name)
    losses = [load_checkpoint(tmp_path / name).losses for name in "abc"]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


@pytest.mark.parametrize("classes", [(), ("a", "b")])
def test_stopped_and_resumed_as_if_never_stopped(
    make_settings: MakeSettings, pictures: Path, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    """With dropout, whose random numbers are not drawn by the loop."""
    unet = {**make_settings().unet, "dropout": 0.3}
    settings = make_settings(unet=unet, steps=12)
    settings = settings.of_classes(classes) if classes else settings
    run(settings, pictures, tmp_path / "whole", save_minutes=0)
    stopped = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop(model: Model, checkpoint: Checkpoint) -> None:
        if checkpoint.step == 5:
            raise Stop

    data = read_training_images(pictures, 3, 8, 8)
    with pytest.raises(Stop):
        train(settings, data, stopped, publish=stop, hardware=CPU, save_minutes=0)
    assert load_checkpoint(stopped).step == 5
    run(settings, pictures, stopped, resume=True)
    whole, resumed = load_checkpoint(tmp_path / "whole"), load_checkpoint(stopped)
    assert whole.losses == resumed.losses
    assert all(whole.unet[key].equal(resumed.unet[key]) for key in whole.unet)
    assert all(value.equal(weights(stopped)[key]) for key, value in weights(tmp_path / "whole").items())


def test_killed_and_resumed(pictures: Path, tmp_path: Path) -> None:
    """kill -9 of the command itself, at any moment after the first checkpoint."""
    config = write_config(tmp_path)

    def command(folder: Path, *more: str) -> list[str]:
        words = [sys.executable, str(ROOT / "cli.py"), "train", str(pictures), "-o", str(folder), "--cpu", *more]
        return [*words, "--steps", "8", "--save-minutes", "0"]

    new = ("--unet", str(config), "--batch-size", "4")
    killed = tmp_path / "killed"
    process = subprocess.Popen(command(killed, *new), env=ONE_THREAD, stdout=subprocess.DEVNULL)
    while not (killed / FILE).exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < load_checkpoint(killed).step < 8
    for folder, more in ((killed, ["--resume"]), (tmp_path / "whole", [*new])):
        call(command(folder, *more))
    whole, resumed = load_checkpoint(tmp_path / "whole"), load_checkpoint(killed)
    assert whole.step == resumed.step == 8
    assert whole.losses == resumed.losses
    assert all(value.equal(weights(killed)[key]) for key, value in weights(tmp_path / "whole").items())


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Pictures of one colour: dark ones in the folder 'night', bright ones in 'day'."""
    folder = tmp_path / "colours"
    for i in range(8):
        for name, level in (("night", 40), ("day", 215)):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (level, level + i, level)).save(path)
    return folder


def brightness(model: Model, label: str, guidance: float = 1.0) -> float:
    samples = Session(model).sample(4, label=label, guidance=guidance, steps=10, solver="dpmpp3m")
    return float(torch.stack([found.picture.image for found in samples]).mean())


def test_a_run_learns_classes(make_settings: MakeSettings, colours: Path, tmp_path: Path) -> None:
    """What is in the folder: class names for both readers, a card that names them, and pictures of their brightness."""
    folder = tmp_path / "run"
    settings = make_settings(steps=400, batch_size=16, learning_rate=3e-3, warm_up=20, label_dropout=0.3, ema=0.98)
    run(settings.of_classes(("day", "night")), colours, folder)
    model = load_model(str(folder))
    assert model.classes == ("day", "night")
    assert model.network.none == 2
    night, none, day = (brightness(model, name) for name in ("night", "none", "day"))
    assert night < -0.3 < 0.3 < day
    assert night < none < day
    assert brightness(model, "day", 1.5) > day
    card = (folder / "README.md").read_text()
    assert "day, night, and the last label, 2, for none of them, which 30% of the images have" in card
    assert "`UNet2DModel.from_pretrained(..., subfolder='unet')` opens its network" in card
    unet = UNet2DModel.from_pretrained(folder, subfolder="unet")
    assert unet.config.num_class_embeds == 3


def test_no_label_is_dropped_unless_it_should_be(make_settings: MakeSettings, colours: Path, tmp_path: Path) -> None:
    """The embedding begins small; without dropout that of no class is never trained."""
    settings = make_settings(steps=3, batch_size=16, label_dropout=0.0, class_std=0.05).of_classes(("day", "night"))
    first = first_network(settings).class_embedding.weight.detach()
    assert float(first.std()) == pytest.approx(0.05, rel=0.3)
    for dropout in (0.0, 0.5):
        folder = tmp_path / f"{dropout}"
        run(replace(settings, label_dropout=dropout), colours, folder)
        trained = load_checkpoint(folder).unet["class_embedding.weight"]
        torch.manual_seed(settings.seed)
        begun = first_network(settings).class_embedding.weight.detach()
        assert not trained[:2].equal(begun[:2])
        assert trained[2].equal(begun[2]) == (dropout == 0)


@pytest.mark.parametrize("labels", [None, 3])
@pytest.mark.parametrize("classes", [(), ("a", "b"), ("b", "c", "cat", "dog")])
def test_a_run_may_begin_with_the_weights_of_a_model(
    make_model: Callable[..., Path], labels: int | None, classes: tuple[str, ...]
) -> None:
    """Whatever the classes of either: what the model knows, the network knows too, before its first step."""
    folder = make_model(labels=labels, prediction="epsilon", seed=3)
    if labels:
        index = json.loads((folder / "model_index.json").read_text()) | {"id2label": {"0": "dog", "1": "cat"}}
        (folder / "model_index.json").write_text(json.dumps(index))
    model = load_model(str(folder))
    settings = begun_with(model, {"steps": 2, "prediction": "v_prediction", "schedule": "cosine"}, {"steps"})
    assert (settings.prediction, settings.schedule) == ("epsilon", "linear")
    assert settings.init == f"{folder}, weights {model.fingerprint}"
    settings = settings.of_classes(classes) if classes else settings
    unet = first_network(settings, first_weights(model, settings)).eval()
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([7.0, 700.0])

    def ours(label: str) -> Tensor:
        number = classes.index(label) if label in classes else len(classes)
        return unet(x, t, class_labels=torch.full((2,), number) if classes else None).sample

    with torch.no_grad():
        for label in ("none", *(name for name in classes if name in model.classes)):
            asked = model.ode(conditions=[model.condition(label)] * 2) if model.classes else model.ode()
            torch.testing.assert_close(ours(label), asked.predictor.network(x, t), rtol=0, atol=1e-5)
        if "b" in classes:
            assert float((ours("b") - ours("none")).abs().max()) < 0.1
            assert not ours("b").equal(ours("none"))


def test_a_run_that_began_with_a_model_goes_on(
    make_settings: MakeSettings, make_model: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    """It trains from those weights on, is resumed without the model, and its card says where it began."""
    model = load_model(str(make_model()))
    settings = begun_with(model, {"steps": 4, "batch_size": 4, "learning_rate": 1e-6}, set())
    begin = first_weights(model, settings)
    run(settings, pictures, tmp_path / "whole", begin=begin)
    run(replace(settings, steps=2), pictures, tmp_path / "parts", begin=begin)
    run(settings.resumed({"steps": 4}), pictures, tmp_path / "parts", resume=True)
    for key, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(value, model.network.state_dict()[key], rtol=0, atol=1e-4)
    assert f"begun from | {model.name}, weights {model.fingerprint}" in (tmp_path / "whole" / "README.md").read_text()
    with pytest.raises(ValueError, match="has prediction 'v_prediction', not 'epsilon'; leave --prediction out"):
        begun_with(model, {"steps": 4, "prediction": "epsilon"}, {"prediction"})


def test_two_processes_do_what_one_does(pictures: Path, tmp_path: Path) -> None:
    """But for rounding. The optimizer's means of the gradients would tell if they were of half the batch."""
    config = write_config(tmp_path)
    options = ["train", str(pictures), "--cpu", "--unet", str(config), "--batch-size", "4", "--steps", "4"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, begin in (("one", [sys.executable]), ("two", launcher)):
        call([*begin, str(ROOT / "cli.py"), *options, "-o", str(tmp_path / name)])
    one, two = load_checkpoint(tmp_path / "one"), load_checkpoint(tmp_path / "two")
    assert "2 process(es)" in two.machine
    assert two.losses == pytest.approx(one.losses, rel=1e-4)
    for number, state in one.optimizer["state"].items():
        mean, other = state["exp_avg"], two.optimizer["state"][number]["exp_avg"]
        assert float((mean - other).norm()) <= 1e-3 * float(mean.norm()) + 1e-7


def test_a_run_is_not_overwritten_nor_resumed_with_other_data(
    make_settings: MakeSettings, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match="there is no run to resume"):
        run(make_settings(), pictures, folder, resume=True)
    run(make_settings(), pictures, folder)
    with pytest.raises(CheckpointError, match="holds a run already; go on with it by --resume"):
        run(make_settings(), pictures, folder)
    (pictures / "a" / "0.png").unlink()
    with pytest.raises(CheckpointError, match="the pictures in 'pictures' are not those that the run was trained on"):
        run(make_settings(), pictures, folder, resume=True)
    other = pictures.rename(pictures.with_name("other"))
    with pytest.raises(CheckpointError, match="the run was trained on 'pictures', not 'other'"):
        run(make_settings(), other, folder, resume=True)
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged or not a checkpoint"):
        run(make_settings(), other, folder, resume=True)


@pytest.mark.parametrize("minutes", [float("nan"), float("inf"), -1.0])
def test_the_time_between_saves_is_one(
    make_settings: MakeSettings, pictures: Path, tmp_path: Path, minutes: float
) -> None:
    with pytest.raises(ValueError, match="the minutes from save to save must be at least 0 and finite"):
        run(make_settings(), pictures, tmp_path / "run", save_minutes=minutes)
    assert not (tmp_path / "run").exists()


def test_two_runs_do_not_share_a_folder(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    """The second one is refused, whichever comes first, and the first one is whole."""
    options = ["train", str(pictures), "--cpu", "--unet", str(write_config(tmp_path)), "--batch-size", "4"]
    command = [sys.executable, str(ROOT / "cli.py"), *options, "--steps", "60", "-o", str(tmp_path / "run")]
    both = [subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    (refused,) = (error for process, error in zip(both, errors, strict=True) if process.returncode)
    assert re.search(r"^Error: (another process is at work in|'.*run' holds a run already)", refused, re.M)
    assert load_checkpoint(tmp_path / "run").step == 60


def test_a_disk_that_is_full_while_a_model_is_published(
    make_settings: MakeSettings, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one line that names the folder, and nothing half-written stays."""

    def full(*arguments: object, **named: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)\n" * 40)

    monkeypatch.setattr("diffusers.models.modeling_utils.safetensors.torch.save_file", full)
    with pytest.raises(OSError, match=r"^cannot write the model into '.*run': Error while serializing: I/O error") as e:
        run(make_settings(), pictures, tmp_path / "run")
    assert "\n" not in str(e.value)
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_nothing_else_is_overwritten(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists and is not an empty folder; name another one"):
        run(make_settings(), pictures, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="exists and is not an empty folder"):
        run(make_settings(), pictures, tmp_path / "file")


def test_what_a_kill_left_is_removed(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / ".ddim-ode-1.tmp").mkdir(parents=True)
    (folder / ".ddim-ode-2.tmp").touch()
    run(make_settings(), pictures, folder)
    assert not list(folder.glob(".*"))


def test_what_others_left_stays(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / ".mine.tmp").mkdir(parents=True)
    (folder / ".mine.tmp" / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not an empty folder"):
        run(make_settings(), pictures, folder)
    remove_left_overs(folder)
    assert (folder / ".mine.tmp" / "thesis.txt").read_text() == "mine"


def test_killed_between_checkpoint_and_model(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    """At the end of the run: to resume it makes up for the model, and can give it another licence."""
    folder, settings = tmp_path / "run", make_settings(ema=0.0)

    class Killed(Exception):
        pass

    def kill(model: Model, checkpoint: Checkpoint) -> None:
        raise Killed

    data = read_training_images(pictures, 3, 8, 8)
    with pytest.raises(Killed):
        train(settings, data, folder, publish=kill, hardware=CPU)
    assert not (folder / "unet").exists()
    run(replace(settings, licence="CC0"), pictures, folder, resume=True)
    last = load_checkpoint(folder)
    assert last.step == 6
    assert last.settings.licence == "CC0"
    assert "| licence | CC0 |" in (folder / "README.md").read_text()
    published = weights(folder)
    assert all(published[f"unet.{key}"].equal(last.unet[key]) for key in last.unet)


def test_a_run_that_diverges_keeps_its_last_checkpoint(
    make_settings: MakeSettings, pictures: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"no longer finite, by step .* a smaller --learning-rate"):
        run(make_settings(steps=400, learning_rate=1e30), pictures, folder, save_minutes=0)
    kept = load_checkpoint(folder)
    assert kept.step >= 1
    assert all(loss < float("inf") for loss in kept.losses)
    assert all(value.isfinite().all() for value in kept.unet.values())


def test_weights_that_are_not_finite_are_not_saved(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    """After the first step, of which the loss is still finite."""
    with pytest.raises(DivergedError, match="no longer finite, by step 1;"):
        run(make_settings(learning_rate=1e42), pictures, tmp_path / "run", save_minutes=0)
    assert not (tmp_path / "run" / FILE).exists()


def test_mixed_precision_is_near_float32(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    """And a run that is resumed keeps it."""
    run(make_settings(), pictures, tmp_path / "whole")
    AcceleratorState._reset_state()  # accelerate allows of one precision in a process
    run(make_settings(bf16=True), pictures, tmp_path / "mixed")
    AcceleratorState._reset_state()
    whole, mixed = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "mixed")
    assert mixed.losses != whole.losses
    assert mixed.losses == pytest.approx(whole.losses, rel=0.02)
    assert mixed.settings.resumed({}).bf16
    assert "| precision | bfloat16 where that is safe" in (tmp_path / "mixed" / "README.md").read_text()


def test_hardware_that_is_not_there(make_settings: MakeSettings, pictures: Path) -> None:
    with pytest.raises(ValueError, match="2 processes are wanted, but accelerate runs 1; start with: torchrun"):
        Hardware(cpu=True, processes=2).accelerator()


def test_losses_are_smoothed_over_equal_stretches() -> None:
    assert smoothed([1.0, 3.0, 5.0], 5) == [(1, 1.0), (2, 3.0), (3, 5.0)]
    assert smoothed([1.0, 3.0, 5.0], 2) == [(2, 2.0), (3, 5.0)]


def test_names_that_are_no_utf_8_lose_no_run(make_settings: MakeSettings, pictures: Path, tmp_path: Path) -> None:
    source = pictures.rename(pictures.with_name(os.fsdecode(b"q\xff")))
    run(make_settings(), source, tmp_path / os.fsdecode(b"run\xff"))
    folder = tmp_path / os.fsdecode(b"run\xff")
    assert "images of" in (folder / "README.md").read_text()
    assert load_checkpoint(folder).data == source.name
