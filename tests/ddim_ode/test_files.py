"""Files are there whole or not at all, and never instead of something else."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ddim_ode.files import check_writable, write_file


def test_what_is_written_is_there_and_nothing_else(tmp_path: Path) -> None:
    write_file(tmp_path / "a.bin", b"content")
    assert (tmp_path / "a.bin").read_bytes() == b"content"
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_permissions_are_those_of_any_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_file(tmp_path / "a.bin", b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o666 & ~umask


def test_an_existing_file_stays_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=f"'{re.escape(str(path))}' exists already; choose another name"):
        write_file(path, b"content")
    assert path.read_bytes() == b"precious"
    write_file(path, b"content", overwrite=True)
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_file(tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        check_writable(tmp_path, overwrite=overwrite)


def test_no_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'; make it first"):
        check_writable(tmp_path / "nowhere" / "a.bin", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_free_name_may_be_written_and_is_not_touched_by_the_question(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.bin", overwrite=False)
    assert list(tmp_path.iterdir()) == []


def full_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", replace)


def full_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("fill", [full_at_the_end, full_in_the_middle])
@pytest.mark.parametrize("before", [{}, {"a.bin": b"precious"}], ids=["new", "overwritten"])
def test_a_full_disk_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, bytes], fill: Callable[..., None]
) -> None:
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    fill(monkeypatch)
    with pytest.raises(OSError, match=r"cannot write '.*a\.bin': No space left on device") as caught:
        write_file(tmp_path / "a.bin", b"content", overwrite=True)
    assert caught.value.errno == errno.ENOSPC
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.bin", b"content")
    assert list(tmp_path.iterdir()) == []
