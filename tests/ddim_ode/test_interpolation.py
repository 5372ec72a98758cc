"""Great circles: against rotations written by hand, at the ends, and where directions or lengths are missing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ddim_ode.codec import draw_latents
from ddim_ode.interpolation import slerp, span

weights = st.floats(0, 1)
angles = st.floats(0, math.pi)


def plane(angle: float, length: float = 1.0) -> Tensor:
    """``(1, 4)``: at ``angle`` in a plane of four dimensions."""
    axes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, -0.5, 0.5, -0.5]], dtype=torch.float64)
    return length * (math.cos(angle) * axes[:1] + math.sin(angle) * axes[1:])


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@given(angles.filter(lambda angle: angle < math.pi - 1e-6), weights)
def test_it_is_a_rotation_at_a_constant_rate(angle: float, weight: float) -> None:
    """Also by an angle so small that its cosine is 1."""
    assert_near(slerp(plane(0.3), plane(0.3 + angle), weight), plane(0.3 + weight * angle), 1e-9)


@given(st.floats(1e-9, 1e-5), weights)
def test_small_angles_are_not_lost(angle: float, weight: float) -> None:
    found = slerp(plane(0.0), plane(angle), weight) - plane(0.0)
    assert_near(found / angle, (plane(weight * angle) - plane(0.0)) / angle, 1e-6)


@given(weights, st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_length_changes_linearly(weight: float, first: float, second: float) -> None:
    found = slerp(plane(0.0, first), plane(2.0, second), weight)
    assert_near(found, plane(2 * weight, (1 - weight) * first + weight * second))


@given(weights)
def test_for_equal_lengths_it_is_the_formula_of_the_paper(weight: float) -> None:
    a, b = (latent[None] / latent.norm() for latent in draw_latents(2, (3, 8, 8), seed=1))
    theta = math.acos(float((a * b).sum()))
    expected = (math.sin((1 - weight) * theta) * a + math.sin(weight * theta) * b) / math.sin(theta)
    assert_near(slerp(a, b, weight), expected)


def test_random_latents_stay_as_long_as_they_are() -> None:
    """A straight line would pass at 0.7 of their length."""
    latents = draw_latents(2, (3, 32, 32), seed=2)
    lengths = span(latents, 9).flatten(1).norm(dim=1)
    low, high = sorted(latents.flatten(1).norm(dim=1).tolist())
    assert low * (1 - 1e-12) <= float(lengths.min())
    assert float(lengths.max()) <= high * (1 + 1e-12)


@pytest.mark.parametrize("factor", [1.0, 2.5, 1 + 1e-15, 1e-200])
def test_parallel_vectors_are_joined_by_a_line(factor: float) -> None:
    a = draw_latents(3, (3, 4, 4), seed=3)
    for weight in (0.0, 0.25, 1.0):
        assert_near(slerp(a, factor * a, weight), (1 - weight + weight * factor) * a)


def test_zero_is_joined_by_a_line() -> None:
    a, zero = draw_latents(2, (3, 4, 4), seed=4), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    assert_near(slerp(a, zero, 0.25), 0.75 * a)
    assert_near(slerp(zero, a, 0.25), 0.25 * a)
    assert slerp(zero, zero, 0.25).equal(zero)


@pytest.mark.parametrize("factor", [-1.0, -2.5, -1 - 1e-15])
@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 3, 3), (1, 1, 2)])
def test_opposite_vectors_are_joined_by_a_half_circle(shape: tuple[int, int, int], factor: float) -> None:
    """Through noise of the same distribution, turned by a right angle by pairs."""
    a = draw_latents(2, shape, seed=5)
    middle = slerp(a, factor * a, 0.5)
    assert_near((middle * a).flatten(1).sum(1), torch.zeros(2, dtype=torch.float64))
    assert_near(middle.flatten(1).norm(dim=1), (1 - factor) / 2 * a.flatten(1).norm(dim=1))
    pairs, turned = (x.flatten(1)[:, :2] / x.flatten(1)[:, :2].norm(dim=1, keepdim=True) for x in (a, middle))
    assert_near(turned, torch.stack([-pairs[:, 1], pairs[:, 0]], dim=1))
    assert_near(slerp(a, factor * a, 1.0), factor * a)


def test_in_one_dimension_opposite_vectors_are_joined_through_zero() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    assert_near(slerp(one, -one, 0.5), 0 * one)


@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-12, 1e-9, 1e-3])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_ends_are_the_inputs_however_near_or_opposite(sign: int, gap: float) -> None:
    a, aside = (latent[None] for latent in draw_latents(2, (3, 8, 8), seed=6))
    b = 1.3 * sign * (a + gap * aside)
    assert_near(slerp(a, b, 0.0), a)
    assert_near(slerp(a, b, 1.0), b)
    assert float(slerp(a, b, 0.5).norm()) <= 1.3001 * float(a.norm())


def test_a_batch_equals_its_members() -> None:
    """Among them a parallel, an opposite and a vanishing one, each with a weight of its own."""
    a = draw_latents(5, (3, 4, 4), seed=7)
    b = torch.stack([a[1], 2 * a[1], -a[2], 0 * a[3], a[0]])
    each = torch.tensor([0.1, 0.5, 0.7, 0.3, 1.0])
    apart = [slerp(a[i : i + 1], b[i : i + 1], float(each[i])) for i in range(5)]
    assert_near(slerp(a, b, each), torch.cat(apart))
    assert slerp(a.float(), b.float(), each).dtype == torch.float32


def test_a_sheet_has_its_corners_and_edges() -> None:
    corners = draw_latents(4, (3, 4, 4), seed=8)
    sheet = span(corners, 5).unflatten(0, (5, 5))
    assert_near(torch.stack([sheet[0, 0], sheet[0, -1], sheet[-1, 0], sheet[-1, -1]]), corners)
    assert_near(sheet[0], span(corners[[0, 1]], 5))
    assert_near(sheet[-1], span(corners[[2, 3]], 5))
    assert_near(sheet[:, 0], span(corners[[0, 2]], 5))
    assert_near(sheet[2], span(torch.stack([sheet[2, 0], sheet[2, -1]]), 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gap", [1.0, 1e-2, 3e-5])
def test_in_less_than_double_precision_it_is_that_of_double_rounded(dtype: torch.dtype, gap: float) -> None:
    a, aside = (latent[None].to(dtype) for latent in draw_latents(2, (3, 8, 8), seed=9))
    b = a + (gap * aside).to(dtype)
    found = slerp(a, b, 0.3)
    assert found.dtype == dtype
    assert found.equal(slerp(a.double(), b.double(), 0.3).to(dtype))
    corners = torch.cat([a, b])
    assert span(corners, 4).equal(span(corners.double(), 4).to(dtype))


@pytest.mark.parametrize(("size", "dtype"), [(1e30, torch.float32), (1e-30, torch.float32), (1e250, torch.float64)])
def test_very_large_and_very_small_latents(size: float, dtype: torch.dtype) -> None:
    a, b = (latent[None].to(dtype) for latent in draw_latents(2, (3, 8, 8), seed=10))
    torch.testing.assert_close(slerp(size * a, size * b, 0.3) / size, slerp(a, b, 0.3), rtol=1e-5, atol=1e-6)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must have one dtype, .* but these have torch.float32 and torch.float64"):
        slerp(torch.zeros(1, 4), torch.zeros(1, 4).double(), 0.5)
    with pytest.raises(ValueError, match=r"these have torch.int64 and torch.int64; convert them first"):
        slerp(torch.zeros(1, 4).long(), torch.zeros(1, 4).long(), 0.5)
    with pytest.raises(ValueError, match=r"must have one shape, but these have \(1, 4\) and \(1, 3\)"):
        slerp(torch.zeros(1, 4), torch.zeros(1, 3), 0.5)
    with pytest.raises(ValueError, match="between two latents or four, but there are 3"):
        span(torch.zeros(3, 3, 4, 4), 5)
    with pytest.raises(ValueError, match="at least 2 points, both ends, but 1 is asked for"):
        span(torch.zeros(2, 3, 4, 4), 1)
