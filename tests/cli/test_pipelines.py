"""Pipelines from the command line: folders of them, prompts, and what latents remember of those."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from tiny_pipelines import build

from ddim_ode import load_latent, pipelines

Cli = Callable[..., Result]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion."""
    path = tmp_path_factory.mktemp("pipeline") / "sd"
    build("SD 1.5").save_pretrained(path)
    return path


def test_encode_and_decode_as_something_else(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    latent, quick = tmp_path / "a.latent.pt", ("--steps", "4", "--solver", "reversible-heun")
    made = cli("encode", picture, "--model", folder, "--prompt", "a cat", "--guidance", "3", *quick, "-o", latent)
    assert made.exit_code == 0, made.output
    asked = load_latent(latent).asked
    assert asked == {"prompt": "a cat", "negative_prompt": None, "guidance": 3.0, "guidance_kind": "cfg", "call": None}
    same, other = tmp_path / "same.png", tmp_path / "other.png"
    again = cli("decode", latent, "--model", folder, "-o", same)
    assert again.exit_code == 0, again.output
    assert "without the companion" not in again.output
    edited = cli("decode", latent, "--model", folder, "--prompt", "a dog", "-o", other)
    assert edited.exit_code == 0, edited.output
    assert "asked for 'a dog' with guidance 3.0, and encoded as 'a cat' with guidance 3.0" in edited.output
    assert same.read_bytes() != other.read_bytes()
    assert "asked      'a cat' with guidance 3.0" in cli("info", latent).output
    both = tmp_path / "b.latent.pt"
    cli("encode", picture, "--model", folder, "--prompt", "a dog", *quick, "-o", both)
    refused = cli("interpolate", latent, both, "--model", folder)
    assert refused.exit_code != 0
    assert "the latents were encoded as several things: 'a cat' with guidance 3.0; 'a dog'" in refused.output
    assert "say what to ask for: --prompt" in refused.output


def test_each_latent_is_decoded_as_itself(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    """In one command with others, of other prompts, guidance and sizes: what it is decoded to by itself."""
    model, quick = ("--model", folder), ("--steps", "2", "--solver", "euler")
    said = (("a cat", "3", "32"), ("a cat", "1", "32"), ("a dog", "2", "48x32"))
    latents = [tmp_path / f"{i}.latent.pt" for i in range(3)]
    for latent, (prompt, guidance, size) in zip(latents, said, strict=True):
        words = ("--prompt", prompt, "--guidance", guidance, "--size", size, *quick)
        assert cli("encode", picture, *model, *words, "-o", latent).exit_code == 0
    for i, more in enumerate(((), ("--prompt", "a cat"))):
        together, alone = tmp_path / f"together {i}", tmp_path / f"alone {i}"
        alone.mkdir()
        made = cli("decode", *latents, *model, *more, "-o", together)
        assert made.exit_code == 0, made.output
        assert len(made.output.splitlines()) == 3
        for latent in latents:
            assert cli("decode", latent, *model, *more, "-o", alone).exit_code == 0
            name = latent.name.replace(".latent.pt", ".decoded.png")
            assert settings_of(together / name) == settings_of(alone / name)
    found = [settings_of(tmp_path / "together 1" / f"{i}.decoded.png")["asked"] for i in range(3)]
    assert [(asked["prompt"], asked["guidance"]) for asked in found] == [("a cat", 3.0), ("a cat", 1.0), ("a cat", 2.0)]
    with Image.open(tmp_path / "together 0" / "2.decoded.png") as image:
        assert image.size == (32, 48)
    sized = cli("decode", latents[2], *model, "--size", "32", "-o", tmp_path / "sized.png")
    assert "is of a picture of 48x32 pixels, and pipeline" in sized.output
    assert "is asked for one of 32x32; ask it for 48x32" in sized.output
    between = cli("interpolate", *latents[1:], *model, "--prompt", "a cat")
    assert "latents of several sizes have nothing between them: '1.latent.pt' is 4x16x16 and '2" in between.output


def settings_of(path: Path) -> dict[str, Any]:
    with Image.open(path) as found:
        settings: dict[str, Any] = json.loads(found.text["ddim-ode"])
    return settings


def test_a_data_set_of_a_pipeline(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    pictures, options = (
        tmp_path / "pictures",
        ("--model", folder, "--prompt", "a cat", "--guidance", "3", "--steps", "2"),
    )
    pictures.mkdir()
    (pictures / "photo.png").write_bytes(picture.read_bytes())
    made = cli("dataset", pictures, *options, "-o", "out", "--workers", "0")
    assert made.exit_code == 0, made.output
    assert cli("take", "out", "photo.png", "-o", "a.pt").exit_code == 0
    cli("encode", picture, *options, "-o", "b.pt")
    found, alone = load_latent(Path("a.pt")), load_latent(Path("b.pt"))
    assert torch.equal(found.x_T, alone.x_T)
    assert (found.asked, found.embedding, found.fingerprints) == (alone.asked, alone.embedding, alone.fingerprints)
    decoded = cli("decode", "out", "--model", folder, "-o", "pictures")
    assert decoded.exit_code == 0, decoded.output
    other = cli("dataset", pictures, *options, "--prompt", "a dog", "-o", "out", "--workers", "0")
    assert "holds latents of other settings" in other.output


def test_reconstruct_says_whose_the_errors_are(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    found = cli("reconstruct", picture, "--model", folder, "--steps", "4", "-o", tmp_path / "pair.png")
    assert found.exit_code == 0, found.output
    assert re.search(r"the ODE alone: MSE \S+ in x_0 and PSNR \S+ dB against the autoencoder's own", found.output)
    assert "the autoencoder alone: PSNR" in found.output


def test_what_a_pipeline_is(cli: Cli, folder: Path) -> None:
    told = cli("info", folder)
    assert told.exit_code == 0, told.output
    for part in (f"model '{folder}'", "4 x 16 x 16", "predicts epsilon", "  vae        ", "text_encoder"):
        assert part in told.output


def test_samples_of_a_pipeline(cli: Cli, folder: Path, tmp_path: Path) -> None:
    made = cli("sample", "-n", "2", "--steps", "2", "--model", folder, "--prompt", "a cat", "-o", tmp_path / "two.png")
    assert made.exit_code == 0, made.output


def test_what_is_no_pipeline_has_no_prompt(cli: Cli, picture: Path, tiny_model: Path, tmp_path: Path) -> None:
    for model, prompt in ((tiny_model, "a cat"), (tiny_model, ""), (tmp_path / "missing", "a cat")):
        refused = cli("encode", picture, "--model", model, "--prompt", prompt)
        assert refused.exit_code != 0
        assert "Traceback" not in refused.output
        assert len(refused.output.strip().splitlines()) == 1


def test_a_damaged_pipeline_is_one_line(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "model_index.json").write_bytes((folder / "model_index.json").read_bytes())
    refused = cli("encode", picture, "--model", tmp_path / "damaged")
    assert refused.exit_code != 0
    assert "cannot load the pipeline" in refused.output
    assert len(refused.output.strip().splitlines()) == 1


@pytest.mark.parametrize("library", ["boom", "diffusers"])
def test_code_in_the_folder_of_a_pipeline_is_never_run(
    cli: Cli, picture: Path, folder: Path, tmp_path: Path, library: str
) -> None:
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    index = json.loads((own / "model_index.json").read_text())
    index["text_encoder"] = [library, "Boom"]
    (own / "model_index.json").write_text(json.dumps(index))
    (own / "text_encoder" / f"{library}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    refused = cli("encode", picture, "--model", own, "--prompt", "a cat")
    assert refused.exit_code == 1
    assert "comes with code of its own, " in refused.output
    assert len(refused.output.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_without_transformers_it_says_what_to_install(
    cli: Cli, picture: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines, "find_spec", lambda name: None)
    refused = cli("encode", picture, "--model", folder)
    assert refused.exit_code != 0
    assert "install it with: pip install 'ddim-ode[pipelines]'" in refused.output


def test_interpolation_between_pictures(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    latent, strip = tmp_path / "a.latent.pt", tmp_path / "strip.png"
    words = ("--model", folder, "--steps", "3", "--solver", "euler")
    assert cli("encode", picture, *words, "--prompt", "a cat", "--guidance", "2", "-o", latent).exit_code == 0
    made = cli("interpolate", picture, latent, "-n", "3", *words, "-o", strip)
    assert made.exit_code == 0, made.output
    assert "MSE of the ends" in made.output
    assert "asked for" not in made.output  # as the latent was


def test_a_guidance_that_is_no_number(cli: Cli, picture: Path, folder: Path) -> None:
    refused = cli("encode", picture, "--model", folder, "--prompt", "a cat", "--guidance", "nan")
    assert "guidance must be a finite number, but it is nan" in refused.output


def test_three_errors_of_a_latent(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    words = ("--model", folder, "--prompt", "a cat", "--steps", "3", "--solver", "euler")
    found = cli("encode", picture, *words, "--check", "-o", tmp_path / "a.latent.pt")
    assert found.exit_code == 0, found.output
    assert re.search(
        r"reconstruction MSE \S+; the ODE alone: MSE \S+ in x_0 .* the autoencoder alone: PSNR", found.output
    )
    guided = cli("encode", picture, *words, "--guidance", "5", "-o", tmp_path / "b.latent.pt")
    assert re.search(r"guidance 5 makes encoding unsure: '\S+' comes back with an MSE of", guided.output)


def test_an_edit_with_prompts(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    strip = tmp_path / "strip.png"
    words = ("--model", folder, "--steps", "2", "--from", "a cat", "--to", "a dog", "--guidance", "4")
    made = cli("edit", picture, *words, "--strength", "0.5", "-o", strip)
    assert made.exit_code == 0, made.output
    assert f"from 'a cat' with guidance 1.0 to 'a dog' with guidance 4.0 -> {strip}" in made.output
    with Image.open(strip) as found:
        settings = json.loads(found.text["ddim-ode"])
    assert (settings["asked"]["prompt"], settings["asked"]["guidance"]) == ("a dog", 4.0)
    of_none = cli("edit", picture, "--model", folder, "--steps", "2", "--to", "a dog", "-o", tmp_path / "none.png")
    assert "from '' with guidance 1.0 to 'a dog' with guidance 1.0" in of_none.output
    assert cli("edit", picture, "--model", folder, "--prompt", "a cat", "--to", "a dog").exit_code == 2
    assert "--prompt TEXT" not in cli("edit", "--help").output


def test_an_edit_with_a_pipeline_of_the_hub(
    cli: Cli, picture: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it is a pipeline only a size can say there."""
    names, local = list[str](), partial(pipelines.load_pipeline, str(folder))

    def fetched(name: str, **wishes: Any) -> Any:
        names.append(name)
        return local(**wishes)

    monkeypatch.setattr("ddim_ode.session.opening.load_pipeline", fetched)
    words = ("--model", "somebody/something", "--size", "32", "--steps", "2", "--to", "a dog")
    made = cli("edit", picture, *words, "-o", tmp_path / "strip.png")
    assert made.exit_code == 0, made.output
    assert names == ["somebody/something"]


def test_a_latent_without_its_prompt(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    latent, words = tmp_path / "a.latent.pt", ("--model", folder, "--steps", "2")
    made = cli("encode", picture, *words, "--prompt", "a secret", "--no-prompt", "-o", latent)
    assert made.exit_code == 0, made.output
    assert b"a secret" not in latent.read_bytes()
    assert "asked      a prompt that is left out with guidance 1.0" in cli("info", latent).output
    nowhere = cli("decode", latent, "--prompt", "a secret", "--model", "default")
    assert "and model 'default' is none; name the pipeline with --model" in nowhere.output
    refused = cli("decode", latent, "--model", folder)
    assert refused.exit_code != 0
    assert "'a.latent.pt': the latent does not say its prompt, which was left out of it; pass" in refused.output
    open_one = tmp_path / "b.latent.pt"
    assert cli("encode", picture, *words, "--prompt", "a cat", "-o", open_one).exit_code == 0
    others = cli("decode", latent, open_one, "--model", folder, "-o", tmp_path / "both")
    assert others.exit_code == 1
    assert "'a.latent.pt': the latent does not say its prompt" in others.output
    assert [path.name for path in (tmp_path / "both").iterdir()] == ["b.decoded.png"]
    known = cli("decode", latent, "--model", folder, "--prompt", "a secret", "-o", tmp_path / "known.png")
    assert known.exit_code == 0, known.output
    assert "another prompt" not in known.output
    other = cli("decode", latent, "--model", folder, "--prompt", "a guess", "-o", tmp_path / "other.png")
    assert "told of another prompt than the one it was encoded as" in other.output


def test_pictures_of_another_size(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    """A latent is decoded in its own size."""
    latent, decoded = tmp_path / "a.latent.pt", tmp_path / "a.png"
    words = ("--model", folder, "--prompt", "a cat", "--steps", "2")
    assert cli("encode", picture, *words, "--size", "48x32", "-o", latent).exit_code == 0
    made = cli("decode", latent, "--model", folder, "-o", decoded)
    assert made.exit_code == 0, made.output
    with Image.open(decoded) as found:
        assert found.size == (32, 48)
    for size, words_of_it in (("48by32", "is no size; say HEIGHTxWIDTH"), ("47", "must be multiples of 4")):
        refused = cli("encode", picture, *words, "--size", size)
        assert refused.exit_code != 0
        assert words_of_it in refused.output
    assert "sizes are of pipelines that are told a text" in cli("encode", picture, "--size", "32").output


def test_the_grid_of_the_scheduler(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    latent = tmp_path / "a.latent.pt"
    words = ("--model", folder, "--prompt", "a cat", "--solver", "euler", "--steps", "4", "--grid", "scheduler")
    made = cli("encode", picture, *words, "-o", latent)
    assert made.exit_code == 0, made.output
    assert load_latent(latent).grid.timesteps == (0.0, 1.0, 251.0, 501.0, 751.0)
    again = cli("decode", latent, "--model", folder, "-o", tmp_path / "a.png")
    assert again.exit_code == 0, again.output
    moved = cli("encode", picture, *words, "--clean-end", "zero")
    assert "the scheduler's own grid ends at sigma-min-vp; leave out --clean-end" in moved.output
    assert "is not of a pipeline, and has no scheduler" in cli("encode", picture, "--grid", "scheduler").output


def test_members_with_steps_of_their_own_go_alone(cli: Cli, picture: Path, folder: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.png"
    Image.new("RGB", (32, 32), (200, 100, 50)).save(second)
    solver = ("--solver", "per-sample-bosh3", "--rtol", "0.1", "--atol", "0.1")
    out = f"{tmp_path}/out/"
    made = cli("encode", picture, second, "--model", folder, "--prompt", "a cat", *solver, "-o", out)
    assert made.exit_code == 0, made.output
    assert len(list(Path(out).iterdir())) == 2


def test_a_pipeline_with_classes(cli: Cli, picture: Path, tmp_path: Path) -> None:
    build("DiT").save_pretrained(tmp_path / "dit")
    words = ("--model", tmp_path / "dit", "--class", "207", "--guidance", "1.5", "--steps", "4")
    made = cli("sample", *words, "-n", "1", "-o", tmp_path / "one.png")
    assert made.exit_code == 0, made.output
    latent = tmp_path / "a.latent.pt"
    encoded = cli("encode", picture, *words, "--solver", "euler", "-o", latent)
    assert encoded.exit_code == 0, encoded.output
    assert load_latent(latent).condition.label == 207
    assert set(load_latent(latent).fingerprints) == {"vae", "prediction", "scaling of latents"}
    assert cli("decode", latent, "--model", tmp_path / "dit", "-o", tmp_path / "a.png").exit_code == 0
    refused = cli("encode", picture, *words, "--prompt", "a dog")
    assert refused.exit_code != 0
    assert "pipelines that are told a text" in refused.output
