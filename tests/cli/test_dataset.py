"""Data sets from the command line: made, gone on with, looked at, taken from and decoded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image

from ddim_ode import load_dataset, load_latent
from ddim_ode.session.dataset.formats import FORMATS

Cli = Callable[..., Result]
OPTIONS = ("-o", "out", "--steps", "2", "--solver", "euler", "--workers", "0")


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


def made(folder: str) -> list[str]:
    """All files in ``folder``, at any depth."""
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture
def pictures(picture: Path, tmp_path: Path) -> Path:
    """A folder with two pictures that are the same, one of them in a folder of its own."""
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "pictures" / name).write_bytes(picture.read_bytes())
    return tmp_path / "pictures"


def test_a_data_set_is_made_and_gone_on_with(cli: Cli, pictures: Path) -> None:
    assert "2 pictures -> out (1 encoded, 0 were there, 1 the same as others, 0 failed;" in ok(
        cli("dataset", pictures, *OPTIONS)
    )
    assert "2 pictures -> out (0 encoded, 2 were there," in ok(cli("dataset", pictures, *OPTIONS))
    (pictures / "c.png").write_bytes(b"none")
    result = cli("dataset", pictures, *OPTIONS)
    assert result.exit_code == 1
    assert "3 pictures -> out (0 encoded, 2 were there, 0 the same as others, 1 failed;" in result.stdout
    assert result.stderr == (
        "Error: 1 of 3 pictures have no latent, and 'out/manifest.jsonl' says why; the first: 'c.png' is not a picture "
        "that Pillow can open\n"
    )


def test_other_settings_are_refused_in_a_line(cli: Cli, pictures: Path) -> None:
    ok(cli("dataset", pictures, *OPTIONS))
    result = cli("dataset", pictures, *OPTIONS, "--steps", "3")
    assert result.exit_code == 1
    assert "'out' holds latents of other settings (model " in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_is_in_it_is_said_taken_out_and_decoded(cli: Cli, pictures: Path, tiny_model: Path) -> None:
    ok(cli("dataset", pictures, *OPTIONS))
    said = ok(cli("info", "out"))
    assert (
        "data set 'out'\n  pictures   2, 0 of them without a latent\n  latents    1 in 1 shards, safetensors\n" in said
    )
    assert "euler" in said
    assert ok(cli("take", "out", "sub/b.png")) == "sub/b.png -> sub/b.latent.pt\n"
    assert load_latent(Path("sub/b.latent.pt")).source.name == "sub/b.png"
    ok(cli("take", "out", "a.png", "-o", "mine.pt"))
    ok(cli("decode", "mine.pt"))
    ok(cli("decode", "out", "-o", "decoded"))
    assert made("decoded") == ["a.decoded.png", "sub/b.decoded.png"]
    result = cli("take", "out", "nowhere.png")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "there is no picture 'nowhere.png' in 'out'; there are 2, such as 'a.png', 'sub/b.png'" in result.stderr


def test_a_process_of_its_own_is_told_all_options(cli: Cli, pictures: Path) -> None:
    ok(cli("dataset", pictures, *OPTIONS[:-2], "--clean-end", "sigma-min", "--shard-size", "1", "--device", "cpu"))
    (latent, _) = load_dataset("out")
    assert (latent.solver["name"], latent.grid.steps, latent.grid.clean_end) == ("euler", 2, "sigma-min")


def test_pictures_of_the_same_name_stay_apart(cli: Cli, picture: Path, tmp_path: Path) -> None:
    """In other folders, with other endings, and named by a list from above it and by absolute paths."""
    names = (
        "sub/a.png",
        "other/a.png",
        "c.png",
        "c.jpg",
        "c.jpg.png",
        "../above/a.png",
        str(tmp_path / "far" / "a.png"),
    )
    (tmp_path / "lists").mkdir()
    for name in names:
        (tmp_path / "lists" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lists" / name).write_bytes(picture.read_bytes())
    (tmp_path / "lists" / "all.txt").write_text("\n".join(names))
    ok(cli("dataset", "lists/all.txt", *OPTIONS))
    stems = ["c.jpg", "c.jpg.png", "c.png", "other/a", "sub/a", "up/above/a", str(tmp_path.relative_to("/") / "far/a")]
    ok(cli("decode", "out", "-o", "decoded"))
    assert made("decoded") == sorted(f"{stem}.decoded.png" for stem in stems)
    ok(cli("take", "out", *names, "-o", "taken"))
    assert made("taken") == sorted(f"{stem}.latent.pt" for stem in stems)
    assert load_latent(Path("taken/sub/a.latent.pt")).source.name == "sub/a.png"
    assert "7 of 7 files exist already" in ok(cli("decode", "out", "-o", "decoded", "--skip-existing"))
    assert "'decoded/c.png.decoded.png' exists already" in cli("decode", "out", "-o", "decoded").stderr


def test_a_data_set_of_one_picture_is_decoded_into_a_folder(cli: Cli, pictures: Path) -> None:
    (pictures / "a.png").unlink()
    ok(cli("dataset", pictures, *OPTIONS, "--format", "webdataset"))
    ok(cli("decode", "out", "-o", "new/"))
    assert made("new") == ["sub/b.decoded.png"]
    ok(cli("take", "out", "sub/b.png", "-o", "new"))
    assert made("new") == ["sub/b.decoded.png", "sub/b.latent.pt"]
    result = cli("decode", "out", "-o", "photo.png")
    assert (result.exit_code, result.stderr) == (1, "Error: 'photo.png' is a file; name a folder for several inputs\n")


def test_formats_and_the_check_from_the_command_line(cli: Cli, pictures: Path) -> None:
    said = ok(cli("dataset", pictures, *OPTIONS, "--format", "parquet", "--check"))
    assert re.fullmatch(
        r"2 pictures -> out \(1 encoded, .*\); 1 decoded: MSE \S+ on \[0, 1\] \(median\), \S+ at most, of 'a.png'\n",
        said,
    )
    assert "1 in 1 shards, parquet\n" in ok(cli("info", "out"))
    assert "(0 encoded, 2 were there" in ok(cli("dataset", pictures, *OPTIONS))
    result = cli("dataset", pictures, *OPTIONS, "--format", "webdataset")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "'out' holds shards in the format 'parquet', not 'webdataset'" in result.stderr
    for name in FORMATS:
        assert cli("dataset", pictures, *OPTIONS[2:], "-o", f"in-{name}", "--format", name).exit_code == 0
    assert cli("dataset", pictures, *OPTIONS, "--format", "zip").exit_code == 2


def test_a_data_set_without_latents_is_not_decoded(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "none.png").write_bytes(b"none")
    assert cli("dataset", "pictures", *OPTIONS, "--check").stdout.endswith("; none decoded\n")
    result = cli("decode", "out")
    assert result.stderr == "Error: there are no latents in 'out'; 'manifest.jsonl' in it says why\n"
    result = cli("take", "out", "none.png")
    assert result.stderr.startswith("Error: there is no latent of 'none.png' in 'out': 'none.png' is not a picture")


def test_a_damaged_shard_loses_no_other(cli: Cli, pictures: Path) -> None:
    with Image.open(pictures / "a.png") as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(pictures / "c.png")
    ok(cli("dataset", pictures, *OPTIONS, "--shard-size", "1"))
    found = load_dataset("out")
    line = next(line for line in Path("out", "manifest.jsonl").read_text().splitlines() if '"c.png"' in line)
    shard = Path("out", json.loads(line)["shard"])
    shard.write_bytes(shard.read_bytes()[:-100])
    result = cli("decode", "out", "-o", "decoded")
    assert result.exit_code == 1
    assert f"{shard.name}' is damaged" in result.stderr
    assert result.stderr.count("\n") == 1
    assert made("decoded") == ["a.decoded.png", "sub/b.decoded.png"]
    assert len(found) == 3
