"""Inputs are made ahead by threads, in their order, and what fails says so where it stands."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from ddim_ode import Latent, Request, Session
from ddim_ode.console import Failures, Writer
from ddim_ode.session import jobs
from ddim_ode.session import session as module
from ddim_ode.session.batches import each
from ddim_ode.spaces import PixelSpace


def write_picture(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


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


def test_an_iterator_that_is_left_waits_for_no_thread() -> None:
    """The garbage collector may end it in a thread that holds the lock which the others need to end."""
    go_on = threading.Event()

    def make(item: int) -> int:
        return item if item == 0 or go_on.wait(10) else -1

    found = each(range(9), make, None, ahead=4)
    assert next(found) == (0, 0)
    begin = time.monotonic()
    found.close()
    assert time.monotonic() - begin < 5
    go_on.set()


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
    before = set(threading.enumerate())
    work = each(range(100), str, None, ahead=5)
    next(work)
    own = set(threading.enumerate()) - before
    assert own
    work.close()
    for thread in own:
        thread.join(10)
        assert not thread.is_alive()


def test_pictures_are_read_ahead_and_all_that_asks_the_model_is_not(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An autoencoder makes states of pixels, and a pipeline says where its nodes are: one thread alone may ask them."""
    asked: dict[str, set[threading.Thread]] = {}

    def watch(where: object, name: str) -> None:
        original = getattr(where, name)

        def watched(*arguments: object, **named: object) -> object:
            asked.setdefault(name, set()).add(threading.current_thread())
            return original(*arguments, **named)

        monkeypatch.setattr(where, name, watched)

    for where, name in (
        (PixelSpace, "pixels"),
        (PixelSpace, "state"),
        (module, "plan_encoding"),
        (jobs, "load_latent"),
        (Latent, "check_fits"),
        (module, "plan_decoding"),
    ):
        watch(where, name)
    session = Session(tiny_model, batch_size=2)
    paths = [write_picture(tmp_path / f"{i}.png", seed=i) for i in range(5)]
    for i, encoded in enumerate(session.encode_all(paths, [Request(steps=1)] * 5)):
        encoded.latent.save(tmp_path / f"{i}.latent.pt")
    assert len(list(session.decode_all(sorted(tmp_path.glob("*.latent.pt"))))) == 5
    here = threading.current_thread()
    assert {name for name, threads in asked.items() if threads == {here}} == {
        "state",
        "plan_encoding",
        "check_fits",
        "plan_decoding",
    }
    assert all(here not in asked[name] for name in ("pixels", "load_latent"))


def test_a_picture_that_its_owner_changes_is_taken_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    """The frames of an animation are one picture of Pillow, which is moved on."""
    frames = [np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8) for seed in range(6)]
    first, *others = map(Image.fromarray, frames)
    first.save(tmp_path / "a.png", save_all=True, append_images=others)
    session = Session(tiny_model, batch_size=2)
    with Image.open(tmp_path / "a.png") as animation:
        found = [encoded.latent for encoded in session.encode_all(ImageSequence.Iterator(animation), Request(steps=1))]
    alone = [session.encode(Image.fromarray(frame), steps=1) for frame in frames]
    for one, other in zip(found, alone, strict=True):
        torch.testing.assert_close(one.x_T, other.x_T, rtol=1e-5, atol=1e-5)
    with Image.open(tmp_path / "a.png") as same:
        assert len(list(session.encode_all([same] * 4, Request(steps=1)))) == 4


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
