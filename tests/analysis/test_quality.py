"""Quality against closed forms: the error of the best network, and distances between sets of known difference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from analysis.classifier import CLASSES, WEIGHTS, Features, labels, load_features, train
from analysis.pictures import CIFAR10_TEST
from analysis.quality import (
    DistanceRow,
    ErrorRow,
    colours,
    draw_samples,
    frechet,
    measure_errors,
    plot,
    run,
    sliced_wasserstein,
    table,
)
from ddim_ode.models import Model, load_model
from ddim_ode.schedule import make_schedule
from ddim_ode.training.data import TrainingImages, read_training_images
from ddim_ode.work import save_tensors

SD = 0.5


class BestNetwork(nn.Module):
    """The best v for data N(0, SD^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros(1)))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        alpha_bar = make_schedule().alpha_bar[t.long()].float().reshape(-1, 1, 1, 1)
        return (1 - alpha_bar).sqrt() * alpha_bar.sqrt() * (1 - SD**2) / (alpha_bar * SD**2 + 1 - alpha_bar) * x


@pytest.fixture(scope="module")
def pixels() -> TrainingImages:
    return read_training_images(CIFAR10_TEST, 3, 32, 32)


def test_error_of_the_best_network_is_what_x_leaves_open() -> None:
    """Of eps it is SD^2 / (SD^2 + sigma^2)."""
    model = Model("best", BestNetwork(), make_schedule(), "v_prediction", 3, 8, 8)
    images = SD * torch.randn((200, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    rows = measure_errors(model, "best", images, seed=2)
    assert [row.t for row in rows] == list(range(10, 1000, 20))
    for row in rows:
        assert row.eps_mse == pytest.approx(SD**2 / (SD**2 + row.sigma**2), rel=0.05)


def test_wasserstein_distance_of_a_shift_is_the_shift() -> None:
    """Over directions u the mean of (u, shift)^2 is |shift|^2 / dimension, the mean square per pixel."""
    images = torch.randint(0, 200, (400, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    assert sliced_wasserstein(images, images, seed=0) == 0
    assert sliced_wasserstein(images, images + 50, seed=0) == pytest.approx(50 / 127.5, rel=0.1)


def test_colours() -> None:
    images = torch.randint(50, 150, (9, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    assert colours(images, images) == (0, 1)
    shift = torch.tensor([10, 0, 20], dtype=torch.uint8)[:, None, None]
    assert colours(images + shift, images)[0] == pytest.approx((500 / 3) ** 0.5 / 127.5)
    wide = 2 * (images - 50)
    assert colours(wide, images)[1] == pytest.approx(2, rel=1e-3)


def test_frechet_distance_sees_noise_and_content(pixels: TrainingImages) -> None:
    """Other pictures are nearer than the same ones with noise on them, or with their parts in disorder."""
    a, b = pixels.pixels[::2], pixels.pixels[1::2]
    noise = 40 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    noisy = (a + noise).clamp(0, 255).byte()
    assert frechet(a, a) == pytest.approx(0, abs=1e-3)
    assert frechet(a, b) < frechet(a, noisy)
    order = [3, 6, 1, 4, 7, 2, 5, 0]
    disorder = a.reshape(-1, 3, 8, 4, 8, 4)[:, :, order][:, :, :, :, order].reshape(a.shape)
    assert frechet(a, b) < frechet(a, disorder)


def test_the_classifier_that_ships_is_small_and_knows_its_classes() -> None:
    assert WEIGHTS.stat().st_size < 2_000_000
    features = load_features()
    assert features(torch.zeros(2, 3, 32, 32)).shape == (2, Features.num_features)


def test_the_classifier_learns() -> None:
    """Ten classes of one colour each."""
    generator = torch.Generator().manual_seed(0)
    shades = torch.randint(0, 256, (10, 3, 1, 1), generator=generator)
    chosen = torch.arange(200) % 10
    noise = torch.randint(-9, 10, (200, 3, 32, 32), generator=generator)
    names = tuple(f"{CLASSES[i]}/{n}.png" for n, i in enumerate(chosen.tolist()))
    data = TrainingImages("shades", (shades[chosen] + noise).clamp(0, 255).byte(), names)
    network = train(data, epochs=60)
    assert labels(data).equal(chosen)
    images = data.images(torch.arange(200), torch.zeros(200, dtype=torch.bool))
    assert float((network.classify(network(images)).argmax(1) == chosen).float().mean()) > 0.8


def test_a_folder_that_is_no_class() -> None:
    data = TrainingImages("data", torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ("cow/1.png",))
    with pytest.raises(ValueError, match="has a folder 'cow', which is none of: airplane"):
        labels(data)


def test_samples_are_kept_and_gone_on_with(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.quality.CHUNK", 4)
    model = load_model(str(tiny_model))
    options = {"solver": "euler", "grid": "trailing", "steps": 2, "seed": 0}
    whole = draw_samples(model, "tiny", 10, tmp_path, **options)
    assert whole.shape == (10, 3, 8, 8)
    assert whole.dtype == torch.uint8
    save_tensors([whole[:4]], tmp_path / "samples-tiny.pt")
    assert draw_samples(model, "tiny", 10, tmp_path, **options).equal(whole)
    monkeypatch.setattr("analysis.quality.decode", None)  # whoever calls it, fails
    assert draw_samples(model, "tiny", 10, tmp_path, **options).equal(whole)


def test_what_is_measured_is_not_measured_again(
    pixels: TrainingImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"best": Model("best", BestNetwork(), make_schedule(), "v_prediction", 3, 32, 32)}
    options = {"error_images": 3, "sampler": ("euler", "trailing", 2), "seed": 0, "inception": False}
    first = run(models, pixels, pixels, tmp_path, count=6, **options)
    assert [row.what for row in first[1]] == ["cifar10_test", "best"]
    assert first[1][0].frechet == pytest.approx(0, abs=1e-3)
    assert first[1][1].frechet > 1
    monkeypatch.setattr("analysis.quality.measure_errors", None)
    monkeypatch.setattr("analysis.quality.frechet", None)
    assert run(models, pixels, pixels, tmp_path, count=6, **options) == first
    with pytest.raises(ValueError, match="holds rows with another count"):
        run(models, pixels, pixels, tmp_path, count=7, **options)
    with pytest.raises(ValueError, match=r"'cifar10_test' holds \d+ images, fewer than 999 as wanted; lower --count"):
        run(models, pixels, pixels, tmp_path, count=999, **options)


def test_table_and_plot() -> None:
    errors = [ErrorRow("a", t, sigma, eps_mse) for t, sigma, eps_mse in ((10, 0.1, 0.3), (30, 0.2, 0.1))]
    distances = [DistanceRow("train.zip", 10, 0.5, 0.01, 0.003, 0.99), DistanceRow("a", 10, 2.0, 0.02, 0.1, 1.1)]
    assert table(errors, distances).splitlines()[2:] == [
        "| train.zip |  | 10 | 0.500 | 0.0100 | 0.003 | 0.990 |",
        "| a | 0.2000 | 10 | 2.000 | 0.0200 | 0.100 | 1.100 |",
    ]
    assert [line.get_label() for line in plot(errors).axes[0].lines] == ["a"]
