"""Formats of shards: the same latents bit for bit in each, whole or not at all, and readable without us."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor

from ddim_ode import Request, Session, encode_dataset, load_dataset
from ddim_ode.images import FIT
from ddim_ode.session.dataset import formats
from ddim_ode.session.dataset.check import CHECKED
from ddim_ode.session.dataset.formats import DEFAULT_FORMAT, FORMATS
from ddim_ode.session.dataset.manifest import MANIFEST
from ddim_ode.session.dataset.shards import Failed, Head, Row, Shard, list_shards, shard_name, write_shard
from ddim_ode.work import WorkError

REQUEST = Request(solver="reversible-heun", steps=2)
# The last is no text: a name of bytes that are no character.
NAMES = ("a.b.png", "sub/b.png", "../\u00e4\n.png", "\udcff.png")
every_format = pytest.mark.parametrize("name", FORMATS)


def identity(number: int) -> str:
    return f"{number:064x}"


def make(folder: Path, name: str, *, count: int = len(NAMES), dtype: torch.dtype = torch.float64) -> Path:
    """A shard in the format ``name`` with ``count`` latents and one that failed."""
    folder.mkdir(exist_ok=True)
    rows = tuple(Row(identity(i), NAMES[i], (12 + i, 10), FIT, 5 + i) for i in range(count))
    failed = (Failed(identity(99), "'picture' is empty"), Failed(identity(98), "gone", again=True))
    head = Head(shard_name([identity(i) for i in range(count)], name), identity(7), rows, failed)
    write_shard(folder, head, *(part.to(dtype) for part in numbers(count)))
    return folder / head.name


def numbers(count: int = len(NAMES)) -> tuple[Tensor, Tensor]:
    x_T, companion = torch.randn(2, count, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x_T, companion


@every_format
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_written_is_read(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    shard = Shard(make(tmp_path, name, dtype=dtype))
    reference = Shard(make(tmp_path / "other", DEFAULT_FORMAT, dtype=dtype))
    assert shard.head.name == reference.head.name.replace(FORMATS[DEFAULT_FORMAT].suffix, FORMATS[name].suffix)
    assert (shard.head.key, shard.head.rows, shard.head.failed) == (
        reference.head.key,
        reference.head.rows,
        reference.head.failed,
    )
    for i in range(len(NAMES)):
        for found, wanted, made in zip(shard.tensors(i), reference.tensors(i), numbers(), strict=True):
            assert found is not None
            assert wanted is not None
            assert found.dtype == dtype
            assert torch.equal(found, wanted)
            assert torch.equal(found, made[i : i + 1].to(dtype))


@every_format
def test_shards_without_rows_or_companions(name: str, tmp_path: Path) -> None:
    empty = Shard(make(tmp_path, name, count=0))
    assert (len(empty.head.rows), len(empty.head.failed)) == (0, 2)
    write_shard(tmp_path, Shard(make(tmp_path, name)).head, numbers()[0], None)
    found, companion = Shard(make_path(tmp_path, name)).tensors(1)
    assert torch.equal(found, numbers()[0][1:2])
    assert companion is None


def make_path(folder: Path, name: str) -> Path:
    return folder / shard_name([identity(i) for i in range(len(NAMES))], name)


@every_format
def test_a_kill_leaves_a_shard_as_it_was(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path, name)
    before, head = path.read_bytes(), Shard(path).head

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, head, *numbers()[::-1])
    assert path.read_bytes() == before
    assert list_shards(tmp_path) == [path]


@every_format
def test_a_cut_off_shard_is_named(name: str, tmp_path: Path) -> None:
    """Wherever it ends; a tar file that lost nothing but its last zeros has lost nothing."""
    path = make(tmp_path, name)
    content = path.read_bytes()
    whole = -(-len(content.rstrip(b"\0")) // 512) * 512 if name == "webdataset" else len(content)
    for size in [*range(0, whole, whole // 150), *range(whole - 9, whole)]:
        path.write_bytes(content[:size])
        assert_damaged(path)


def assert_damaged(path: Path) -> None:
    with pytest.raises(WorkError, match=rf"^'.*{path.name}' is damaged: .*; delete it, and that part of .*$") as error:
        read_all(path)
    assert str(error.value).count("\n") == 0


def read_all(path: Path) -> list[tuple[Tensor, Tensor | None]]:
    shard = Shard(path)
    return [shard.tensors(row) for row in range(len(shard.head.rows))]


@every_format
def test_bytes_that_are_wrong(name: str, tmp_path: Path) -> None:
    """They are found, or what they are part of says something else, as a name may; nothing else comes of them."""
    path = make(tmp_path, name)
    content, errors = path.read_bytes(), list[str]()
    draw = np.random.default_rng(0)
    for start in (0, content.index(b"ddim-ode shard") - 300, len(content) - 3000):
        for place in draw.integers(start, min(start + 3000, len(content)), 100):
            wrong = bytearray(content)
            wrong[place] ^= int(draw.integers(1, 256))
            path.write_bytes(wrong)
            try:
                read_all(path)
            except WorkError as error:
                errors.append(str(error))
    assert len(errors) > 30
    assert all(path.name in error and "\n" not in error for error in errors)


@every_format
def test_a_shard_of_another_number_of_latents(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Shard(make(tmp_path, name)).head
    text = Head(head.name, head.key, head.rows[:2], head.failed).text()
    monkeypatch.setattr(Head, "text", lambda self: text)
    write_shard(tmp_path, head, *numbers())
    assert_damaged(tmp_path / head.name)


def test_a_name_that_is_none_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "shard-1.zip").touch()
    assert list_shards(tmp_path) == []
    with pytest.raises(ValueError, match=r"must end in one of: .safetensors, .tar, .parquet; but it is 'shard-1.zip'"):
        Shard(tmp_path / "shard-1.zip")


# Without us.


def samples(path: Path) -> Iterator[dict[str, bytes]]:
    """What the rule of webdataset makes of a tar file: https://github.com/webdataset/webdataset."""
    found: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if not (member.name.startswith("__") and member.name.endswith("__")):
                key, _, kind = member.name.partition(".")
                found.setdefault(key, {})[kind] = tar.extractfile(member).read()  # type: ignore[union-attr]
    yield from found.values()


# It leaves the file to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_tar_file_is_read_by_webdataset(tmp_path: Path) -> None:
    path = make(tmp_path, "webdataset")
    read = [*webdataset.WebDataset(str(path), shardshuffle=False).decode()]
    assert [sample["__key__"] for sample in read] == [identity(i) for i in range(len(NAMES))]
    assert {*read[0]} == {"__key__", "__url__", "__local_path__", "x_t.npy", "companion.npy", "json"}
    for i, (sample, other) in enumerate(zip(read, samples(path), strict=True)):
        for name, made in zip(("x_T", "companion"), numbers(), strict=True):
            assert np.array_equal(sample[f"{name.lower()}.npy"], made[i].numpy())
            assert np.array_equal(np.load(BytesIO(other[f"{name}.npy"])), made[i].numpy())
        assert sample["json"] == {"name": NAMES[i], "size": [12 + i, 10], "fit": FIT, "nfe": 5 + i}
        assert json.loads(other["json"]) == sample["json"]


def test_a_parquet_file_is_read_by_pyarrow(tmp_path: Path) -> None:
    path = make(tmp_path, "parquet")
    table = pq.read_table(path)
    columns = ["identity", "name", "width", "height", "fit", "nfe", "x_T", "companion"]
    assert table.column_names == columns
    said = [table[name].to_pylist() for name in columns[:6]]
    for i, row in enumerate(zip(*said, strict=True)):
        assert row == (identity(i), NAMES[i].replace("\udcff", "\\udcff"), 12 + i, 10, FIT, 5 + i)
    shape = json.loads(table.schema.metadata[b"shape"])
    for name, made in zip(("x_T", "companion"), numbers(), strict=True):
        read = np.array(table[name].to_pylist()).reshape(-1, *shape)
        assert np.array_equal(read, made.numpy())
    group = pq.ParquetFile(path).read_row_group(2, columns=["x_T"])
    assert np.array_equal(np.array(group["x_T"].to_pylist()).reshape(shape), numbers()[0][2].numpy())


# Data sets.


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 200, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"p{seed}.png")
    return tmp_path / "pictures"


@pytest.fixture
def run(tiny_model: Path, pictures: Path, tmp_path: Path) -> partial[object]:
    """Encode the pictures in this process, one in a batch, so that a latent is the same whatever is beside it."""
    opener = partial(Session, tiny_model, device="cpu", batch_size=1)
    return partial(encode_dataset, pictures, tmp_path / "out", opener, REQUEST, shard_size=2, workers=0)


@every_format
def test_a_data_set_is_the_same_in_each_format(
    name: str, run: partial[object], pictures: Path, tmp_path: Path, tiny_model: Path
) -> None:
    (pictures / "none.png").write_bytes(b"none")
    first, *others = run.args
    encode_dataset(first, tmp_path / "reference", *others[1:], shard_size=2, workers=0)
    run(format=name)
    found, reference = load_dataset(tmp_path / "out"), load_dataset(tmp_path / "reference")
    assert {path.suffix for path in list_shards(tmp_path / "out")} == {FORMATS[name].suffix}
    assert f" shards, {name}\n" in found.summary()
    assert found.failed == reference.failed
    assert found.names == reference.names == ("p0.png", "p1.png", "p2.png")
    for one, other in zip(found, reference, strict=True):
        assert torch.equal(one.x_T, other.x_T)
        assert one.companion is not None
        assert other.companion is not None
        assert torch.equal(one.companion, other.companion)
        assert (one.source, one.nfe, one.solver, one.grid) == (other.source, other.nfe, other.solver, other.grid)
    session = Session(tiny_model, device="cpu")
    decoded = session.decode(found["p1.png"])
    assert torch.equal(decoded.image, session.decode(reference["p1.png"]).image)


@every_format
def test_a_data_set_goes_on_in_its_format(name: str, run: partial[object], pictures: Path, tmp_path: Path) -> None:
    run(format=name)
    before = {path: path.read_bytes() for path in list_shards(tmp_path / "out")}
    (tmp_path / "out" / MANIFEST).unlink()
    done = run()
    assert (done.encoded, done.kept) == (0, 3)
    (pictures / "p0.png").rename(tmp_path / "p0.png")
    Image.new("RGB", (12, 10), "red").save(pictures / "p3.png")
    done = run(format=name)
    assert (done.encoded, done.kept) == (1, 2)
    after = list_shards(tmp_path / "out")
    assert len(after) == len(before) + 1
    assert {path.suffix for path in after} == {FORMATS[name].suffix}
    assert all(path.read_bytes() == content for path, content in before.items())
    other = next(other for other in FORMATS if other != name)
    with pytest.raises(WorkError, match=rf"holds shards in the format '{name}', not '{other}'; go on in that, or name"):
        run(format=other)
    assert list_shards(tmp_path / "out") == after


def test_a_data_set_that_does_not_say_its_format_is_of_the_first(run: partial[object], tmp_path: Path) -> None:
    """As all were before there were others."""
    run()
    home = tmp_path / "out" / "dataset.json"
    content = json.loads(home.read_text())
    assert content.pop("shards") == DEFAULT_FORMAT
    home.write_text(json.dumps(content))
    assert run().kept == 3
    assert len(load_dataset(tmp_path / "out")) == 3
    for wrong in ("zip", [], None):
        home.write_text(json.dumps(content | {"shards": wrong}))
        with pytest.raises(WorkError, match=r"dataset.json' is damaged: its shards must be one of: parquet, safe"):
            run()


def test_formats_that_are_not_to_be_had(run: partial[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="unknown format 'zip'; choose one of: parquet, safetensors, webdataset"):
        run(format="zip")
    run(format="parquet")
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "pyarrow" else find_spec(name))
    words = r"^shards in '.parquet' files need pyarrow; install it with: pip install 'ddim-ode\[parquet\]'$"
    for read in (run, lambda: [*load_dataset(tmp_path / "out")]):
        with pytest.raises(ValueError, match=words):
            read()
    with pytest.raises(ValueError, match=words):
        encode_dataset(run.args[0], tmp_path / "new", *run.args[2:], workers=0, format="parquet")
    assert not (tmp_path / "new").exists()


def test_the_documentation_names_them_all() -> None:
    said = (Path(__file__).parents[3] / "docs" / "data-sets.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in said for name in FORMATS)
    assert all(f"`[{own.extra}]`" in said for own in FORMATS.values() if own.extra)
    assert f"`{DEFAULT_FORMAT}`, the default" in said
    assert f"`--check` {CHECKED} of" in said
