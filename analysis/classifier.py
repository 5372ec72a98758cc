"""A small classifier of CIFAR-10's ten classes, whose features say how far apart two sets of images are.

The features are what its last layer sees. They need no download, they are fixed by the weights that ship beside this
module, and they know what is in a picture; they do not see well what classification does not need, such as colours.

    python -m ddim_ode.analysis.classifier train.zip test.zip

trains it anew (a quarter of an hour on two cores) and says how often it is right on the second one.
"""

from __future__ import annotations

from pathlib import Path

import click
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from tqdm import tqdm

from ddim_ode.files import write_file
from ddim_ode.models import Model
from ddim_ode.training.data import TrainingImages, read_training_images

from .options import errors_in_a_line

WEIGHTS = Path(__file__).parent / "features" / "cifar10_classifier.safetensors"
SIZE = 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EPOCHS, BATCH, LEARNING_RATE = 14, 256, 0.4
SHIFT = 3  # pixels


class Residual(nn.Module):
    """x + f(x), with f one convolution, a normalization and a nonlinearity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` to the same shape."""
        return x + self.block(x)  # type: ignore[no-any-return]


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU())


class Features(nn.Module):
    """Images to ``num_features`` numbers each; ``classify`` makes logits of the classes of them."""

    num_features = 128

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _convolution(3, 32),
            _convolution(32, 48, stride=2),
            Residual(48),
            _convolution(48, 96, stride=2),
            Residual(96),
            _convolution(96, self.num_features, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classify = nn.Linear(self.num_features, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, 32, 32)``, pixels in [-1, 1], to ``(B, num_features)``."""
        return self.trunk(images)  # type: ignore[no-any-return]


def load_features() -> Features:
    """The features that ship, ready to use."""
    features = Features()
    features.load_state_dict({name: value.float() for name, value in load_file(WEIGHTS).items()}, strict=False)
    return features.eval().requires_grad_(False)


def check_size(model: Model) -> None:
    """Whether its images are those that the features are for.

    Raises:
        ValueError: if they have another size or other channels.
    """
    size = (model.channels, model.height, model.width)
    if size != (3, SIZE, SIZE):
        made = " x ".join(map(str, size))
        raise ValueError(
            f"model '{model.name}' makes images of {made}, but the features that judge them are for "
            f"3 x {SIZE} x {SIZE}; choose a model of that size"
        )


def labels(data: TrainingImages) -> Tensor:
    """The class of each image, ``(N,)``, by the name of the folder it is in.

    Raises:
        ValueError: if a folder has the name of no class.
    """
    names = [Path(file).parent.name for file in data.files]
    unknown = sorted(set(names).difference(CLASSES))
    if unknown:
        raise ValueError(f"'{data.name}' has a folder '{unknown[0]}', which is none of: {', '.join(CLASSES)}")
    return torch.tensor([CLASSES.index(name) for name in names])


def train(data: TrainingImages, *, epochs: int = EPOCHS, seed: int = 0) -> Features:
    """Train on ``data`` with flips, shifts, and a learning rate that rises and falls once; with a progress bar."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    # Channels last is a third faster on a CPU.
    network, targets = Features(), labels(data)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = len(targets) // min(BATCH, len(targets))
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    network.train()
    with tqdm(total=epochs * batches, desc="classifier", disable=None) as bar:
        for _ in range(epochs):
            order = torch.randperm(len(targets), generator=generator)
            for chosen in order.chunk(batches):
                flips = torch.rand(len(chosen), generator=generator) < 0.5
                shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
                images = data.images(chosen, flips).roll(shift, dims=(-2, -1))
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast("cpu", torch.bfloat16):
                    logits = network.classify(network(images))
                loss = loss_of(logits.float(), targets[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return network.eval().requires_grad_(False)


def accuracy(network: Features, data: TrainingImages) -> float:
    """The part of ``data`` that is classified rightly."""
    return float((guesses(network, data.pixels) == labels(data)).double().mean())


def guesses(network: Features, images: Tensor) -> Tensor:
    """The numbers of the classes that ``images``, ``(N, 3, 32, 32)``, uint8, seem to be of: ``(N,)``."""
    batches = (batch.float() / 127.5 - 1 for batch in torch.split(images, 500))
    return torch.cat([network.classify(network(batch)).argmax(1) for batch in batches])


@click.command(help=__doc__.split("\n")[0])
@click.argument("train_images", type=click.Path(path_type=Path, exists=True))
@click.argument("test_images", type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=WEIGHTS, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@errors_in_a_line()
def main(train_images: Path, test_images: Path, out: Path, seed: int) -> None:
    network = train(read_training_images(train_images, 3, SIZE, SIZE), seed=seed)
    share = accuracy(network, read_training_images(test_images, 3, SIZE, SIZE))
    out.parent.mkdir(parents=True, exist_ok=True)
    floats = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    state = {name: value.half().contiguous() for name, value in floats.items()}
    write_file(out, save(state, metadata={"seed": str(seed), "accuracy": f"{share:.4f}"}), overwrite=True)
    click.echo(f"{share:.2%} of '{test_images}' are classified rightly -> {out}")


if __name__ == "__main__":
    main()
