"""Inputs are made ahead by threads, in their order, and what fails says so where it stands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddim_ode import Latent, Session
from ddim_ode.console import Failures, Writer
from ddim_ode.session.batches import each
from ddim_ode.spaces import AutoencoderSpace, PixelSpace


def refuse_threes(item: int) -> int:
    if item % 3 == 0:
        raise ValueError(f"{item} is divisible by three")
    return item * 10


@pytest.mark.parametrize("ahead", [0, 1, 4, 100])
def test_order_numbers_and_reports_are_the_same_however_many_are_made_ahead(ahead: int) -> None:
    failures: list[Exception] = []
    found = list(each(range(1, 8), refuse_threes, failures.append, ahead=ahead))
    assert found == [(0, 10), (1, 20), (3, 40), (4, 50), (6, 70)]
    assert [str(error) for error in failures] == ["3 is divisible by three", "6 is divisible by three"]
    with pytest.raises(ValueError, match="3 is divisible"):
        list(each(range(1, 8), refuse_threes, None, ahead=ahead))


@pytest.mark.parametrize("ahead", [0, 4])
def test_inputs_that_end_with_an_error_give_first_what_came_before(ahead: int) -> None:
    def inputs() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("the disk is gone")

    found = each(inputs(), str, None, ahead=ahead)
    assert [next(found), next(found)] == [(0, "1"), (1, "2")]
    with pytest.raises(OSError, match="the disk is gone"):
        next(found)


def test_the_next_are_made_while_the_caller_is_at_work() -> None:
    """But no more of them than were asked for; and the inputs are taken by the caller's own thread."""
    taken, made = [], [threading.Event() for _ in range(20)]

    def inputs() -> Iterator[int]:
        for i in range(20):
            taken.append(threading.current_thread())
            yield i

    def make(i: int) -> threading.Thread:
        made[i].set()
        return threading.current_thread()

    work = each(inputs(), make, None, ahead=5)
    _, maker = next(work)
    assert all(event.wait(10) for event in made[1:6])
    assert len(taken) == 6
    assert maker is not threading.current_thread()
    assert set(taken) == {threading.current_thread()}


def test_threads_that_make_things_end_with_their_caller() -> None:
    before = threading.active_count()
    work = each(range(100), str, None, ahead=5)
    next(work)
    work.close()
    assert threading.active_count() == before


def test_pictures_are_read_ahead_but_not_where_that_takes_a_network(tiny_model: Path) -> None:
    assert PixelSpace.beside
    assert not AutoencoderSpace.beside
    readers = set[threading.Thread]()

    class Watching(bytes):
        def __len__(self) -> int:
            readers.add(threading.current_thread())
            return super().__len__()

    session = Session(tiny_model, batch_size=2)
    failed: list[Exception] = []
    list(session.encode_all([Watching(b"no picture")], on_error=failed.append))
    assert len(failed) == 1
    assert readers
    assert threading.current_thread() not in readers


def test_files_are_written_beside_the_work_and_told_of_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def save(self, path: Path, *, overwrite: bool) -> None:
            begun.set()
            assert go_on.wait(10)
            path.write_text("slow")

    class Quick:
        def save(self, path: Path, *, overwrite: bool) -> None:
            path.write_text("quick")

    class Wrong:
        def save(self, path: Path, *, overwrite: bool) -> None:
            raise OSError("no room")

    failures = Failures()
    with Writer(failures) as writer:
        for i, result in enumerate([Slow(), Wrong(), Quick()]):
            writer.write(result, tmp_path / "new" / f"{i}", f"file {i}", overwrite=False)  # type: ignore[arg-type]
        assert begun.wait(10)
        go_on.set()  # which is reached only if nobody waits for the file
    told = capsys.readouterr()
    assert told.out.splitlines() == ["file 0", "file 2"]
    assert told.err.splitlines() == ["Error: no room"]
    assert failures.count == 1
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["0", "2"]


def test_what_waits_to_be_written_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddim_ode.console._MOST_WAITING", 3)
    alive, most = 0, 0

    class Counted:
        def save(self, path: Path, *, overwrite: bool) -> None:
            nonlocal alive
            alive -= 1

    with Writer(Failures()) as writer:
        for _ in range(50):
            alive += 1
            writer.write(Counted(), tmp_path / "a", "written", overwrite=False)  # type: ignore[arg-type]
            most = max(most, alive)
    assert most <= 5
    assert alive == 0


def test_latents_are_loaded_ahead(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddim_ode.session import session as module

    session = Session(tiny_model, batch_size=2)
    (sample,) = session.sample(1, steps=1)
    sample.picture.save(tmp_path / "a.png")
    session.encode(tmp_path / "a.png", steps=1).save(tmp_path / "a.latent.pt")
    readers = set[threading.Thread]()
    load = module.load_latent

    def watched(source: str | Path | bytes) -> Latent:
        readers.add(threading.current_thread())
        return load(source)

    monkeypatch.setattr(module, "load_latent", watched)
    assert len(list(session.decode_all([tmp_path / "a.latent.pt"]))) == 1
    assert threading.current_thread() not in readers
