"""What a run remembers of every picture: on disk, so that memory does not grow with their number."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from operator import itemgetter

# What is looked up in memory; beyond it, a look takes a read of a file.
_CACHE_KIB = 16384
# As many are written together, in their order, which is many times faster than one by one.
_TOGETHER = 4096


class Ledger:
    """Values by keys, which are hashes; in a file without a name, which is gone with the process.

    Raises:
        OSError: by its methods, if there is no room for it among temporary files.
    """

    def __init__(self) -> None:
        self._new: dict[bytes, int | str] = {}
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._table.execute("CREATE TABLE ledger (key BLOB PRIMARY KEY, value) WITHOUT ROWID")
        # Nothing of it is ever to be found again, so nothing is ever committed.
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("BEGIN")
        self._cursor = self._table.cursor()

    def get(self, key: bytes) -> int | str | None:
        """The value of ``key``; None if it has none."""
        value = self._new.get(key)
        if value is not None:
            return value
        try:
            found = self._cursor.execute("SELECT value FROM ledger WHERE key = ?", (key,)).fetchone()
        except sqlite3.OperationalError as error:
            raise _no_room(error) from error
        return None if found is None else found[0]

    def put(self, items: Iterable[tuple[bytes, int | str]]) -> None:
        """Take in keys with their values, in the place of older ones."""
        for key, value in items:
            self._new[key] = value
            if len(self._new) == _TOGETHER:
                self._write()

    def __len__(self) -> int:
        self._write()
        count: int = self._table.execute("SELECT COUNT(*) FROM ledger").fetchone()[0]
        return count

    def _write(self) -> None:
        rows = sorted(self._new.items(), key=itemgetter(0))
        try:
            self._cursor.executemany("INSERT OR REPLACE INTO ledger VALUES (?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise _no_room(error) from error
        self._new.clear()

    def close(self) -> None:
        """Forget it all."""
        self._table.close()


def _no_room(error: Exception) -> OSError:
    return OSError(f"what is done cannot be remembered in a temporary file: {error}; say where: TMPDIR")
