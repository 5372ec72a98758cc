"""Conditions: guidance is what its formula says, costs what it must, and every solver may be given it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ddim_ode.codec import decode, decode_solution, draw_latents, encode_solution
from ddim_ode.conditioned import Conditioned
from ddim_ode.conditions import Condition
from ddim_ode.grids import make_grid
from ddim_ode.models import Model, ModelError, load_model
from ddim_ode.predictions import PREDICTIONS
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule
from ddim_ode.solvers import EXACT_SOLVERS, REVERSIBLE_SOLVERS, SOLVERS, get_solver, way_back

SCHEDULE = make_schedule()
# The means of the classes, and of all pixels; their standard deviation.
MEANS = torch.tensor([-0.6, 0.1, 0.5, 0.0], dtype=torch.float64)
SD = 0.5


class GaussianClasses(nn.Module):
    """The true output, of any prediction, for classes of Gaussian pixels; the last label means none of them."""

    def __init__(self, prediction: str = "epsilon") -> None:
        super().__init__()
        self.register_parameter("unused", nn.Parameter(torch.zeros((), dtype=torch.float64)))
        self.prediction = prediction
        self.none, self.knows_none = len(MEANS) - 1, True
        self.asked: list[int] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)``, to ``(B, C, H, W)``."""
        return self.answer(x, t, torch.full((len(x),), self.none))

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The same for the ``labels``, ``(B,)``."""
        self.asked.append(len(x))
        sigma = SCHEDULE.sigma(t).reshape(-1, 1, 1, 1)
        eps = sigma * (x * (1 + sigma**2).sqrt() - MEANS[labels].reshape(-1, 1, 1, 1)) / (SD**2 + sigma**2)
        x_0 = x * (1 + sigma**2).sqrt() - sigma * eps
        return PREDICTIONS[self.prediction].target(x_0, eps, 1 / (1 + sigma**2))


def model(prediction: str = "epsilon") -> Model:
    network = GaussianClasses(prediction)
    return Model("classes", network, VariancePreserving(SCHEDULE, prediction), 1, 4, 4, classes=("cat", "dog", "horse"))


def flow(x_bar: Tensor, mean: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The solution for Gaussian data of this mean."""
    return mean + (x_bar - mean) * sqrt((SD**2 + sigma_next**2) / (SD**2 + sigma**2))


def solve(of: Model, conditions: Sequence[Condition], x_T: Tensor, name: str, steps: int = 60) -> Tensor:
    solver = get_solver(name)
    grid = make_grid(SCHEDULE, "log-snr", steps, clean_end="sigma-min")
    return decode(of.ode(conditions=conditions), x_T, grid, solver)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
def test_guided_gaussians_are_those_of_the_mixed_mean(prediction: str, guidance: float) -> None:
    """Of classes with one standard deviation the guided slope is that of data with mean none + W (class - none)."""
    ours = model(prediction)
    x_T = draw_latents(3, (1, 4, 4), seed=0)
    labels = [ours.condition(label, guidance=guidance) for label in ("horse", 0, None)]
    found = solve(ours, labels, x_T, "rk4", 400)
    means = torch.stack([torch.lerp(MEANS[3], MEANS[n], guidance) for n in (2, 0, 3)]).reshape(-1, 1, 1, 1)
    x_bar_T = x_T * sqrt(1 + SCHEDULE.sigma_max**2)
    torch.testing.assert_close(found, flow(x_bar_T, means, SCHEDULE.sigma_max, SCHEDULE.sigma_min), rtol=0, atol=2e-6)


def test_a_member_is_what_it_is_alone() -> None:
    """Whatever the others are asked for: bit for bit."""
    conditions = [Condition(0, 3.0), Condition(1), Condition(None, 5.0), Condition(2, 0.0)]
    x_T = draw_latents(4, (1, 4, 4), seed=0)
    together = solve(model(), conditions, x_T, "dpmpp3m")
    for i, condition in enumerate(conditions):
        assert solve(model(), [condition], x_T[i : i + 1], "dpmpp3m").equal(together[i : i + 1])
    assert solve(model(), [Condition(None)], x_T[:1], "dpmpp3m").equal(
        decode(model().ode(), x_T[:1], make_grid(SCHEDULE, "log-snr", 60, clean_end="sigma-min"), get_solver("dpmpp3m"))
    )


class Table(nn.Module):
    """What a label is answered with does not depend on x."""

    none, knows_none = 2, True

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Tensors ``(B, 1000)`` of very different sizes for the ``labels``, ``(B,)``."""
        generator = torch.Generator().manual_seed(0)
        answers = torch.randn(3, 1000, generator=generator) * torch.tensor([[1e-3], [1.0], [1e3]])
        return answers[labels]


def test_guidance_of_1_is_no_guidance_to_the_last_bit() -> None:
    """Beside others too, where none + 1 (class - none) would be rounded."""
    x, t = torch.zeros(2, 1000), torch.zeros(2)
    found = Conditioned(Table(), [Condition(0), Condition(1, 3.0)])(x, t)
    assert found[:1].equal(Conditioned(Table(), [Condition(0)])(x[:1], t[:1]))


@pytest.mark.parametrize(
    ("conditions", "size"),
    [
        ([Condition(0), Condition(1)], 2),
        ([Condition(None, 4.0), Condition(None)], 2),
        ([Condition(0, 2.0), Condition(1)], 3),
        ([Condition(0, 2.0), Condition(1, 0.0)], 3),
        ([Condition(0, 2.0), Condition(1, 3.0)], 4),
    ],
)
def test_one_call_for_each_evaluation_and_twice_the_batch_only_where_it_must(
    conditions: list[Condition], size: int
) -> None:
    ours = model()
    ode = ours.ode(conditions=conditions)
    grid = make_grid(SCHEDULE, "log-snr", 5, clean_end="sigma-min")
    decode(ode, draw_latents(2, (1, 4, 4), seed=0), grid, get_solver("euler"))
    assert ode.nfe == 5
    assert ours.network.asked == [size] * 5


@pytest.mark.parametrize("name", [name for name, solver in SOLVERS.items() if name.startswith("per-sample")])
def test_members_may_leave_the_batch(name: str) -> None:
    """Solvers whose members have steps of their own ask for the conditions of those that are on their way."""
    conditions = [Condition(0, 3.0), Condition(1), Condition(2, 2.0)]
    x_T = draw_latents(3, (1, 4, 4), seed=1) * torch.tensor([0.1, 1, 3]).reshape(-1, 1, 1, 1)
    together = solve(model(), conditions, x_T, name)
    for i, condition in enumerate(conditions):
        alone = solve(model(), [condition], x_T[i : i + 1], name)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [solver.name for solver in (*REVERSIBLE_SOLVERS, *EXACT_SOLVERS)])
def test_there_and_back_with_guidance_is_exact(name: str) -> None:
    """W = 3, 20 steps; of the exact inverses to their tolerance."""
    solver = get_solver(name)
    x_0 = 0.5 * draw_latents(2, (1, 4, 4), seed=0)
    ode = model().ode(conditions=[Condition(0, 3.0), Condition(2, 3.0)])
    grid = make_grid(SCHEDULE, "log-snr", 20, clean_end="sigma-min")
    there = encode_solution(ode, x_0, grid, solver)
    back = decode_solution(ode, there.x, grid, way_back(solver), there.companion)
    bound = 1e-4 if solver.undoes else 1e-6 if name in ("edict", "bdia") else 1e-9
    assert float((back.x - x_0).abs().max()) < bound


def test_wrong_conditions() -> None:
    ours = model()
    assert ours.condition("2") == ours.condition(2) == ours.condition("horse") == Condition(2)
    for label in ("cow", 3, -1, "3", ""):
        with pytest.raises(ValueError, match=rf"knows no class '{label}'; it knows: 0 cat, 1 dog, 2 horse"):
            ours.condition(label)
    with pytest.raises(ValueError, match="guidance must be a finite number, but it is nan"):
        ours.condition("cat", guidance=float("nan"))
    with pytest.raises(ValueError, match="there are 1 conditions, but the batch has 2 members"):
        solve(ours, [Condition(0)], draw_latents(2, (1, 4, 4), seed=0), "euler")
    without = Model("plain", ours.network, VariancePreserving(SCHEDULE, "epsilon"), 1, 4, 4)
    with pytest.raises(ValueError, match="model 'plain' knows no classes; leave the conditions out"):
        without.ode(conditions=[Condition(None)])


def test_a_class_that_is_called_none_has_its_number() -> None:
    odd = Model(
        "odd", GaussianClasses(), VariancePreserving(SCHEDULE, "epsilon"), 1, 4, 4, classes=("none", "dog", "horse")
    )
    assert odd.condition("none").label is None
    assert odd.condition(0) == odd.condition("0") == Condition(0)


def with_index(folder: Path, index: dict[str, object]) -> Path:
    """The model's folder with more in its index."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    return folder


def test_a_folder_with_classes(make_model: Callable[..., Path]) -> None:
    """The label that means none is what it is asked for unless told; the answers are those of diffusers' network."""
    folder = with_index(make_model(labels=3), {"id2label": {"0": "cat", "1": "dog"}})
    ours = load_model(str(folder))
    assert ours.classes == ("cat", "dog")
    assert "classes    cat, dog" in ours.summary()
    assert load_model(str(folder / "unet")).classes == ("cat", "dog")
    theirs = UNet2DModel.from_pretrained(folder / "unet").eval().to(memory_format=torch.channels_last)
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10.0, 500.0])
    with torch.no_grad():
        for labels, found in (
            ([2, 2], ours.network(x, t)),
            ([1, 0], ours.ode(conditions=[Condition(1), Condition(0)]).predictor.network(x, t)),
        ):
            assert found.equal(theirs(x, t, class_labels=torch.tensor(labels)).sample)


def test_two_classes_of_one_name_are_told_apart(make_model: Callable[..., Path]) -> None:
    """ImageNet has two kinds of cranes."""
    model = load_model(str(with_index(make_model(labels=3), {"id2label": {"0": "crane", "1": "crane"}})))
    assert model.classes == ("crane (0)", "crane (1)")
    assert model.condition("crane (1)").label == 1


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, "knows 3 labels, but not which of them means no class"),
        ({"id2label": {"0": "cat"}}, "must name the others, 0 to 1, under id2label, and the last one is none"),
        ({"id2label": {"0": "cat", "1": "dog", "2": "cow"}}, "not which of them means no class"),
        ({"id2label": ["cat", "dog"]}, "not which of them means no class"),
        ({"id2label": {"0": "cat", "1": 5}}, "not which of them means no class"),
    ],
)
def test_a_folder_that_does_not_say_what_its_labels_mean(
    make_model: Callable[..., Path], index: dict[str, object], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        load_model(str(with_index(make_model(labels=3), index)))
