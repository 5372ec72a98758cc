"""Means over images, and how well each is known."""

from __future__ import annotations

from math import pi

import pytest
import torch
from torch import Tensor

from ddim_ode.analysis.spread import spread, trimmed_mean


def log_normal(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()


def test_trimmed_mean_leaves_out_the_largest_twentieth() -> None:
    assert trimmed_mean(torch.tensor([*[1.0] * 38, 50.0, 90.0])) == 1.0
    assert trimmed_mean(torch.tensor([*[1.0] * 17, 50.0, 90.0])) == pytest.approx(157 / 19)


def test_of_a_single_value_all_is_that_value() -> None:
    found = spread(torch.tensor([7.0]))
    assert {found.mean, found.median, found.trimmed, found.mean_low, found.trimmed_high} == {7.0}


def test_values() -> None:
    found = spread(torch.tensor([4.0, 1.0, 2.0, 9.0]))
    assert (found.mean, found.median) == (4.0, 3.0)
    assert found.trimmed == 4.0


@pytest.mark.parametrize("of", ["mean", "median", "trimmed"])
def test_an_interval_holds_what_it_is_for(of: str) -> None:
    found = spread(log_normal(20))
    assert getattr(found, f"{of}_low") < getattr(found, of) < getattr(found, f"{of}_high")


def test_intervals_are_as_wide_as_theory_has_it() -> None:
    """Of n log-normal values the median has the variance pi / 2 / n, and the mean (e - 1) e / n."""
    count = 1000
    found = spread(log_normal(count))
    for of, variance in (("median", pi / 2), ("mean", (torch.e - 1) * torch.e)):
        width = getattr(found, f"{of}_high") - getattr(found, f"{of}_low")
        assert width == pytest.approx(2 * 1.96 * (variance / count) ** 0.5, rel=0.3), of


def test_infinite_values_make_an_infinite_mean_and_leave_the_median() -> None:
    found = spread(torch.tensor([*[1.0] * 10, *[2.0] * 9, torch.inf]))
    assert (found.mean, found.mean_high) == (torch.inf, torch.inf)
    assert found.median == 1.5
    assert found.trimmed == pytest.approx(28 / 19)
