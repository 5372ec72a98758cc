"""Networks of EDM out of pickles, against outputs of NVIDIA's own Apache-licensed networks; and no code is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import edm_files
import numpy as np
import pytest
import torch
from edm_files import REFERENCE, network, snapshot, wave

from ddim_ode.kinds import ModelError
from ddim_ode.models import load_model

X, T = 3 * wave("x", (2, 3, 8, 8)), torch.tensor([-1.5, 0.9])
LABELS = torch.tensor([3, 0])


def output(model: Any, labels: torch.Tensor | None) -> torch.Tensor:
    result: torch.Tensor = model.network(X, T) if labels is None else model.network.answer(X, T, labels)
    return result


@pytest.mark.parametrize("name", REFERENCE)
def test_it_answers_what_the_reference_answers(name: str, tmp_path: Path) -> None:
    case = REFERENCE[name]
    classes = case["init_kwargs"]["label_dim"]
    model = load_model(str(snapshot(tmp_path / "net.pkl", network(case))))
    got = output(model, LABELS if classes else None).flatten(2)[:, :, ::3]
    assert np.abs(got.numpy() - np.array(case["output"])).max() < 1e-5 * case["norm"]
    assert (model.classes, model.height, model.channels) == (tuple(map(str, range(classes))), 8, 3)


def test_one_that_was_trained_with_no_class_too_is_asked_for_none(tmp_path: Path) -> None:
    case = REFERENCE["DDPM++ with classes"]
    model = load_model(str(snapshot(tmp_path / "net.pkl", network(case))))
    expected = np.array(case["output_of_none"])
    assert np.abs(output(model, None).flatten()[::17].numpy() - expected).max() < 1e-5 * case["norm"]
    model = load_model(str(snapshot(tmp_path / "net.pkl", network(REFERENCE["ADM with classes"]))))
    with pytest.raises(ValueError, match="trained with a class for every picture; name one of its 4 classes"):
        output(model, None)


def test_the_slope_is_that_of_the_denoised_picture(tmp_path: Path) -> None:
    """D of Eq. (7) with the coefficients of Table 1, and d x / d sigma = (x - D) / sigma, Eq. (4)."""
    case = REFERENCE["NCSN++"]
    model = load_model(str(snapshot(tmp_path / "net.pkl", network(case, sigma_data=0.7))))
    sigma, sd = torch.tensor(1.7, dtype=torch.float64), 0.7
    x, w2 = X.double(), sigma**2 + sd**2
    f = model.network((x / w2.sqrt()).float(), (sigma.log() / 4).float().expand(2)).double()
    denoised = sd**2 / w2 * x + sigma * sd / w2.sqrt() * f
    torch.testing.assert_close(model.ode()(sigma, x), (x - denoised) / sigma, rtol=1e-6, atol=1e-6)
    assert (model.schedule.sigma_min, model.schedule.sigma_max) == (0.002, 80.0)


def test_a_network_alone_is_read(tmp_path: Path) -> None:
    with edm_files.their_modules():
        (tmp_path / "net.pkl").write_bytes(pickle.dumps(network(REFERENCE["DDPM++"])))
    whole = load_model(str(snapshot(tmp_path / "training.pkl", network(REFERENCE["DDPM++"]))))
    assert load_model(str(tmp_path / "net.pkl")).fingerprint == whole.fingerprint


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


def with_state(**state: Any) -> Any:
    """A network whose inner state is changed."""
    net = network(REFERENCE["DDPM++"])
    for name, value in state.items():
        net.model.__dict__[name] = value
    return net


def with_kwargs(**kwargs: Any) -> Any:
    """A network that says it was made with others."""
    net = network(REFERENCE["DDPM++"])
    net.model._init_kwargs.update(kwargs)
    return net


def spoilt(value: float) -> Any:
    net = network(REFERENCE["DDPM++"])
    net.model.map_layer0.weight.data.view(-1)[0] = value
    return net


def with_buffer(name: str, value: torch.Tensor) -> Any:
    net = network(REFERENCE["DDPM++"])
    net.model._buffers[name] = value
    return net


def without(name: str) -> Any:
    net = network(REFERENCE["DDPM++"])
    del net.model._modules[name]
    return net


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (lambda: None, "holds no network of EDM"),
        (lambda: [1, 2], "holds no network of EDM"),
        (
            lambda: network(REFERENCE["DDPM++"], class_name="VPPrecond"),
            "has the preconditioning of variance-preserving",
        ),
        (lambda: network(REFERENCE["DDPM++"], class_name="iDDPMPrecond"), "has the rounded noise levels"),
        (lambda: network(REFERENCE["DDPM++"], class_name="os.system"), "has 'os.system', which is not supported"),
        (lambda: network(REFERENCE["DDPM++"], img_resolution="x"), "img_resolution in .* must be an integer"),
        (lambda: network(REFERENCE["DDPM++"], img_resolution=9), "2 levels, by which its size 9 is not halved"),
        (lambda: network(REFERENCE["DDPM++"], img_channels=4), "takes 4 channels"),
        (lambda: network(REFERENCE["DDPM++"], label_dim=10), "lack: map_label.bias"),
        (lambda: network(REFERENCE["DDPM++"], sigma_data=-1), "sigma_data in .* must be above 0"),
        (lambda: network(REFERENCE["DDPM++"], sigma_data=float("nan")), "sigma_data in .* must be a number"),
        (lambda: with_kwargs(model_channels=10**9), "model_channels in .* must be an integer from 1 to 10000"),
        (lambda: with_kwargs(model_channels=32), r"has the shape \(64, 16\), which does not go with its own settings"),
        (lambda: with_kwargs(model_channels=18), "cannot make the network"),
        (lambda: with_kwargs(num_blocks=2), "lack: dec.4x4_block2"),
        (lambda: with_kwargs(embedding_type="zero"), "must be one of positional, fourier, but it is 'zero'"),
        (lambda: with_kwargs(decoder_type="skip"), "must be one of standard, but it is 'skip'"),
        (lambda: with_kwargs(channel_mult=[]), "has 0 levels"),
        (lambda: with_state(_init_kwargs=None), "supported are SongUNet and DhariwalUNet"),
        (lambda: with_state(_class_name="Unknown"), "is of a 'Unknown'; supported are SongUNet and DhariwalUNet"),
        (lambda: with_state(_buffers=[1]), "is damaged: '_buffers' is no list by names"),
        (lambda: without("dec"), "lack: dec.4x4_block0"),
        (lambda: without("map_layer0"), "lack: map_layer0.bias, map_layer0.weight"),
        (lambda: with_buffer("a\nb", torch.ones(1)), "which is no name"),
        (lambda: with_buffer("more", torch.ones(1)), "names that its own settings does not ask for: more"),
        (lambda: spoilt(torch.nan), "are damaged: '.*' holds NaN or infinity"),
        (lambda: spoilt(torch.inf), "are damaged: '.*' holds NaN or infinity"),
    ],
)
def test_what_is_no_such_network_is_refused_in_a_line(net: Callable[[], Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        load_model(str(snapshot(tmp_path / "net.pkl", net())))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["alone", "as the network", "as a weight", "in its settings"])
def test_no_code_of_the_file_is_run(place: str, tmp_path: Path) -> None:
    evil = Evil(f"touch {tmp_path / 'ran'}")
    if place == "alone":
        (tmp_path / "net.pkl").write_bytes(pickle.dumps(evil))
    else:
        net: Any = network(REFERENCE["DDPM++"])
        if place == "as the network":
            net = evil
        elif place == "as a weight":
            net.model._buffers["evil"] = evil
        else:
            net.model._init_kwargs["model_channels"] = evil
        snapshot(tmp_path / "net.pkl", net)
    with pytest.raises(
        ModelError, match=r"asks for '(posix|nt)\.system', which may run code and is not read"
    ) as caught:
        load_model(str(tmp_path / "net.pkl"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


# Names whose call, or whose change, would reach out of the file.
NAMES = [
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch.nn.modules.module.Module", "load_state_dict"),
    ("torch.utils.data", "DataLoader"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("torch_utils.persistence", "import_hook"),
    ("dnnlib.util", "open_url"),
    ("ddim_ode.models", "load_model"),
    ("line\nbreak", "x"),
]


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_other_names_are_refused(module: str, name: str, tmp_path: Path) -> None:
    short = [b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)]
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04" + short[0] + short[1] + b"\x93)R.")
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path / "net.pkl"))
    assert "\n" not in str(caught.value)


def test_a_file_cannot_change_what_the_next_one_is_read_with(tmp_path: Path) -> None:
    """A pickle may set attributes of whatever it is handed; that must be gone with it."""
    name = b"\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93"
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04" + name + b"}\x8c\x01x\x8c\x01ysb.")
    with pytest.raises(ModelError, match="holds no network of EDM"):
        load_model(str(tmp_path / "bad.pkl"))
    assert not hasattr(torch._utils._rebuild_tensor_v2, "x")
    load_model(str(snapshot(tmp_path / "net.pkl", network(REFERENCE["DDPM++"]))))


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(part: float, tmp_path: Path) -> None:
    path = snapshot(tmp_path / "net.pkl", network(REFERENCE["DDPM++"]))
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ModelError) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


def test_it_needs_no_config(tmp_path: Path) -> None:
    path = snapshot(tmp_path / "net.pkl", network(REFERENCE["DDPM++"]))
    with pytest.raises(ModelError, match="says all of its configuration; leave config out"):
        load_model(str(path), config=tmp_path)
