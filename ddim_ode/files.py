"""Writing files so that they are there whole or not at all, and never instead of something else."""

from __future__ import annotations

import os
from pathlib import Path


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Find out before the work is done whether ``path`` may be written.

    Raises:
        FileExistsError: if it exists and ``overwrite`` is false.
        IsADirectoryError, FileNotFoundError: if it is a folder, or if its folder does not exist.
    """
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write '{path}': there is no folder '{path.parent}'; make it first")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"'{path}' exists already; choose another name, or ask for it with --overwrite (overwrite=True)"
        )


def write_file(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write ``content`` under a temporary name beside ``path``, then rename it.

    Raises:
        OSError: as ``check_writable`` does, or what the system says (a full disk, no permission).
    """
    check_writable(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot write '{path}': {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
