"""A session does what the command line does, for one input and for any number, and leaves nothing behind."""

from __future__ import annotations

import gc
import io
import json
import pickle
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

from ddim_ode import Latent, PlanError, Progress, Request, Session, load_latent
from ddim_ode.cli import main
from ddim_ode.images import Source, load_image, to_picture
from ddim_ode.models import Model, ModelError
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import make_schedule
from ddim_ode.session.batches import MemberError
from ddim_ode.session.walks import Walk, Walker
from ddim_ode.solvers import SOLVERS, SolverError
from ddim_ode.spaces import PixelSpace

# Cheap, and enough to tell one solver from another.
WISHES = {name: {"rtol": 1e-2, "atol": 1e-2} if s.adaptive else {"steps": 6} for name, s in SOLVERS.items()}
# These diverge in a few large steps.
WISHES |= {name: {"steps": 40} for name in ("ab3", "ab4")}


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return Session(tiny_model)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return write_picture(tmp_path / "photo.png", seed=0)


def write_picture(path: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return path


def command(*words: object) -> None:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", SOLVERS)
def test_five_lines_do_what_the_command_line_does(
    name: str, session: Session, picture: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """The same files, bit for bit: the latent but for its name, and the picture."""
    session.encode(picture, solver=name, **WISHES[name]).save(tmp_path / "python.pt")
    session.decode(tmp_path / "python.pt").save(tmp_path / "python.png")
    options = [text for option, value in WISHES[name].items() for text in (f"--{option}", str(value))]
    command("encode", picture, "-o", tmp_path / "cli.pt", "--model", tiny_model, "--solver", name, *options)
    command("decode", tmp_path / "cli.pt", "-o", tmp_path / "cli.png", "--model", tiny_model)
    ours, theirs = load_latent(tmp_path / "python.pt"), load_latent(tmp_path / "cli.pt")
    assert ours.x_T.equal(theirs.x_T)
    assert (ours.companion is None) == (theirs.companion is None)
    assert ours.companion is None or ours.companion.equal(theirs.companion)
    assert (ours.grid, ours.solver, ours.nfe, ours.source) == (theirs.grid, theirs.solver, theirs.nfe, theirs.source)
    assert (tmp_path / "python.png").read_bytes() == (tmp_path / "cli.png").read_bytes()


def test_what_comes_in_as_bytes_goes_out_as_bytes(session: Session, picture: Path) -> None:
    """Or as an open picture, or as a latent; and names are those of files, where there are any."""
    by_path = session.encode(picture, steps=2)
    by_bytes = session.encode(picture.read_bytes(), steps=2)
    with Image.open(picture) as opened:
        by_picture = session.encode(opened, steps=2)
    assert by_path.x_T.equal(by_bytes.x_T)
    assert by_path.x_T.equal(by_picture.x_T)
    assert [latent.source.name for latent in (by_path, by_bytes, by_picture)] == ["photo.png", "picture", "picture"]
    decoded = session.decode(by_path.to_bytes())
    assert decoded.image.equal(session.decode(by_path).image)
    with Image.open(io.BytesIO(decoded.to_bytes())) as file:
        assert json.loads(file.text["ddim-ode"]) == json.loads(json.dumps(decoded.settings))
        assert file.tobytes() == decoded.to_pil().tobytes() == to_picture(decoded.image).tobytes()


def test_a_photograph_is_turned_as_its_file_says(session: Session, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "photo.png", seed=0)
    with Image.open(path) as upright:
        exif = upright.getexif()
        exif[0x0112] = 6
        upright.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        found = [session.model.space.read(source)[0] for source in (tmp_path / "turned.png", opened)]
    assert found[0].equal(found[1])
    assert not found[0].equal(session.model.space.read(path)[0])


def test_reconstruction_is_encoding_and_decoding(session: Session, picture: Path) -> None:
    found = session.reconstruct(picture, solver="heun", steps=4)
    decoded = session.decode(session.encode(picture, solver="heun", steps=4))
    assert found.decoded.equal(decoded.image)
    image = load_image(picture, 3, 8, 8)[0][0]
    assert found.image.equal(image)
    assert found.mse == pytest.approx(float(((image - decoded.image) / 2).square().mean()))
    assert found.mse_alone is None
    exact = session.reconstruct(picture, solver="reversible-heun", steps=4)
    assert exact.mse < 1e-15 < 1e-8 < (exact.mse_alone or 0)
    again = session.decode(session.encode(picture, solver="reversible-heun", steps=4).to_bytes())
    torch.testing.assert_close(again.image, image, rtol=0, atol=1e-6)
    assert found.picture.image.shape == (3, 8, 18)


@pytest.mark.parametrize("name", ["heun", "ddim-predicted", "reversible-heun"])
def test_a_check_decodes_as_one_would(name: str, session: Session, picture: Path) -> None:
    """With the way back of the solver, and its companion; what it measures is what reconstruction loses."""
    batch = next(session.encode_batches([picture], Request(name, steps=4)))
    expected = session.reconstruct(picture, solver=name, steps=4).mse
    assert float(batch.check().reconstruction_mse[0]) == pytest.approx(expected, rel=1e-6, abs=1e-25)


def test_samples_do_not_depend_on_how_many_there_are(session: Session, tiny_model: Path) -> None:
    few = [sample.picture.image for sample in session.sample(2, seed=3, steps=2)]
    many = [sample.picture.image for sample in Session(tiny_model, batch_size=2).sample(5, seed=3, steps=2)]
    assert len(many) == 5
    torch.testing.assert_close(torch.stack(few), torch.stack(many[:2]), rtol=0, atol=1e-5)
    noisy = [sample.picture for sample in session.sample(1, seed=3, steps=2, eta=0.5)]
    assert noisy[0].settings["eta"] == 0.5
    assert not noisy[0].image.allclose(few[0])


def test_interpolation_has_its_ends_where_they_were(session: Session, picture: Path) -> None:
    latent = session.encode(picture, solver="heun", steps=20)
    found = session.interpolate([latent, picture], count=3)
    assert list(found.names) == ["latent of photo.png", "photo.png"]
    assert len(found.pictures) == 3
    assert found.pictures[0].image.allclose(found.pictures[2].image)
    assert found.errors[0] < 1e-3
    assert found.sheet.image.shape == (3, 8, 28)
    assert session.interpolate(seeds=(1, 2), count=2, steps=2).errors == []


def test_many_are_done_in_batches_and_those_that_fail_are_reported(
    session: Session, tiny_model: Path, tmp_path: Path
) -> None:
    """Each with its number; without somebody to report to, the first failure ends it."""
    paths: list[Path | bytes] = [write_picture(tmp_path / f"{i}.png", seed=i) for i in range(5)]
    paths.insert(2, b"no picture")
    failures: list[Exception] = []
    small = Session(tiny_model, batch_size=2)
    batches = list(small.encode_batches(paths, Request(steps=2), on_error=failures.append))
    assert [[encoded.index for encoded in batch] for batch in batches] == [[0, 1], [3, 4], [5]]
    assert [str(failure) for failure in failures] == ["'picture' is not a picture that Pillow can open"]
    assert len(batches[0].check().latent_rmse) == 2
    latents: list[Latent | bytes] = [encoded.latent for batch in batches for encoded in batch]
    latents.insert(1, b"")
    decoded = list(small.decode_all(latents, on_error=failures.append))
    assert [found.index for found in decoded] == [0, 2, 3, 4, 5]
    assert str(failures[-1]) == "'latent' is empty"
    back = list(small.reconstruct_all(paths, Request(steps=2), on_error=failures.append))
    assert [found.index for found in back] == [0, 1, 3, 4, 5]
    with pytest.raises(ValueError, match="'picture' is not a picture"):
        list(session.encode_all(paths, Request(steps=2)))


def test_latents_that_are_decoded_alike_go_together(session: Session, picture: Path) -> None:
    made = [session.encode(picture, solver=name, steps=2) for name in ("heun", "heun", "euler", "heun")]
    seen = [found.walk for found in session.decode_all(made)]
    assert seen[0] is seen[1]
    assert len({id(walk) for walk in seen}) == 3
    assert [walk.solver.name for walk in seen] == ["heun", "heun", "euler", "heun"]


def test_progress_is_told_of_every_evaluation(tiny_model: Path, picture: Path) -> None:
    told: list[Progress] = []
    Session(tiny_model, progress=told.append).encode(picture, solver="heun", steps=3)
    assert [(p.nfe, p.total, p.done) for p in told] == [*((n, 6, False) for n in range(7)), (6, 6, True)]
    assert {p.label for p in told} == {"encode"}


def test_what_is_wrong_is_a_value_error(tiny_model: Path, session: Session, picture: Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder 'nowhere'"):
        Session("nowhere")
    with pytest.raises(ValueError, match="batch_size must be 'auto' or from 1 to 1000000, but it is 0"):
        Session(tiny_model, batch_size=0)
    with pytest.raises(ValueError, match="max_nfe must be at least 1, but it is 0"):
        Session(tiny_model, max_nfe=0)
    with pytest.raises(PlanError, match="chooses its own steps"):
        session.encode(picture, solver="scipy-RK45", steps=3)
    with pytest.raises(ValueError, match="count must be at least 1, but it is 0"):
        session.sample(0)
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\], from DDIM to DDPM, but it is 2"):
        session.sample(1, eta=2.0)
    with pytest.raises(ValueError, match="but there are 1"):
        session.interpolate([picture])
    for wrong in (session.encode_all, session.encode_batches, session.reconstruct_all):
        with pytest.raises(ValueError, match="unknown solver 'huen'"):
            wrong([], Request(solver="huen"))


def test_a_companion_of_another_solver_is_left_behind(session: Session, picture: Path) -> None:
    """A file may claim what it likes: a method of one state decodes x_T alone, and the plan says so."""
    latent = session.encode(picture, solver="reversible-heun", steps=3)
    vars(latent)["solver"] = SOLVERS["euler"].settings
    (found,) = session.decode_all([latent])
    assert not found.plan.exact
    assert "without the companion" in found.report()


def test_a_thousand_pictures_take_no_more_memory_than_a_few(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a batch of them and the next are alive at any time: counted, and in bytes."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    read = PixelSpace.pixels

    def counting(space: PixelSpace, source: bytes) -> tuple[Tensor, Source]:
        nonlocal most
        found = read(space, source)
        alive.add(found[0])
        most = max(most, len(alive))
        return found

    monkeypatch.setattr(PixelSpace, "pixels", counting)
    session = Session(tiny_model, batch_size=8)
    noise = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 3), dtype=np.uint8)

    def contents() -> Iterator[bytes]:
        for pixels in noise:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, format="PNG")
            yield file.getvalue()

    for work in (session.encode_all, session.reconstruct_all):
        taken = []
        for i, _ in enumerate(work(contents(), Request(solver="euler", steps=1))):
            if i in (100, 999):
                gc.collect()
                taken.append(psutil.Process().memory_info().rss)
        assert i == 999
        assert taken[1] - taken[0] < 4 * 2**20
    assert most <= 3 * 8 + 1


def test_a_session_is_not_needed_to_know_what_a_solver_was(session: Session, picture: Path) -> None:
    """Plans travel between processes."""
    (encoded,) = session.encode_all([picture], Request(solver="mccallum-foster-rk4", steps=3))
    assert pickle.loads(pickle.dumps(encoded.plan)) == encoded.plan


def test_a_model_stays_on_its_device(session: Session, make_model: Callable[..., Path]) -> None:
    assert Session(session.model).model is session.model


class Fragile(nn.Module):
    """A network that answers NaN for every image that is white somewhere near the clean end."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        bad = (x.flatten(1).amax(1) > 0.99).reshape(-1, 1, 1, 1) & (t < 5).reshape(-1, 1, 1, 1)
        return torch.where(bad, torch.nan, self.weight * x.tanh())


@pytest.fixture
def fragile() -> Session:
    return Session(Model("fragile", Fragile(), VariancePreserving(make_schedule(), "epsilon"), 1, 4, 4))


def greys(*levels: int) -> list[Image.Image]:
    return [Image.new("L", (4, 4), level) for level in levels]


@pytest.mark.parametrize("solver", ["heun", "reversible-heun", "per-sample-bosh3"])
def test_a_member_that_cannot_be_done_loses_no_other(fragile: Session, solver: str) -> None:
    """It is named, and the others are what they are alone; without somebody to report to, the error is raised."""
    wish = Request(solver, steps=None if SOLVERS[solver].adaptive else 5)
    pictures, failures = greys(10, 255, 100, 200), []
    found = list(fragile.encode_all(pictures, wish, on_error=failures.append))
    assert [encoded.index for encoded in found] == [0, 2, 3]
    assert len(failures) == 1
    assert re.match(rf"'picture': {solver}.* is not finite at sigma = ", str(failures[0]))
    for encoded in found:
        (alone,) = fragile.encode_all([pictures[encoded.index]], wish)
        torch.testing.assert_close(encoded.latent.x_T, alone.latent.x_T, rtol=1e-9, atol=1e-9)
    back = list(fragile.reconstruct_all(pictures, wish, on_error=failures.append))
    assert [reconstructed.index for reconstructed in back] == [0, 2, 3]
    assert len(failures) == 2
    with pytest.raises(SolverError, match="is not finite"):
        list(fragile.encode_all(pictures, wish))


def test_a_latent_that_cannot_be_decoded_loses_no_other(fragile: Session) -> None:
    latents, failures = [encoded.latent for encoded in fragile.encode_all(greys(0, 50, 100), Request("heun", 5))], []
    latents[1] = replace(latents[1], x_T=torch.full_like(latents[1].x_T, 90))
    found = list(fragile.decode_all(latents, on_error=failures.append))
    assert [decoded.index for decoded in found] == [0, 2]
    assert "'latent of picture': heun: the state is not finite" in str(failures[0])


def test_a_latent_that_the_solver_has_let_diverge_is_refused_by_name(fragile: Session) -> None:
    with torch.no_grad():
        fragile.model.network.weight.fill_(400.0)
    with pytest.raises(MemberError, match=r"'picture': x_T should have about unit variance, but holds .*"):
        fragile.encode(greys(100)[0], solver="euler", steps=5)


def test_samples_are_drawn_batch_by_batch(session: Session) -> None:
    """A million of them are no more in memory than one, and the first ones are those of any other number."""
    few = [found.picture.image for found in session.sample(3, steps=1)]
    many = [found.picture.image for found in islice(session.sample(1_000_000, steps=1), 3)]
    torch.testing.assert_close(few, many, rtol=0, atol=1e-4)  # but for the rounding of batches of other sizes


def test_what_is_known_to_cost_too_much_is_refused_before_the_first_evaluation(fragile: Session) -> None:
    for encode in (fragile.encode_all, fragile.reconstruct_all):
        with pytest.raises(PlanError, match=r"'heun' takes 20000 network .* the limit is 10000; take at most 5000 st"):
            list(encode(greys(1), Request("heun", 10_000)))
    with pytest.raises(PlanError, match="'exact-euler' takes 10001 network evaluations or more"):
        fragile.encode(greys(1)[0], steps=10_001, exact=True)
    with pytest.raises(PlanError, match="take at most 10000 steps"):
        fragile.sample(1, steps=10_001, solver="euler")
    with pytest.raises(ValueError, match=r"^1000000 images of 4 x 4 are too many for one picture; 16384 have room"):
        fragile.interpolate(seeds=(1, 2), count=1_000_000)
    assert fragile.model.network.calls == 0


def test_noise_on_a_network_that_fails_is_an_error_and_no_black_picture(fragile: Session) -> None:
    with torch.no_grad():
        fragile.model.network.weight.fill_(torch.nan)
    with pytest.raises(SolverError, match="sampling with noise led to pixels that are not finite numbers; check the"):
        list(fragile.sample(2, steps=3, eta=1.0))


def test_what_a_solver_could_not_do_is_said_whatever_it_is_asked_for(
    tiny_model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each walk."""
    watch = Walker.watch

    def noted(self: Walker, *arguments: Any) -> tuple[Any, Walk]:
        solution, walk = watch(self, *arguments)
        return solution, replace(walk, notes=(f"{arguments[0]} is not as it should be",))

    monkeypatch.setattr(Walker, "watch", noted)
    session, wish = Session(tiny_model, batch_size=2), {"steps": 2, "solver": "euler"}
    for work, words in (
        (lambda: session.encode(picture, **wish), ["encode"]),
        (lambda: session.decode(session.encode(picture, **wish), **wish), ["encode", "decode"]),
        (lambda: session.reconstruct(picture, **wish), ["encode", "decode"]),
        (lambda: list(session.sample(3, **wish)), ["sample 1-2 of 3", "sample 3-3 of 3"]),
        (lambda: session.interpolate(seeds=(0, 1), count=2, **wish), ["decode 1-2 of 2"]),
        (lambda: session.edit(picture, "none", **wish), ["edit 0.7", "edit 0.7"]),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
        assert [str(each.message) for each in said] == [f"{word} is not as it should be" for word in words]
