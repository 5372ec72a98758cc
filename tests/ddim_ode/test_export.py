"""Pipelines of one class: the same function without classes, which diffusers samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline

from ddim_ode.conditions import UNCONDITIONAL, Condition
from ddim_ode.export import export_pipeline
from ddim_ode.models import Model, load_model
from ddim_ode.session.session import Session


def difference(model: Model, condition: Condition, folder: Path) -> float:
    """How far the pipeline in ``folder`` answers otherwise than the ``model`` under the ``condition``."""
    unet = DDPMPipeline.from_pretrained(folder).unet.to(memory_format=torch.channels_last)  # as ours is laid out
    shape = (3, *model.space.shape)
    x, t = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 450.0, 998.0])
    with torch.no_grad():
        asked = model.ode(conditions=[condition] * 3) if model.classes else model.ode()
        return float((unet(x, t).sample - asked.predictor.network(x, t)).abs().max())


@pytest.mark.parametrize("label", [None, 2, 7])
def test_the_model_that_ships_has_twins_without_classes(tmp_path: Path, label: int | None) -> None:
    """To 2e-6, where answers reach 5; no class, bird and horse."""
    model, condition = load_model("default"), Condition(label)
    export_pipeline(model, condition, tmp_path / "twin")
    assert difference(model, condition, tmp_path / "twin") < 2e-6
    twin = load_model(str(tmp_path / "twin"))
    assert (twin.classes, twin.prediction) == ((), "v_prediction")
    assert twin.schedule.matches(model.schedule)


def test_diffusers_samples_it(class_model: Path, tmp_path: Path) -> None:
    """And this project decodes the same latent to the same image from the pipeline as from the model."""
    export_pipeline(load_model(str(class_model)), Condition(1), tmp_path / "dog")
    generator = torch.Generator().manual_seed(0)
    images = DDPMPipeline.from_pretrained(tmp_path / "dog")(
        batch_size=2, num_inference_steps=4, generator=generator, output_type="np"
    ).images
    assert images.shape == (2, 8, 8, 3)
    theirs, ours = (
        next(Session(folder).sample(1, label=label, steps=6)).picture.image
        for folder, label in ((tmp_path / "dog", None), (class_model, "dog"))
    )
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_a_model_without_classes_is_written_as_it_is(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_model))
    export_pipeline(model, UNCONDITIONAL, tmp_path / "copy")
    assert load_model(str(tmp_path / "copy")).fingerprint == model.fingerprint
    assert difference(model, UNCONDITIONAL, tmp_path / "copy") < 1e-6


def test_whoever_may_read_a_new_file_may_read_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    export_pipeline(load_model(str(tiny_model)), UNCONDITIONAL, tmp_path / "copy")
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in (tmp_path / "new", *(tmp_path / "copy").rglob("*")) if path.is_file()}
    assert len(modes) == 1


def test_what_cannot_be_exported(class_model: Path, tmp_path: Path) -> None:
    model = load_model(str(class_model))
    with pytest.raises(ValueError, match="guidance 2 takes two answers of the network; export it without"):
        export_pipeline(model, Condition(1, 2.0), tmp_path / "new")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="exists and is not an empty folder; name another one for the pipel"):
            export_pipeline(model, UNCONDITIONAL, folder)
    with pytest.raises(ValueError, match="is no UNet2DModel with a scheduler of diffusers"):
        export_pipeline(model.bound(Condition(1)), UNCONDITIONAL, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
