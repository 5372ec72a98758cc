"""Data sets: every latent is there once, is the one that a session gives alone, and what is done is not done again."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import check_latents, counts, draw, rows
from PIL import Image

from ddim_ode import Request, Session, encode_dataset, load_dataset
from ddim_ode.images import ImageFileError
from ddim_ode.session.dataset import sources
from ddim_ode.session.dataset.encoder import Job, ShardEncoder, open_for
from ddim_ode.session.dataset.manifest import MANIFEST
from ddim_ode.session.dataset.run import Summary
from ddim_ode.session.dataset.shards import Head, Shard, list_shards
from ddim_ode.training import data
from ddim_ode.training.data import DataError
from ddim_ode.work import WorkError

REQUEST = Request(solver="heun", steps=2)
Encode = Callable[..., Summary]


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.iterdir())}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for seed in range(5):
        draw(tmp_path / "pictures" / ("sub" if seed % 2 else "") / f"p{seed}.png", seed)
    return tmp_path / "pictures"


@pytest.fixture
def opener(tiny_model: Path) -> partial[Session]:
    return partial(Session, tiny_model, device="cpu", batch_size=2)


@pytest.fixture
def encode(pictures: Path, tmp_path: Path, opener: partial[Session]) -> Encode:
    """Encode the pictures in this process, two in a shard."""
    return partial(encode_dataset, pictures, tmp_path / "out", opener, REQUEST, shard_size=2, workers=0)


@pytest.fixture
def mortal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> partial[Session]:
    """A model whose network may kill its process."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    monkeypatch.setenv("FATAL", str(tmp_path / "fatal"))
    return partial(Session, "killed_networks:make", device="cpu")


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return Session(tiny_model, device="cpu")


def test_each_latent_is_there_once_and_the_one_of_its_picture(
    encode: Encode, pictures: Path, tmp_path: Path, session: Session
) -> None:
    done = encode()
    assert counts(done) == (5, 5, 0, 0, 0)
    assert done.failure() is None
    found = load_dataset(tmp_path / "out")
    assert found.names == ("p0.png", "p2.png", "p4.png", "sub/p1.png", "sub/p3.png")
    assert len(list_shards(tmp_path / "out")) == 3
    check_latents(tmp_path / "out", pictures, session, REQUEST)
    assert session.decode(found["p4.png"]).image.shape == (3, 8, 8)


def test_a_reversible_solver_keeps_its_companion(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    """Bit for bit, where each picture is a batch by itself."""
    request = Request(solver="reversible-heun", steps=2)
    opener = encode.args[2]
    encode_dataset(pictures, tmp_path / "out", partial(opener, batch_size=1), request, workers=0)
    alone = opener().encode(pictures / "p0.png", solver="reversible-heun", steps=2)
    latent = load_dataset(tmp_path / "out")["p0.png"]
    assert torch.equal(latent.x_T, alone.x_T)
    assert alone.companion is not None
    assert latent.companion is not None
    assert torch.equal(latent.companion, alone.companion)


def test_a_second_run_does_nothing_and_loads_no_model(
    encode: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode()
    before = files(tmp_path / "out")
    monkeypatch.setattr(ShardEncoder, "__init__", lambda *arguments: pytest.fail("a model is loaded"))
    assert counts(encode()) == (5, 0, 5, 0, 0)
    assert files(tmp_path / "out") == before


def test_added_changed_and_missing_pictures(encode: Encode, pictures: Path, tmp_path: Path, session: Session) -> None:
    encode()
    before, first = files(tmp_path / "out"), load_dataset(tmp_path / "out")["p4.png"].x_T
    draw(pictures / "p1.png", 11)
    assert counts(encode()) == (6, 1, 5, 0, 0)
    after = files(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if name != MANIFEST)
    check_latents(tmp_path / "out", pictures, session, REQUEST)
    draw(pictures / "p4.png", 14)
    (pictures / "p0.png").unlink()
    assert counts(encode()) == (5, 1, 4, 0, 0)
    found = load_dataset(tmp_path / "out")
    assert sorted(found.names) == ["p1.png", "p2.png", "p4.png", "sub/p1.png", "sub/p3.png"]
    assert not torch.equal(found["p4.png"].x_T, first)
    draw(pictures / "p4.png", 4)
    assert counts(encode()) == (5, 0, 5, 0, 0)
    assert torch.equal(load_dataset(tmp_path / "out")["p4.png"].x_T, first)


def test_the_same_picture_twice_is_encoded_once(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    shutil.copy(pictures / "p0.png", pictures / "p01.png")
    shutil.copy(pictures / "p2.png", pictures / "z.png")
    assert counts(encode()) == (7, 5, 0, 2, 0)
    found = load_dataset(tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 5
    assert len(found) == 7
    for one, other in (("p0.png", "p01.png"), ("p2.png", "z.png")):
        assert torch.equal(found[one].x_T, found[other].x_T)
    assert found["z.png"].source.name == "z.png"


def test_what_cannot_be_encoded_is_listed_with_the_reason(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    (pictures / "p1.png").write_bytes(b"no picture")
    (pictures / "p3.png").symlink_to("nowhere")
    Image.fromarray(np.full((9, 9), np.nan, dtype=np.float32)).save(pictures / "nan.tif")
    done = encode()
    assert counts(done) == (8, 5, 0, 0, 3)
    assert "3 of 8 pictures have no latent" in str(done.failure())
    failed = load_dataset(tmp_path / "out").failed
    assert sorted(failed) == ["nan.tif", "p1.png", "p3.png"]
    assert failed["p1.png"] == "'p1.png' is not a picture that Pillow can open"
    assert "not finite" in failed["nan.tif"]
    assert "does not exist" in failed["p3.png"]
    before = files(tmp_path / "out")
    assert counts(encode()) == (8, 0, 5, 0, 3)
    assert files(tmp_path / "out") == before
    with pytest.raises(WorkError, match=r"no latent of 'p1.png'.*not a picture"):
        load_dataset(tmp_path / "out")["p1.png"]


@pytest.mark.parametrize("size", [1, 2])
def test_a_picture_that_changes_meanwhile_is_tried_another_time(
    encode: Encode, pictures: Path, tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    original, first = ShardEncoder.encode_shard, (pictures / "p0.png").read_bytes()

    def changing(encoder: ShardEncoder, jobs: Sequence[Job]) -> Head:
        draw(pictures / "p0.png", 20)
        return original(encoder, jobs)

    monkeypatch.setattr(ShardEncoder, "encode_shard", changing)
    done = encode(shard_size=size)
    assert counts(done) == (5, 4, 0, 0, 1)
    assert done.reason == "'p0.png' was changed while others were encoded; encode it again"
    monkeypatch.undo()
    (pictures / "p0.png").write_bytes(first)
    assert counts(encode(shard_size=size)) == (5, 1, 4, 0, 0)
    check_latents(tmp_path / "out", pictures, session, REQUEST)


def test_pictures_in_a_zip_a_tar_and_a_list(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    encode()
    found = load_dataset(tmp_path / "out")
    names = found.names
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive, tarfile.open(tmp_path / "p.tar", "w") as tar:
        for name in names:
            archive.write(pictures / name, name)
            tar.add(pictures / name, name)
        tar.addfile(tarfile.TarInfo("notes.txt"), io.BytesIO())
    for compress in (gzip, bz2, lzma):
        (tmp_path / f"p.tar.{compress.__name__}").write_bytes(compress.compress((tmp_path / "p.tar").read_bytes()))
    (tmp_path / "p.txt").write_text("\n".join(f"pictures/{name}" for name in names))
    archives = ("p.zip", "p.tar", "p.tar.gzip", "p.tar.bz2", "p.tar.lzma")
    for source, prefix in (*((name, "") for name in archives), ("p.txt", "pictures/")):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        assert counts(encode_dataset(tmp_path / source, tmp_path / "other", *encode.args[2:], workers=0)) == (
            5,
            5,
            0,
            0,
            0,
        )
        other = load_dataset(tmp_path / "other")
        assert sorted(other.names) == sorted(prefix + name for name in names)
        torch.testing.assert_close(other[f"{prefix}p0.png"].x_T, found["p0.png"].x_T, rtol=1e-6, atol=1e-6)
        assert set(rows(tmp_path / "other")) == set(rows(tmp_path / "out"))


def test_a_picture_of_a_compressed_tar_file_goes_to_another_process(pictures: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as tar:
        tar.add(pictures, "")
    sent = pickle.dumps([*sources.open_pictures(tmp_path / "p.tgz").entries()])
    there = sources.open_pictures(tmp_path / "p.tgz")
    read = {entry.name: there.read(entry) for entry in reversed(pickle.loads(sent))}
    assert read == {str(path.relative_to(pictures)): path.read_bytes() for path in pictures.rglob("*.png")}


def test_compressed_tar_files_that_are_damaged(
    encode: Encode, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever that is; and those in several parts are whole."""
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as tar:
        tar.add(pictures, "p")
    run = partial(encode_dataset, tmp_path / "p.tgz", tmp_path / "out", *encode.args[2:], workers=0)
    content = (tmp_path / "p.tgz").read_bytes()
    for size in range(len(content) - 1, 20, -29):
        (tmp_path / "p.tgz").write_bytes(content[:size])
        with pytest.raises(DataError, match=r"^cannot read the tar file '.*p.tgz': "):
            list(sources.open_pictures(tmp_path / "p.tgz").entries())
    for place in range(20, len(content), 29):
        (tmp_path / "p.tgz").write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        with pytest.raises(DataError, match=r"^cannot read the tar file '.*p.tgz': "):
            list(sources.open_pictures(tmp_path / "p.tgz").entries())
    (tmp_path / "p.tgz").write_bytes(content)
    whole = [*sources.open_pictures(tmp_path / "p.tgz").entries()]
    for compress in (gzip, bz2, lzma):
        parts = [gzip.decompress(content)[:3000], gzip.decompress(content)[3000:]]
        (tmp_path / "parts").write_bytes(b"".join(map(compress.compress, parts)))
        assert [*sources.open_pictures(tmp_path / "parts").entries()] == whole
    most = (pictures / "p0.png").stat().st_size
    monkeypatch.setattr(data, "_LARGEST_MEMBER", most - 1)
    done = run()
    assert done.failed > 0
    assert f"it is {most} bytes long, and no picture is as large" in str(done.reason)


def test_a_file_in_a_tar_file_that_claims_to_be_huge(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    """Is one that cannot be read, and takes no memory."""
    with tarfile.open(tmp_path / "p.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(pictures / "p0.png", "p0.png")
        huge = tarfile.TarInfo("huge.png")
        huge.size = 1 << 50
        tar.fileobj.write(huge.tobuf(tarfile.GNU_FORMAT))  # type: ignore[union-attr]
    archive = sources.open_pictures(tmp_path / "p.tar")
    entries = archive.entries()
    assert next(entries).name == "p0.png"
    with closing(archive), pytest.raises(ImageFileError, match=r"'huge\.png': it is 1125899906842624 bytes long"):
        archive.read(next(entries))


def test_a_tar_file_that_ends_in_a_zip_file_is_a_tar_file(pictures: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as inner:
        inner.write(pictures / "p0.png", "inner.png")
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        tar.add(pictures / "p0.png", "outer.png")
        tar.add(tmp_path / "z.npz", "z.npz")
    assert zipfile.is_zipfile(tmp_path / "p.tar")
    with closing(sources.open_pictures(tmp_path / "p.tar")) as archive:
        assert [entry.name for entry in archive.entries()] == ["outer.png"]


def test_a_list_may_begin_with_the_mark_of_its_encoding(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("pictures/p0.png\n", encoding="utf-8-sig")
    assert [entry.name for entry in sources.open_pictures(tmp_path / "list.txt").entries()] == ["pictures/p0.png"]


def test_one_name_in_a_zip_file_that_is_no_text_loses_no_other(encode: Encode, pictures: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("a.png", "\u00e9.png"):
            archive.write(pictures / "p0.png", name)
    content = (tmp_path / "p.zip").read_bytes()
    place = content.index("\u00e9".encode())
    (tmp_path / "p.zip").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    done = encode_dataset(tmp_path / "p.zip", tmp_path / "out", *encode.args[2:], workers=0)
    assert counts(done)[:2] == (2, 1)
    assert "'\u00e9.png'" in str(done.reason)


def test_tar_files_that_are_damaged(pictures: Path, tmp_path: Path) -> None:
    """In a header that is not the first, which tarfile takes for the end."""
    with tarfile.open(tmp_path / "p.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(pictures, "p")
    content = (tmp_path / "p.tar").read_bytes()
    headers = [match.start() for match in re.finditer(rb"p/[a-z0-9/]*\.png\0", content)]
    assert len(headers) > 2
    for place in headers[1:]:
        (tmp_path / "p.tar").write_bytes(content[:place] + b"q" + content[place + 1 :])
        with (
            closing(sources.open_pictures(tmp_path / "p.tar")) as damaged,
            pytest.raises(DataError, match="what follows the last of its files is damaged"),
        ):
            list(damaged.entries())
    end = content[: len(content.rstrip(b"\0")) // 512 * 512 + 512]  # as some programs leave it
    (tmp_path / "p.tar").write_bytes(end)
    with closing(sources.open_pictures(tmp_path / "p.tar")) as whole:
        assert len([*whole.entries()]) == len(headers)


def test_an_interrupted_run_is_resumed(
    encode: Encode, pictures: Path, tmp_path: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was interrupted after two shards, and killed while it wrote the manifest and a shard."""
    original, done = ShardEncoder.encode_shard, list[object]()

    def interrupted(encoder: ShardEncoder, jobs: Sequence[Job]) -> Head:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(jobs)
        return original(encoder, jobs)

    monkeypatch.setattr(ShardEncoder, "encode_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode()
    monkeypatch.undo()
    manifest = tmp_path / "out" / MANIFEST
    assert len(load_dataset(tmp_path / "out")) == 4
    manifest.write_bytes(manifest.read_bytes()[:-70])
    (tmp_path / "out" / ".ddim-ode-killed.tmp").write_bytes(b"part")
    assert len(load_dataset(tmp_path / "out")) == 3
    assert counts(encode()) == (5, 1, 4, 0, 0)
    check_latents(tmp_path / "out", pictures, session, REQUEST)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("lost", [MANIFEST, "shard"])
def test_what_is_deleted_is_done_again(encode: Encode, tmp_path: Path, lost: str) -> None:
    encode()
    before = rows(tmp_path / "out")
    path = tmp_path / "out" / MANIFEST if lost == MANIFEST else list_shards(tmp_path / "out")[0]
    held = 0 if lost == MANIFEST else len(Shard(path).head.rows)
    path.unlink()
    assert counts(encode()) == (5, held, 5 - held, 0, 0)
    assert sorted(rows(tmp_path / "out")) == sorted(before)
    assert len(load_dataset(tmp_path / "out")) == 5


@pytest.mark.parametrize("content", [b"", b"cut", bytes(2000), b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_shard_is_named(encode: Encode, tmp_path: Path, content: bytes) -> None:
    encode()
    path = list_shards(tmp_path / "out")[0]
    path.write_bytes(content)
    with pytest.raises(WorkError, match=f"{path.name}' is damaged: .*; delete it, and that part of the work is done"):
        encode()
    with pytest.raises(WorkError, match=f"{path.name}' is damaged"):
        list(load_dataset(tmp_path / "out"))


@pytest.mark.parametrize("line", [b"no json", b"[]", b"{}", b'{"name": 3, "identity": null, "reason": "x"}', b"\xff"])
def test_a_damaged_manifest_is_named(encode: Encode, tmp_path: Path, line: bytes) -> None:
    encode()
    path = tmp_path / "out" / MANIFEST
    path.write_bytes(path.read_bytes() + line + b"\n")
    for read in (encode, lambda: load_dataset(tmp_path / "out")):
        with pytest.raises(WorkError, match=r"manifest.jsonl' is damaged: line 6 is none of a manifest; delete it"):
            read()


def test_a_manifest_of_another_data_set_is_found_out(encode: Encode, tmp_path: Path) -> None:
    encode()
    path = tmp_path / "out" / MANIFEST
    first = json.loads(path.read_text().splitlines()[0])
    path.write_text(json.dumps(first | {"identity": "0" * 64}) + "\n")
    with pytest.raises(WorkError, match=r"manifest of .* is damaged: shard 'shard-.*' holds no 'p0.png'"):
        list(load_dataset(tmp_path / "out"))


def test_other_settings_need_another_folder(
    encode: Encode, pictures: Path, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    encode()
    before = files(tmp_path / "out")
    with pytest.raises(WorkError, match=r"of other settings \(model '.*', heun, 2 steps on .*, no class\); name anot"):
        encode_dataset(pictures, tmp_path / "out", encode.args[2], Request(solver="heun", steps=3), workers=0)
    other = partial(Session, make_model(seed=1), device="cpu")
    with pytest.raises(WorkError, match="of other settings"):
        encode_dataset(pictures, tmp_path / "out", other, REQUEST, workers=0)
    assert files(tmp_path / "out") == before


def test_sources_that_are_none(encode: Encode, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.tar.gz").write_bytes(b"\x1f\x8b" + bytes(20))
    (tmp_path / "a.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    for name, words in (
        ("nowhere", "there is no folder or file"),
        ("empty", "there are no pictures in"),
        ("a.tar.gz", "cannot read the tar file '.*': Unknown compression method"),
        ("a.tar.zst", "is compressed with zstd, which is not read here; uncompress it first"),
        ("bytes", "neither a folder, a zip or tar file"),
    ):
        with pytest.raises(DataError, match=words):
            encode_dataset(tmp_path / name, tmp_path / "out", *encode.args[2:], workers=0)
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="shard_size must be from 1"):
        encode(shard_size=0)
    with pytest.raises(ValueError, match="workers must be at least 0"):
        encode(workers=-1)
    with pytest.raises(WorkError, match="is no data set"):
        load_dataset(tmp_path)


def test_processes_that_are_killed(pictures: Path, tmp_path: Path, mortal: partial[Session]) -> None:
    """One is killed at its work, and replaced; another shard kills each that takes it up, and is given up."""
    (tmp_path / "fatal").touch()
    Image.new("RGB", (12, 10), "white").save(pictures / "white.png")
    run = partial(encode_dataset, pictures, tmp_path / "out", mortal, REQUEST, shard_size=1, workers=2)
    done = run()
    assert not (tmp_path / "fatal").exists()
    assert counts(done) == (6, 5, 0, 0, 1)
    assert done.reason == "its process died with signal 9, 3 times"
    assert list(load_dataset(tmp_path / "out").failed) == ["white.png"]
    check_latents(tmp_path / "out", pictures, mortal(), REQUEST)
    (pictures / "white.png").unlink()
    assert counts(run()) == (5, 0, 5, 0, 0)


def test_a_shard_that_fails_is_tried_three_times(
    pictures: Path, tmp_path: Path, mortal: partial[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a device has no memory left; the others of the shard are lost with it until the next run."""
    monkeypatch.setenv("OUT_OF_MEMORY", "1")
    Image.new("RGB", (12, 10), "black").save(pictures / "sub" / "zblack.png")
    run = partial(encode_dataset, pictures, tmp_path / "out", mortal, REQUEST, shard_size=2)
    done = run()
    assert counts(done) == (6, 4, 0, 0, 2)
    assert done.reason == "no memory left, 3 times"
    monkeypatch.delenv("OUT_OF_MEMORY")
    assert counts(run()) == (6, 2, 4, 0, 0)
    check_latents(tmp_path / "out", pictures, mortal(), REQUEST)


def test_a_device_that_fails_takes_no_other_shards_with_it(
    pictures: Path, tmp_path: Path, mortal: partial[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU that met an illegal access: whatever its process asks of it later fails too, and another must go on."""
    monkeypatch.setenv("BROKEN", "1")
    Image.new("RGB", (12, 10), "black").save(pictures / "ablack.png")
    done = encode_dataset(pictures, tmp_path / "out", mortal, REQUEST, shard_size=1)
    assert counts(done) == (6, 5, 0, 0, 1)
    assert done.reason == "its process died with exit status 1, 3 times"
    check_latents(tmp_path / "out", pictures, mortal(), REQUEST)


def test_processes_that_never_begin(pictures: Path, tmp_path: Path, mortal: partial[Session]) -> None:
    with pytest.raises(RuntimeError, match="3 processes died with signal 9"):
        encode_dataset(pictures, tmp_path / "out", partial(Session, "killed_networks:die"), REQUEST, workers=2)
    assert not (tmp_path / "out").exists()


def test_a_process_says_what_is_wrong(pictures: Path, tmp_path: Path, opener: partial[Session]) -> None:
    with pytest.raises(ValueError, match=r"solver 'heun' takes .*network evaluations"):
        encode_dataset(pictures, tmp_path / "out", partial(opener, max_nfe=1), REQUEST)
    assert not (tmp_path / "out").exists()


def test_networks_of_other_dtypes_make_other_latents(pictures: Path, tmp_path: Path, tiny_model: Path) -> None:
    encode_dataset(pictures, tmp_path / "out", partial(Session, tiny_model, device="cpu"), REQUEST, workers=0)
    half = partial(Session, tiny_model, device="cpu", dtype="bfloat16")
    with pytest.raises(WorkError, match="of other settings"):
        encode_dataset(pictures, tmp_path / "out", half, REQUEST, workers=0)


def test_a_model_in_memory_encodes_in_this_process(pictures: Path, tmp_path: Path, tiny_model: Path) -> None:
    model = Session(tiny_model, device="cpu").model
    done = encode_dataset(pictures, tmp_path / "out", partial(Session, model), REQUEST, workers=0)
    assert counts(done) == (5, 5, 0, 0, 0)


def test_guidance_of_a_pipeline_is_its_models_wherever_a_data_set_asks_for_it() -> None:
    def opened(asked: object) -> Any:
        model = SimpleNamespace(asked=asked)
        return SimpleNamespace(model=model, asked_for=lambda guidance: f"the same with {guidance}")

    wished = Request(steps=2, guidance=5.0)
    assert open_for(lambda: opened({"prompt": ""}), wished) == ("the same with 5.0", Request(steps=2))
    plain, pipeline = opened(None), opened({"prompt": ""})
    assert open_for(lambda: plain, wished) == (plain, wished)
    assert open_for(lambda: pipeline, REQUEST) == (pipeline, REQUEST)
