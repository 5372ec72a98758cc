"""What is read from folders and zip files to train on, and what is refused."""

from __future__ import annotations

import io
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddim_ode.images import load_image
from ddim_ode.training import data as data_module
from ddim_ode.training.data import DataError, TrainingImages, describe_skipped, read_training_images


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(folder.rglob("*")):
            file.write(member, member.relative_to(folder))
    return path


@pytest.mark.parametrize("size", [8, 5])
def test_folder_and_zip_hold_what_load_image_reads(pictures: Path, size: int) -> None:
    paths = sorted(pictures.rglob("*.png"))
    expected = torch.cat([load_image(path, 3, size, size)[0] for path in paths])
    for source in (pictures, zipped(pictures)):
        data = read_training_images(source, 3, size, size)
        assert data.name == source.name
        assert data.files == tuple(str(path.relative_to(pictures)) for path in paths)
        assert data.skipped == ()
        images = data.images(torch.arange(10), torch.zeros(10, dtype=torch.bool))
        assert images.dtype == torch.float32
        assert (images - expected).abs().max() <= 0.5 / 127.5 + 1e-6


def test_flips_mirror_only_where_asked(pictures: Path) -> None:
    data = read_training_images(pictures, 3, 8, 8)
    plain = data.images(torch.tensor([3, 3]), torch.tensor([False, False]))
    mixed = data.images(torch.tensor([3, 3]), torch.tensor([False, True]))
    assert mixed[0].equal(plain[0])
    assert mixed[1].equal(plain[1].flip(-1))
    assert not mixed[1].equal(plain[1])


def test_unreadable_pictures_are_skipped_counted_and_named(pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    (pictures / "empty.jpg").touch()
    (pictures / "notes.txt").write_text("not meant to be one")
    for source in (pictures, zipped(pictures)):
        data = read_training_images(source, 3, 8, 8, skip_unreadable=True)
        assert len(data.pixels) == 10
        line, others = data.warnings()
        assert line.startswith("2 unreadable pictures of 12 were skipped: 'broken.png' is not a picture")
        assert "'empty.jpg' is empty" in line
        assert others == f"1 other files in '{source.name}' are no pictures by their names, and left out"
        with pytest.raises(
            DataError, match=r"2 unreadable pictures of 12 .*; more than one in a thousand, so mend them"
        ):
            read_training_images(source, 3, 8, 8)


def test_of_many_skipped_pictures_the_first_are_named() -> None:
    line = describe_skipped(tuple(f"picture {i}" for i in range(8)), 100)
    assert "picture 4; and 3 more" in line
    assert "picture 5" not in line


def test_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="there are no pictures in"):
        read_training_images(tmp_path, 3, 8, 8)
    with pytest.raises(DataError, match="there is no folder or zip file"):
        read_training_images(tmp_path / "nothing", 3, 8, 8)
    with pytest.raises(DataError, match="neither a folder nor a zip"):
        read_training_images(tmp_path / "notes.txt", 3, 8, 8)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"none of the 1 files .* can be read; the first one: 'broken.png'"):
        read_training_images(tmp_path, 3, 8, 8)


def test_small_pictures_are_refused(pictures: Path) -> None:
    Image.new("RGB", (20, 7)).save(pictures / "low.png")
    Image.new("RGB", (7, 20)).save(pictures / "narrow.png")
    message = r"2 pictures .* are smaller than the model's 8 x 8 pixels: 'low.png' \(20 x 7\); 'narrow.png' \(7 x 20\);"
    with pytest.raises(DataError, match=message):
        read_training_images(pictures, 3, 8, 8)


def test_a_damaged_member_of_a_zip_is_skipped(pictures: Path) -> None:
    path = pictures.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (("a.png", (pictures / "a" / "0.png").read_bytes()), ("b.png", b"x" * 1000)):
            file.writestr(name, content)
        begin = file.getinfo("b.png").header_offset + 30 + len("b.png")
    whole = bytearray(path.read_bytes())
    whole[begin : begin + 4] = b"\xff" * 4
    path.write_bytes(whole)
    data = read_training_images(path, 3, 8, 8, skip_unreadable=True)
    assert data.files == ("a.png",)
    assert data.skipped[0].startswith("cannot read 'b.png'")


def test_a_folder_has_its_own_name_wherever_one_stands(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    assert read_training_images(Path(), 3, 8, 8).name == "pictures"


def test_the_digest_tells_other_pictures_apart(pictures: Path) -> None:
    digest = read_training_images(pictures, 3, 8, 8).digest
    assert read_training_images(pictures, 3, 8, 8).digest == digest
    Image.new("RGB", (8, 8)).save(pictures / "a" / "0.png")
    assert read_training_images(pictures, 3, 8, 8).digest != digest


def test_grey_models_read_luminance(pictures: Path) -> None:
    data = read_training_images(pictures, 1, 8, 8)
    assert isinstance(data, TrainingImages)
    assert data.pixels.shape == (10, 1, 8, 8)


@pytest.mark.parametrize("suffix", [".ppm", ".jfif", ".JPG", ".bmp", ".gif", ".webp", ".tif", ".jp2"])
def test_whatever_pillow_opens_is_read(tmp_path: Path, suffix: str) -> None:
    kind = Image.registered_extensions()[suffix.lower()]
    Image.new("RGB", (8, 8), "red").save(tmp_path / f"a{suffix}", format=kind)
    data = read_training_images(tmp_path, 3, 8, 8)
    assert (data.files, data.warnings()) == ((f"a{suffix}",), [])


def test_folders_that_are_links_are_entered_but_once(pictures: Path) -> None:
    other = pictures.parent / "other"
    other.mkdir()
    Image.new("RGB", (8, 8)).save(other / "c.png")
    (pictures / "link").symlink_to(other)
    (other / "back").symlink_to(pictures)
    assert "link/c.png" in read_training_images(pictures, 3, 8, 8).files
    assert len(read_training_images(pictures, 3, 8, 8).files) == 11


def test_a_pipe_among_the_pictures_is_no_picture(pictures: Path) -> None:
    os.mkfifo(pictures / "pipe.png")
    data = read_training_images(pictures, 3, 8, 8, skip_unreadable=True)
    assert "pipe.png' is no ordinary file" in data.skipped[0]


def test_many_threads_read_one_zip_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its pictures, each as it is; of one ZipFile that is not to be expected without care."""
    path = tmp_path / "many.zip"
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(2000):
            content = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(content, format="PNG")
            file.writestr(f"{i:04}.png", content.getvalue())
    one = read_training_images(path, 3, 8, 8)
    monkeypatch.setattr(data_module, "ThreadPoolExecutor", lambda: ThreadPoolExecutor(max_workers=16))
    many = read_training_images(path, 3, 8, 8)
    assert len(many.files) == 2000
    assert many.pixels.equal(one.pixels)


def test_a_member_that_is_said_to_be_huge_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb.png", b"0" * 100_000)
        content = io.BytesIO()
        Image.new("RGB", (8, 8)).save(content, format="PNG")
        file.writestr("good.png", content.getvalue())
    monkeypatch.setattr(data_module, "_LARGEST_MEMBER", 50_000)
    data = read_training_images(path, 3, 8, 8, skip_unreadable=True)
    assert data.files == ("good.png",)
    assert data.skipped == ("cannot read 'bomb.png': it is 100000 bytes long, and no picture is as large",)


def test_the_folder_of_a_picture_is_its_class(tmp_path: Path) -> None:
    """The last folder on its way, in a folder or a zip file; in alphabetical order."""
    folder = tmp_path / "pictures"
    for name in ("train/dog/1.png", "train/cat/1.png", "test/dog/2.png", "bird/7.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    for source in (folder, zipped(folder)):
        data = read_training_images(source, 3, 8, 8)
        assert data.classes == ("bird", "cat", "dog")
        assert [(Path(name).parent.name, data.classes[n]) for name, n in zip(data.files, data.labels, strict=True)] == [
            (name, name) for name in ("bird", "dog", "cat", "dog")
        ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a/1.png", "b/2.png", "3.png"), "'3.png' lies in no folder of 'pictures', and the folder is its class"),
        (("a/1.png", "a/2.png"), "two folders or more, .* of the pictures in 'pictures' are: a$"),
        (("a/1.png", "none/2.png"), "none of them called 'none', but those of the pictures in 'pictures' are: a, none"),
    ],
)
def test_folders_that_are_no_classes(tmp_path: Path, names: tuple[str, ...], words: str) -> None:
    for name in names:
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    data = read_training_images(tmp_path / "pictures", 3, 8, 8)
    with pytest.raises(DataError, match=words):
        _ = data.classes
