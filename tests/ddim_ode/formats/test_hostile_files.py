"""Files that are damaged or hostile, over everything that reads them: one line, and nothing of them is run.

To add one, add a line to ``FILES`` or to ``CONFIGS``.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from safetensors.torch import save_file

from ddim_ode.kinds import ModelError
from ddim_ode.models import load_model
from ddim_ode.pipelines import is_pipeline, load_pipeline

Write = Callable[[Path], object]


class Evil:
    """Makes a file called 'ran' where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, ("touch ran",)


@cache
def tiny() -> dict[str, torch.Tensor]:
    """The weights of a network of ddim's."""
    return dict(layouts.shake(layouts.DDPM(ch_mult=(1,), num_res_blocks=1)).state_dict())


def bytes_of(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def saved(content: object, **how: Any) -> Write:
    return lambda path: torch.save(content, path, **how)


def changed(change: Callable[[dict[str, Any]], object]) -> Write:
    """A network of ddim's with changed weights."""

    def write(path: Path) -> None:
        weights = {name: value.clone() for name, value in tiny().items()}
        change(weights)
        torch.save(weights, path)

    return write


def cut(part: float) -> Write:
    def write(path: Path) -> None:
        torch.save(tiny(), path)
        content = path.read_bytes()
        path.write_bytes(content[: int(part * len(content))])

    return write


def safetensors_cut(path: Path) -> None:
    save_file({"temb.dense.0.weight": torch.zeros(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def _number(name: str, value: float) -> Write:
    return changed(lambda weights: weights[name].view(-1)[:1].fill_(value))


FILES: Mapping[str, Write] = {
    "empty": bytes_of(b""),
    "zeros": bytes_of(bytes(1000)),
    "a text": bytes_of(b"hello"),
    "a page": bytes_of(b"<!DOCTYPE html><html></html>"),
    "a pointer of git-lfs": bytes_of(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"),
    "safetensors of a huge header": bytes_of(b"\xff" * 7 + b"\x7f{" + bytes(100)),
    "safetensors of no header": bytes_of((2).to_bytes(8, "little") + b"{}"),
    "safetensors of a deep header": bytes_of((100_000).to_bytes(8, "little") + b"{" * 100_000),
    "safetensors truncated": safetensors_cut,
    "a zip of nothing": bytes_of(b"PK\x05\x06" + bytes(18)),
    "a zip that is none": bytes_of(b"PK\x03\x04" + bytes(100)),
    "truncated early": cut(0.01),
    "truncated late": cut(0.99),
    "a pickle that calls": bytes_of(pickle.dumps(Evil())),
    "a pickle that calls, protocol 0": bytes_of(pickle.dumps(Evil(), protocol=0)),
    "code among weights": changed(lambda weights: weights.update(evil=Evil())),
    "code alone": saved(Evil()),
    "code in an old file": saved({"temb.dense.0.weight": Evil()}, _use_new_zipfile_serialization=False),
    "code in a training": saved({"state_dict": {"temb.dense.0.weight": torch.ones(1)}, "callbacks": Evil()}),
    "a whole module": saved(torch.nn.Linear(2, 2)),
    "no weights": saved({}),
    "a number": saved(3),
    "names that are numbers": saved({1: torch.ones(1)}),
    "lists in lists": saved([[[[[[[{"temb.dense.0.weight": torch.ones(1)}]]]]]]]),
    "unknown names": saved({"layer.weight": torch.ones(1)}),
    "names of many lines": saved({"a\nb": torch.ones(1)}),
    "a weight is missing": changed(lambda weights: weights.pop("conv_in.weight")),
    "a weight is too much": changed(lambda weights: weights.update(more=torch.ones(1))),
    "a weight of another shape": changed(lambda weights: weights.update({"conv_in.weight": torch.ones(3)})),
    "a scalar for a weight": changed(lambda weights: weights.update({"mid.attn_1.q.weight": torch.tensor(1.0)})),
    "a weight of another shape in attention": changed(
        lambda weights: weights.update({"mid.attn_1.q.weight": torch.ones(2, 2, 1, 1)})
    ),
    "a sparse weight": changed(lambda weights: weights.update({"conv_in.bias": torch.ones(32).to_sparse()})),
    "complex weights": changed(lambda weights: weights.update({"conv_in.bias": torch.ones(32, dtype=torch.cfloat)})),
    "a weight on no device": changed(lambda weights: weights.update({"conv_in.bias": torch.ones(32, device="meta")})),
    "NaN": _number("conv_in.weight", torch.nan),
    "infinity": _number("mid.attn_1.q.weight", torch.inf),
    "the network of a pipeline": saved({"down_blocks.0.attentions.0.transformer_blocks.0.norm1.bias": torch.ones(1)}),
    "a pipeline of one weight": saved({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}),
    "guided of one weight": saved({"time_embed.0.weight": torch.ones(1), "input_blocks.0.0.weight": torch.ones(1)}),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to itself": lambda path: path.symlink_to(path),
}

DDIM = """
data: {image_size: 8, rescaled: true}
model: {ch: 32, out_ch: 3, ch_mult: [1], num_res_blocks: 1, attn_resolutions: [4], in_channels: 3}
diffusion: {beta_schedule: linear, beta_start: 0.0001, beta_end: 0.02, num_diffusion_timesteps: 1000}
"""


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize("kind", FILES)
def test_a_damaged_file_is_refused_in_a_line(
    kind: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(f"net{suffix}")
    FILES[kind](path)
    Path("config.yml").write_text(DDIM)
    for config in ("config.yml", None):
        with pytest.raises(ModelError) as caught:
            load_model(str(path), config=config)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    # What is a zip file inside, under a name of safetensors, is none.
    assert is_pipeline(str(path)) == (kind == "a pipeline of one weight" and suffix == ".ckpt")
    if path.is_file():
        with pytest.raises(ModelError) as caught:
            load_pipeline(str(path), config=tmp_path)
        assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


CONFIGS: Mapping[str, Write] = {
    "empty": bytes_of(b""),
    "a list": bytes_of(b"[1, 2]"),
    "a number": bytes_of(b"3"),
    "no text": bytes_of(b"\xff\xfe\xfa"),
    "no YAML": bytes_of(b"model: {ch: [1"),
    "tabs": bytes_of(b"model:\n\t- 1"),
    "deep": bytes_of(b"[" * 5_000),
    "deep, of mappings": bytes_of(b"{a: " * 5_000),
    "no groups": bytes_of(b"model: 3\ndata: 4\ndiffusion: 5"),
    "other groups": bytes_of(b"name: 3"),
    "a call": bytes_of(DDIM.replace("ch: 32", "ch: !!python/object/apply:os.system ['touch ran']").encode()),
    "a namespace": bytes_of(b"!!python/object:argparse.Namespace {model: 3}"),
    "a name": bytes_of(DDIM.replace("ch: 32", "ch: !!python/name:os.system").encode()),
    "a tag of another kind": bytes_of(DDIM.replace("ch: 32", "ch: !mine 3").encode()),
    "laughs": bytes_of(
        b"a: &a [x, x]\n"
        + b"".join(b"%c: &%c [*%c, *%c, *%c, *%c]\n" % (k + 1, k + 1, k, k, k, k) for k in range(ord("a"), ord("q")))
        + b"model: {ch: *q}\ndata: {image_size: 8}\ndiffusion: {}\n"
    ),
    "itself": bytes_of(b"model: &a {ch: *a}\ndata: {image_size: 8}\n"),
    "many lines": bytes_of(DDIM.replace("ch: 32", 'ch: "a\\nb"').encode()),
    "a date": bytes_of(DDIM.replace("ch: 32", "ch: 2001-01-01").encode()),
    "a set": bytes_of(DDIM.replace("[1]", "!!set {1, 2}").encode()),
    "infinity": bytes_of(DDIM.replace("0.02", ".inf").encode()),
    "a number of many digits": bytes_of(DDIM.replace("0.02", "1" * 5000).encode()),
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "nothing": lambda path: None,
}


FIRST = {
    "ddim": "temb.dense.0.weight",
    "guided": "time_embed.0.weight",
    "diffusers": "time_embedding.linear_1.weight",
}


@pytest.mark.parametrize("suffix", [".yml", ".json"])
@pytest.mark.parametrize("network", ["ddim", "guided", "diffusers"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_damaged_config_is_refused_in_a_line(
    kind: str, network: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = {
        "ddim": "temb.dense.0.weight",
        "guided": "time_embed.0.weight",
        "diffusers": "time_embedding.linear_1.weight",
    }
    torch.save({first[network]: torch.ones(1), "input_blocks.0.0.weight": torch.ones(1)}, "net.ckpt")
    config = Path(f"config{suffix}")
    CONFIGS[kind](config)
    with pytest.raises(ModelError, match="config") as caught:
        load_model("net.ckpt", config=config)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not Path("ran").exists()
