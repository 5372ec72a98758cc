"""Everything that a session and the analyses do, on a device that has no float64, such as an Apple GPU."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flows import relative_error
from limited_device import limited_device
from PIL import Image

from ddim_ode import Request, Session, codec, learn_solver, load_model
from ddim_ode.fingerprints import stamp
from ddim_ode.models import Model
from ddim_ode.solvers import SOLVERS, Solver, torchdiffeq_adapter

WISHES = {
    name: Request(name, rtol=0.1, atol=0.1) if solver.adaptive else Request(name, steps=6)
    for name, solver in SOLVERS.items()
}


@pytest.fixture(scope="module")
def here(tiny_model: Path) -> Model:
    return load_model(str(tiny_model))


@pytest.fixture
def there(here: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Model]:
    """The model on the device, while that is there."""
    with limited_device() as device:
        for module in (codec, torchdiffeq_adapter):
            monkeypatch.setattr(module, "WITHOUT_FLOAT64", {device.type})
        yield replace(here, network=deepcopy(here.network).to(device))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 8, 3), dtype=np.uint8)).save(path)
    return paths


def test_the_device_refuses_what_it_has_not() -> None:
    """Or else nothing below would say anything."""
    with limited_device() as device:
        x = torch.ones(3, device=device)
        for wrong in (lambda: torch.ones(3).double().to(device), x.double, lambda: x.new_ones(2, dtype=torch.float64)):
            with pytest.raises(TypeError, match="the device has no float64"):
                wrong()
        with pytest.raises(RuntimeError, match=r"a tensor on the CPU, .* meets one on the device"):
            x + torch.ones(3)
        assert float((2 * x).sum()) == 6


def kind(solver: Solver) -> tuple[object, ...]:
    """What tells solvers apart that move tensors in ways of their own."""
    step, chart = getattr(solver, "step", None), getattr(solver, "chart", None)
    return type(solver), type(step), chart, getattr(solver, "implicit", False)


# One of each kind; but scipy's implicit methods differentiate by torch.func, which does not know tensors of this kind.
NAMES = sorted({kind(s): s.name for s in reversed(SOLVERS.values()) if not getattr(s, "implicit", False)}.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_solver_encodes_and_decodes_there(
    name: str, here: Model, there: Model, pictures: list[Path]
) -> None:
    """States are float32; latents and pictures are those of the CPU. EDICT magnifies rounding."""
    found, expected = (next(Session(model).encode_all(pictures[:1], WISHES[name])).latent for model in (there, here))
    assert (found.x_T.dtype, found.x_T.device.type) == (torch.float32, "cpu")
    image = Session(there).decode(found).image
    assert (image.dtype, image.device.type) == (torch.float32, "cpu")
    if not SOLVERS[name].adaptive:  # a step that is chosen in the other dtype is another one
        assert relative_error(found.x_T.double(), expected.x_T) < 2e-3
        assert name == "edict" or relative_error(image.double(), Session(here).decode(expected).image) < 2e-3


def test_weights_that_somebody_else_holds_are_stamped_there(here: Model, there: Model) -> None:
    """Their stamp is that on the CPU."""
    assert replace(there, shared=True).fingerprint == here.fingerprint
    assert stamp(there.network) == stamp(here.network)


def test_all_that_a_session_does(here: Model, there: Model, pictures: list[Path]) -> None:
    sessions = [Session(model, batch_size=2) for model in (here, there)]
    wish = Request("heun", steps=4)
    for found, other in zip(*(session.reconstruct_all(pictures, wish) for session in sessions), strict=True):
        assert found.mse == pytest.approx(other.mse, rel=0.05)
    for found, other in zip(*(session.sample(3, seed=1, steps=3) for session in sessions), strict=True):
        torch.testing.assert_close(found.picture.image.float(), other.picture.image, rtol=0, atol=1e-3)
    for found, other in zip(*(session.sample(3, seed=1, steps=3, eta=1.0) for session in sessions), strict=True):
        torch.testing.assert_close(found.picture.image.float(), other.picture.image, rtol=0, atol=1e-3)
    ways = [session.interpolate([pictures[0]], seeds=(2,), count=3, solver="heun", steps=4) for session in sessions]
    torch.testing.assert_close(ways[0].sheet.image.float(), ways[1].sheet.image, rtol=0, atol=1e-3)
    checks = [next(session.encode_batches(pictures, wish)).check() for session in sessions]
    torch.testing.assert_close(checks[0].latent_rmse.float(), checks[1].latent_rmse, rtol=1e-2, atol=1e-5)
    assert ways[1].sheet.to_bytes()


def test_a_solver_is_learned_there(there: Model) -> None:
    """Its search, and its polishing."""
    session = Session(there, batch_size=2)
    learned = session.calibrated(learn_solver(session, 2, latents=4, walks=14))
    (sample,) = learned.sample(1, steps=2)
    assert sample.picture.image.isfinite().all()
