"""What a training run leaves beside its checkpoint: a folder that diffusers and this project open, and its papers.

``unet/``, ``scheduler/``, ``model_index.json``  the pipeline: ``DDPMPipeline.from_pretrained(folder)``
``README.md``     the model card
``loss.csv``, ``loss.png``, ``samples.png``  the loss, and a sheet of samples

Every file is there whole or not at all. While a run goes on, each save puts new ones in the place of the old.
"""

from __future__ import annotations

import io
import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import Tensor

from ddim_ode.export import save_pipeline
from ddim_ode.files import write_file
from ddim_ode.images import save_image, tile
from ddim_ode.models import Model
from ddim_ode.training.checkpoint import Checkpoint
from ddim_ode.training.data import TrainingImages
from ddim_ode.training.settings import Settings

_PACKAGES = ("torch", "diffusers", "accelerate", "ddim-ode")
_CURVE_POINTS = 500


def publish(
    model: Model, checkpoint: Checkpoint, data: TrainingImages, folder: Path, *, samples: Tensor, columns: int
) -> None:
    """Write all of it into ``folder``; ``samples`` are ``(B, C, H, W)``, pixels in [-1, 1], decoded with ``model``.

    ``columns``  of the sheet of samples; of a model that knows classes each row is of one.

    Raises:
        OSError: if it cannot be written.
    """
    save_pipeline(model.network.unet, checkpoint.settings.scheduler_config(), folder, classes=model.classes)
    curve = smoothed(checkpoint.losses, _CURVE_POINTS)
    lines = [f"{step},{loss:.6g}" for step, loss in curve]
    write_file(folder / "loss.csv", "\n".join(["step,loss", *lines, ""]).encode(), overwrite=True)
    write_file(folder / "loss.png", _plot(curve, checkpoint.settings), overwrite=True)
    settings = {"step": checkpoint.step, "images": checkpoint.step * checkpoint.settings.batch_size}
    save_image(tile(samples, columns), folder / "samples.png", settings=settings, zoom=2, overwrite=True)
    card = model_card(model, checkpoint, data)
    write_file(folder / "README.md", card.encode(errors="backslashreplace"), overwrite=True)


def smoothed(losses: list[float], points: int) -> list[tuple[int, float]]:
    """The mean of the ``losses`` over at most ``points`` equal stretches, each with its last step."""
    length = max(1, -(-len(losses) // points))
    parts = [losses[i : i + length] for i in range(0, len(losses), length)]
    return [(i * length + len(part), sum(part) / len(part)) for i, part in enumerate(parts)]


def _plot(curve: list[tuple[int, float]], settings: Settings) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.loglog(*zip(*curve, strict=True), color="#0072B2")
    axes.set_xlabel(f"step of {settings.batch_size} images")
    axes.set_ylabel(f"{_objective(settings)}, per dimension")
    axes.grid(visible=True, which="both", alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _objective(settings: Settings) -> str:
    if settings.gamma:
        return f"L_gamma with gamma = {settings.gamma}, for {settings.prediction}"
    return f"squared error of {settings.prediction}"


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # run from its folder
        return f"{package} not installed"


def _begun(settings: Settings) -> dict[str, str]:
    """The rows of the card about classes and first weights, where there are any."""
    rows = {}
    if settings.classes:
        rows["classes"] = (
            f"{', '.join(settings.classes)}, and the last label, {len(settings.classes)}, for none of them, which "
            f"{settings.label_dropout:.0%} of the images have"
        )
    if settings.init:
        rows["begun from"] = settings.init
    return rows


def model_card(model: Model, checkpoint: Checkpoint, data: TrainingImages) -> str:
    """What the model is and how it came to be, in Markdown."""
    settings, schedule = checkpoint.settings, model.schedule
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    images = checkpoint.step * settings.batch_size
    skipped = f", {len(data.skipped)} unreadable files skipped" if data.skipped else ""
    mirrored = ", mirrored at random" if settings.mirrored else ""
    recent = checkpoint.losses[-1000:]
    rows = {
        "network": f"UNet2DModel, {parameters / 1e6:.2f} M parameters, moving average of the weights in float32",
        "predicts": settings.prediction,
        "noise schedule": f"{schedule.name}, sigma {schedule.sigma_min:.4g} to {schedule.sigma_max:.4g}",
        "trained on": f"{len(data.pixels)} images of `{data.name}`{skipped}{mirrored}",
        **_begun(settings),
        "objective": f"{_objective(settings)}, t uniform and stratified",
        "optimizer": f"Adam, betas {settings.betas}, gradients clipped to a norm of {settings.max_gradient_norm:g}",
        "learning rate": f"{settings.learning_rate:g} after {settings.warm_up} steps, falling to 0 in the last "
        f"{settings.annealed:.0%}",
        "images seen": f"{images:,} in {checkpoint.step:,} steps, {images / len(data.pixels):.1f} epochs",
        "time": f"{checkpoint.seconds / 3600:.2f} hours, in {checkpoint.machine}",
        "precision": "bfloat16 where that is safe, weights in float32" if settings.bf16 else "float32",
        "loss": f"{sum(recent) / len(recent):.4f} per dimension, mean of the last {len(recent)} steps",
        "seed": settings.seed,
        "versions": ", ".join((f"Python {platform.python_version()}", *map(_version, _PACKAGES))),
        "weights": f"SHA-256 {model.fingerprint}",
        "licence": settings.licence,
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    plain = {key: value for key, value in asdict(settings).items() if key != "unet"}
    opened_by = "`DDPMPipeline.from_pretrained(...)` opens it"
    rows_of = ", each row of one class" if settings.classes else ""
    if settings.classes:
        # diffusers has no pipeline that would tell the network its class.
        opened_by = "`UNet2DModel.from_pretrained(..., subfolder='unet')` opens its network"
    return f"""# {model.name}

A diffusion model for images of {model.channels} x {model.height} x {model.width}, in diffusers' folder format:
{opened_by}, and `ddim-ode --model ...`.

| | |
|---|---|
{table}

![Training loss](loss.png)

![Samples, not selected{rows_of}](samples.png)

Settings of the run:

```json
{json.dumps(plain, indent=2)}
```
"""
