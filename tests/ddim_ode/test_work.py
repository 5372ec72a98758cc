"""Work files: a folder has one job at a time, and what is damaged is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddim_ode.work import WorkError, claimed, hold, load_json, load_tensors, save_tensors

# Holds a folder until its input ends.
HOLDER = """
import sys
from pathlib import Path
from ddim_ode.work import hold
held = hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""
ROOT = Path(__file__).parents[2]


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    """The other one is told at once; a job that was killed holds nothing."""
    folder = tmp_path / "work"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(WorkError, match=f"another process is at work in '{folder}'; wait until it ends, or name"):
            hold(folder)
    finally:
        other.kill()
        other.communicate()
    with hold(folder):
        pass


def test_a_claim_leaves_nothing_behind_and_keeps_everybody_out(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    with claimed(folder):
        command = [sys.executable, "-c", HOLDER, str(folder)]
        other = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT)
        assert "another process is at work" in other.stderr
    assert not list(folder.iterdir())


def test_one_process_may_hold_a_folder_twice(tmp_path: Path) -> None:
    """As an analysis does that keeps two tables in it."""
    first, second = hold(tmp_path), hold(tmp_path)
    del first, second
    with hold(tmp_path):
        pass


def test_tensors_survive_the_file(tmp_path: Path) -> None:
    tensors = torch.rand(2, 3), torch.arange(4.0, dtype=torch.float64)
    save_tensors(tensors, tmp_path / "work.pt")
    found = load_tensors(tmp_path / "work.pt", [(None, 3), (4,)])
    assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(found, tensors, strict=True))


@pytest.mark.parametrize(
    ("shapes", "value", "words"),
    [
        ([(2, 2)], 0.0, r"it should hold tensors of the shapes \[\(2, 2\)\], but holds \[\(2, 3\)\]"),
        ([(2, 3), (1,)], 0.0, "it should hold tensors of the shapes"),
        ([(2, 3, None)], 0.0, "it should hold tensors of the shapes"),
        ([(2, 3)], torch.nan, "it holds numbers that are not finite"),
    ],
)
def test_other_tensors_are_refused(
    tmp_path: Path, shapes: list[tuple[int | None, ...]], value: float, words: str
) -> None:
    save_tensors([torch.full((2, 3), value)], tmp_path / "work.pt")
    with pytest.raises(WorkError, match=rf"work\.pt' is damaged: {words}.*; delete it, and that part"):
        load_tensors(tmp_path / "work.pt", shapes)


def test_json(tmp_path: Path) -> None:
    assert load_json(tmp_path / "none.json") == {}
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(WorkError, match=r"list\.json' is damaged: it should hold a JSON object, but holds a list"):
        load_json(tmp_path / "list.json")
