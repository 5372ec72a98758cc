"""Models of diffusers pipelines: Stable Diffusion, SDXL, SD3, FLUX, PixArt and whatever else takes ``latents=``.

    pipe = DiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
    session = Session(from_pipeline(pipe, prompt="a cat on a mat"))
    latent = session.encode("cat.jpg", steps=20)

The pipeline is driven as it is, and nothing is left on it: see ``driven``. For gradients and compiling, some can be
written out: see ``adapters``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from inspect import signature
from math import inf, isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddim_ode.adapters import AdaptedPipeline, Wish
from ddim_ode.asked import CFG, DISTILLED, TRUE_CFG, describe_call
from ddim_ode.configs import CLASS_NAMES, HUB_NAME, INDEX, first_line, read_json
from ddim_ode.denoisers import model_of
from ddim_ode.driven import DrivenPipeline
from ddim_ode.formats.single_file import is_pipeline_file, load_pipeline_file
from ddim_ode.grids import VP_END, Grid, grid_of_timesteps
from ddim_ode.kinds import ModelError
from ddim_ode.model import Model
from ddim_ode.models import class_names, told_apart
from ddim_ode.schedulers import process_of_scheduler
from ddim_ode.spaces import AutoencoderSpace

# What a pipeline's network is called in it.
_DENOISERS = ("transformer", "unet")
# What is not for the caller: it is what driving a pipeline consists of.
_OURS = ("latents", "output_type", "num_inference_steps", "timesteps", "sigmas", "num_images_per_prompt", "return_dict")


def is_pipeline(name: str) -> bool:
    """Whether ``name`` is the folder of a pipeline that is told a text, as its index says, or the file of one."""
    index = Path(name) / INDEX
    if Path(name).is_file():
        return is_pipeline_file(Path(name))
    try:
        return any(part.startswith("text_encoder") for part in read_json(index)) if index.is_file() else False
    except ModelError:  # which loading it will say
        return False


def load_pipeline(name: str, *, device: torch.device | str = "cpu", config: str | Path | None = None) -> Any:
    """The diffusers pipeline in the folder or file ``name``, or on the Hub under ``name``, on the ``device``.

    ``config``  of a file a folder of the same family: see ``formats.single_file``.

    Raises:
        ModelError: if there is none, it is damaged, or what it needs is not installed.
    """
    if find_spec("transformers") is None:
        raise ModelError(
            f"model '{name}' is a pipeline, and its text encoders need transformers; install it with: pip install "
            "'ddim-ode[pipelines]'"
        )
    if config is not None and not Path(name).is_file():
        raise ModelError(f"a config is of models that are one file, and '{name}' is none; leave it out")
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    # Bars are for terminals.
    hidden = [] if sys.stderr.isatty() else [of_diffusers, of_transformers]
    hidden = [bars for bars in hidden if bars.is_progress_bar_enabled()]
    for bars in hidden:
        bars.disable_progress_bar()
    try:
        if Path(name).is_file():
            return load_pipeline_file(Path(name), config).to(device)
        if Path(name).is_dir():
            _check_holds_no_code(Path(name))
        pipeline = DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
            name, local_files_only=Path(name).is_dir()
        )
    except ModelError:
        raise
    except Exception as error:  # damaged pipelines fail in diffusers, transformers, safetensors and json
        raise ModelError(f"cannot load the pipeline '{name}': {first_line(error)}") from error
    finally:
        for bars in hidden:
            bars.enable_progress_bar()
    return pipeline.to(device)


def _check_holds_no_code(folder: Path) -> None:
    """Raise ModelError if the index of the pipeline in ``folder`` names code in it, which diffusers would run."""
    import diffusers

    index = read_json(folder / INDEX)
    parts = {name: part for name, part in index.items() if isinstance(part, list)}
    # Some parts are of a module that belongs to a pipeline of diffusers.
    strange = {name: part for name, part in parts.items() if not _is_known(part, diffusers.pipelines)}
    code = [path for name in parts for path in sorted((folder / name).glob("*.py"))]
    if strange or code:
        what = f"'{code[0]}'" if code else f"{next(iter(strange.items()))!r:.120}"
        raise ModelError(f"the pipeline '{folder}' comes with code of its own, {what}, and none of a model is ever run")


def _is_known(part: Sequence[object], pipelines: object) -> bool:
    """Whether the library of a ``part`` in a pipeline's index is one that is installed, or there is no such part."""
    library = part[0] if part else ""
    known = library is None or library in ("diffusers", "transformers")
    return known or (isinstance(library, str) and hasattr(pipelines, library))


@dataclass(frozen=True)
class _Asked:
    """What ``from_pipeline`` is asked for."""

    prompt: str | None = None
    negative_prompt: str | None = None
    guidance: float = 1.0
    height: int | None = None
    width: int | None = None
    call: Mapping[str, Any] | None = None
    adapted: bool = False


def from_pipeline(
    pipeline: Any,
    *,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    guidance: float = 1.0,
    height: int | None = None,
    width: int | None = None,
    call: Mapping[str, Any] | None = None,
    adapted: bool = False,
) -> Model:
    """A model of a diffusers ``pipeline`` in memory, asked with one ``prompt``; it stays on its device, and as it is.

    Of a pipeline that is told no text, as DDPM, DDIM, DiT and LDM, it is a model with the classes that it knows.

    ``guidance``       the pipeline's ``guidance_scale``: 1 for none, but where a distilled network is told it; where
                       that is not what the network was made for, its ``true_cfg_scale``.
    ``height, width``  of the pictures in pixels; the pipeline's own unless given.
    ``call``           what else to give the pipeline at each call, by its own names, as ``image`` of a ControlNet.
    ``adapted``        write the call out instead of driving the pipeline, as ``adapters`` says: for gradients,
                       compiling, and solvers whose members have steps of their own.

    Raises:
        ModelError: if it cannot be driven, its network has no slope, or it does not take what it is to be given.
    """
    asked = _Asked(prompt, negative_prompt, guidance, height, width, call, adapted)
    if not isfinite(guidance):
        raise ModelError(f"guidance must be a finite number, but it is {guidance:g}")
    if "latents" not in _parameters(pipeline) and _plain(pipeline) is not None:
        return _without_text(pipeline, asked)
    return _with_text(pipeline, asked)


def _parameters(pipeline: Any) -> Mapping[str, Any]:
    """What a call of the ``pipeline`` takes, by name."""
    return signature(type(pipeline).__call__).parameters


def _plain(pipeline: Any) -> Any:
    """The network of a pipeline that is told no text, None if it has none of those kinds."""
    parts = [getattr(pipeline, part, None) for part in _DENOISERS]
    return next((part for part in parts if type(part).__name__ in ("UNet2DModel", "DiTTransformer2DModel")), None)


def _without_text(pipeline: Any, asked: _Asked) -> Model:
    name, denoiser = type(pipeline).__name__, _plain(pipeline)
    if asked != _Asked(adapted=asked.adapted):
        raise ModelError(
            f"{name} is told no text, and has the size that it has; leave out prompts, sizes and the call, and name a "
            "class and its guidance where you encode or decode"
        )
    model = model_of(
        _name(pipeline),
        denoiser,
        process_of_scheduler(type(pipeline).__name__, _config(pipeline), depth=2),
        scheduler=_config(pipeline),
        autoencoder=getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None),
        classes=_classes(pipeline, denoiser.config),
    )
    return replace(model, shared=True)


def _classes(pipeline: Any, config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes: those of the folder that the pipeline was loaded from, and else of what it has of them.

    In memory it has single words, in the order of the alphabet, and of those that several classes share the last alone.
    """
    folder = _folder(pipeline)
    if folder is not None and read_json(folder / INDEX).get(CLASS_NAMES) is not None:
        return class_names(_name(pipeline), (folder,), config)
    words: dict[int, list[str]] = {}
    for word, number in getattr(pipeline, "labels", {}).items():
        words.setdefault(number, []).append(word)
    return told_apart([", ".join(words.get(i, [str(i)])) for i in range(config.get("num_embeds_ada_norm") or 0)])


def _folder(pipeline: Any) -> Path | None:
    """The folder that the ``pipeline`` was loaded from, or the copy of what the Hub has, if it is still there."""
    folder = Path(_name(pipeline))
    if not folder.is_dir() and re.fullmatch(HUB_NAME, str(folder)):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(str(folder), INDEX)
        folder = Path(found).parent if isinstance(found, str) else folder
    return folder if (folder / INDEX).is_file() else None


def _name(pipeline: Any) -> str:
    return str(getattr(pipeline.config, "_name_or_path", None) or type(pipeline).__name__)


def _config(pipeline: Any) -> dict[str, Any]:
    """The configuration of its scheduler."""
    return {**pipeline.scheduler.config, "_class_name": type(pipeline.scheduler).__name__}


def _with_text(pipeline: Any, asked: _Asked) -> Model:
    name = type(pipeline).__name__
    if "latents" not in _parameters(pipeline) or not hasattr(pipeline, "scheduler"):
        raise ModelError(f"{name} takes no latents, and cannot be driven; load its network with load_model instead")
    part = next((part for part in _DENOISERS if isinstance(getattr(pipeline, part, None), nn.Module)), None)
    autoencoder = getattr(pipeline, "vae", None)
    if part is None or not isinstance(autoencoder, nn.Module):
        raise ModelError(f"{name} must have a network, one of {', '.join(_DENOISERS)}, and an autoencoder, 'vae'")
    if any(isinstance(module, nn.Conv3d) for module in autoencoder.modules()):
        raise ModelError(
            f"the autoencoder of {name}, a {type(autoencoder).__name__}, is for videos, and is not supported"
        )
    process = process_of_scheduler(name, _config(pipeline), depth=2)
    space = _space(pipeline, autoencoder, asked.height, asked.width)
    kind = _guidance_kind(pipeline, getattr(pipeline, part))
    if kind != DISTILLED and asked.guidance < 1:
        raise ModelError(f"the guidance of {name} must be 1, for none, or more, but it is {asked.guidance:g}")
    # To avoid nothing is to avoid the empty text, but where nothing is told as zeros, as in SDXL.
    zeros = bool(pipeline.config.get("force_zeros_for_empty_prompt"))
    network = (_adapted if asked.adapted else _driven)(pipeline, getattr(pipeline, part), asked, space, kind)
    return Model(
        _name(pipeline),
        network,
        process,
        *space.shape,
        autoencoder=autoencoder,
        factor=space.factor,
        beside={
            name: module
            for name, module in pipeline.components.items()
            if isinstance(module, nn.Module) and name not in (part, "safety_checker")
        },
        asked={
            "prompt": asked.prompt or "",
            "negative_prompt": None if asked.negative_prompt == "" and not zeros else asked.negative_prompt,
            "guidance": float(asked.guidance),
            "guidance_kind": kind,
            "call": describe_call(asked.call or {}),
        },
        ask=lambda changes: from_pipeline(pipeline, **{**vars(asked), **changes}),
        shared=True,
    )


def _guidance_kind(pipeline: Any, denoiser: Any) -> str:
    """What guidance is of this pipeline: two answers mixed, or a number that its network is told."""
    if getattr(denoiser.config, "guidance_embeds", False):
        return DISTILLED
    return TRUE_CFG if "true_cfg_scale" in _parameters(pipeline) else CFG


def _driven(pipeline: Any, denoiser: nn.Module, asked: _Asked, space: AutoencoderSpace, kind: str) -> DrivenPipeline:
    given = asked.call or {}
    sizes = dict(zip(("height", "width"), space.size, strict=True))
    scale = "true_cfg_scale" if kind == TRUE_CFG else "guidance_scale"
    texts = {"prompt": asked.prompt or "", "negative_prompt": asked.negative_prompt}
    true = asked.guidance if kind == TRUE_CFG else given.get("true_cfg_scale", 1)
    if true > 1 and asked.negative_prompt is None:
        texts["negative_prompt"] = ""  # without which there is no second answer
    texts = {key: text for key, text in texts.items() if text is not None}
    _check_call(pipeline, {scale: asked.guidance, **texts}, given)
    values = {scale: asked.guidance, **sizes, "use_resolution_binning": False, **given}
    values = {key: value for key, value in values.items() if key in _parameters(pipeline)}

    def call_for(count: int) -> dict[str, Any]:
        return {
            **{key: _fresh(value) for key, value in values.items()},
            **{key: [text] * count for key, text in texts.items()},
        }

    return DrivenPipeline(pipeline, denoiser, call_for, *_packing(pipeline, space))


def _adapted(pipeline: Any, denoiser: nn.Module, asked: _Asked, space: AutoencoderSpace, kind: str) -> AdaptedPipeline:
    more = dict(asked.call or {})
    guidance = float(more.pop("true_cfg_scale", 1.0)) if kind == DISTILLED else asked.guidance
    prompt, negative = asked.prompt or "", asked.negative_prompt
    return AdaptedPipeline(pipeline, denoiser, Wish(prompt, negative, guidance, asked.guidance, *space.size, more))


def scheduler_grid(model: Model, steps: int) -> Grid:
    """The nodes that the pipeline of ``model`` has its own scheduler walk in so many ``steps``, and its clean end.

    Euler's method on them, from a latent of the pipeline's unit, is the pipeline's own sampling with DDIM or Euler.
    They are read from the scheduler, and not computed, for some shift them by the size of the picture.

    Raises:
        ValueError: if the model is of no pipeline, or its scheduler's nodes are not known to be sigmas or timesteps.
    """
    network = model.ask({"adapted": False}).network if model.ask else None
    if not isinstance(network, DrivenPipeline):
        raise ValueError(f"model '{model.name}' is not of a pipeline, and has no scheduler; take a grid by its name")
    scheduler = network.scheduler_of(torch.zeros(1, *model.space.shape, device=model.device), steps)
    levels = model.schedule
    if hasattr(scheduler, "sigmas"):
        sigmas = sorted({float(sigma) for sigma in scheduler.sigmas})  # those of two calls a step list each twice
        if model.process.family == "flow":  # they are u = sigma / (1 + sigma)
            sigmas = [inf if u == 1 else u / (1 - u) for u in sigmas]
        timesteps = levels.t(torch.tensor(sigmas, dtype=torch.float64)).tolist()
        return Grid("explicit", "sigma-min" if sigmas[0] else "zero", tuple(sigmas), tuple(timesteps))
    tau = sorted(float(t) for t in scheduler.timesteps)
    if "set_alpha_to_one" not in signature(type(scheduler).__init__).parameters or len(set(tau)) < len(tau):
        kind = type(scheduler).__name__
        raise ValueError(f"the nodes of {kind} are not known here; give the pipeline a DDIM or Euler scheduler")
    if scheduler.config.set_alpha_to_one:
        return grid_of_timesteps(levels, tau)
    return grid_of_timesteps(levels, [0.0, *tau], clean_end=VP_END)


# What is said by arguments of ``from_pipeline``, and what says nothing of it; and what depends on the number of a step,
# or changes latents.
_SAID = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "guidance_scale": "guidance",
    "height": "height",
    "width": "width",
}
_NOTHING = {"prompt": "", "guidance_scale": 1.0}
_BY_STEPS = (
    "control_guidance_start",
    "control_guidance_end",
    "denoising_start",
    "denoising_end",
    "callback_on_step_end",
    "skip_layer_guidance_start",
    "skip_layer_guidance_stop",
    "pag_adaptive_scale",
)


def _check_call(pipeline: Any, asked: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    name, parameters = type(pipeline).__name__, _parameters(pipeline)
    for key in given:
        if key in _OURS:
            raise ModelError(f"'{key}' of {name} is what drives it, and cannot be given; leave it out of the call")
        if key in _SAID or key in asked:
            raise ModelError(f"'{key}' is not for the call; say it as {_SAID.get(key, 'guidance')}=...")
        if key in _BY_STEPS:
            raise ModelError(f"'{key}' of {name} depends on the number of a step, and there is none; leave it out")
        if key not in parameters:
            raise ModelError(f"{name} takes no '{key}'; it takes: {', '.join(list(parameters)[1:])}")
    for key, value in asked.items():
        if key not in parameters and value != _NOTHING.get(key):
            raise ModelError(f"{name} takes no '{key}'; leave it out")


def _space(pipeline: Any, autoencoder: nn.Module, height: int | None, width: int | None) -> AutoencoderSpace:
    """The space of the pipeline's latents, for pictures of ``height`` x ``width`` pixels."""
    factor = int(getattr(pipeline, "vae_scale_factor", 8))
    side = getattr(pipeline, "default_sample_size", None)
    for part in _DENOISERS:
        own = getattr(getattr(getattr(pipeline, part, None), "config", None), "sample_size", None)
        side = side or (own if isinstance(own, int) else None)
    if (height is None or width is None) and side is None:
        raise ModelError(f"{type(pipeline).__name__} does not say the size of its pictures; give height and width")
    sizes = [factor * (side or 0) if size is None else size for size in (height, width)]
    for size in sizes:
        if size < 1 or size % (2 * factor):
            raise ModelError(
                f"height and width must be multiples of {2 * factor}, two of its latents, but there is {size}"
            )
    channels = int(getattr(autoencoder.config, "latent_channels", 4))
    return AutoencoderSpace(autoencoder, channels, sizes[0] // factor, sizes[1] // factor, factor)


def _packing(pipeline: Any, space: AutoencoderSpace) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """What makes the pipeline's latents of x, ``(B, C, H, W)``, and back: of some rows of patches, of most x itself."""
    if not hasattr(pipeline, "_pack_latents"):
        return _same, _same

    def pack(x: Tensor) -> Tensor:
        packed: Tensor = pipeline._pack_latents(x, *x.shape)
        return packed

    def unpack(rows: Tensor) -> Tensor:
        x: Tensor = pipeline._unpack_latents(rows, *space.size, pipeline.vae_scale_factor)
        return x

    return pack, unpack


def _same(x: Tensor) -> Tensor:
    return x


def _fresh(value: Any) -> Any:
    """``value``; of a generator of random numbers one in the same state, so that all walks are given the same ones."""
    if not isinstance(value, torch.Generator):
        return value
    again = torch.Generator(value.device)
    again.set_state(value.get_state())
    return again
