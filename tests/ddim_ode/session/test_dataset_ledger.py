"""What a run remembers of its pictures is right, and does not fill memory."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ddim_ode.session.dataset import manifest
from ddim_ode.session.dataset.ledger import Ledger
from ddim_ode.session.dataset.manifest import MANIFEST, Manifest
from ddim_ode.work import WorkError

ROOT = Path(__file__).parents[3]


def test_values_by_keys() -> None:
    with closing(Ledger()) as ledger:
        ledger.put((bytes([i]) * 32, i) for i in range(9))
        ledger.put([(b"\7" * 32, "cannot be read"), (b"\11" * 32, True)])
        assert len(ledger) == 10
        expected = [0, "cannot be read", 8, 1, None]
        assert [ledger.get(bytes([i]) * 32) for i in (0, 7, 8, 9, 10)] == expected
        ledger.put((i.to_bytes(32, "big"), i) for i in range(10_000))
        assert [ledger.get(i.to_bytes(32, "big")) for i in (0, 4095, 4096, 9999)] == [0, 4095, 4096, 9999]
        assert [ledger.get(bytes([i]) * 32) for i in (0, 7, 8, 9, 10)] == expected
        assert len(ledger) == 10_009


def test_no_room_is_said_in_a_line() -> None:
    with closing(Ledger()) as ledger:
        ledger._table.execute("PRAGMA max_page_count = 2")
        with pytest.raises(OSError, match=r"cannot be remembered in a temporary file: .*full; say where: TMPDIR"):
            ledger.put((i.to_bytes(32, "big"), "x" * 4000) for i in range(5000))


def test_a_damaged_manifest_leaves_none_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def ledger() -> Ledger:
        made.append(Ledger())
        return made[-1]

    monkeypatch.setattr(manifest, "Ledger", ledger)
    (tmp_path / MANIFEST).write_bytes(b"no json\n")
    with pytest.raises(WorkError, match="line 1 is none of a manifest"):
        Manifest(tmp_path)
    (only,) = made
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        only.get(b"")


def test_memory_does_not_grow_with_their_number() -> None:
    """A dictionary of as many would take 110 MiB, and a table in memory 28."""
    program = (
        "import hashlib, psutil; from ddim_ode.session.dataset.ledger import Ledger;"
        "taken = lambda: psutil.Process().memory_info().rss; ledger = Ledger(); before = taken();"
        "hashed = lambda i: hashlib.sha256(str(i).encode()).digest();"
        "ledger.put((hashed(i), i) for i in range(600_000)); print(ledger.get(hashed(599_999)), taken() - before)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    value, grown = map(int, run.stdout.split())
    assert value == 599_999
    assert grown < 22 * 2**20
