"""Networks in half precision and compiled: what they compute, what stays as it was, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flows import relative_error
from tiny_pipelines import SIDE, build
from torch import Tensor, nn

from ddim_ode import Session, from_pipeline, load_model
from ddim_ode.dtypes import DTYPES
from ddim_ode.pipelines import scheduler_grid
from ddim_ode.speed import Compiled, compiled, in_dtype, products


class Sum(nn.Module):
    """x + t, and how many members each call has had."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Of shape ``(B, 1, 1, 1)``."""
        self.sizes.append(len(x))
        return x + t.reshape(-1, 1, 1, 1)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Nothing is compiled; what would have been compiled how is noted."""
    asked: list[dict[str, object]] = []

    def compile(function: Callable[..., Tensor], **options: object) -> Callable[..., Tensor]:
        asked.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    return asked


@pytest.mark.parametrize("dtype", DTYPES)
def test_latents_are_decoded_in_any_dtype(tiny_model: Path, dtype: str) -> None:
    """The fingerprint is that of the weights as they were read; the state is not rounded."""
    own = Session(str(tiny_model))
    other = Session(str(tiny_model), dtype=dtype)
    assert next(other.model.network.parameters()).dtype == getattr(torch, DTYPES[dtype])
    (sample,) = other.sample(1, steps=4, solver="euler")
    latent = other.encode(sample.picture.to_bytes(), steps=4, solver="reversible-heun")
    assert latent.x_T.dtype == torch.float64
    assert latent.fingerprint == own.model.fingerprint
    again = own.decode(latent)
    assert again.image.shape == sample.picture.image.shape
    found = other.reconstruct(sample.picture.to_bytes(), steps=4, solver="reversible-heun")
    assert found.mse < 1e-20


def test_what_cannot_be_asked_for(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="unknown dtype 'int8'; choose one of: float32, tf32, bfloat16, float16"):
        Session(str(tiny_model), dtype="int8")
    with pytest.raises(ValueError, match="dtype and config are of models that are loaded here; this one"):
        Session(load_model(str(tiny_model)), dtype="float16")
    driven = from_pipeline(build("PixArt"), prompt="a cat", height=SIDE, width=SIDE)
    with pytest.raises(ValueError, match="is a driven pipeline and cannot be compiled; write it out, or leave it"):
        compiled(driven)


def test_text_encoders_go_along_and_autoencoders_stay() -> None:
    model = in_dtype(from_pipeline(build("SD 1.5"), prompt="a cat", height=SIDE, width=SIDE), "bfloat16")
    dtypes = {name: next(part.parameters()).dtype for name, part in model.beside.items()}
    assert dtypes == {"vae": torch.float32, "text_encoder": torch.bfloat16}


def test_smaller_batches_are_filled_up(eager: list[dict[str, object]]) -> None:
    """So that the last one of many pictures is not compiled for."""
    network = Sum()
    whole = Compiled(network, torch.device("cpu"))
    x, t = torch.arange(4.0).reshape(4, 1, 1, 1), torch.arange(4.0)
    for count in (3, 1, 4, 2):
        assert torch.equal(whole(x[:count], t[:count]), network(x[:count], t[:count]))
    assert network.sizes[::2] == [3, 3, 4, 3]
    assert eager == [{"dynamic": False, "mode": "default"}]


def test_a_compiled_session_is_the_same(tiny_model: Path, eager: list[dict[str, object]]) -> None:
    own, other = Session(str(tiny_model)), Session(str(tiny_model), compile=True)
    assert eager
    (sample,) = own.sample(1, steps=4)
    (again,) = other.sample(1, steps=4)
    assert torch.equal(again.picture.image, sample.picture.image)
    assert other.model.fingerprint == own.model.fingerprint


def test_a_compiled_pipeline_is_written_out(eager: list[dict[str, object]]) -> None:
    own, other = (Session(build("SD 1.5"), prompt="a cat", guidance=3.0, compile=whole) for whole in (False, True))
    assert isinstance(other.model.network, Compiled)
    (sample,), (again,) = own.sample(1, steps=2, solver="euler"), other.sample(1, steps=2, solver="euler")
    assert relative_error(again.picture.image, sample.picture.image) < 1e-4
    assert other.model.embedding is not None
    assert scheduler_grid(other.model, 3) == scheduler_grid(own.model, 3)
    assert isinstance(other.asked_for(prompt="a dog").model.network, Compiled)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_is_compiled_for_real(tiny_model: Path) -> None:
    """A network with classes, with guidance, in two sizes of batches."""
    own = load_model(str(tiny_model))
    whole = Compiled(own.network, torch.device("cpu"))
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([10.0, 500.0])
    with torch.no_grad():
        for count in (2, 1):
            assert relative_error(whole(x[:count], t[:count]), own.network(x[:count], t[:count])) < 1e-5


def test_products_of_all_digits_are_asked_for_and_put_back() -> None:
    kinds = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [kind.allow_tf32 for kind in kinds]

    def interrupted(wish: bool) -> None:
        with products(tf32=wish):
            assert [kind.allow_tf32 for kind in kinds] == [wish, wish]
            raise KeyboardInterrupt

    for wish in (True, False):
        with pytest.raises(KeyboardInterrupt):
            interrupted(wish)
        assert [kind.allow_tf32 for kind in kinds] == before


@pytest.mark.parametrize("place", ["backends", "conv", "matmul"])
def test_products_are_asked_for_by_the_names_that_the_program_uses(place: str) -> None:
    """torch refuses to tell by its older names what was said by its newer ones; in a process of its own."""
    names = {"backends": "", "conv": "cudnn.conv.", "matmul": "cuda.matmul."}
    code = f"""
import torch
from ddim_ode.speed import products
torch.backends.{names[place]}fp32_precision = "tf32"
conv = torch.backends.cudnn.conv
before = conv.fp32_precision
for wish, words in ((False, ("ieee", "none")), (True, ("tf32",))):
    with products(tf32=wish):
        print(conv.fp32_precision in words)
print(conv.fp32_precision == before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 3, done.stderr
