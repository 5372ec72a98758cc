"""Finding a device."""

from __future__ import annotations

import pytest
import torch

from ddim_ode.devices import find_device


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
