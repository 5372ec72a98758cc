"""Reading and writing files: only ordinary ones, whole or not at all, and never instead of something else."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from pathlib import Path

# In bytes, on all common file systems.
_LONGEST_NAME = 255


def reason(error: Exception) -> str:
    """What ``error``, which a wrong content has provoked, says, in a line; of a KeyError what is missing."""
    said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
    return " ".join(said.split()) or type(error).__name__


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
    except OSError as reason:
        raise error(f"cannot read the {kind} '{path}': {reason.strerror}") from reason


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


def write_file(path: Path, content: bytes, *, overwrite: bool = False) -> None:
    """Write ``content`` under a name of its own beside ``path``, onto the disk, and then give it that name.

    Without ``overwrite`` nothing is ever replaced, though another process may write the same file at the same time. A
    symbolic link stays one: the file that it leads to is written.

    Raises:
        OSError: as ``check_writable`` does, or what the system says (a full disk, no permission).
    """
    check_writable(path, overwrite=overwrite)
    target = os.path.realpath(path)
    temporary = None
    try:
        name = os.path.join(os.path.dirname(target), f".ddim-ode-{secrets.token_hex(8)}.tmp")
        with open(name, "xb") as file:
            temporary = name
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
