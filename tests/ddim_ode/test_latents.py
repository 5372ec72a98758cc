"""The latent file: it survives a round trip, and whatever else is in a file of that name does no harm."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddim_ode.conditions import MEANING, UNCONDITIONAL, Condition
from ddim_ode.grids import CLEAN_ENDS, grid_of_timesteps, make_grid
from ddim_ode.images import Source
from ddim_ode.latents import LARGEST, Latent, LatentError, load_latent, save_latent
from ddim_ode.models import Model
from ddim_ode.processes import VariancePreserving
from ddim_ode.schedule import NoiseSchedule, make_schedule

SCHEDULE = make_schedule()
torch.manual_seed(0)  # the same weights in every process that collects these tests
MODEL = Model("tiny", nn.Conv2d(3, 3, 1), VariancePreserving(SCHEDULE, "epsilon"), channels=3, height=4, width=5)
LATENT = Latent(
    x_T=torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    grid=make_grid(SCHEDULE, "trailing", 10),
    solver={"name": "torchdiffeq-dopri5", "rtol": 1e-5},
    schedule=SCHEDULE,
    model="tiny",
    fingerprint=MODEL.fingerprint,
    source=Source("cat.png", (640, 480)),
    nfe=10,
)

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)


conditions = st.just(UNCONDITIONAL) | st.builds(Condition, st.integers(0, 10**6), finite, texts)


def asked_for(**changes: object) -> dict[str, object]:
    usual = {"prompt": "a cat", "negative_prompt": None, "guidance": 2.0, "guidance_kind": "cfg", "call": None}
    return {**usual, **changes}


@st.composite
def latents(draw: st.DrawFn) -> Latent:
    """Any latent at all."""
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    channels, height, width = (draw(st.integers(1, 3)) for _ in range(3))
    count = channels * height * width
    values = draw(st.lists(st.floats(-LARGEST, LARGEST, width=32), min_size=count, max_size=count))
    schedule = make_schedule(draw(st.sampled_from(["linear", "sigmoid"])), timesteps=draw(st.integers(2, 50)))
    ends = {0, len(schedule) - 1}
    timesteps = sorted({*ends, *draw(st.sets(st.floats(0.01, len(schedule) - 1.01), max_size=4))})
    clean_end = draw(st.sampled_from(CLEAN_ENDS))
    x_T = torch.tensor(values, dtype=dtype).reshape(1, channels, height, width)
    return Latent(
        x_T=x_T,
        grid=grid_of_timesteps(schedule, timesteps, name=draw(texts), clean_end=clean_end),
        solver={"name": draw(texts)} | draw(st.dictionaries(texts, texts | finite, max_size=3)),
        schedule=schedule,
        model=draw(texts),
        fingerprint=draw(texts),
        source=Source(draw(texts), (draw(st.integers(1, 10**6)), draw(st.integers(1, 10**6))), draw(texts)),
        nfe=draw(st.integers(0, 10**9)),
        companion=x_T.flip(3) if draw(st.booleans()) else None,
        condition=draw(conditions),
        asked=draw(st.none() | st.builds(asked_for, prompt=texts | st.none(), call=texts | st.none())),
        embedding=draw(st.none() | st.just("0f" * 128)),
    )


@given(latents())
@settings(max_examples=100)
def test_everything_survives_the_file(latent: Latent) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latent.pt"
        save_latent(latent, path)
        loaded = load_latent(path)
        assert torch.load(path, weights_only=True)["format"] == "ddim-ode latent"
    assert loaded.x_T.dtype == latent.x_T.dtype
    assert loaded.x_T.numpy().tobytes() == latent.x_T.numpy().tobytes()
    assert (loaded.companion is None) == (latent.companion is None)
    if loaded.companion is not None:
        assert loaded.companion.numpy().tobytes() == latent.companion.numpy().tobytes()
    assert loaded.schedule.alpha_bar.equal(latent.schedule.alpha_bar)
    assert loaded.schedule.name == latent.schedule.name
    for name in ("grid", "solver", "model", "fingerprint", "source", "nfe", "condition", "asked", "embedding"):
        assert getattr(loaded, name) == getattr(latent, name)
    assert loaded.condition.name == latent.condition.name


def test_files_of_the_third_version_are_read(tmp_path: Path) -> None:
    """They did not say what a pipeline was given beside its texts, nor what its network was told."""
    save_latent(replace(LATENT, asked=asked_for()), tmp_path / "latent.pt")
    content = torch.load(tmp_path / "latent.pt", weights_only=True)
    del content["asked"]["call"], content["embedding"]
    torch.save({**content, "version": 3}, tmp_path / "old.pt")
    assert load_latent(tmp_path / "old.pt").asked == asked_for()


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_older_versions_are_read(tmp_path: Path, version: int) -> None:
    """The first knew no classes, and neither another family than that of DDPMs, of which it holds the table alone."""
    save_latent(LATENT, tmp_path / "latent.pt")
    content = torch.load(tmp_path / "latent.pt", weights_only=True)
    for key in ("family", "asked", "fingerprints", *(["condition"] if version == 1 else [])):
        del content[key]
    del content["schedule"]["kind"]
    content["version"] = version
    torch.save(content, tmp_path / "old.pt")
    old = load_latent(tmp_path / "old.pt")
    assert (old.family, old.condition) == ("vp", UNCONDITIONAL)
    assert old.schedule.matches(LATENT.schedule)
    assert old.x_T.equal(LATENT.x_T)


def test_a_class_by_another_name_is_no_class_of_the_model() -> None:
    latent = replace(LATENT, condition=Condition(1, 2.0, "dog"))
    latent.check_fits(replace(MODEL, classes=("cat", "dog")))
    for classes in (("dog", "cat"), ("cat",), ()):
        with pytest.raises(LatentError, match="encoded as class 1, 'dog', and model 'tiny' calls its classes otherwi"):
            latent.check_fits(replace(MODEL, classes=classes))
        latent.check_fits(replace(MODEL, classes=classes), any_model=True)


def test_a_reader_without_this_package_finds_what_it_needs(tmp_path: Path) -> None:
    save_latent(replace(LATENT, condition=Condition(7, 2.5, "horse")), tmp_path / "latent.pt")
    content = torch.load(tmp_path / "latent.pt", weights_only=True)
    x_bar_T = content["x_T"] * (1 + content["sigma_T"] ** 2) ** 0.5
    assert content["scale"] == "unit variance: x_T = x_bar_T / sqrt(1 + sigma_T^2)"
    assert content["sigma_T"] == SCHEDULE.sigma_max == content["grid"]["sigmas"][-1]
    assert content["dtype"] == "float64"
    assert (content["version"], content["family"]) == (4, "vp")
    meaning = "eps = eps_none + guidance * (eps_class - eps_none)"
    assert content["condition"] == {"label": 7, "guidance": 2.5, "name": "horse", "meaning": meaning}
    assert x_bar_T.shape == (1, 3, 4, 5)


def test_a_part_of_a_batch_takes_no_more_room_than_it_needs(tmp_path: Path) -> None:
    batch = torch.zeros(1000, 3, 4, 5)
    save_latent(replace(LATENT, x_T=batch[:1]), tmp_path / "latent.pt")
    assert (tmp_path / "latent.pt").stat().st_size < batch.nbytes / 4


def with_pixel(value: float) -> Tensor:
    """The x_T with one pixel of another value."""
    x_T = LATENT.x_T.clone()
    x_T[0, 2, 1, 1] = value
    return x_T


@pytest.mark.parametrize(
    ("x_T", "words"),
    [
        (torch.zeros(3, 4, 5), "must be a float tensor of shape (1, C, H, W), but it is torch.float32 (3, 4, 5)"),
        (torch.zeros(2, 3, 4, 5), "but it is torch.float32 (2, 3, 4, 5)"),
        (torch.zeros(1, 3, 4, 5, dtype=torch.int64), "but it is torch.int64 (1, 3, 4, 5)"),
        (with_pixel(torch.nan), "x_T should have about unit variance, but holds nan; encode the image again"),
        (with_pixel(-torch.inf), "x_T should have about unit variance, but holds -inf; encode the image again"),
        (with_pixel(-1e6), "x_T should have about unit variance, but holds -1e+06; encode the image again"),
        (with_pixel(1e300), "x_T should have about unit variance, but holds 1e+300; encode the image again"),
    ],
)
def test_no_latent_is_made_of_a_wrong_tensor(x_T: Tensor, words: str) -> None:
    with pytest.raises(LatentError, match=re.escape(words)):
        replace(LATENT, x_T=x_T)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_random_bytes(path: Path) -> None:
    path.write_bytes(torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(0)).byte().numpy())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "does not exist"),
        (Path.touch, "is empty"),
        (make_folder, "is a folder, not a latent file; name the files in it"),
        (make_random_bytes, "is not a latent file, or a truncated one"),
        (lambda path: path.write_text("x_T = 3"), "is not a latent file, or a truncated one"),
        (lambda path: torch.save([1, 2], path), "is not a latent file of ddim-ode; make one with: encode"),
        (lambda path: torch.save({"weight": torch.ones(3)}, path), "is not a latent file of ddim-ode"),
        (lambda path: torch.save(nn.Linear(1, 1), path), "torch.load(weights_only=True) refuses it"),
    ],
    ids=["missing", "empty", "folder", "random", "text", "list", "weights", "module"],
)
def test_what_is_no_latent_file_is_refused(tmp_path: Path, make: Callable[[Path], object], words: str) -> None:
    path = tmp_path / "latent.pt"
    make(path)
    with pytest.raises(LatentError, match=re.escape(words)) as caught:
        load_latent(path)
    assert str(caught.value).startswith(f"'{path}' ")


@pytest.mark.parametrize("part", [0.0001, 0.01, 0.3, 0.7, 0.99, 0.9999])
def test_a_truncated_file_is_refused(tmp_path: Path, part: float) -> None:
    path = tmp_path / "latent.pt"
    save_latent(LATENT, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole)) + 1])
    with pytest.raises(LatentError, match="is not a latent file, or a truncated one"):
        load_latent(path)


class Bomb:
    """Whoever unpickles it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("as_tensor_file", [True, False])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, as_tensor_file: bool) -> None:
    path, crater = tmp_path / "latent.pt", tmp_path / "crater"
    content = {"format": "ddim-ode latent", "version": 1, "x_T": Bomb(crater)}
    if as_tensor_file:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(LatentError, match=r"torch.load\(weights_only=True\) refuses it"):
        load_latent(path)
    assert not crater.exists()
    if as_tensor_file:
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert crater.exists(), "the bomb was none"


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    """An edit that takes out ``content[keys[0]][keys[1]]...``."""

    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return edit


def with_value(value: object, *keys: str) -> Callable[[dict[str, Any]], None]:
    """An edit that sets ``content[keys[0]][keys[1]]...``."""

    def edit(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (with_value("jpeg", "format"), "is not a latent file of ddim-ode"),
        (
            with_value(5, "version"),
            "has format version 5, but this program reads the versions 1, 2, 3 and 4; use the version of",
        ),
        (without("version"), "has format version None, but this program reads the versions 1, 2, 3 and 4"),
        (without("family"), "is damaged: there is no 'family'"),
        (without("asked"), "is damaged: there is no 'asked'"),
        (with_value([1], "asked"), "is damaged: what was asked for must be a table of prompt, negative"),
        (with_value(asked_for(prompt=[1]), "asked"), "'prompt' of what was asked for must be text or a number, but it"),
        (with_value(asked_for(guidance="abc"), "asked"), "'guidance' of what was asked for must be text or a number"),
        (with_value(asked_for(guidance=inf), "asked"), "guidance must be finite, but it is inf"),
        (with_value(asked_for(call={}), "asked"), "'call' of what was asked for must be text or a number"),
        (without("embedding"), "is damaged: there is no 'embedding'"),
        (with_value("abc", "embedding"), "the hash of what the network was told must have 256 digits, but it is 'abc'"),
        (with_value(1, "embedding"), "is damaged"),
        (with_value({"vae": 3}, "fingerprints"), "'vae' of fingerprints must be text or a number, but it is 3"),
        (with_value("other", "family"), "is damaged: the family must be one of vp, flow, edm, ve, but it is 'other'"),
        (with_value("cosine", "schedule", "kind"), "noise levels of the kind 'cosine' are not known"),
        (without("x_T"), "is damaged: there is no 'x_T'"),
        (without("grid", "sigmas"), "is damaged: there is no 'sigmas'"),
        (without("schedule"), "is damaged: there is no 'schedule'"),
        (without("model", "fingerprint"), "is damaged: there is no 'fingerprint'"),
        (without("source", "size"), "is damaged: there is no 'size'"),
        (with_value(torch.zeros(3, 4, 5), "x_T"), "is damaged: x_T must be a float tensor of shape (1, C, H, W)"),
        (
            with_value(torch.full((1, 3, 4, 5), torch.nan), "x_T"),
            "is damaged: x_T should have about unit variance, but holds nan",
        ),
        (with_value(1e6 * LATENT.x_T, "x_T"), "is damaged: x_T should have about unit variance, but holds"),
        (with_value([0.0], "x_T"), "is damaged"),
        (with_value(torch.zeros(1, 3, 4, 5).to_sparse(), "x_T"), "is damaged"),
        (with_value([0.0, 2.0, 1.0], "grid", "sigmas"), "is damaged: a grid needs at least two sigmas and as many"),
        (with_value([9.0] + 10 * [1.0], "grid", "sigmas"), "is damaged: sigmas must rise strictly"),
        (with_value(1e5, "grid", "sigmas", 10), "is damaged: sigma = 100000 of the grid contradicts its timestep 999"),
        (with_value(1e155, "grid", "sigmas", 10), "is damaged: sigma = 1e+155 of the grid contradicts its timestep"),
        (with_value(float("inf"), "grid", "sigmas", 10), "is damaged: sigma = inf of the grid contradicts its"),
        (with_value(float("nan"), "grid", "timesteps", 3), "is damaged: timesteps must lie in [0, 999], but they"),
        (with_value(998.0, "grid", "timesteps", 10), "of the grid contradicts its timestep 998, which is sigma = 15"),
        (with_value(1000.0, "grid", "timesteps", 10), "is damaged: timesteps must lie in [0, 999], but they"),
        (with_value(5.0, "grid", "timesteps", 0), "begins at sigma = 0, t = 5, which is not the clean end 'zero'"),
        (with_value("sigma-min", "grid", "clean_end"), "at sigma = 0, t = 0, which is not the clean end 'sigma-min'"),
        (with_value(99.0, "sigma_T"), "is damaged: sigma_T is 99.0, but must be 157.40"),
        (with_value("as it is", "scale"), "is damaged: scale is 'as it is', but must be 'unit variance"),
        (with_value(None, "grid"), "is damaged"),
        (with_value("euler", "solver"), "is damaged"),
        (with_value({}, "solver"), "is damaged: there is no 'name'"),
        (with_value(["x"], "solver", "name"), "is damaged: the name of the solver must be a string, but it is ['x']"),
        (with_value("a", "solver", "rtol"), "the setting 'rtol' of the solver must be int or float, but it is 'a'"),
        (with_value(None, "solver", "chart"), "the setting 'chart' of the solver must be str or int or float"),
        (with_value(torch.ones(3), "schedule", "alpha_bar"), "is damaged: alpha_bar of schedule 'linear-1000' must"),
        (with_value([640], "source", "size"), "is damaged"),
        (with_value(float("inf"), "nfe"), "is damaged"),
        (without("condition"), "is damaged: there is no 'condition'"),
        (without("condition", "name"), "is damaged: there is no 'name'"),
        (with_value(3, "condition", "label"), "is damaged: a class must have a number and a name, but there are 3 and"),
        (with_value("cat", "condition", "name"), "a class must have a number and a name, but there are None and 'cat'"),
        (with_value({**asdict(Condition(-1, 1.0, "cat")), "meaning": MEANING}, "condition"), "an integer from 0 on"),
        (with_value("2", "condition", "guidance"), "guidance must be a number that means 'eps = eps_none + guidance"),
        (with_value(float("nan"), "condition", "guidance"), "is damaged: guidance must be a finite number, but it is"),
        (with_value("w - 1", "condition", "meaning"), "guidance must be a number that means 'eps = eps_none + guidan"),
    ],
)
def test_a_file_of_a_wrong_content_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], None], words: str
) -> None:
    path = tmp_path / "latent.pt"
    save_latent(LATENT, path)
    content = copy.deepcopy(torch.load(path, weights_only=True))
    edit(content)
    torch.save(content, path)
    with pytest.raises(LatentError, match=re.escape(words)):
        load_latent(path)


def test_it_fits_its_own_model() -> None:
    LATENT.check_fits(MODEL)
    LATENT.check_fits(replace(MODEL, name="another name for the same weights"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"network": nn.Conv2d(3, 3, 1)},
            f"encoded with model 'tiny' (weights {MODEL.fingerprint[:12]}), but 'tiny' has other weights (",
        ),
        (
            {"process": VariancePreserving(make_schedule("scaled_linear"), "epsilon")},
            "encoded with schedule 'linear-1000', sigma up to 157.407, but model 'tiny' has 'scaled_linear-1000', up",
        ),
        (
            {"process": VariancePreserving(NoiseSchedule("linear-1000", SCHEDULE.alpha_bar**1.01), "epsilon")},
            "decode it with the model it names: 'tiny'",
        ),
    ],
)
def test_another_model_is_refused_unless_any_is_allowed(changes: Mapping[str, Any], words: str) -> None:
    other = replace(MODEL, **changes)
    with pytest.raises(LatentError, match=re.escape(words)):
        LATENT.check_fits(other)
    LATENT.check_fits(other, any_model=True)


@pytest.mark.parametrize("any_model", [False, True])
def test_a_model_of_another_shape_is_refused_always(any_model: bool) -> None:
    words = "the latent has shape (1, 3, 4, 5), but model 'tiny' takes (1, 3, 5, 4); decode it with the model it names"
    with pytest.raises(LatentError, match=re.escape(words)):
        LATENT.check_fits(replace(MODEL, height=5, width=4), any_model=any_model)


def test_any_grid_that_begins_where_the_latent_is_will_do() -> None:
    for name in ("trailing", "linspace", "quad", "log-snr", "karras"):
        LATENT.check_reaches(make_grid(SCHEDULE, name, 7))
    words = "lies at sigma = 157.407 (t = 999), but grid 'leading' with 50 steps begins at 130.144 (t = 980); take one"
    with pytest.raises(LatentError, match=re.escape(words)):
        LATENT.check_reaches(make_grid(SCHEDULE, "leading", 50))


def test_the_summary_tells_what_made_it() -> None:
    summary = LATENT.summary()
    for part in ("cat.png", "640 x 480", "(1, 3, 4, 5)", "157.407", "trailing, 10 steps", "dopri5, rtol 1e-05", "10 N"):
        assert part in summary


def test_nothing_is_overwritten_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "latent.pt"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="exists already"):
        save_latent(LATENT, path)
    assert path.read_text() == "precious"
    save_latent(LATENT, path, overwrite=True)
    assert load_latent(path).x_T.equal(LATENT.x_T)


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_latent(LATENT, tmp_path / "latent.pt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "companion",
    [LATENT.x_T[:, :2], LATENT.x_T.float(), LATENT.x_T * float("nan"), LATENT.x_T * 1e6],
    ids=["shape", "dtype", "nan", "large"],
)
def test_a_companion_that_is_none_is_refused(companion: Tensor) -> None:
    with pytest.raises(LatentError, match=r"^(the companion of x_T must be of its shape|its companion should)"):
        replace(LATENT, companion=companion)
