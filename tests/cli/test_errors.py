"""Bad input: one clear line, a non-zero exit status, no traceback, and no file that was not asked for."""

from __future__ import annotations

import errno
import io
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image

from ddim_ode.console import say
from ddim_ode.predictions import PREDICTIONS

Cli = Callable[..., Result]
ROOT = Path(__file__).parents[2]


def fails(result: Result, *words: str) -> None:
    """The command failed with one line that holds all of ``words``."""
    assert result.exit_code in (1, 2), result.output
    assert not isinstance(result.exception, BaseException) or isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("Error: ")
    for word in words:
        assert word in lines[0]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def latent(cli: Cli, picture: Path) -> Path:
    assert cli("encode", picture, "--steps", "2").exit_code == 0
    return picture.with_name("photo.latent.pt")


def make_bad_picture(kind: str, picture: Path) -> Path:
    path = picture.with_name("bad.png")
    if kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(picture.read_bytes()[:200])
    elif kind == "text":
        path.write_text("no picture at all")
    elif kind == "folder":
        path.mkdir()
    return path


BAD_PICTURES = {
    "missing": "does not exist",
    "empty": "is empty",
    "truncated": "cannot read the picture",
    "text": "is not a picture",
    "folder": "is a folder",
}


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
@pytest.mark.parametrize(("kind", "words"), BAD_PICTURES.items())
def test_bad_pictures(cli: Cli, picture: Path, command: str, kind: str, words: str) -> None:
    bad = make_bad_picture(kind, picture)
    before = files(picture.parent)
    fails(cli(command, bad, "--steps", "1"), words, "bad.png")
    assert files(picture.parent) == before


def test_one_bad_picture_does_not_lose_the_others(cli: Cli, picture: Path) -> None:
    bad = make_bad_picture("truncated", picture)
    other = Path(shutil.copy(picture, picture.with_name("other.png")))
    out = picture.with_name("out")
    fails(cli("encode", picture, bad, other, "-o", out, "--steps", "1"), "bad.png")
    assert files(out) == {"photo.latent.pt", "other.latent.pt"}


class Bomb:
    """Unpickled without care, it makes a file."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("exploded", "w")


def spoil(kind: str, latent: Path) -> None:
    content = torch.load(latent, weights_only=True)
    if kind == "missing":
        latent.unlink()
    elif kind == "empty":
        latent.write_bytes(b"")
    elif kind == "truncated":
        latent.write_bytes(latent.read_bytes()[:-500])
    elif kind == "text":
        latent.write_text("no latent at all")
    elif kind == "bomb":
        torch.save(content | {"nfe": Bomb()}, latent)
    elif kind == "version":
        torch.save(content | {"version": 99}, latent)
    elif kind == "shape":
        torch.save(content | {"x_T": torch.zeros(1, 3, 4, 4, dtype=torch.float64)}, latent)
    elif kind == "nan":
        torch.save(content | {"x_T": content["x_T"] * float("nan")}, latent)
    elif kind == "other program":
        torch.save({"weight": torch.zeros(3)}, latent)
    elif kind == "key":
        torch.save({key: value for key, value in content.items() if key != "grid"}, latent)
    elif kind == "solver":
        torch.save(content | {"solver": {"name": "huen"}}, latent)


BAD_LATENTS = {
    "missing": "does not exist",
    "empty": "is empty",
    "truncated": "not a latent file, or a truncated one",
    "text": "not a latent file, or a truncated one",
    "bomb": "not a latent file, or a truncated one",
    "version": "format version 99",
    "shape": "has shape (1, 3, 4, 4)",
    "nan": "x_T should have about unit variance, but holds nan",
    "other program": "is not a latent file of ddim-ode",
    "key": "damaged: there is no 'grid'",
    "solver": "unknown solver 'huen'",
}


@pytest.mark.parametrize(("kind", "words"), BAD_LATENTS.items())
def test_bad_latents(cli: Cli, latent: Path, kind: str, words: str) -> None:
    spoil(kind, latent)
    before = files(latent.parent)
    fails(cli("decode", latent), words)
    assert files(latent.parent) == before


def test_one_bad_latent_does_not_lose_the_others(cli: Cli, latent: Path) -> None:
    good = Path(shutil.copy(latent, latent.with_name("good.latent.pt")))
    spoil("nan", latent)
    out = latent.with_name("out")
    fails(cli("decode", latent, good, "-o", out), "nan")
    assert files(out) == {"good.decoded.png"}


def test_a_latent_of_other_weights(cli: Cli, latent: Path, make_model: Callable[..., Path]) -> None:
    fails(
        cli("decode", latent, "--model", make_model(seed=1)), "has other weights", "decode it with the model it names"
    )


def test_a_latent_of_another_schedule(cli: Cli, latent: Path, make_model: Callable[..., Path]) -> None:
    fails(cli("decode", latent, "--model", make_model(beta_end=0.01)), "sigma up to 157.407", "linear-1000")


def test_a_grid_that_does_not_reach_the_latent(cli: Cli, latent: Path) -> None:
    words = ("the latent lies at sigma = 157.407 (t = 999)", "begins at")
    fails(cli("decode", latent, "--grid", "leading", "--steps", "10"), *words)


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct", "sample"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--solver", "huen"), ("'huen' is not one of", "heun")),
        (("--grid", "kharras"), ("unknown grid 'kharras'", "karras")),
        (("--steps", "0"), ("0 is not in the range",)),
        (("--steps", "-3"), ("-3 is not in the range",)),
        (("--steps", "ten"), ("'ten' is not a valid integer",)),
        (("--steps", "2000", "--grid", "trailing"), ("2000 steps needs 200", "there are 1000")),
        (("--grid", "0,500,400,999"), ("400 follows 500",)),
        (("--grid", "0,1000"), ("must lie in [0, 999]",)),
        (("--grid", "10,999", "--clean-end", "sigma-min"), ("tau must begin at 0",)),
        (("--grid", "0,10,999", "--clean-end", "sigma-min", "--steps", "7"), ("make 2 steps, not 7",)),
        (("--solver", "scipy-RK45", "--steps", "5"), ("chooses its own steps",)),
        (("--solver", "scipy-RK45", "--grid", "quad"), ("chooses its own steps",)),
        (("--solver", "heun", "--rtol", "1e-3"), ("takes fixed steps",)),
        (("--solver", "scipy-RK45", "--rtol", "0"), ("rtol must be at least",)),
        (("--solver", "scipy-RK45", "--atol", "-1"), ("atol must be at least",)),
        (
            ("--solver", "reab2", "--clean-end", "zero", "--steps", "5"),
            ("solver 'reab2' cannot reach sigma = 0", "--clean-end sigma-min"),
        ),
        (("--clean-end", "dirty"), ("'dirty' is not one of",)),
        (("--batch-size", "0"), ("0 is not in the range",)),
        (("--max-nfe", "3", "--solver", "scipy-RK45"), ("limit of 3 network evaluations", "on the way")),
        (("--max-nfe", "9", "--solver", "heun", "--steps", "5"), ("takes 10 network evaluations", "at most 4 steps")),
        (("--stpes", "5"), ("No such option", "--steps")),
        (("--model", "nowhere"), ("no model folder 'nowhere'",)),
        (("--model", "."), ("is not a model folder",)),
    ],
)
def test_bad_options(cli: Cli, latent: Path, command: str, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    inputs = {"encode": ("photo.png",), "decode": (latent,), "reconstruct": ("photo.png",), "sample": ()}[command]
    before = files(latent.parent)
    fails(cli(command, *inputs, *options, "-o", "output"), *words)
    assert files(latent.parent) == before


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct"])
def test_no_folder_is_made_for_inputs_that_cannot_be_read(cli: Cli, picture: Path, command: str) -> None:
    """Nor is one left behind."""
    before = files(picture.parent)
    result = cli(command, "no.png", "nothing.png", "-o", "out/in", "--steps", "1")
    assert result.exit_code == 1
    assert [line.split("'")[1] for line in result.stderr.splitlines()] == ["no.png", "nothing.png"]
    assert files(picture.parent) == before


def test_a_file_in_the_place_of_the_folder_for_several(cli: Cli, picture: Path) -> None:
    Path("taken").write_text("mine")
    shutil.copy(picture, "other.png")
    fails(cli("encode", picture, "other.png", "-o", "taken"), "'taken' is a file; name a folder for several inputs")


def test_an_error_of_the_system_names_its_file(cli: Cli, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever raises it: here the system, where the model's weights are read."""

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "weights.bin")

    monkeypatch.setattr("ddim_ode.session.opening.load_model", refuse)
    fails(cli("encode", picture), "'weights.bin': Permission denied")


def test_exact_encoding_for_a_decoder_with_a_memory(cli: Cli, picture: Path) -> None:
    words = ("the steps of 'dpmpp3m' cannot be undone one by one", "choose one of: euler, heun")
    fails(cli("encode", picture, "--exact", "--solver", "dpmpp3m"), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target-psnr", "0"), ("the PSNR to reach must be above 0 and at most 1000 dB, but it is 0",)),
        (("--target-psnr", "40", "--steps", "5"), ("--target-psnr finds the number of steps",)),
        (("--target-psnr", "40", "--grid", "0,500,999"), ("--target-psnr finds the number of steps",)),
        (("--target-psnr", "40", "--solver", "scipy-RK45"), ("chooses its own steps; leave out --target-psnr",)),
        (("--target-psnr", "200", "--solver", "heun", "--max-nfe", "6"), ("within --max-nfe 6", "at 200 dB")),
        (("--target-psnr", "30", "--solver", "exact-euler", "--max-nfe", "1"), ("--max-nfe 1 brings", "nothing came")),
        (("--target-psnr", "90", "--solver", "heun", "--max-nfe", "1"), ("within --max-nfe 1", "nothing came back")),
    ],
)
def test_a_quality_that_cannot_be_looked_for(
    cli: Cli, picture: Path, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    """Nothing is saved."""
    fails(cli("reconstruct", picture, *options), *words)
    assert not picture.with_name("photo.reconstruction.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_no_cuda(cli: Cli, picture: Path) -> None:
    fails(cli("encode", picture, "--device", "cuda"), "device 'cuda' is not available here")


@pytest.mark.parametrize("command", ["encode", "decode", "reconstruct", "sample"])
def test_nothing_is_overwritten_silently(cli: Cli, latent: Path, command: str) -> None:
    inputs = {"encode": ("photo.png",), "decode": (latent,), "reconstruct": ("photo.png",), "sample": ()}[command]
    kept = latent.with_name("kept")
    kept.write_text("precious")
    fails(cli(command, *inputs, "--steps", "1", "-o", kept), "kept' exists already", "--overwrite")
    assert kept.read_text() == "precious"


def test_an_output_that_is_an_input_is_refused(cli: Cli, picture: Path) -> None:
    """Though it may be overwritten, for it would be lost; also where it is named in another way."""
    before = picture.read_bytes()
    for name in ("photo.png", "./photo.png"):
        fails(
            cli("reconstruct", picture, "--steps", "1", "-o", name, "--overwrite"), "is an input too, and would be lost"
        )
    assert picture.read_bytes() == before


def test_a_folder_among_the_inputs_loses_no_other(cli: Cli, picture: Path) -> None:
    fails(cli("encode", ".", picture, "--steps", "1", "-o", "out"), "'.' is a folder; name the files in it")
    assert files(Path("out")) == {"photo.latent.pt"}


def test_two_inputs_for_one_output(cli: Cli, picture: Path) -> None:
    Image.open(picture).convert("RGB").save(picture.with_suffix(".jpg"))
    fails(cli("encode", "photo.png", "photo.jpg", "--steps", "1"), "photo.jpg", "like another input")


def test_no_folder_for_the_output(cli: Cli, picture: Path) -> None:
    fails(cli("encode", picture, "--steps", "1", "-o", "no/such/file.pt"), "there is no folder")


def test_unknown_command_and_missing_input(cli: Cli) -> None:
    fails(cli("encoed", "photo.png"), "No such command 'encoed'")
    fails(cli("encode"), "Missing argument 'IMG...'")
    fails(cli("info", "nothing.pt"), "does not exist")


def test_a_full_disk_leaves_no_part_of_a_file(cli: Cli, picture: Path, tiny_model: Path) -> None:
    """The file system refuses to let a file grow: the same path as a full disk, without filling one."""

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    command = [sys.executable, ROOT / "cli.py", "encode", "photo.png", "--steps", "1", "--model", tiny_model]
    run = subprocess.run(
        command,
        cwd=picture.parent,
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].startswith("Error: cannot write 'photo.latent.pt'")
    assert "Traceback" not in run.stderr
    assert files(picture.parent) == {"photo.png"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("either a number of steps or of minutes",)),
        (("--steps", "1", "--minutes", "1"), ("either a number of steps or of minutes",)),
        (("--steps", "1", "--prediction", "x_0"), ("unknown prediction 'x_0'", ", ".join(sorted(PREDICTIONS)))),
        (("--steps", "1", "--schedule", "quad"), ("unknown schedule 'quad'", "cosine, linear")),
        (("--steps", "1", "--unet", "nothing.json"), ("'nothing.json' does not exist",)),
        (("--steps", "1", "--resume"), ("there is no run to resume in 'model'",)),
        (("--steps", "1"), ("smaller than the model's 32 x 32 pixels: 'photo.png' (12 x 10)",)),
    ],
)
def test_runs_that_cannot_begin(cli: Cli, picture: Path, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    move_into(picture, "pictures")
    fails(cli("train", "pictures", "-o", "model", "--cpu", *options), *words)
    assert files(Path()) == {"pictures"}


def test_a_run_in_the_wrong_number_of_processes(cli: Cli, picture: Path, tiny_model: Path) -> None:
    config = tiny_model / "unet" / "config.json"
    move_into(picture, "pictures")
    words = ("train", "pictures", "-o", "model", "--cpu", "--unet", config, "--steps", "1", "--processes", "2")
    fails(cli(*words), "2 processes are wanted, but accelerate runs 1")


def test_a_model_among_the_pictures_it_is_trained_on(cli: Cli, picture: Path) -> None:
    fails(cli("train", ".", "-o", "model", "--cpu", "--steps", "1"), "'model' lies in '.'", "name another folder")
    assert files(Path()) == {picture.name}


def test_a_model_in_the_place_of_something_else(cli: Cli, picture: Path) -> None:
    move_into(picture, "pictures")
    Path("work").mkdir()
    Path("work/README.md").write_text("mine")
    fails(cli("train", "pictures", "-o", "work", "--cpu", "--steps", "1"), "'work' exists and is not an empty folder")
    assert Path("work/README.md").read_text() == "mine"


def move_into(picture: Path, folder: str) -> None:
    Path(folder).mkdir()
    picture.rename(Path(folder) / picture.name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("interpolate", "photo.png"),
            "latent files or seeds, or four for a sheet, but there are 1",
        ),
        (("interpolate", "--seed", "1", "--seed", "2", "--seed", "3"), "but there are 3"),
        (("interpolate", *("photo.png",) * 41, "--frames", "frames"), "but there are 41"),
        (("interpolate", "--seed", "1", "--seed", "2", "-o", "strip.gif"), "but 'strip.gif' ends in '.gif'"),
        (
            ("interpolate", "--seed", "1", "--seed", "2", "--frames", ".", "-o", "0001.png"),
            "would be among the frames, or their folder",
        ),
        (("sample", "-o", "sheet.jpg"), "pictures are written as PNG, but 'sheet.jpg' ends in '.jpg'"),
        (("reconstruct", "photo.png", "-o", "both.webp"), "but 'both.webp' ends in '.webp'; name a .png file"),
        (("interpolate", "photo.png", "nothing.png"), "'nothing.png' does not exist"),
        (("interpolate", "photo.png", "--seed", "1", "--frames", "photo.png"), "'photo.png' is a file; name a folder"),
        (("interpolate", "photo.png", "--seed", "1", "-o", "photo.png"), "photo.png' exists already"),
        (("interpolate", "--seed", "1", "--seed", "2", "-n", "1"), "1 is not in the range"),
        (("sample", "--eta", "1.5"), "1.5 is not in the range"),
        (("sample", "--eta", "1", "--solver", "rk4"), "leave out --solver rk4"),
    ],
)
def test_wrong_ways_to_make_images(cli: Cli, picture: Path, words: tuple[str, ...], message: str) -> None:
    fails(cli(*words), message)
    assert files(picture.parent) == {picture.name}


def test_a_fault_of_ours_is_a_line_that_says_so(cli: Cli, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a traceback where one is asked for."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError("lost")

    monkeypatch.setattr("ddim_ode.session.session.plan_encoding", fail)
    fails(cli("encode", picture), "KeyError: 'lost'. This is a fault of ddim-ode; please report it", "TRACEBACK=1")
    monkeypatch.setenv("DDIM_ODE_TRACEBACK", "1")
    assert isinstance(cli("encode", picture).exception, KeyError)


def test_names_do_not_reach_the_terminal_as_control_codes(cli: Cli, picture: Path) -> None:
    """Neither those of files, nor those that a latent file claims; nor does what is no character end the command."""
    evil = "\x1b[31mred\x1b[0m\udcff.png"
    shutil.copy(picture, evil)
    for command in ("encode", "reconstruct"):
        result = cli(command, evil, "--steps", "1", "-o", f"{command}.{'pt' if command == 'encode' else 'png'}")
        assert result.exit_code == 0, result.output
        assert "\\x1b[31mred\\x1b[0m\\udcff.png" in result.output
        assert "\x1b" not in result.output
    for words in (("info", "encode.pt"), ("decode", "encode.pt", "-o", "back.png")):
        assert "\x1b" not in cli(*words).output
    content = torch.load("encode.pt", weights_only=True)
    torch.save(content | {"model": {"name": "\x1b]0;title\x07", "fingerprint": "x"}}, "encode.pt")
    result = cli("decode", "encode.pt", "-o", "again.png")
    fails(result, "\\x1b]0;title\\x07")
    assert "\x1b" not in result.output


def test_a_reader_that_has_seen_enough_stops_no_work(cli: Cli, latent: Path, tiny_model: Path) -> None:
    """As in ``decode a b | head -1``: every file is written, and no error is told of it."""
    other = Path(shutil.copy(latent, latent.with_name("other.latent.pt")))
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(ROOT / "cli.py"), "decode", str(latent), str(other), "--model", str(tiny_model)]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
    assert {"photo.decoded.png", "other.decoded.png"} <= files(latent.parent)


def test_a_name_with_a_line_break_makes_no_second_line(cli: Cli, picture: Path) -> None:
    named = picture.rename(picture.with_name("a\nError: b.png"))
    result = cli("encode", named, "--steps", "1")
    assert result.exit_code == 0
    assert result.stdout.startswith("a\\nError: b.png -> ")
    assert "a\\nError: b.latent.pt (" in result.stdout
    assert len(result.output.splitlines()) == 1
    assert cli("info", "a\nError: b.latent.pt").stdout.startswith("latent of 'a Error: b.png' (")


def test_a_file_in_the_way_of_a_folder_is_found_before_the_work(
    cli: Cli, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddim_ode.session.worker.Worker.encode", lambda *_: pytest.fail("work was begun"))
    other, way = tmp_path / "b.png", tmp_path / "file"
    other.write_bytes(picture.read_bytes())
    way.touch()
    refused = cli("encode", picture, other, "-o", way / "sub")
    assert refused.exit_code == 1
    assert refused.output.count("file' is a file, and no folder can be made of it") == 2


def test_frames_that_cannot_be_written_are_found_before_the_work(
    cli: Cli, picture: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    words = ("--model", tiny_model, "--steps", "1", "-n", "3", "-o", tmp_path / "strip.png")
    refused = cli("interpolate", picture, picture, *words, "--frames", tmp_path / "file" / "frames")
    assert refused.exit_code == 1
    assert "file' is a file, and no folder can be made of it" in refused.output
    assert not (tmp_path / "strip.png").exists()


def test_names_that_the_terminal_cannot_show_are_written_as_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    say("\u5199\u771f \u00e9 -> x")
    out.flush()
    assert out.buffer.getvalue() == b"\\u5199\\u771f \xe9 -> x\n"  # type: ignore[attr-defined]
