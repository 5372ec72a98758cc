"""Pipelines from the command line: folders of them, prompts, and what latents remember of those."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
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
    assert asked == {"prompt": "a cat", "negative_prompt": None, "guidance": 3.0, "guidance_kind": "cfg"}
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
    refused = cli("decode", latent, both, "--model", folder, "-o", f"{tmp_path}/out/")
    assert refused.exit_code != 0
    assert "the latents were encoded as several things: 'a cat' with guidance 3.0; 'a dog'" in refused.output


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
    for model in (tiny_model, tmp_path / "missing"):
        refused = cli("encode", picture, "--model", model, "--prompt", "a cat")
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
