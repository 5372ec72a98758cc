"""What is read from folders and zip files to train on, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddim_ode.images import load_image
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
        data = read_training_images(source, 3, 8, 8)
        assert len(data.pixels) == 10
        line = describe_skipped(data.skipped)
        assert line.startswith("2 unreadable pictures were skipped: 'broken.png' is not a picture")
        assert "'empty.jpg' is empty" in line


def test_of_many_skipped_pictures_the_first_are_named() -> None:
    line = describe_skipped(tuple(f"picture {i}" for i in range(8)))
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
    data = read_training_images(path, 3, 8, 8)
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
