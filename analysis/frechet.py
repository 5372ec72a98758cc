"""Frechet distance between sets of images, in the features of ``analysis.classifier`` or in Inception's.

Mean and covariance of the features of 5,000 of CIFAR-10's test images ship beside the classifier: samples can be judged
where the images are not at hand.

    python -m ddim_ode.analysis.frechet cifar10_test.zip

makes that file anew. Heusel et al., arXiv 1706.08500, Eq. (6); computed by torchmetrics.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ddim_ode.files import write_file
from ddim_ode.training.data import read_training_images

from .classifier import SIZE, WEIGHTS, load_features

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

TEST_STATISTICS = WEIGHTS.with_name("cifar10_test.safetensors")
_BATCH = 500
# What torchmetrics gathers of the real images.
_STATE = ("real_features_sum", "real_features_cov_sum", "real_features_num_samples")


def frechet(a: Tensor, b: Tensor, *, inception: bool = False) -> float:
    """Distance between image sets ``(N, 3, 32, 32)``, uint8: in the classifier's features or in Inception's.

    Raises:
        ValueError: if Inception is asked for and its weights cannot be had.
    """
    metric = _metric(inception=inception)
    for images, real in ((a, True), (b, False)):
        _update(metric, images, real=real, inception=inception)
    return float(metric.compute())


def frechet_to_test(images: Tensor) -> float:
    """Distance of ``images``, ``(N, 3, 32, 32)``, uint8, from 5,000 of CIFAR-10's test images, in the classifier's
    features. The fewer images, the larger it is.
    """
    metric = _metric()
    for name, value in load_file(TEST_STATISTICS).items():
        setattr(metric, name, value)
    _update(metric, images, real=False)
    return float(metric.compute())


def _metric(*, inception: bool = False) -> FrechetInceptionDistance:
    from torchmetrics.image.fid import FrechetInceptionDistance

    if not inception:
        return FrechetInceptionDistance(load_features(), normalize=True)
    try:
        return FrechetInceptionDistance(2048)
    except Exception as error:  # a missing package, or a download that fails in one of many ways
        raise ValueError(f"Inception's features need torch-fidelity and a network for its weights: {error}") from error


def _update(metric: FrechetInceptionDistance, images: Tensor, *, real: bool, inception: bool = False) -> None:
    for batch in torch.split(images, _BATCH):
        metric.update(batch if inception else batch.float() / 127.5 - 1, real=real)


@click.command(help="Make the statistics of the test images in a folder or zip file.")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
def main(source: Path) -> None:
    metric = _metric()
    _update(metric, read_training_images(source, 3, SIZE, SIZE).pixels, real=True)
    content = save({name: getattr(metric, name) for name in _STATE})
    write_file(TEST_STATISTICS, content, overwrite=True)
    click.echo(f"{int(metric.real_features_num_samples)} images -> {TEST_STATISTICS}")


if __name__ == "__main__":
    main()
