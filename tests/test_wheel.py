"""The wheel: what is in it, and that it works in a folder with modules of the names that a clone has at its top.

``make package`` installs it with all that it needs, in an environment of its own; here the tests' own libraries serve.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("cli.py", "analysis/__init__.py", "solvers/__init__.py", "tests/__init__.py")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture
def folder_of_a_user(tmp_path: Path) -> Path:
    """One with a photograph, and with modules that fail when they are imported."""
    (tmp_path / "a").mkdir()
    shutil.copy(ROOT / "examples" / "photo.jpg", tmp_path / "a")
    for name in OURS:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('the user\\'s own {name} was imported')\n")
    return tmp_path


def test_it_holds_the_package_and_nothing_beside_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
    assert {path.parts[0].partition("-")[0] for path in names} == {"ddim_ode"}
    rooms = [path.relative_to(ROOT) for room in ("solvers", "analysis") for path in (ROOT / room).glob("*.py")]
    package = [path.relative_to(ROOT) for path in (ROOT / "ddim_ode").rglob("*.py")]
    assert len(rooms) > 40
    assert len(package) > 70
    assert {*package, *(Path("ddim_ode", path) for path in [*rooms, Path("cli.py")])} <= names
    assert Path("ddim_ode/py.typed") in names
    assert Path("ddim_ode/analysis/images/cifar10_train/ATTRIBUTION.md") in names
    assert Path("ddim_ode/pretrained/ddpm-cifar10-classes/unet/diffusion_pytorch_model.safetensors") in names
    assert not {path for path in names if path.suffix in (".pyi", ".pyc", ".ipynb") or "notebooks" in path.parts}


COMMANDS = {
    "help": ("ddim-ode --help", "ddim-ode analyze --help", "ddim-ode analyze overhead --help"),
    "there-and-back": ("ddim-ode encode a/photo.jpg --steps 2 -o a.pt", "PYTHON -m ddim_ode decode a.pt -o made"),
    "workers": ("PYTHON -m ddim_ode dataset a --steps 2 --workers 1 -o made",),
    "torchrun": ("PYTHON -m torch.distributed.run --standalone --nproc_per_node 1 -m ddim_ode info",),
    "program": ("PYTHON program.py",),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_it_works_beside_modules_of_the_same_names(site: Path, folder_of_a_user: Path, name: str) -> None:
    program = (
        "import ddim_ode, ddim_ode.solvers as solvers\nassert len(solvers.SOLVERS) > 60\nprint(ddim_ode.__file__)\n"
    )
    (folder_of_a_user / "program.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(site), "PATH": f"{site / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for command in COMMANDS[name]:
        words = [sys.executable if word == "PYTHON" else word for word in command.split()]
        done = subprocess.run(words, cwd=folder_of_a_user, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert name != "program" or done.stdout.startswith(str(site))
    assert (folder_of_a_user / "made").exists() == ("made" in command)
