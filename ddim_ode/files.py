"""Reading and writing files: only ordinary ones, whole or not at all, and never instead of something else."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Mapping
from functools import partial
from math import isfinite
from pathlib import Path

# What is named so is our own, of a write that was cut off.
REMNANTS = ".ddim-ode-*.tmp"
# In bytes, on all common file systems.
_LONGEST_NAME = 255


def reason(error: Exception) -> str:
    """What ``error``, which a wrong content has provoked, says, in a line; of a KeyError what is missing."""
    said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(said.split()) or type(error).__name__


def strict_json(content: object) -> str:
    """``content`` as JSON, which has no numbers that are not finite: they are written as words, as "infinity" is."""
    return json.dumps(_in_words(content), allow_nan=False)


def _in_words(content: object) -> object:
    if isinstance(content, float) and not isfinite(content):
        return str(content).replace("inf", "infinity")
    if isinstance(content, Mapping):
        return {key: _in_words(value) for key, value in content.items()}
    return [_in_words(value) for value in content] if isinstance(content, list | tuple) else content


def read_file(path: Path, kind: str, error: type[ValueError]) -> bytes:
    """The content of ``path``, which must be an ordinary file: reading a pipe or a device may never end.

    ``kind``  what the file should be, for messages.

    Raises:
        ValueError: of the type ``error``, if there is no such file, it is no ordinary one, or it cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(f"'{path}' is a folder, not a {kind}; name the files in it")
        if not stat.S_ISREG(mode):
            raise error(f"'{path}' is no ordinary file, but a pipe, a device or a socket; name a {kind}")
        return path.read_bytes()
    except FileNotFoundError:
        raise error(f"'{path}' does not exist") from None
    except OSError as why:
        raise error(f"cannot read the {kind} '{path}': {why.strerror}") from why


def check_writable(path: Path, *, overwrite: bool) -> None:
    """Find out before the work is done whether ``path`` may be written.

    Raises:
        FileExistsError: if it exists and ``overwrite`` is false, or it is something else than an ordinary file.
        IsADirectoryError, FileNotFoundError: if it is a folder, or if its folder does not exist.
        OSError: if its name is too long, or its folder may not be written into.
    """
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise OSError(f"cannot write '{path}': its name is too long; choose a shorter one")
    if path.is_dir():
        raise IsADirectoryError(f"'{path}' is a folder; name a file in it")
    if path.is_symlink() and os.path.islink(os.path.realpath(path)):
        raise OSError(f"cannot write '{path}': it is a link that leads to itself; name another file")
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write '{path}': there is no folder '{path.parent}'; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write '{path}': the folder '{folder}' may not be written into; choose another")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"'{path}' is a device, a pipe or a socket, and not replaced; name a file")
    if (path.exists() or path.is_symlink()) and not overwrite:
        raise _exists(path)


def check_can_be_made(folder: Path) -> None:
    """Find out before the work is done whether ``folder``, which may be there, can be made.

    Raises:
        NotADirectoryError: if there is a file in its way.
        PermissionError: if what it would be made in may not be written into.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"'{above}' is a file, and no folder can be made of it; name another one")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder '{above}' may not be written into; choose another")


def write_file(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write ``content`` under a name of its own beside ``path``, onto the disk, and then give it that name.

    Without ``overwrite`` nothing is ever replaced, though another process may write the same file at the same time. A
    file that is replaced lends its permissions. A symbolic link stays one: the file that it leads to is written.

    Raises:
        OSError: as ``check_writable`` does, or what the system says (a full disk, no permission).
    """
    check_writable(path, overwrite=overwrite)
    target = os.path.realpath(path)
    temporary = None
    try:
        name = os.path.join(os.path.dirname(target), f".ddim-ode-{secrets.token_hex(8)}.tmp")
        mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else None
        with open(name, "xb", opener=partial(os.open, mode=0o666 if mode is None else mode & 0o600)) as file:
            temporary = name
            if mode is not None:
                os.chmod(name, mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:
            _place(temporary, target)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise OSError(error.errno, f"cannot write '{path}': {error.strerror}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _place(temporary: str, target: str) -> None:
    """Give the file the name ``target``, which nothing may have yet."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        # A file system without links: take the name first, then put the file in its place.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, target)


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(
        f"'{path}' exists already; choose another name, or ask for it with --overwrite (overwrite=True)"
    )
