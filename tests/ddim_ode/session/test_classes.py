"""Classes in sessions: each member its own, recorded in latents, paid for and told; and edits."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from ddim_ode import Request, Session, load_latent
from ddim_ode.calibration import Calibration, Entry, Learned
from ddim_ode.codec import decode, draw_latents, encode
from ddim_ode.conditions import UNCONDITIONAL, Blend, Condition
from ddim_ode.grids import make_grid
from ddim_ode.latents import LatentError
from ddim_ode.session.corners import between
from ddim_ode.session.request import PlanError
from ddim_ode.solvers import AUTO, Solver, exact_inverse, get_solver

CLASSES = ("cat", "dog", "horse")


@pytest.fixture(scope="module")
def session(class_model: Path) -> Session:
    return Session(class_model, batch_size=3)


def greys(*levels: int) -> list[Image.Image]:
    return [Image.new("RGB", (8, 8), (level, 100, 255 - level)) for level in levels]


def straight(session: Session, x: Tensor, condition: Condition, *, steps: int = 4, up: bool = True) -> Tensor:
    """What one image or latent becomes without a session, alone in its batch."""
    grid = make_grid(session.model.schedule, "log-snr", steps)
    ode = session.model.ode(conditions=[condition])
    return (encode if up else decode)(ode, x, grid, get_solver("euler"))


def test_each_picture_has_its_own_class(session: Session) -> None:
    """And all go through the network together, but for those with other steps."""
    requests = [Request("euler", 4, label=name, guidance=w) for name, w in (("cat", 1), ("dog", 2.5), (None, None))]
    requests.append(Request("euler", 5, label="2"))
    pictures = greys(0, 80, 160, 240)
    found = list(session.encode_all(pictures, requests))
    expected = [Condition(0), Condition(1, 2.5), UNCONDITIONAL, Condition(2)]
    assert [encoded.latent.condition for encoded in found] == expected
    assert [encoded.latent.condition.name for encoded in found] == ["cat", "dog", None, "horse"]
    assert [encoded.member for encoded in found] == [0, 1, 2, 0]
    for picture, encoded, condition, request in zip(pictures, found, expected, requests, strict=True):
        x_0, *_ = session.model.space.read(picture)
        alone = straight(session, x_0.double(), condition, steps=request.steps)
        torch.testing.assert_close(encoded.latent.x_T, alone, rtol=0, atol=1e-5)
    assert "class 'dog' with guidance 2.5, 8 network calls an image" in found[1].report()
    assert "class 'cat' with guidance 1" in found[0].report()
    assert "network calls" not in found[0].report()
    assert "class" not in found[2].report()
    with pytest.raises(ValueError, match="a request for each picture, but there are only 2 of them"):
        list(session.encode_all(pictures, requests[:2]))


def test_a_wrong_request_loses_no_other_picture(session: Session) -> None:
    requests, failures = [Request("euler", 3, label=name) for name in ("cat", "cow", "dog")], []
    found = list(session.encode_all(greys(1, 2, 3), requests, on_error=failures.append))
    assert [encoded.index for encoded in found] == [0, 2]
    assert "knows no class 'cow'" in str(failures[0])
    with pytest.raises(ValueError, match="there are more than the 1 pictures"):
        list(session.encode_all(greys(1), requests[::2]))


def test_a_latent_without_a_class_is_named_where_guidance_is_asked_for(session: Session, tmp_path: Path) -> None:
    for name, label in (("a", "cat"), ("b", None)):
        session.encode(greys(5)[0], steps=2, label=label).save(tmp_path / f"{name}.pt")
    failures: list[Exception] = []
    files = [tmp_path / "b.pt", tmp_path / "a.pt"]
    (found,) = session.decode_all(files, Request(guidance=2.0), on_error=failures.append)
    assert found.index == 1
    assert str(failures[0]).startswith(f"'{files[0]}': guidance 2 must be towards a class")


def test_a_latent_is_decoded_as_what_it_was_unless_another_class_is_named(session: Session, tmp_path: Path) -> None:
    latent = session.encode(greys(50)[0], solver="euler", steps=4, label="horse", guidance=0.5)
    latent.save(tmp_path / "latent.pt")
    assert load_latent(tmp_path / "latent.pt").condition == Condition(2, 0.5)
    for wishes, condition in (
        ({}, Condition(2, 0.5)),
        ({"label": "dog"}, Condition(1, 0.5)),
        ({"label": 0, "guidance": 3.0}, Condition(0, 3.0)),
        ({"guidance": 2.0}, Condition(2, 2.0)),
        ({"label": "none"}, UNCONDITIONAL),
    ):
        picture = session.decode(tmp_path / "latent.pt", **wishes)
        alone = straight(session, latent.x_T, condition, up=False)
        torch.testing.assert_close(picture.image[None], alone, rtol=0, atol=1e-5)
        assert (picture.settings["class"], picture.settings["guidance"]) == (
            None if condition.label is None else CLASSES[condition.label],
            condition.guidance if wishes != {"label": "none"} else 0.5,
        )


def test_latents_of_several_classes_are_decoded_together(session: Session) -> None:
    latents = [session.encode(greys(90)[0], solver="euler", steps=3, label=name) for name in CLASSES]
    found = list(session.decode_all(latents))
    assert [decoded.member for decoded in found] == [0, 1, 2]
    for latent, decoded in zip(latents, found, strict=True):
        torch.testing.assert_close(decoded.picture.image, session.decode(latent).image, rtol=0, atol=1e-5)


def test_wrong_wishes(session: Session, tiny_model: Path) -> None:
    picture = greys(1)[0]
    with pytest.raises(ValueError, match="knows no class 'cow'; it knows: 0 cat, 1 dog, 2 horse, and 'none'"):
        session.encode(picture, label="cow")
    for wishes in ({"guidance": 2.0}, {"guidance": 2.0, "label": "none"}):
        with pytest.raises(PlanError, match="guidance 2 must be towards a class; name one, or leave it out"):
            session.encode(picture, **wishes)
    with pytest.raises(ValueError, match="guidance must be a finite number, but it is inf"):
        session.reconstruct(picture, label="cat", guidance=float("inf"))
    with pytest.raises(ValueError, match="knows no class 'cat'; it knows: no classes at all, and 'none'"):
        next(Session(tiny_model).sample(1, label="cat"))
    with pytest.raises(ValueError, match="one class, or one for each of 3, but there are 2"):
        next(session.sample(3, label=["cat", "dog"]))
    with pytest.raises(PlanError, match=r"the strength must be from 0\.001, a timestep, to 1, but it is 0"):
        session.edit(picture, "cat", strength=0)
    latent = session.encode(picture, label="cat", steps=2)
    with pytest.raises(LatentError, match="encoded with model"):
        Session(tiny_model).decode(latent)
    with pytest.raises(ValueError, match="knows no class 'cat'"):
        Session(tiny_model).decode(latent, any_model=True)


def test_samples_with_a_class_each(session: Session) -> None:
    wanted = ["cat", "horse", None, "dog"]
    samples = list(session.sample(4, seed=5, label=wanted, guidance=None, solver="euler", steps=4))
    x_T = draw_latents(4, (3, 8, 8), seed=5)
    for i, (name, found) in enumerate(zip(wanted, samples, strict=True)):
        alone = straight(session, x_T[i : i + 1], session.model.condition(name), up=False)
        torch.testing.assert_close(found.picture.image[None], alone, rtol=0, atol=1e-5)
        assert found.picture.settings["class"] == name
    guided = next(session.sample(1, seed=5, label="cat", guidance=4.0, eta=1.0, steps=4))
    plain = next(session.sample(1, seed=5, label="cat", eta=1.0, steps=4))
    assert not torch.allclose(guided.picture.image, plain.picture.image, atol=1e-3)


@pytest.mark.parametrize("solver", ["reversible-heun", "bdia"])
def test_there_and_back_with_guidance(session: Session, solver: str) -> None:
    """W = 3 in 20 steps on a network: to rounding."""
    found = session.reconstruct(greys(120)[0], solver=solver, steps=20, label="dog", guidance=3.0)
    assert found.mse < 1e-20
    assert "class 'dog' with guidance 3" in found.report()


def test_exactly_there_and_back_with_guidance(class_model: Path) -> None:
    """W = 3 in 20 steps: as near as the tolerance asks, where the network, in float64, does not round before that."""
    session = Session(class_model)
    session.model.network.double()
    image, *_ = session.model.space.read(greys(120)[0])
    grid = make_grid(session.model.schedule, "log-snr", 20)
    asked = [session.model.condition("dog", guidance=3.0)]

    def lost(encoder: Solver) -> float:
        x_T = encode(session.model.ode(conditions=asked), image, grid, encoder)
        back = decode(session.model.ode(conditions=asked), x_T, grid, get_solver("euler"))
        return float((back - image).square().mean())

    assert lost(get_solver("euler")) > 1e-2
    for tolerance in (1e-6, 1e-8):
        assert lost(exact_inverse("euler").tuned({"tolerance": tolerance})) < 1e5 * tolerance**2


def test_a_companion_leads_back_as_the_same_class_alone(session: Session) -> None:
    latent = session.encode(greys(60)[0], solver="reversible-heun", steps=4, label="cat", guidance=2.0)
    for wishes, exact in (
        (Request(), True),
        (Request(label=0, guidance=2.0), True),
        (Request(label="dog"), False),
        (Request(guidance=1.0), False),
        (Request(label="none"), False),
    ):
        (found,) = session.decode_all([latent], wishes)
        assert found.plan.exact == exact
        left = "reversible-heun in 4 steps on log-snr and class 'cat' with guidance 2 alone"
        assert (left in found.report()) == (not exact)


def test_encoding_with_guidance_is_warned_of_with_what_it_loses(session: Session) -> None:
    picture = greys(30)[0]
    with pytest.warns(
        UserWarning, match="guidance 3 makes encoding unsure: 'picture' comes back with an MSE of"
    ) as seen:
        session.encode(picture, solver="euler", steps=5, label="cat", guidance=3.0)
    told = float(re.search(r"MSE of (\S+) on", str(seen[0].message)).group(1))
    lost = session.reconstruct(picture, solver="euler", steps=5, label="cat", guidance=3.0).mse
    assert told == pytest.approx(lost, rel=2e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for guidance in (0.0, 0.5, 1.0):
            session.encode(picture, solver="euler", steps=5, label="cat", guidance=guidance)
    half, more = (Request("euler", 5, label="cat", guidance=w) for w in (0.5, 2.0))
    (batch,) = session.encode_batches([picture], half)
    assert not batch.guided
    (batch,) = session.encode_batches([picture] * 2, [half, more])
    assert batch.guided
    (batch,) = session.encode_batches([picture], Request("euler", 5, label="cat", guidance=-1.0))
    assert batch.guided
    for exact in (Request("euler", 3, exact=True, label="cat", guidance=2.0), Request("bdia", 3, label=0, guidance=2)):
        (batch,) = session.encode_batches([picture], exact)
        assert not batch.guided
    (batch,) = session.encode_batches([picture] * 2, [half, more])
    assert [len(encoded.warnings(lost=batch.round_trip())) for encoded in batch] == [0, 1]


def test_a_calibration_is_for_its_guidance(class_model: Path) -> None:
    own = Session(class_model)
    names = {1.0: "quad", 2.0: "karras"}
    grids = {w: make_grid(own.model.schedule, name, 3, clean_end="sigma-min") for w, name in names.items()}
    zero = Learned(((0.0,),) * 3)
    entries = tuple(Entry("reab3", grid, zero, zero, {}, w) for w, grid in grids.items())
    vars(own.model)["calibration"] = Calibration(own.model.fingerprint, entries, {})
    for label, guidance, grid in (
        (None, None, "quad"),
        ("cat", None, "quad"),
        ("dog", 0.0, "quad"),
        ("dog", 2.0, "karras"),
        ("dog", 3.0, "log-snr"),
    ):
        sample = next(own.sample(1, steps=3, label=label, guidance=guidance))
        assert sample.plan.grid.name == grid
        assert ("is not calibrated for 3 steps with guidance 3" in sample.report()) == (guidance == 3.0)
    (part,) = own.edit(greys(9)[0], "dog", label="cat", guidance=2.0, strength=1, steps=3).edits
    assert part.plan.solver.name == "dpmpp3m"
    assert "auto is dpmpp3m: a calibration is for the whole way and one guidance" in part.report()
    bound = own.model.bound(Condition(1, 2.0))
    assert next(Session(bound).sample(1, steps=3)).plan.grid.name == "karras"
    latent = own.encode(greys(9)[0], steps=3, label="cat")
    (again,) = own.decode_all([latent], Request(guidance=3.0))
    assert again.plan.solver.name == "dpmpp3m"
    assert own.decode(latent).settings["solver"]["name"] == AUTO


def test_corners_of_calibrated_latents_must_have_one_guidance(class_model: Path) -> None:
    own = Session(class_model)
    grid = make_grid(own.model.schedule, "capped-50", 3)
    entry = Entry("reab3", grid, Learned(((0.0,),) * 3), Learned(((0.0,),) * 3), {})
    vars(own.model)["calibration"] = Calibration(own.model.fingerprint, (entry,), {})
    wishes = {"seeds": (1, 2), "count": 3, "steps": 3, "label": ["none", "cat"]}
    assert own.interpolate(**wishes).plan.solver.name == AUTO
    with pytest.raises(PlanError, match="calibration is for one guidance, and corners have 1 and 2; name a solver"):
        own.interpolate(**wishes, guidance=2.0)


def test_what_lies_between_corners_is_some_of_each() -> None:
    a, b = Condition(0, 2.0), Condition(1)
    assert between([a, a], 3) == [a, a, a]
    first, middle, last = between([a, b], 3)
    assert (first, last) == (a, b)
    assert dict(between([a, b], 5)[1].terms) == {None: -0.75, 0: 1.5, 1: 0.25}
    assert dict(middle.terms) == {None: -0.5, 0: 1.0, 1: 0.5}
    sheet = between([a, b, a, b], 5)
    assert sheet[::5] == [a] * 5
    assert sheet[4::5] == [b] * 5
    assert dict(between([a, a, b, b], 3)[4].terms) == dict(middle.terms)
    assert dict(Blend(((a, 0.5), (Condition(0, -2.0), 0.5))).terms) == {None: 1.0}


def test_interpolation_between_classes(session: Session) -> None:
    """Each end is what it is by itself; the middle is the flow of the mean of both slopes."""
    found = session.interpolate(seeds=(4, 4), count=3, label=["cat", "dog"], solver="euler", steps=4)
    x_T = draw_latents(1, (3, 8, 8), seed=4)
    middle = Blend(((Condition(0), 0.5), (Condition(1), 0.5)))
    for picture, asked in zip(found.pictures, (Condition(0), middle, Condition(1)), strict=True):
        torch.testing.assert_close(picture.image[None], straight(session, x_T, asked, up=False), rtol=0, atol=1e-5)
    assert "class 'cat' with guidance 1 to class 'dog' with guidance 1" in found.report()


def test_corners_are_asked_for_their_own_classes(session: Session) -> None:
    pictures, wishes = greys(20, 220), {"solver": "dpmpp3m", "steps": 20}
    latent = session.encode(pictures[1], label="horse", **wishes)
    found = session.interpolate([pictures[0], latent], count=3)
    assert found.errors == pytest.approx([session.reconstruct(pictures[0], **wishes).mse], rel=1e-2)
    torch.testing.assert_close(found.pictures[2].image, session.decode(latent).image, rtol=0, atol=1e-5)
    found = session.interpolate([pictures[0], latent], count=3, label="cat", guidance=2.0)
    assert [condition.terms for condition in found.conditions] == [Condition(0, 2.0).terms] * 2


def test_edits(session: Session) -> None:
    """Encoded as one class up to a part of the timesteps, and decoded from there as another, with guidance."""
    picture = greys(70)[0]
    x_0, *_ = session.model.space.read(picture)
    found = session.edit(
        picture, "dog", label="cat", guidance=3.0, strength=(0.8, 0.3), solver="euler", grid="linspace", steps=6
    )
    assert [part.strength for part in found.edits] == [0.3, 0.8]
    for part in found.edits:
        grid = make_grid(session.model.schedule, "linspace", 6, t_end=part.strength * 999)
        assert part.plan.grid == grid
        up = session.model.ode(conditions=[Condition(0)])
        x_T = encode(up, x_0.double(), grid, get_solver("euler"))
        for image, condition in ((part.again, Condition(0)), (part.edited, Condition(1, 3.0))):
            down = session.model.ode(conditions=[condition])
            expected = decode(down, x_T, grid, get_solver("euler"))
            torch.testing.assert_close(image[None], expected, rtol=0, atol=1e-5)
        assert part.mse == pytest.approx(float((part.again - x_0[0]).square().mean() / 4))
    assert found.strip.image.shape[-1] > 4 * 8
    assert found.strip.settings["from"] == "class 'cat' with guidance 1"
    assert found.strip.settings["to"] == "class 'dog' with guidance 3"
    latent = session.encode(picture, label="cat", solver="reversible-heun", steps=5)
    (found,) = session.edit(picture, "dog", label="cat", strength=1, solver="reversible-heun", steps=5).edits
    assert found.edited.equal(session.decode(latent, label="dog").image)
    with pytest.raises(PlanError, match="there must be a strength, or several of them"):
        session.edit(picture, "dog", strength=[])
    with pytest.raises(PlanError, match="take --strength 1, or the name of a grid"):
        session.edit(picture, "dog", grid=(0.0, 500.0, 999.0))
    (whole,) = session.edit(picture, "dog", strength=1, solver="reversible-heun", steps=5).edits
    assert whole.mse < 1e-25
    assert whole.plan.grid.timesteps[-1] == 999


def test_a_model_bound_to_a_condition_answers_under_it(session: Session) -> None:
    """In batches of any size; its weights are others than those of another condition, and of none the model's own."""
    model = session.model
    x, t = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((3,), 400.0)
    for condition in (Condition(2, 2.5, "horse"), Condition(1)):
        bound = model.bound(condition)
        for size in (3, 1, 2):
            expected = model.ode(conditions=[condition] * size).predictor.network(x[:size], t[:size])
            assert bound.network(x[:size], t[:size]).equal(expected)
    double = copy.deepcopy(model.bound(Condition(2, 2.5)).network).double()
    assert double(x.double(), t.double()).dtype == torch.float64
    pickle.loads(pickle.dumps(double))
    prints = {model.bound(Condition(n, w)).fingerprint for n, w in ((0, 1.0), (1, 1.0), (1, 2.0))}
    assert len(prints | {model.fingerprint}) == 4
    assert model.bound(UNCONDITIONAL) is model
    assert model.bound(Condition(1, 0.0)) is model
    assert "class 'horse' with guidance 2.5" in model.bound(Condition(2, 2.5, "horse")).name
