"""Finding a device."""

from __future__ import annotations

import pytest
import torch
from accelerate.hooks import CpuOffload, ModelHook, SequentialHook, add_hook_to_module
from torch import nn

from ddim_ode.devices import device_of, find_device


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"), [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")]
)
def test_auto_is_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, auto: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert find_device("auto").type == auto
    assert find_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device '{name}' is not available here; choose one of: auto, cpu"):
        find_device(name)


def test_what_is_offloaded_computes_where_its_hook_says() -> None:
    """As accelerate does it, with one hook or several."""
    module = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    assert device_of(module) == torch.device("cpu")
    assert device_of(nn.Identity()) == torch.device("cpu")
    add_hook_to_module(module[1], CpuOffload("meta"))
    assert device_of(module) == torch.device("meta")
    add_hook_to_module(module[0], SequentialHook(ModelHook(), CpuOffload("cuda:1")))
    assert device_of(module) == torch.device("cuda:1")
