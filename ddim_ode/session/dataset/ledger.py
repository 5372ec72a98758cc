"""What a run remembers of every picture: on disk, so that memory does not grow with their number."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# Of all that is remembered, what is looked up from memory; beyond it, a look takes a read of a file.
_CACHE_KIB = 16384


class Ledger:
    """Values by keys, which are hashes; in a file without a name, which is gone with the process.

    Raises:
        OSError: by its methods, if there is no room for it among temporary files.
    """

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._table.execute("CREATE TABLE ledger (key BLOB PRIMARY KEY, value) WITHOUT ROWID")
        # Nothing of it is ever to be found again, so nothing is ever committed.
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("BEGIN")

    def get(self, key: bytes) -> int | str | None:
        """The value of ``key``; None if it has none."""
        with _in_a_line():
            found = self._table.execute("SELECT value FROM ledger WHERE key = ?", (key,)).fetchone()
        return None if found is None else found[0]

    def put(self, items: Iterable[tuple[bytes, int | str]]) -> None:
        """Take in keys with their values, in the place of older ones."""
        with _in_a_line():
            self._table.executemany("INSERT OR REPLACE INTO ledger VALUES (?, ?)", items)

    def __len__(self) -> int:
        count: int = self._table.execute("SELECT COUNT(*) FROM ledger").fetchone()[0]
        return count

    def close(self) -> None:
        """Forget it all."""
        self._table.close()


@contextmanager
def _in_a_line() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(f"what is done cannot be remembered in a temporary file: {error}; say where: TMPDIR") from error
