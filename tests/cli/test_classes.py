"""Classes on the command line: asked for, told of, trained, exported."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from refusals import SMALL

from ddim_ode.calibration import load_calibration
from ddim_ode.conditions import UNCONDITIONAL, Condition
from ddim_ode.latents import load_latent
from ddim_ode.models import load_model

Cli = Callable[..., Result]


def read_settings(path: Path) -> dict[str, object]:
    with Image.open(path) as picture:
        return json.loads(picture.text["ddim-ode"])


def size_of(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


def refused(result: Result, words: str, *, status: int = 1) -> None:
    assert result.exit_code == status, result.output
    assert re.search(words, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_encode_as_one_class_and_decode_as_another(cli: Cli, picture: Path, class_model: Path) -> None:
    model = ("--model", class_model)
    output = ok(cli("encode", picture, "--class", "horse", "--steps", "4", *model))
    assert "class 'horse' with guidance 1" in output
    assert load_latent(Path("photo.latent.pt")).condition == Condition(2)
    assert "condition  class 'horse' with guidance 1" in ok(cli("info", "photo.latent.pt"))
    assert "class 'horse' with guidance 1" in ok(cli("decode", "photo.latent.pt", *model))
    output = ok(cli("decode", "photo.latent.pt", "--class", "1", "--guidance", "2", "--overwrite", *model))
    assert "class 'dog' with guidance 2, 8 network calls an image" in output
    settings = read_settings(Path("photo.decoded.png"))
    assert (settings["class"], settings["guidance"]) == ("dog", 2.0)
    assert "class" not in ok(cli("decode", "photo.latent.pt", "--class", "none", "--overwrite", *model))
    refused(cli("decode", "photo.latent.pt", "--overwrite"), "encoded with model|takes")
    new = ("encode", picture, "-o", "new.pt")
    refused(cli(*new, "--class", "cow", *model), "knows no class 'cow'; it knows: 0 cat, 1 dog, 2 horse, and 'none'")
    refused(cli(*new, "--guidance", "2", *model), "must be towards a class; name one, or leave it out", status=2)
    refused(cli(*new, "--class", "cat"), "it knows: no classes at all")


def test_encoding_with_guidance_says_what_it_loses(cli: Cli, picture: Path, class_model: Path) -> None:
    options = ("--class", "cat", "--guidance", "3", "--steps", "4", "--solver", "euler", "--model", class_model)
    result = cli("encode", picture, *options)
    assert "class 'cat' with guidance 3, 8 network calls an image" in ok(result)
    assert re.search(
        r"^Warning: guidance 3 makes encoding unsure: 'photo.png' comes back with an MSE of \S+ on \[0, 1\]",
        result.stderr,
    )
    assert "class 'cat' with guidance 3" in ok(cli("reconstruct", picture, *options))


def test_a_sheet_with_a_row_for_each_class(cli: Cli, class_model: Path) -> None:
    model = ("--model", class_model, "--steps", "2")
    output = ok(cli("sample", "-n", "2", "--class", "all", *model))
    assert "6 images from seed 0" in output
    assert read_settings(Path("samples.png"))["classes"] == ["cat", "dog", "horse"]
    width, height = size_of("samples.png")
    assert width < height
    output = ok(cli("sample", "-n", "4", "--class", "dog", "--guidance", "2", "--overwrite", *model))
    assert "4 images from seed 0 -> samples.png" in output
    width, height = size_of("samples.png")
    assert width == height
    output = ok(cli("sample", "-n", "1", "--class", "dog", "--class", "none", "--guidance", "2", "--overwrite", *model))
    assert "2 images from seed 0" in output


def test_interpolate_between_classes(cli: Cli, class_model: Path) -> None:
    seeds = ("--seed", "1", "--seed", "1", "-n", "3", "--steps", "2", "--model", class_model)
    output = ok(cli("interpolate", *seeds, "--class", "cat", "--class", "horse"))
    assert "class 'cat' with guidance 1 to class 'horse' with guidance 1, 4 network calls an image at most" in output
    assert "class 'dog' with guidance 2" in ok(
        cli("interpolate", *seeds, "--class", "dog", "--guidance", "2", "--overwrite")
    )
    refused(
        cli("interpolate", *seeds, *("--class", "cat") * 3, "--overwrite"),
        "one class, or one for each of 2, but there are 3",
    )


def test_edit(cli: Cli, picture: Path, class_model: Path) -> None:
    options = ("--steps", "3", "--model", class_model)
    output = ok(cli("edit", picture, "--from", "cat", "--to", "dog", "--guidance", "3", *options))
    assert re.search(r"photo.png: strength 0.7: comes back with MSE \S+ on \[0, 1\], encode dpmpp3m, 3 steps", output)
    assert "photo.png from class 'cat' with guidance 1 to class 'dog' with guidance 3 -> " in output
    settings = read_settings(Path("photo.edit.png"))
    assert settings["strengths"] == [0.7]
    three = size_of("photo.edit.png")[0]
    strengths = ("--strength", "0.9", "--strength", "0.2")
    output = ok(cli("edit", picture, "--to", "dog", *strengths, "-o", "strip.png", *options))
    assert output.index("strength 0.2") < output.index("strength 0.9")
    assert "from no class to class 'dog' with guidance 1 -> strip.png" in output
    assert size_of("strip.png")[0] > three
    refused(cli("edit", picture, "--to", "dog", *options), "photo.edit.png' exists")
    refused(cli("edit", picture, "--to", "dog", "-o", picture, "--overwrite", *options), "is an input too")
    refused(cli("edit", picture, "--to", "cow", "-o", "new.png", *options), "knows no class 'cow'")
    refused(
        cli("edit", picture, "--to", "dog", "--strength", "2", "-o", "new.png", *options),
        r"the strength must be from 0\.001, a timestep, to 1, but it is 2",
        status=2,
    )
    assert not Path("new.png").exists()


def test_export(cli: Cli, class_model: Path) -> None:
    assert "of class 'dog' with guidance 1 -> twin" in ok(cli("export", class_model, "--class", "dog", "-o", "twin"))
    assert load_model("twin").classes == ()
    refused(cli("export", class_model, "-o", "twin"), "'twin' exists and is not an empty folder")
    refused(cli("export", class_model, "--class", "cow", "-o", "other"), "knows no class 'cow'")
    assert not Path("other").exists()


def test_calibrate_for_a_guidance_beside_another(cli: Cli, class_model: Path) -> None:
    """What the file holds for other guidances stays."""
    Path("pictures").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (80 * i, 100, 200)).save(f"pictures/{i}.png")
    common = (
        "calibrate",
        "--model",
        class_model,
        "--images",
        "pictures",
        "--steps",
        "2",
        "--latents",
        "4",
        "-o",
        "c.json",
    )
    guided = ("--class", "cat", "--guidance", "2")
    ok(cli(*common, "--work", "plain"))
    refused(cli(*common, *guided, "--work", "guided"), "'c.json' exists")
    ok(cli(*common, *guided, "--work", "guided", "--overwrite"))
    refused(cli(*common, "--work", "guided", "--overwrite"), "holds the work for another condition")
    model = load_model(str(class_model))
    found = load_calibration(Path("c.json"), model.fingerprint, model.schedule)
    assert [(entry.grid.steps, entry.guidance) for entry in found.entries] == [(2, 2.0), (2, 1.0)]
    assert found.settings["2 at guidance 2.0"]["condition"] == "class 'cat' with guidance 2"
    assert found.settings["2"]["condition"] == str(UNCONDITIONAL)
    assert found.entries[0].scores != found.entries[1].scores
    ok(cli(*common, "--work", "plain", "--overwrite"))
    again = load_calibration(Path("c.json"), model.fingerprint, model.schedule)
    assert again.entries == found.entries[::-1]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Pictures in two folders, and the configuration of a small network."""
    for name, colour in (("day", "white"), ("night", "navy")):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(tmp_path / "pictures" / name / "1.png")
    (tmp_path / "unet.json").write_text(json.dumps(SMALL))
    return tmp_path


def test_train_on_classes_and_go_on_from_there(cli: Cli, folders: Path) -> None:
    """A run with classes, its preview with a row for each; resumed; and another that begins with its weights."""
    run = ("train", "pictures", "--cpu", "--batch-size", "2", "--steps", "2")
    ok(cli(*run, "-o", "model", "--unet", "unet.json", "--classes"))
    model = load_model("model")
    assert model.classes == ("day", "night")
    width, height = size_of("model/samples.png")
    assert width > 3 * height
    ok(cli("train", "pictures", "--cpu", "-o", "model", "--resume", "--steps", "3", "--classes"))
    assert load_model("model").fingerprint != model.fingerprint
    ok(cli(*run, "-o", "plain", "--init", "model"))
    assert load_model("plain").classes == ()
    ok(cli(*run, "-o", "more", "--init", "plain", "--classes", "--label-dropout", "0.5"))
    assert load_model("more").classes == ("day", "night")
    card = Path("more/README.md").read_text()
    assert "begun from | plain, weights" in card
    assert "which 50% of the images have" in card
    refused(cli(*run, "-o", "new", "--init", "model", "--unet", "unet.json"), "brings its network with it", status=2)
    refused(cli(*run, "-o", "model", "--resume", "--init", "model"), "--init is for a new run", status=2)
    refused(cli(*run, "-o", "new", "--init", "model", "--prediction", "epsilon"), "has prediction 'v_prediction', not")
    refused(cli(*run, "-o", "plain", "--resume", "--classes"), "the run to resume has no classes")
    refused(cli(*run, "-o", "new", "--label-dropout", "0.1"), "there are none; pass --classes", status=2)
    assert not Path("new").exists()
