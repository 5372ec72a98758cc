"""What long jobs left that are hostile, over every command that takes them: one line, and nothing else happens.

To add one, add a line to ``WORK``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import Result
from refusals import PNG, call, refused

WORK: Mapping[str, bytes] = {"empty": b"", "text": b"no work at all", "a list": b"[]", "no text": b"\xff\xfe\xfa"}


WORK_COMMANDS = (
    "calibrate --images /pictures --steps 2 --latents 4 --work /work -o /calibration.json",
    "analyze curvature --images /pictures --count 1 --points 2 --reference-steps 10 --out /rows",
)


def work(line: str, folder: Path, model: Path) -> Result:
    """Run a command in whose words / stands for ``folder``."""
    return call(*(folder / word[1:] if word.startswith("/") else word for word in line.split()), "--model", model)


@pytest.fixture(scope="module")
def worked(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the work of a calibration and of an analysis."""
    folder = tmp_path_factory.mktemp("worked")
    (folder / "pictures").mkdir()
    for name in "abcd":
        (folder / "pictures" / f"{name}.png").write_bytes(PNG)
    for line in WORK_COMMANDS:
        result = work(line, folder, tiny_model)
        assert result.exit_code == 0, result.output
    (folder / "calibration.json").unlink()
    return folder


@pytest.mark.parametrize("content", WORK)
def test_work_files(content: str, worked: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Each file that a job has left is spoilt in turn."""
    shutil.copytree(worked, tmp_path, dirs_exist_ok=True)
    for line, folder in zip(WORK_COMMANDS, ("work", "rows"), strict=True):
        spoilt = [path for path in sorted((tmp_path / folder).iterdir()) if path.suffix in (".pt", ".json", ".csv")]
        assert len(spoilt) >= 2
        for path in spoilt:
            kept = path.read_bytes()
            path.write_bytes(WORK[content])
            result = work(line, tmp_path, tiny_model)
            refused(result, path.name)
            assert path.read_bytes() == WORK[content]
            path.write_bytes(kept)
