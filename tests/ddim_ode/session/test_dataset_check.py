"""The check of a data set: its errors are those of its latents, of a few that do not depend on the order."""

from __future__ import annotations

import tarfile
import weakref
import zipfile
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from ddim_ode import Request, Session, encode_dataset
from ddim_ode.session.dataset.check import Checked, check_dataset
from ddim_ode.session.dataset.manifest import read_lines
from ddim_ode.session.dataset.run import Summary
from ddim_ode.session.dataset.shards import Shard, list_shards
from ddim_ode.session.dataset.sources import open_pictures
from ddim_ode.solvers import SolverError

REQUEST = Request(solver="euler", steps=3)
COUNT = 9


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for seed in range(COUNT):
        pixels = np.random.default_rng(seed).integers(0, 200, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / ("sub" if seed % 2 else "") / f"p{seed}.png")
    return tmp_path / "pictures"


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return Session(tiny_model, device="cpu")


@pytest.fixture
def encode(tmp_path: Path, tiny_model: Path) -> partial[Summary]:
    opener = partial(Session, tiny_model, device="cpu")
    return partial(encode_dataset, output=tmp_path / "out", opener=opener, request=REQUEST, shard_size=4, workers=0)


def test_errors_are_those_of_reconstruct(encode: partial[Summary], pictures: Path, session: Session) -> None:
    (pictures / "none.png").write_bytes(b"none")
    checked = encode(pictures, check=16).checked
    assert checked is not None
    assert len(checked.errors) == COUNT
    for name, error in checked.errors.items():
        wanted = session.reconstruct(pictures / name, solver="euler", steps=3).mse
        assert error == pytest.approx(wanted, rel=1e-6)
    worst = max(checked.errors.items(), key=lambda item: item[1])
    assert checked.report() == (
        f"9 decoded: MSE {median(checked.errors.values()):.3g} on [0, 1] (median), {worst[1]:.3g} at most, "
        f"of '{worst[0]}'"
    )


def test_those_with_the_smallest_identities_whatever_the_source(
    encode: partial[Summary], pictures: Path, tmp_path: Path
) -> None:
    encode(pictures)
    lines = sorted(read_lines(tmp_path / "out"), key=lambda line: str(line.identity))
    names = {line.name for line in lines[:4]}
    every = [str(path.relative_to(pictures)) for path in sorted(pictures.rglob("*.png"))][::-1]
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive, tarfile.open(tmp_path / "p.tgz", "w:gz") as tar:
        for name in every:
            archive.write(pictures / name, name)
            tar.add(pictures / name, name)
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        tar.add(pictures, "")
    (pictures / "all.txt").write_text("\n".join(every))
    for source in (pictures, tmp_path / "p.zip", tmp_path / "p.tar", tmp_path / "p.tgz", pictures / "all.txt"):
        done = encode(source, check=4)
        assert (done.encoded, done.kept) == (0, COUNT)
        assert done.checked is not None
        assert set(done.checked.errors) == names


def test_the_same_picture_is_decoded_once(encode: partial[Summary], pictures: Path, tmp_path: Path) -> None:
    for path in sorted(pictures.glob("*.png")):
        (pictures / f"z{path.name}").write_bytes(path.read_bytes())
    checked = encode(pictures, check=16).checked
    assert checked is not None
    assert sorted(checked.errors) == sorted(f"{'sub/' if seed % 2 else ''}p{seed}.png" for seed in range(COUNT))


def test_what_cannot_be_compared_is_said(
    encode: partial[Summary], pictures: Path, tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = encode(pictures)
    assert done.failure() is None
    (pictures / "p0.png").write_bytes((pictures / "p2.png").read_bytes())
    (pictures / "p4.png").unlink()
    (pictures / "p4.png").symlink_to("nowhere")
    done.checked = check_dataset(tmp_path / "out", open_pictures(pictures), session)
    assert len(done.checked.errors) == COUNT - 2
    assert "'p0.png' was changed meanwhile, and is not compared" in done.checked.failed
    assert str(done.failure()).startswith("2 latents could not be checked; the first: 'p0.png' was changed")

    def failing(*arguments: object) -> None:
        raise SolverError("it has\nfailed")

    monkeypatch.setattr(type(session._worker), "decode", failing)
    checked = check_dataset(tmp_path / "out", open_pictures(pictures), session, 2)
    assert checked.report() == "none decoded"
    assert all(reason.endswith("': it has failed") or reason.startswith("'p") for reason in checked.failed)


def test_one_model_is_loaded_at_a_time(encode: partial[Summary], pictures: Path, tiny_model: Path) -> None:
    models = list[weakref.ref[object]]()

    def opener() -> Session:
        assert not any(model() for model in models)
        session = Session(tiny_model, device="cpu")
        models.append(weakref.ref(session.model))
        return session

    assert encode(pictures, opener=opener, check=1).checked is not None
    assert len(models) == 2


def test_a_latent_that_is_spoilt_shows(encode: partial[Summary], pictures: Path, tmp_path: Path) -> None:
    """What is decoded is what lies in the shards, not the pictures encoded again."""
    good = encode(pictures, check=16).checked
    shards = list_shards(tmp_path / "out")
    spoilt = {Shard(path).head.rows[-1].name for path in shards}
    for path in shards:
        path.write_bytes(path.read_bytes()[:-800] + bytes(800))
    bad = encode(pictures, check=16).checked
    assert isinstance(good, Checked)
    assert isinstance(bad, Checked)
    assert {name for name in good.errors if bad.errors[name] != pytest.approx(good.errors[name], rel=1e-6)} == spoilt


def test_a_wrong_number_is_refused(encode: partial[Summary], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="check must be at least 0, but it is -1"):
        encode(pictures, check=-1)
    assert not (tmp_path / "out").exists()
