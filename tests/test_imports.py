"""Start-up: what a command does not need it does not import. No clock is asked, only what is loaded at the end."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[1]
# Beside these: whatever of another library takes long to import and no command below needs.
NEEDLESS = {
    "IPython",
    "accelerate",
    "diffusers",
    "huggingface_hub",
    "matplotlib",
    "pandas",
    "requests",
    "scipy",
    "sympy",
    "tokenizers",
    "torch._dynamo",
    "torch._inductor",
    "torchdiffeq",
    "torchmetrics",
    "torchvision",
    "transformers",
}
# Before, a call of an operator on shapes took it along.
TORCH_IS_LAZY = Version(version("torch")) >= Version("2.13")
RUN = """
import sys
from ddim_ode.cli import main
for arguments in {commands!r}:
    main(arguments, standalone_mode=False)
print("loaded:", *sys.modules)
"""


def loaded_by(*commands: list[str]) -> set[str]:
    """The modules that are loaded when these commands have run, one after the other in one process."""
    script = [sys.executable, "-c", RUN.format(commands=commands)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.mark.parametrize("arguments", [["--help"], ["encode", "--help"], ["info"]])
def test_help_and_lists_do_without_torch(arguments: list[str]) -> None:
    loaded = loaded_by(arguments)
    assert {"click", "ddim_ode.solvers.scipy_adapter", "ddim_ode.solvers.torchdiffeq_adapter"} <= loaded
    assert not loaded & (NEEDLESS | {"torch", "numpy", "PIL", "safetensors"})
    assert not {name for name in loaded if name.startswith("ddim_ode.analysis.")}


def test_encoding_decoding_and_sampling_do_without_diffusers(tmp_path: Path) -> None:
    """Of the model that ships."""
    latent, picture, sheet = (str(tmp_path / name) for name in ("a.pt", "a.png", "b.png"))
    loaded = loaded_by(
        ["encode", "examples/photo.jpg", "--steps", "2", "-o", latent],
        ["decode", latent, "-o", picture],
        ["sample", "-n", "1", "--steps", "2", "-o", sheet],
    )
    assert {"torch", "ddim_ode.session.session", "ddim_ode.ddpm_unet"} <= loaded
    assert not loaded & (NEEDLESS if TORCH_IS_LAZY else NEEDLESS - {"sympy"})
    assert not {name for name in loaded if name.startswith("ddim_ode.analysis.")}
    assert Path(picture).is_file()
    assert Path(sheet).is_file()
