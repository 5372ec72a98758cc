"""Networks of NVlabs/edm, out of their pickles, which say all of their configuration themselves.

Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364. What is loaded is
the network F of Eq. (7), whose preconditioning is that of ``processes.EDM``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ddim_ode.configs import first_line
from ddim_ode.denoisers import MOST_PIXELS
from ddim_ode.formats.edm_networks import BlockSettings, DhariwalUNet, Levels, SongUNet
from ddim_ode.formats.edm_pickle import Record, read_pickle, weights_of
from ddim_ode.formats.filling import fill
from ddim_ode.formats.settings import Settings
from ddim_ode.kinds import ModelError
from ddim_ode.model import Model
from ddim_ode.networks import KnowingClasses
from ddim_ode.processes import EDM

_OTHERS = {
    "VPPrecond": "the preconditioning of variance-preserving networks",
    "VEPrecond": "the preconditioning of variance-exploding networks",
    "iDDPMPrecond": "the rounded noise levels of improved DDPM",
}


class EDMNetwork(nn.Module):
    """A network of EDM as a plain function of x and t."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)``, log(sigma) / 4; returns F, ``(B, C, H, W)``."""
        output: Tensor = self.network(x, t)
        return output


class EDMClassNetwork(KnowingClasses, EDMNetwork):
    """A network of EDM that is told one of ``classes``.

    ``knows_none``  whether it was trained with no class too, which a vector of zeros means.
    """

    def __init__(self, network: nn.Module, classes: int, *, knows_none: bool) -> None:
        super().__init__(network)
        self.none = classes
        self.knows_none = knows_none

    def answer(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)``, log(sigma) / 4, and the classes ``labels``, ``(B,)``, int64, to F."""
        output: Tensor = self.network(x, t, one_hot(labels, self.none + 1)[:, : self.none].to(x))
        return output


def load_edm(path: Path, device: torch.device | str) -> Model:
    """The model in the pickle ``path``, its moving average if it is of a training, on the ``device``.

    Raises:
        ModelError: if it is damaged, asks for what is not known, or is of a kind that is not supported.
    """
    content = read_pickle(path)
    record = content.get("ema") if isinstance(content, Mapping) else content
    if not isinstance(record, Record) or not isinstance(record.state, Mapping):
        raise ModelError(f"'{path}' holds no network of EDM, neither under 'ema' nor alone; name another file")
    if record.class_name != "EDMPrecond":
        why = _OTHERS.get(record.class_name, f"'{record.class_name:.50}'")
        raise ModelError(f"'{path}' has {why}, which is not supported; only EDMPrecond is")
    outer = Settings(path, record.state)
    size, channels = outer.whole("img_resolution", most=MOST_PIXELS), outer.whole("img_channels")
    if channels not in (1, 3):
        raise ModelError(f"'{path}' takes {channels} channels; pictures have 1, of grey, or 3, of colour")
    classes = outer.whole("label_dim", 0, least=0, most=100_000)
    network, knows_none = _network(path, _part(record), size=size, channels=channels, classes=classes)
    wrapped = EDMClassNetwork(network, classes, knows_none=knows_none) if classes else EDMNetwork(network)
    wrapped.to(device).eval().requires_grad_(False)
    process = EDM(prediction="epsilon", sigma_data=_positive(outer, "sigma_data"))
    names = tuple(str(i) for i in range(classes))
    return Model(str(path), wrapped, process, channels, size, size, classes=names)


def _part(record: Record) -> object:
    """The network in its preconditioning."""
    modules = record.state.get("_modules")
    return modules.get("model") if isinstance(modules, Mapping) else None


def _positive(settings: Settings, name: str) -> float:
    value = settings.number(name, 0.5)
    if value <= 0:
        raise ModelError(f"{name} in '{settings.path}' must be above 0, but it is {value:g}")
    return value


def _network(path: Path, record: object, *, size: int, channels: int, classes: int) -> tuple[nn.Module, bool]:
    """The network with its weights; and whether it was trained with no class too."""
    if not isinstance(record, Record):
        raise ModelError(f"'{path}' is damaged: it holds no network 'model'")
    made_with = record.state.get("_init_kwargs")
    if record.class_name not in ("SongUNet", "DhariwalUNet") or not isinstance(made_with, Mapping):
        raise ModelError(f"'{path}' is of a '{record.class_name:.50}'; supported are SongUNet and DhariwalUNet")
    settings = Settings(path, made_with)
    ends = {"cin": channels, "cout": channels, "labels": classes}
    make = _song if record.class_name == "SongUNet" else _dhariwal
    try:
        with torch.device("meta"):
            network = make(settings, size, ends)
    except ModelError:
        raise
    except Exception as error:  # torch, for numbers that do not go together
        raise ModelError(f"cannot make the network of '{path}': {first_line(error)}") from error
    # What tells the network how a picture was changed in training: here none is.
    weights = {name: value for name, value in weights_of(path, record).items() if not name.startswith("map_augment.")}
    fill(network, path, weights, lambda name: name, config="its own settings")
    return network, settings.number("label_dropout", 0.0) > 0


def _song(settings: Settings, size: int, ends: Mapping[str, int]) -> nn.Module:
    settings.one_of("decoder_type", ("standard",), "standard")
    embedding = settings.one_of("embedding_type", ("positional", "fourier"), "positional")
    encoder = settings.one_of("encoder_type", ("standard", "residual"), "standard")
    base, emb, levels = _shape(settings, size, base=128, multiples=(1, 2, 2, 2), blocks=4, attention=(16,))
    kind = BlockSettings(
        emb=emb,
        adaptive=False,
        scale=2**-0.5,
        eps=1e-6,
        filter=settings.numbers("resample_filter", (1, 1), most=1000),
        project=True,
        head_width=None,
    )
    width = base * settings.whole("channel_mult_noise", 1, most=100)
    return SongUNet(
        levels, kind, **ends, base=base, width=width, fourier=embedding == "fourier", residual=encoder == "residual"
    )


def _dhariwal(settings: Settings, size: int, ends: Mapping[str, int]) -> nn.Module:
    base, emb, levels = _shape(settings, size, base=192, multiples=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8))
    kind = BlockSettings(emb=emb, adaptive=True, scale=1.0, eps=1e-5, filter=(1, 1), project=False, head_width=64)
    return DhariwalUNet(levels, kind, **ends, base=base, width=base)


def _shape(
    settings: Settings, size: int, *, base: int, multiples: Any, blocks: int, attention: Any
) -> tuple[int, int, Levels]:
    """Its base width, that of its embedding, and its levels; what the file does not say is what is given."""
    base = settings.whole("model_channels", base, most=10_000)
    emb = base * settings.whole("channel_mult_emb", 4, most=100)
    levels = Levels(
        size=size,
        channels=tuple(base * multiple for multiple in settings.numbers("channel_mult", multiples, most=100)),
        blocks=settings.whole("num_blocks", blocks, most=100),
        attention=settings.numbers("attn_resolutions", attention),
    )
    if not levels.channels or size % 2 ** (len(levels.channels) - 1):
        raise ModelError(f"'{settings.path}' has {len(levels.channels)} levels, by which its size {size} is not halved")
    return base, emb, levels
