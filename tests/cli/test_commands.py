"""Every command does what its help says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from ddim_ode import load_latent, load_model
from ddim_ode.calibration import Calibration, Entry, Learned, save_calibration
from ddim_ode.cli import main
from ddim_ode.grids import make_grid
from ddim_ode.images import load_image, to_picture
from ddim_ode.session.material import WALKS
from ddim_ode.session.request import DEFAULT_STEPS
from ddim_ode.session.search import CANDIDATES
from ddim_ode.solvers import DEFAULT_SOLVER, SOLVERS, ReversibleSolver
from ddim_ode.spacings import GRIDS

Cli = Callable[..., Result]
ROOT = Path(__file__).parents[2]


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.output


def test_encode_then_decode(cli: Cli, picture: Path) -> None:
    assert "photo.latent.pt" in ok(cli("encode", picture, "--steps", "3"))
    latent = load_latent(picture.with_name("photo.latent.pt"))
    assert latent.x_T.shape == (1, 3, 8, 8)
    assert latent.grid.steps == 3
    assert latent.source.size == (12, 10)
    assert "photo.decoded.png" in ok(cli("decode", "photo.latent.pt"))
    with Image.open("photo.decoded.png") as decoded:
        assert decoded.size == (8, 8)


@pytest.mark.parametrize("solver", ["dpmpp3m", "reversible-heun", "ddim-predicted", "scipy-RK45"])
def test_encode_says_how_good_it_is(cli: Cli, picture: Path, solver: str) -> None:
    options = ("--solver", solver, *(("--rtol", "1e-3") if SOLVERS[solver].adaptive else ()))
    report = ok(cli("encode", picture, *options, "--check"))
    assert re.search(r"; latent RMSE about \d\S*, second moment \d\S*, reconstruction MSE \d\S*\)", report)
    assert "Warning" not in report
    plain = ok(cli("encode", picture, *options, "-o", "plain.pt"))
    assert re.search(r"\d+ NFE", plain)[0] in report
    assert load_latent(Path("plain.pt")).nfe == load_latent(picture.with_name("photo.latent.pt")).nfe


@pytest.mark.parametrize(("solver", "limit"), [("dpmpp3m", 6), ("reversible-heun", 7)])
def test_each_walk_has_the_limit_on_evaluations_to_itself(cli: Cli, picture: Path, solver: str, limit: int) -> None:
    options = (picture, "--solver", solver, "--steps", "6", "--max-nfe", str(limit))
    ok(cli("reconstruct", *options))
    assert "reconstruction MSE" in ok(cli("encode", *options, "--check"))
    assert (
        f"and the limit is {limit - 1}; take at most 5 steps"
        in cli("encode", *options[:-1], str(limit - 1), "--overwrite").output
    )


def test_a_check_that_fails_loses_no_latent(cli: Cli, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("out of patience")

    monkeypatch.setattr("ddim_ode.session.check.check", fail)
    result = cli("encode", picture, "--steps", "3", "--check")
    assert (result.exit_code, result.stderr) == (1, "Error: out of patience\n")
    assert "photo.latent.pt (dpmpp3m, 3 steps" in result.stdout
    ok(cli("decode", "photo.latent.pt"))


def test_steps_for_each_sample_are_reported_and_stored_for_each(cli: Cli, picture: Path) -> None:
    """As of the picture alone, whatever its batch costs."""
    Image.new("RGB", (8, 8), "grey").save("plain.png")
    options = ("--solver", "per-sample-bosh3", "--rtol", "1e-2", "--atol", "1e-2", "-o", ".", "--overwrite")
    alone = {}
    for path in (picture, Path("plain.png")):
        ok(cli("encode", path, *options))
        alone[path.stem] = load_latent(Path(f"{path.stem}.latent.pt")).nfe
    assert alone["photo"] != alone["plain"]
    own = r"(\d+) NFE, (\d+) of its own in (\d+) steps and (\d+) rejected"
    encoded = re.findall(own, ok(cli("encode", picture, "plain.png", *options)))
    for found, (name, nfe) in zip(encoded, alone.items(), strict=True):
        of_batch, of_its_own, taken, rejected = map(int, found)
        assert of_batch == max(alone.values())
        assert of_its_own == nfe == load_latent(Path(f"{name}.latent.pt")).nfe == 2 + 3 * (taken + rejected)
    assert len(re.findall(own, ok(cli("decode", "photo.latent.pt", "plain.latent.pt", "-o", ".")))) == 2
    assert len(re.findall(own, ok(cli("reconstruct", picture, "plain.png", *options)))) == 4


def test_decoding_uses_solver_and_grid_of_the_latent(cli: Cli, picture: Path) -> None:
    ok(cli("encode", picture, "--solver", "ab2", "--steps", "5", "--grid", "quad"))
    assert "(ab2, 5 steps on quad, 5 NFE" in ok(cli("decode", "photo.latent.pt"))


@pytest.mark.parametrize("options", [("--solver", "scipy-RK45", "--rtol", "1e-3"), ("--solver", "reversible-heun")])
def test_reconstruct_reports_the_evaluations_of_each_way(cli: Cli, picture: Path, options: tuple[str, ...]) -> None:
    """Which differ for a solver that chooses its steps."""
    counts = [int(n) for n in re.findall(r"(\d+) NFE", ok(cli("reconstruct", picture, *options)))]
    apart = [*re.findall(r"(\d+) NFE", ok(cli("encode", picture, *options)))]
    apart += re.findall(r"(\d+) NFE", ok(cli("decode", "photo.latent.pt")))
    assert counts == [int(n) for n in apart]


def test_reconstruct_finds_the_fewest_steps_for_a_quality(cli: Cli, picture: Path) -> None:
    """With Euler's method one step less does not do, and the picture is saved as with the steps that do."""
    report = ok(cli("reconstruct", picture, "--solver", "euler", "--target-psnr", "40"))
    tried = {int(n): float(dB) for n, dB in re.findall(r"tried euler, (\d+) steps: (\S+) dB", report)}
    steps = min(n for n, dB in tried.items() if dB >= 40)
    assert tried[steps - 1] < 40
    assert f"encode euler, {steps} steps on log-snr" in report
    with Image.open("photo.reconstruction.png") as pair:
        assert json.loads(pair.text["ddim-ode"])["steps"] == steps
    assert f"PSNR {tried[steps]:.2f} dB" in ok(
        cli("reconstruct", picture, "--solver", "euler", "--steps", str(steps), "--overwrite")
    )


def test_reconstruct_tries_several_solvers_for_a_quality_and_takes_the_cheapest(cli: Cli, picture: Path) -> None:
    report = ok(cli("reconstruct", picture, "--target-psnr", "45"))
    tried = re.findall(r"tried (\S+), (\d+) steps: (\S+) dB", report)
    assert {name for name, _, _ in tried} == {DEFAULT_SOLVER if n == "auto" else n for n in CANDIDATES}
    nfe, name = min((SOLVERS[name].nfe(int(steps)), name) for name, steps, dB in tried if float(dB) >= 45)
    assert f"encode {name}, " in report
    assert f", {nfe} NFE" in report


def test_reconstruct_of_many_counts_the_worst_for_a_quality(cli: Cli, picture: Path) -> None:
    Image.new("RGB", (8, 8), "grey").save("plain.png")
    options = ("--solver", "euler", "--target-psnr", "20", "-o", ".", "--overwrite", "--batch-size", "1")
    reports = [ok(cli("reconstruct", *pictures, *options)) for pictures in ([picture], ["plain.png"])]
    steps = [int(re.search(r"encode euler, (\d+) steps", report)[1]) for report in reports]
    assert steps[0] != steps[1]
    assert f"encode euler, {max(steps)} steps" in ok(cli("reconstruct", picture, "plain.png", *options))


def test_decoding_what_a_ddim_encoder_made_is_ddim(cli: Cli, picture: Path) -> None:
    options = ("--solver", "ddim-predicted", "--steps", "5", "--grid", "quad")
    ok(cli("encode", picture, *options))
    assert "(euler, 5 steps on quad, 5 NFE" in ok(cli("decode", "photo.latent.pt"))
    report = ok(cli("reconstruct", picture, *options))
    assert "encode ddim-predicted, 5 steps" in report
    assert "decode euler, 5 steps" in report


def test_a_wrong_latent_gets_a_warning_whatever_it_leads_back_to(cli: Cli, picture: Path) -> None:
    report = ok(cli("encode", picture, "--solver", "o-belm", "--steps", "10", "--check"))
    mse = re.search(r"second moment \d\S*, reconstruction MSE (\S+)\)", report)
    assert mse
    assert float(mse[1]) < 1e-15
    (warning,) = re.findall(r"^Warning: .+$", report, flags=re.MULTILINE)
    assert re.match(
        r"Warning: the latent of 'photo.png' by 'o-belm' is wrong: its second moment is \S+ here and \S+ with twice",
        warning,
    )


def test_exact_encoding_is_undone_by_plain_decoding(cli: Cli, picture: Path) -> None:
    """With euler, unless another solver is named; and not without it."""
    fitted = to_picture(load_image(picture, 3, 8, 8)[0][0]).tobytes()
    for name, options in (("euler", ()), ("heun", ("--solver", "heun"))):
        report = ok(cli("encode", picture, "--exact", *options, "--steps", "6", "--overwrite"))
        nfe = re.search(rf"\(exact-{name}, 6 steps on log-snr, (\d+) NFE", report)
        assert nfe
        assert int(nfe[1]) > 12
        assert " NFE, each step undone to 1e-06 unless a warning says otherwise, " in report
        assert f"exact-{name}, tolerance 1e-06" in ok(cli("info", "photo.latent.pt"))
        assert f"({name}, 6 steps on log-snr, " in ok(cli("decode", "photo.latent.pt", "--overwrite"))
        with Image.open("photo.decoded.png") as decoded:
            assert decoded.tobytes() == fitted
    mse = re.search(r"MSE (\S+) on", ok(cli("reconstruct", picture, "--solver", "exact-euler", "--steps", "6")))
    plain = re.search(
        r"MSE (\S+) on", ok(cli("reconstruct", picture, "--solver", "euler", "--steps", "6", "--overwrite"))
    )
    assert float(mse[1]) < 1e-10
    assert float(plain[1]) > 1e-4


@pytest.mark.parametrize("solver", [s.name for s in SOLVERS.values() if isinstance(s, ReversibleSolver)])
def test_a_reversible_solver_stores_a_companion_and_comes_back_exactly(cli: Cli, picture: Path, solver: str) -> None:
    options = ("--solver", solver, "--steps", "6")
    report = ok(cli("reconstruct", picture, *options))
    found = re.search(r"MSE (\S+) on \[0, 1\] \((\S+) from x_T alone", report)
    assert found
    assert float(found[1]) < 1e-15
    assert float(found[2]) > 1e-8
    ok(cli("encode", picture, *options))
    assert "with a companion" in ok(cli("info", "photo.latent.pt"))
    ok(cli("decode", "photo.latent.pt", "-o", "exact.png"))
    ok(cli("decode", "photo.latent.pt", "--steps", "7", "-o", "seven.png"))
    fitted = to_picture(load_image(picture, 3, 8, 8)[0][0])
    with Image.open("exact.png") as exact, Image.open("seven.png") as seven:
        assert exact.tobytes() == fitted.tobytes() != seven.tobytes()


def test_lines_say_why(cli: Cli, picture: Path) -> None:
    """Where ``auto`` falls back, and where a companion is left behind; and nothing where all is as asked for."""
    falls_back = r"auto is dpmpp3m: model '.*' is not calibrated for 3 steps"
    encoded = ok(cli("encode", picture, "--steps", "3"))
    assert re.search(rf"\(dpmpp3m, 3 steps on log-snr, 3 NFE, \S+ s; {falls_back}\)\n$", encoded)
    assert re.search(rf"encode dpmpp3m, .* s; {falls_back}, decode", ok(cli("reconstruct", picture, "--steps", "3")))
    assert re.search(rf" s; {falls_back}\)", ok(cli("sample", "-n", "1", "--steps", "3")))
    assert re.search(r" NFE, \S+ s\)\n$", ok(cli("decode", "photo.latent.pt")))
    ok(cli("encode", picture, "--solver", "bdia", "--steps", "6", "-o", "two.pt"))
    assert re.search(r" NFE, \S+ s\)\n$", ok(cli("decode", "two.pt", "-o", "exact.png")))
    left = ok(cli("decode", "two.pt", "--steps", "7", "-o", "seven.png"))
    assert re.search(r"; without the companion, which leads back exactly with bdia in 6 steps on log-snr alone\)", left)


def test_a_network_that_predicts_x_0(cli: Cli, make_model: Callable[..., Path], picture: Path) -> None:
    """It has no slope at sigma = 0: where the grid ends there, the line says that the image is taken at sigma-min."""
    folder = make_model(prediction="sample", beta_start=0.01)
    model = ("--model", folder)
    options = ("--solver", "heun", "--steps", "4", *model)
    encoded = ok(cli("encode", picture, "--grid", "trailing", *options))
    assert "; the image is taken at sigma-min: a network that predicts x_0 has no slope at sigma = 0)" in encoded
    assert load_latent(picture.with_name("photo.latent.pt")).grid.clean_end == "sigma-min"
    assert re.search(r" NFE, \S+ s\)\n$", ok(cli("decode", "photo.latent.pt", *model)))
    assert "taken at" not in ok(cli("reconstruct", picture, "--grid", "karras", *options))
    for words in (("encode", picture), ("reconstruct", picture)):
        result = cli(*words, "--grid", "trailing", "--clean-end", "zero", "--overwrite", *options)
        assert result.exit_code == 2
        assert "predicts x_0 and has no slope at sigma = 0, where encoding would begin" in result.stderr
    ok(cli("sample", "-n", "1", "--eta", "1", "--steps", "4", *model))
    result = cli("sample", "-n", "1", "--clean-end", "zero", "--overwrite", *options)
    assert "Error: a network that predicts x_0 has no slope at sigma = 0" in result.stderr


def test_solvers_that_cannot_reach_zero_end_at_sigma_min(cli: Cli, picture: Path) -> None:
    ok(cli("encode", picture, "--solver", "dpmpp2m", "--steps", "5", "--grid", "quad"))
    assert load_latent(picture.with_name("photo.latent.pt")).grid.clean_end == "sigma-min"


def test_decoding_repeats_the_tolerances_of_the_latent(cli: Cli, picture: Path) -> None:
    ok(cli("encode", picture, "--solver", "scipy-RK45", "--rtol", "1e-2", "--atol", "0.02"))
    ok(cli("decode", "photo.latent.pt"))
    with Image.open("photo.decoded.png") as decoded:
        solver = json.loads(decoded.text["ddim-ode"])["solver"]
    assert (solver["name"], solver["rtol"], solver["atol"]) == ("scipy-RK45", 1e-2, 0.02)


@pytest.mark.parametrize(
    ("options", "report"),
    [
        (("--solver", "euler"), "(euler, 4 steps on linspace, 4 NFE"),
        (("--steps", "7"), "(midpoint, 7 steps on linspace, 14 NFE"),
        (("--solver", "rk4", "--grid", "karras"), "(rk4, 4 steps on karras, 16 NFE"),
        (("--grid", "0,10,500,999"), "(midpoint, 4 steps on explicit, 8 NFE"),
        (("--solver", "torchdiffeq-dopri5", "--rtol", "1e-2"), "(torchdiffeq-dopri5, adaptive steps"),
    ],
)
def test_decoding_another_way(cli: Cli, picture: Path, options: tuple[str, ...], report: str) -> None:
    ok(cli("encode", picture, "--solver", "midpoint", "--steps", "4", "--grid", "linspace"))
    assert report in ok(cli("decode", "photo.latent.pt", *options))


def test_decoding_with_fixed_steps_what_was_encoded_adaptively(cli: Cli, picture: Path) -> None:
    ok(cli("encode", picture, "--solver", "scipy-DOP853", "--rtol", "1e-2"))
    assert f"(euler, {DEFAULT_STEPS} steps" in ok(cli("decode", "photo.latent.pt", "--solver", "euler"))


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_every_solver_reconstructs(cli: Cli, picture: Path, name: str) -> None:
    options = ("--rtol", "1e-2", "--atol", "1e-2") if SOLVERS[name].adaptive else ("--steps", "6")
    assert "PSNR" in ok(cli("reconstruct", picture, "--solver", name, *options))


@pytest.mark.parametrize("clean_end", ["zero", "sigma-min"])
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_grid_and_clean_end_reconstructs(cli: Cli, picture: Path, name: str, clean_end: str) -> None:
    options = ("--solver", "euler", "--steps", "3", "--grid", name, "--clean-end", clean_end)
    assert "encode euler, 3 steps" in ok(cli("reconstruct", picture, *options))


def test_reconstruct_saves_both_side_by_side_with_their_settings(cli: Cli, picture: Path) -> None:
    output = ok(cli("reconstruct", picture, "--steps", "3"))
    assert "MSE" in output
    assert "NFE" in output
    with Image.open("photo.reconstruction.png") as both:
        assert both.width > 1.9 * both.height
        settings = json.loads(both.text["ddim-ode"])
    assert settings["steps"] == 3
    assert f"MSE {settings['mse']:.3g}" in output


def test_names_of_solvers_are_taken_in_any_case(cli: Cli, picture: Path) -> None:
    assert "scipy-RK45" in ok(cli("encode", picture, "--solver", "SCIPY-rk45", "--rtol", "1e-2"))


def test_many_images_go_to_a_folder_whatever_the_batch_size(cli: Cli, picture: Path, tmp_path: Path) -> None:
    paths = [picture] + [Path(shutil.copy(picture, tmp_path / f"{i}.png")) for i in range(4)]
    for size in ("2", "16"):
        out = tmp_path / f"out{size}"
        ok(cli("encode", *paths, "-o", out, "--batch-size", size, "--steps", "2", "--solver", "euler"))
        assert sorted(p.name for p in out.iterdir()) == sorted(f"{p.stem}.latent.pt" for p in paths)
        ok(cli("decode", *sorted(out.iterdir()), "-o", out, "--batch-size", size))
        assert len(list(out.glob("*.decoded.png"))) == 5
    one = load_latent(tmp_path / "out2" / "3.latent.pt").x_T
    assert torch.allclose(one, load_latent(tmp_path / "out16" / "3.latent.pt").x_T, atol=1e-4)


def test_sampling_depends_on_the_seed_alone(cli: Cli) -> None:
    for name, seed, size in (("a.png", "1", "2"), ("b.png", "1", "16"), ("c.png", "2", "16")):
        ok(cli("sample", "-n", "5", "--seed", seed, "--batch-size", size, "--steps", "2", "-o", name))
    pictures = {}
    for name in ("a.png", "b.png", "c.png"):
        with Image.open(name) as sheet:
            pictures[name] = sheet.tobytes()
            assert json.loads(sheet.text["ddim-ode"])["count"] == 5
    assert pictures["a.png"] == pictures["b.png"]
    assert pictures["a.png"] != pictures["c.png"]


def test_work_that_was_stopped_goes_on(cli: Cli, picture: Path) -> None:
    """Files that exist are left as they are, and what is missing is done; for every command that writes one each."""
    shutil.copy(picture, "other.png")
    steps = ("--steps", "1")
    for command, first, second, suffix in (
        ("encode", "photo.png", "other.png", "latent.pt"),
        ("decode", "photo.latent.pt", "other.latent.pt", "decoded.png"),
        ("reconstruct", "photo.png", "other.png", "reconstruction.png"),
    ):
        ok(cli(command, first, *steps))
        before = Path(f"photo.{suffix}").stat().st_mtime_ns
        assert cli(command, first, second, *steps).exit_code == 1
        Path(f"other.{suffix}").unlink(missing_ok=True)
        said = ok(cli(command, first, second, "--skip-existing", *steps))
        assert said.startswith("1 of 2 files exist already, and are left as they are\n")
        assert Path(f"photo.{suffix}").stat().st_mtime_ns == before
        assert Path(f"other.{suffix}").exists()
        assert "2 of 2 files exist already" in ok(cli(command, first, second, "--skip-existing", *steps))
        result = cli(command, first, "--skip-existing", "--overwrite", *steps)
        assert (result.exit_code, "pass one of them" in result.stderr) == (2, True)


def test_overwrite(cli: Cli, picture: Path) -> None:
    ok(cli("encode", picture, "--steps", "1"))
    before = load_latent(picture.with_name("photo.latent.pt")).grid.steps
    ok(cli("encode", picture, "--steps", "2", "--overwrite"))
    assert (before, load_latent(picture.with_name("photo.latent.pt")).grid.steps) == (1, 2)


def test_info_lists_every_solver_and_grid(cli: Cli) -> None:
    output = ok(cli("info"))
    for name in (*SOLVERS, *GRIDS):
        assert f"  {name} " in output


def test_info_on_a_latent_and_a_model(cli: Cli, picture: Path, tiny_model: Path) -> None:
    ok(cli("encode", picture, "--solver", "midpoint", "--steps", "3", "--grid", "karras"))
    output = ok(cli("info", "photo.latent.pt", tiny_model))
    for word in ("karras", "midpoint", "12 x 10", "v_prediction", "linear-1000", "157.407"):
        assert word in output


def test_another_model_is_accepted_when_asked_for(cli: Cli, picture: Path, make_model: Callable[..., Path]) -> None:
    ok(cli("encode", picture, "--steps", "1"))
    ok(cli("decode", "photo.latent.pt", "--any-model", "--model", make_model(seed=1)))


def test_a_scheduler_that_asks_for_clipping_gets_a_warning(
    cli: Cli, picture: Path, make_model: Callable[..., Path]
) -> None:
    result = cli("encode", picture, "--steps", "1", "--model", make_model(clip_sample=True))
    assert "Warning: the model's scheduler asks for clip_sample" in ok(result)


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys, cli; from click.testing import CliRunner as R; r = R().invoke(cli.main, ['encode', '--help'])\n"
    code += (
        "assert r.exit_code == 0 and 'log-snr' in r.output; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    bare = processor_seconds([sys.executable, "-c", "import click"])
    assert processor_seconds([sys.executable, "cli.py", "--help"]) < bare + 0.5


def processor_seconds(command: Sequence[str]) -> float:
    """What a command takes of a processor, whatever else the machine does."""
    before = os.times()
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def test_no_arguments_show_the_help() -> None:
    assert "encode" in CliRunner().invoke(main, []).output


def test_train_then_sample_and_go_on(cli: Cli, picture: Path, tiny_model: Path) -> None:
    """It says what it skips, and at every save leaves a model that can be used."""
    Path("pictures").mkdir()
    shutil.copy(picture, "pictures/photo.png")
    Path("pictures/broken.png").write_text("no picture")
    options = ("train", "pictures", "-o", "model", "--cpu", "--batch-size", "2")
    new = ("--unet", tiny_model / "unet" / "config.json", "--steps", "2")
    refused = cli(*options, *new)
    assert (refused.exit_code, "--skip-unreadable" in refused.stderr) == (1, True)
    options = (*options, "--skip-unreadable")
    output = ok(cli(*options, *new))
    assert "Warning: 1 unreadable pictures of 2 were skipped: 'broken.png'" in output
    assert "training on 1 images of 'pictures' in 1 process(es) with" in output
    assert "step 2, 4 images, 100.0% of the run: loss" in output
    assert "samples.png" in ok(cli("sample", "--model", "model", "-n", "2", "--steps", "2"))
    assert "step 3, 6 images" in ok(cli(*options, "--resume", "--steps", "3"))
    assert "the run is finished" in ok(
        cli("train", "pictures", "-o", "model", "--cpu", "--resume", "--skip-unreadable")
    )
    with Image.open("model/samples.png") as sheet:
        assert json.loads(sheet.text["ddim-ode"]) == {"step": 3, "images": 6}


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture, dtype=int)


def test_interpolate_between_pictures(cli: Cli, picture: Path) -> None:
    """The ends are the pictures, as the model sees them; the frames are the strip."""
    Image.open(picture).convert("RGB").rotate(180).save("other.png")
    output = ok(cli("interpolate", picture, "other.png", "-n", "4", "--steps", "50", "--frames", "frames"))
    assert "4 images between photo.png, other.png -> interpolation.png (last batch: MSE of the ends" in output
    frames = [pixels(f"frames/{i:04}.png") for i in range(4)]
    assert len(list(Path("frames").iterdir())) == 4
    for path, frame in ((picture, frames[0]), (Path("other.png"), frames[-1])):
        expected = np.asarray(to_picture(load_image(path, 3, 8, 8)[0][0]), dtype=int)
        assert abs(frame - expected).max() <= 2
    assert pixels("interpolation.png").shape == (64, 4 * 64 + 3 * 2 * 8, 3)
    with Image.open("interpolation.png") as strip:
        settings = json.loads(strip.text["ddim-ode"])
    assert settings["between"] == ["photo.png", "other.png"]
    assert len(settings["mse"]) == 2


def test_interpolate_between_latents_pictures_and_seeds(cli: Cli, picture: Path) -> None:
    """Four corners make a sheet; its corner from a latent file is what decode makes of that."""
    ok(cli("encode", picture, "--steps", "3"))
    ok(cli("decode", "photo.latent.pt"))
    corners = ("photo.latent.pt", picture, "--seed", "1", "--seed", "2")
    output = ok(cli("interpolate", *corners, "-n", "3", "--frames", "frames"))
    assert "9 images between photo.latent.pt, photo.png, seed 1, seed 2" in output
    assert "3 steps on log-snr" in output
    assert (pixels("frames/0000.png") == pixels("photo.decoded.png")).all()
    assert (pixels("frames/0000.png") == pixels("frames/0002.png")).all()
    ok(cli("sample", "-n", "1", "--seed", "2", "--steps", "3", "-o", "seed.png"))
    assert (pixels("frames/0008.png") == pixels("seed.png")[::8, ::8]).all()


def test_interpolate_encodes_pictures_as_the_latent_was(cli: Cli, picture: Path) -> None:
    """So that both ends lead back; Euler's method both ways would not."""
    ok(cli("encode", picture, "--solver", "exact-euler", "--steps", "6"))
    report = ok(cli("interpolate", "photo.latent.pt", picture, "-n", "2", "--frames", "frames"))
    mse = re.search(r"MSE of the ends (\S+) on .*, encode exact-euler, 6 steps .*, ?decode euler, 6 steps", report)
    assert mse
    assert float(mse[1]) < 1e-10
    assert (pixels("frames/0000.png") == pixels("frames/0001.png")).all()


def test_sample_with_noise(cli: Cli) -> None:
    """eta = 0 is Euler; more noise makes other images, the same ones whatever the batches are."""
    ok(cli("sample", "-n", "3", "--steps", "4", "--grid", "trailing", "--solver", "euler", "-o", "euler.png"))
    for name, options in (
        ("ddim", ("--eta", "0")),
        ("ddpm", ("--eta", "1")),
        ("batches", ("--eta", "1", "--batch-size", "2")),
        ("hat", ("--sigma-hat",)),
        ("seed", ("--eta", "1", "--seed", "7")),
    ):
        ok(cli("sample", "-n", "3", "--steps", "4", *options, "-o", f"{name}.png"))
    assert (pixels("ddim.png") == pixels("euler.png")).all()
    assert abs(pixels("ddpm.png") - pixels("batches.png")).max() <= 1
    for a, b in (("ddim", "ddpm"), ("ddpm", "hat"), ("ddpm", "seed")):
        assert abs(pixels(f"{a}.png") - pixels(f"{b}.png")).mean() > 1
    with Image.open("hat.png") as sheet:
        settings = json.loads(sheet.text["ddim-ode"])
    assert (settings["eta"], settings["sigma_hat"], settings["grid"]) == (1.0, True, "trailing")
    assert settings["solver"] == {"name": "ancestral"}
    report = ok(cli("sample", "-n", "1", "--steps", "4", "--eta", "0.5", "-o", "half.png"))
    assert "1 images from seed 0 and noise of eta 0.5 -> half.png (last batch: ancestral, 4 steps on trail" in report


def test_decoding_by_the_calibration_for_another_number_of_steps(
    cli: Cli, make_model: Callable[..., Path], picture: Path
) -> None:
    """Of what reaches the latent; and not after the calibration that the latent was made with has changed."""
    folder = make_model(seed=6)
    model = load_model(str(folder))

    def calibrate(weight: float) -> None:
        entries = []
        for steps, grid in ((3, "linspace"), (5, "karras"), (7, "leading")):
            nodes = make_grid(model.schedule, grid, steps, clean_end="sigma-min")
            weights = Learned(((weight,),) * steps)
            entries.append(Entry("euler", nodes, weights, weights, {}))
        path = folder / "calibration.json"
        save_calibration(Calibration(model.fingerprint, tuple(entries), {}), path, overwrite=True)

    def decoded(*options: str) -> str:
        return ok(cli("decode", "photo.latent.pt", "--overwrite", "--model", folder, *options))

    calibrate(0.0)
    ok(cli("encode", picture, "--steps", "3", "--model", folder))
    assert "(auto, 3 steps on linspace" in decoded()
    assert "(auto, 5 steps on karras" in decoded("--steps", "5")
    assert "(auto, 5 steps on karras" in decoded("--steps", "5", "--solver", "auto")
    assert "(dpmpp3m, 7 steps on linspace" in decoded("--steps", "7")
    calibrate(0.01)
    result = cli("decode", "photo.latent.pt", "--overwrite", "--model", folder)
    assert result.exit_code == 1
    assert "encoded with a calibration for 3 steps that model" in result.output
    ok(cli("encode", picture, "--steps", "3", "--solver", "euler", "--overwrite", "--model", folder))
    assert "(euler, 3 steps on log-snr" in decoded()
    assert "(auto, 3 steps on linspace" in decoded("--solver", "auto")
    assert "(auto, 5 steps on karras" in decoded("--solver", "auto", "--steps", "5")
    assert "(euler, 5 steps on log-snr" in decoded("--steps", "5")


@pytest.fixture
def calibrated(make_model: Callable[..., Path], picture: Path) -> Path:
    """A model with a calibration for 3 steps, fitted to very few pictures."""
    model = make_model(seed=5)
    Path("pictures").mkdir()
    for i in range(4):
        Image.open(picture).rotate(90 * i).save(f"pictures/{i}.png")
    words = ["calibrate", "--model", str(model), "--images", "pictures", "--steps", "3", "--latents", "4"]
    output = ok(CliRunner().invoke(main, words))
    assert re.search(
        r"^3 steps: \S+ on \S+, (learned|fitted|as it is); errors as parts of the default's: decode ", output
    )
    assert f"-> {model / 'calibration.json'}" in output
    return model


def test_searches_cost_what_they_cost_in_python() -> None:
    (walks,) = [option.default for option in main.commands["calibrate"].params if option.name == "walks"]
    assert walks == WALKS


def test_calibrate_then_everything_is_calibrated(cli: Cli, calibrated: Path, picture: Path) -> None:
    """'auto' is the default for as many steps; the latent says so, and is decoded so, or not at all."""
    entry = load_model(str(calibrated)).calibration.find(3)
    assert entry.fitted  # or else there is nothing to test here
    model = ("--model", calibrated)
    assert "calibrated 3 steps" in ok(cli("info", calibrated))
    assert "auto, 3 steps" in ok(cli("reconstruct", picture, "--steps", "3", *model))
    assert "auto, 3 steps" in ok(cli("encode", picture, "--steps", "3", "--check", *model))
    assert load_latent(Path("photo.latent.pt")).solver["name"] == "auto"
    assert "auto, 3 steps" in ok(cli("decode", "photo.latent.pt", *model))
    assert "dpmpp3m, 4 steps" in ok(cli("decode", "photo.latent.pt", "--steps", "4", "--overwrite", *model))
    for options in (("--steps", "4"), ("--steps", "3", "--grid", "quad"), ("--steps", "3", "--solver", "dpmpp3m")):
        assert "dpmpp3m, " in ok(cli("sample", "-n", "1", "--overwrite", *options, *model))
    (calibrated / "calibration.json").unlink()
    result = cli("decode", "photo.latent.pt", "--overwrite", *model)
    assert result.exit_code == 1
    assert "encoded with a calibration for 3 steps that model" in result.output
    assert "dpmpp3m, 3 steps" in ok(cli("decode", "photo.latent.pt", "--solver", "dpmpp3m", "--overwrite", *model))


@pytest.mark.parametrize(
    "options", [("--steps", "1000", "--grid", "linear"), ("--steps", "3", "--clean-end", "zero"), ("--grid", "2,5,9")]
)
def test_noise_on_every_grid(cli: Cli, options: tuple[str, ...]) -> None:
    """The whole sequence of DDPM among them, and a clean end that the default solver of the ODE cannot reach."""
    assert "and noise of eta 1 -> samples.png" in ok(cli("sample", "-n", "1", "--eta", "1", *options))


def test_a_model_that_is_one_file(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    """``info`` and ``export`` take it with the same --config as the others; a calibration has no place beside it."""
    name = "diffusion_pytorch_model"
    shutil.copy(tiny_model / "unet" / f"{name}.safetensors", tmp_path / "net.safetensors")
    torch.save(load_model(str(tiny_model)).network.unet.state_dict(), tmp_path / "net.pt")
    config, weights = ("--config", tiny_model), load_model(str(tiny_model)).fingerprint
    for file in ("net.safetensors", "net.pt"):
        assert f"weights    {weights}" in ok(cli("info", file, *config))
    ok(cli("export", "net.safetensors", *config, "-o", "folder"))
    assert load_model("folder").fingerprint == weights
    for words in (("info", "net.safetensors"), ("export", "net.safetensors", "-o", "other")):
        assert "does not say its schedule; add --config FOLDER" in cli(*words).stderr
    refused = cli("calibrate", "--model", "net.safetensors", "-o", "calibration.json")
    assert "lies in the folder of its model, and 'net.safetensors' is one file" in refused.stderr


def test_a_trace_carries_what_made_it(cli: Cli, picture: Path) -> None:
    done = cli("trace", picture, "--solver", "heun", "--steps", "3")
    assert done.exit_code == 0, done.output
    target = picture.with_name("photo.trace.png")
    assert json.loads(Image.open(target).text["ddim-ode"])["solver"] == {"name": "heun"}
    assert "photo.png -> " in done.output
    assert cli("trace", picture, "--steps", "3").exit_code == 1
    dollars = picture.rename(picture.with_name("a$^$b.png"))
    assert cli("trace", dollars, "--steps", "3").exit_code == 0
    dollars.rename(picture)
    assert cli("trace", picture, "--steps", "3", "--overwrite").exit_code == 0
