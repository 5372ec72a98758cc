"""Quality against closed forms: the error of the best network, and distances between sets of known difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from best_network import SD, best_model
from torch import Tensor, nn

from ddim_ode.analysis.classifier import CLASSES, WEIGHTS, Features, guesses, labels, load_features, train
from ddim_ode.analysis.pictures import CIFAR10_TEST
from ddim_ode.analysis.quality import (
    DistanceRow,
    ErrorRow,
    Subject,
    colours,
    draw_samples,
    error_table,
    frechet,
    measure_errors,
    plot,
    run,
    sample_sheet,
    sliced_wasserstein,
    subjects,
    table,
)
from ddim_ode.analysis.recognition import accuracy, class_table
from ddim_ode.analysis.rows import calibrated
from ddim_ode.calibration import Calibration, Entry, Learned
from ddim_ode.grids import make_grid
from ddim_ode.models import Model, load_model
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule
from ddim_ode.solvers import AUTO, DEFAULT_SOLVER
from ddim_ode.training.data import TrainingImages, read_training_images
from ddim_ode.work import save_tensors


@pytest.fixture(scope="module")
def pixels() -> TrainingImages:
    return read_training_images(CIFAR10_TEST, 3, 32, 32)


def test_error_of_the_best_network_is_what_x_leaves_open() -> None:
    """Of eps it is SD^2 / (SD^2 + sigma^2)."""
    model = best_model(8)
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
    monkeypatch.setattr("ddim_ode.analysis.quality.CHUNK", 4)
    model = load_model(str(tiny_model))
    options = {"solver": "euler", "grid": "trailing", "steps": 2, "seed": 0}
    whole = draw_samples(Subject(model, "tiny"), 10, tmp_path, **options)
    assert whole.shape == (10, 3, 8, 8)
    assert whole.dtype == torch.uint8
    save_tensors([whole[:4]], tmp_path / "samples-tiny.pt")
    assert draw_samples(Subject(model, "tiny"), 10, tmp_path, **options).equal(whole)
    monkeypatch.setattr("ddim_ode.analysis.quality.decode", None)  # whoever calls it, fails
    assert draw_samples(Subject(model, "tiny"), 10, tmp_path, **options).equal(whole)


def test_auto_is_asked_as_the_calibration_says(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_model))
    options = {"steps": 4, "seed": 0}
    usual = draw_samples(Subject(model, "usual"), 4, tmp_path, solver=DEFAULT_SOLVER, grid="log-snr", **options)
    assert draw_samples(Subject(model, "auto"), 4, tmp_path, solver=AUTO, grid=None, **options).equal(usual)
    grid = make_grid(model.schedule, "capped-50", 4, clean_end="sigma-min")
    entry = Entry("reab3", grid, Learned(((0.1,),) * 4), Learned(((0.1,),) * 4), {})
    told = model.calibrated(Calibration(model.fingerprint, (entry,), {}))
    assert not draw_samples(Subject(told, "told"), 4, tmp_path, solver=AUTO, grid=None, **options).equal(usual)
    assert calibrated(model) == {}
    other = replace(entry, down=Learned(((0.2,),) * 4))
    digests = [calibrated(model.calibrated(Calibration(model.fingerprint, (one,), {})))["4"] for one in (entry, other)]
    assert digests[0] != digests[1]


def test_what_is_measured_is_not_measured_again(
    pixels: TrainingImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"best": best_model(32)}
    options = {"error_images": 3, "sampler": ("euler", "trailing", 2), "seed": 0, "inception": False}
    first = run(models, pixels, pixels, tmp_path, count=6, **options)
    assert [row.what for row in first[1]] == ["cifar10_test", "best"]
    assert first[1][0].frechet == pytest.approx(0, abs=1e-3)
    assert first[1][1].frechet > 1
    monkeypatch.setattr("ddim_ode.analysis.quality.measure_errors", None)
    monkeypatch.setattr("ddim_ode.analysis.quality.frechet", None)
    assert repr(run(models, pixels, pixels, tmp_path, count=6, **options)) == repr(first)  # nan among them
    with pytest.raises(ValueError, match="holds rows with another count"):
        run(models, pixels, pixels, tmp_path, count=7, **options)
    with pytest.raises(ValueError, match=r"'cifar10_test' holds \d+ images, fewer than 999 as wanted; lower --count"):
        run(models, pixels, pixels, tmp_path, count=999, **options)


class Rainbow(nn.Module):
    """A ``Labelled`` whose samples of a class have its one colour: v for data that is a point."""

    none = len(CLASSES)
    knows_none = True

    def __init__(self, shades: Tensor) -> None:
        super().__init__()
        self.shades = nn.Parameter(torch.cat([shades, torch.zeros(1, 3, 1, 1)]), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)`` and t ``(B,)`` to ``(B, C, H, W)``."""
        return self.answer(x, t, torch.full((len(x),), self.none))

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The same for the ``labels``, ``(B,)``."""
        sigma = make_schedule().sigma(t).to(x).reshape(-1, 1, 1, 1)
        x_0 = self.shades[labels]
        eps = (x * (1 + sigma**2).sqrt() - x_0) / sigma
        return (eps - sigma * x_0) / (1 + sigma**2).sqrt()


def test_a_model_with_classes_is_judged_by_class_and_guidance(pixels: TrainingImages, tmp_path: Path) -> None:
    """One whose samples are pictures of the test set, one for each class, with guidance 1; and grey with 0."""
    members = [next(i for i, file in enumerate(pixels.files) if file.startswith(name)) for name in CLASSES]
    files = tuple(f"{Path(file).name.split('_')[0]}/{i}.jpg" for i, file in enumerate(pixels.files))
    test = replace(pixels, files=files)
    shades = pixels.pixels[members].float() / 127.5 - 1
    true = Rainbow(shades[:, :, :1, :1])
    true.shades = nn.Parameter(torch.cat([shades, torch.zeros(1, 3, 32, 32)]), requires_grad=False)
    model = Model("rainbow", true, VariancePreserving(make_schedule(), "v_prediction"), 3, 32, 32, classes=CLASSES)
    options = {"error_images": 3, "sampler": ("euler", "trailing", 3), "seed": 0, "inception": False}
    errors, distances, classes = run({"r": model}, test, None, tmp_path, count=20, guidances=(0.0, 1.0), **options)
    assert [row.what for row in distances] == ["r, guidance 0", "r, guidance 1"]
    grey, coloured = distances
    expected = accuracy(pixels.pixels[members], torch.arange(10))
    assert grey.accuracy == pytest.approx(0.1)
    assert coloured.accuracy == pytest.approx(expected, abs=0.1)
    assert expected > 0.7
    assert coloured.frechet < grey.frechet
    assert [(row.what, row.name, row.count) for row in classes[10:]] == [("r, guidance 1", name, 2) for name in CLASSES]
    for row, right in zip(
        classes[10:], guesses(load_features(), pixels.pixels[members]) == torch.arange(10), strict=True
    ):
        assert row.accuracy == pytest.approx(float(right), abs=0.5)
    again = run({"r": model}, test, None, tmp_path, count=20, guidances=(0.0, 1.0), **options)
    assert repr(again) == repr((errors, distances, classes))
    with pytest.raises(ValueError, match="holds rows with another guidances"):
        run({"r": model}, test, None, tmp_path, count=20, guidances=(2.0,), **options)
    lines = class_table(classes).splitlines()
    assert lines[0] == (
        "|  | r, guidance 0: Frechet | r, guidance 0: recognized | r, guidance 1: Frechet | r, guidance 1: recognized |"
    )
    assert len(lines) == 12


def test_the_sheet_has_a_row_for_each_class() -> None:
    model = Model(
        "rainbow", Rainbow(torch.zeros(10, 3, 1, 1)), make_schedule(), "v_prediction", 3, 8, 8, classes=CLASSES
    )
    (subject,) = subjects(model, "r", [1.0])
    samples = subject.classes(200).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8).byte() * 20
    rows = (sample_sheet(subject, samples)[0, 2::10, 2:98] + 1) * 127.5 / 20
    for number, row in enumerate(rows[:10]):
        inside = row[torch.arange(96) % 10 < 6]
        assert inside.round().unique().tolist() == [number]
    assert [part.name for part in subjects(model, "r", [])] == ["r"]
    assert [part.name for part in subjects(replace(model, classes=("cat", "dog")), "r", [2.0])] == ["r"]


def test_tables_and_plot() -> None:
    errors = [ErrorRow("a", t, sigma, eps_mse) for t, sigma, eps_mse in ((10, 0.1, 0.3), (30, 0.2, 0.1))]
    distances = [
        DistanceRow("train.zip", 10, 0.5, 0.01, 0.003, 0.99),
        DistanceRow("a", 10, 2.0, 0.02, 0.1, 1.1, 0.5),
    ]
    assert table(distances).splitlines()[2:] == [
        "| train.zip | 10 | 0.500 |  | 0.0100 | 0.003 | 0.990 |",
        "| a | 10 | 2.000 | 50.0% | 0.0200 | 0.100 | 1.100 |",
    ]
    many = [ErrorRow("a", t, 1.0, t / 1000) for t in range(10, 1000, 20)]
    assert error_table(many).splitlines() == [
        "| eps-MSE, mean over t | t from 0 | t from 248 | t from 495 | t from 742 | all t |",
        "|---|---:|---:|---:|---:|---:|",
        "| a | 0.1200 | 0.3700 | 0.6200 | 0.8700 | 0.5000 |",
    ]
    assert [line.get_label() for line in plot(errors).axes[0].lines] == ["a"]
