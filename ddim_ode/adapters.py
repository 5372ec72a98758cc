"""Pipelines of diffusers written out: what their calls tell the network, as a function of x and t.

A driven pipeline is whatever its own call makes of it, but it has no gradients, cannot be compiled, and asks for one
timestep at a time. What is written out here can do all that, for the pipelines in ``ADAPTERS``, and takes no
ControlNet, no IP-Adapter and nothing else that the call of a pipeline does beside its text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddim_ode.embeddings import hash_of_told
from ddim_ode.kinds import ModelError

# What a network is told beside x and t: a row for each answer that is mixed, first the one that is to be avoided.
Rows = Mapping[str, Tensor]


class Wish(NamedTuple):
    """What a pipeline is asked for; ``guidance`` is that of the mixture, ``told`` what a distilled network is told.

    ``height, width``  of the pictures in pixels.
    ``more``           what else its text encoders take, by the names of ``encode_prompt``.
    """

    prompt: str
    negative_prompt: str | None
    guidance: float
    told: float
    height: int
    width: int
    more: Mapping[str, Any]

    @property
    def guided(self) -> bool:
        """Whether two answers are mixed; as in diffusers only guidance above 1 is any."""
        return self.guidance > 1


class Adapter(NamedTuple):
    """How a pipeline tells its network: ``rows`` are made once, and ``answer`` is the call, of so many images a row."""

    rows: Callable[[Any, Wish], Rows]
    answer: Callable[[Any, nn.Module, Tensor, Tensor, Rows], Tensor]


def _sd_rows(pipeline: Any, wish: Wish) -> Rows:
    prompt, negative = pipeline.encode_prompt(
        wish.prompt, pipeline._execution_device, 1, wish.guided, wish.negative_prompt, **wish.more
    )
    return {"encoder_hidden_states": _both(wish, negative, prompt)}


def _sd_answer(pipeline: Any, unet: nn.Module, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
    output: Tensor = unet(x, t, **rows, return_dict=False)[0]
    return output


def _sdxl_rows(pipeline: Any, wish: Wish) -> Rows:
    prompt, negative, pooled, negative_pooled = pipeline.encode_prompt(
        wish.prompt,
        device=pipeline._execution_device,
        do_classifier_free_guidance=wish.guided,
        negative_prompt=wish.negative_prompt,
        **wish.more,
    )
    size, second = (wish.height, wish.width), pipeline.text_encoder_2
    width = int(pooled.shape[-1]) if second is None else second.config.projection_dim
    # The size of the picture, where it was cut out, and the size that is wanted.
    ids = pipeline._get_add_time_ids(size, (0, 0), size, dtype=prompt.dtype, text_encoder_projection_dim=width)
    return {
        "encoder_hidden_states": _both(wish, negative, prompt),
        "text_embeds": _both(wish, negative_pooled, pooled),
        "time_ids": _both(wish, ids, ids).to(pipeline._execution_device),
    }


def _sdxl_answer(pipeline: Any, unet: nn.Module, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
    added = {name: rows[name] for name in ("text_embeds", "time_ids")}
    hidden = rows["encoder_hidden_states"]
    output: Tensor = unet(x, t, encoder_hidden_states=hidden, added_cond_kwargs=added, return_dict=False)[0]
    return output


def _sd3_rows(pipeline: Any, wish: Wish) -> Rows:
    prompt, negative, pooled, negative_pooled = pipeline.encode_prompt(
        wish.prompt,
        None,
        None,
        device=pipeline._execution_device,
        do_classifier_free_guidance=wish.guided,
        negative_prompt=wish.negative_prompt,
        **wish.more,
    )
    return {
        "encoder_hidden_states": _both(wish, negative, prompt),
        "pooled_projections": _both(wish, negative_pooled, pooled),
    }


def _sd3_answer(pipeline: Any, transformer: nn.Module, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
    output: Tensor = transformer(hidden_states=x, timestep=t, **rows, return_dict=False)[0]
    return output


def _flux_rows(pipeline: Any, wish: Wish) -> Rows:
    texts = [wish.negative_prompt or "", wish.prompt] if wish.guided else [wish.prompt]
    each = [pipeline.encode_prompt(text, None, device=pipeline._execution_device, **wish.more)[:2] for text in texts]
    hidden, pooled = (torch.cat(parts) for parts in zip(*each, strict=True))
    rows = {"encoder_hidden_states": hidden, "pooled_projections": pooled}
    if pipeline.transformer.config.guidance_embeds:
        rows["guidance"] = torch.full((len(texts),), wish.told, device=hidden.device)
    return rows


def _flux_answer(pipeline: Any, transformer: nn.Module, x: Tensor, t: Tensor, rows: Rows) -> Tensor:
    count, channels, height, width = x.shape
    factor, hidden = pipeline.vae_scale_factor, rows["encoder_hidden_states"]
    places = pipeline._prepare_latent_image_ids(count, height // 2, width // 2, x.device, x.dtype)
    output = transformer(
        hidden_states=pipeline._pack_latents(x, count, channels, height, width),
        timestep=t.to(x.dtype) / 1000,
        **rows,
        txt_ids=torch.zeros(hidden.shape[1], 3, device=x.device, dtype=x.dtype),
        img_ids=places,
        return_dict=False,
    )[0]
    unpacked: Tensor = pipeline._unpack_latents(output, height * factor, width * factor, factor)
    return unpacked


def _both(wish: Wish, negative: Tensor | None, prompt: Tensor) -> Tensor:
    """The rows of an answer, or of the two that are mixed."""
    return torch.cat([negative, prompt]) if wish.guided and negative is not None else prompt


# By the class of the pipeline.
ADAPTERS: dict[str, Adapter] = {
    "StableDiffusionPipeline": Adapter(_sd_rows, _sd_answer),
    "StableDiffusionXLPipeline": Adapter(_sdxl_rows, _sdxl_answer),
    "StableDiffusion3Pipeline": Adapter(_sd3_rows, _sd3_answer),
    "FluxPipeline": Adapter(_flux_rows, _flux_answer),
}


class AdaptedPipeline(nn.Module):
    """The ``denoiser`` of a diffusers ``pipeline`` under what it is asked for: a function of x and t.

    Raises:
        ModelError: if its class is not in ``ADAPTERS``, or it has parts that are told more than a text.
    """

    def __init__(self, pipeline: Any, denoiser: Any, wish: Wish) -> None:
        super().__init__()
        kind = type(pipeline).__name__
        adapter = ADAPTERS.get(kind)
        if adapter is None:
            raise ModelError(f"{kind} is not written out; drive it, or take one of: {', '.join(ADAPTERS)}")
        more = [part for part in ("encoder_hid_dim_type", "time_cond_proj_dim") if denoiser.config.get(part)]
        if more:
            raise ModelError(f"the network of this {kind} has {' and '.join(more)}, which is not written out; drive it")
        unknown = set(wish.more) - set(signature(pipeline.encode_prompt).parameters)
        if unknown:
            raise ModelError(f"{kind}, written out, takes no '{min(unknown)}'; leave it out, or drive the pipeline")
        self.denoiser = denoiser
        self._pipeline, self._adapter = pipeline, adapter
        self._guidance = wish.guidance if wish.guided else None
        with torch.no_grad():
            rows = adapter.rows(pipeline, wish)
        self._names = tuple(rows)
        for name, row in rows.items():
            self.register_buffer(name, row, persistent=False)
        self.embedding: str | None = hash_of_told(rows, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x ``(B, C, H, W)``, t ``(B,)`` in the pipeline's timesteps, to ``(B, C, H, W)``."""
        answers = 1 if self._guidance is None else 2
        rows = {name: self.get_buffer(name).repeat_interleave(len(x), 0) for name in self._names}
        output = self._adapter.answer(
            self._pipeline, self.denoiser, torch.cat([x] * answers), torch.cat([t] * answers), rows
        )
        if self._guidance is None:
            return output
        avoided, wanted = output.chunk(2)
        return avoided + self._guidance * (wanted - avoided)
