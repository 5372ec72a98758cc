"""Files are there whole or not at all, and never instead of something else."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ddim_ode.files import check_can_be_made, check_writable, read_file, write_file


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


def test_the_mask_is_left_alone_for_threads_that_make_files_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be read only by setting it, for all threads."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the mask was set"))
    write_file(tmp_path / "a.bin", b"content")


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
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


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


@pytest.mark.parametrize(("function", "overwrite"), [("fsync", False), ("link", False), ("replace", True)])
def test_an_interruption_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, overwrite: bool
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, function, interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "a.bin", b"content", overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_of_two_processes_one_writes_and_the_other_is_told(tmp_path: Path) -> None:
    """However often both begin at once; what is there is whole, and the other's temporary file is gone."""
    script = (
        "import sys, time; from pathlib import Path; from ddim_ode.files import write_file\n"
        "while not Path('go').exists(): pass\n"
        "for i in range(50):\n"
        "    try: write_file(Path(f'{i}'), sys.argv[1].encode() * 10000); print(i)\n"
        "    except FileExistsError: pass\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen([sys.executable, "-c", script, name], cwd=tmp_path, stdout=subprocess.PIPE, env=environment)
        for name in "ab"
    ]
    (tmp_path / "go").touch()
    said = [process.communicate()[0].decode().split() for process in both]
    assert sorted(map(int, said[0] + said[1])) == list(range(50))
    for name, numbers in zip("ab", said, strict=True):
        assert all((tmp_path / number).read_bytes() == name.encode() * 10000 for number in numbers)
    assert len(list(tmp_path.iterdir())) == 51


def test_a_file_system_without_links_is_written_to_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "a", b"1")
    with pytest.raises(FileExistsError, match="exists already"):
        write_file(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 1


def test_links_stay_links_and_devices_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    write_file(tmp_path / "link", b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(FileExistsError, match="exists already"):
        write_file(tmp_path / "dangling", b"x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="pipe' is a device, a pipe or a socket, and not replaced"):
        write_file(tmp_path / "pipe", b"x", overwrite=True)


def test_long_names_are_written_if_the_system_can_and_refused_before_the_work_if_not(tmp_path: Path) -> None:
    write_file(tmp_path / ("n" * 255), b"x")
    with pytest.raises(OSError, match="its name is too long"):
        check_writable(tmp_path / ("n" * 256), overwrite=False)


def test_reading_takes_ordinary_files_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert read_file(tmp_path / "file", "thing", ValueError) == b"x"
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("pipe", "is no ordinary file"), ("none", "does not exist"), (".", "is a folder, not a thing")):
        with pytest.raises(ValueError, match=words):
            read_file(tmp_path / name, "thing", ValueError)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_file_that_is_replaced_lends_its_permissions(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "private", []
    path.write_bytes(b"old")
    path.chmod(mode)
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(os.fstat(descriptor).st_mode & 0o777))
    write_file(path, b"new", overwrite=True)
    assert path.stat().st_mode & 0o777 == mode
    assert seen == [mode]


def test_a_folder_that_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "a" / "b"):
        check_can_be_made(folder)
    with pytest.raises(NotADirectoryError, match=r"^'.*/file' is a file, and no folder can be made of it"):
        check_can_be_made(tmp_path / "file" / "a")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=r"may not be written into; choose another$"):
        check_can_be_made(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
