"""Pipelines of diffusers with small random networks, made without a network connection, in a second each.

Weights that diffusers begins at zero, as gates and last projections, are filled: what they hide would prove nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LDMPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SIDE = 32  # pixels, of 16 x 16 latents


def clip_tokenizer() -> CLIPTokenizer:
    """One that knows every letter, alone and at the end of a word."""
    letters = sorted(ByteLevel.alphabet())
    known = [*letters, *(f"{letter}</w>" for letter in letters), "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(known)}
    return CLIPTokenizer(vocab=vocabulary, merges=[("c", "a"), ("ca", "t</w>")], model_max_length=77)


def clip(projection: bool = False, width: int = 32) -> nn.Module:
    last = len(clip_tokenizer()) - 1
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        vocab_size=last + 1,
        projection_dim=width,
        bos_token_id=last - 1,
        eos_token_id=last,
        pad_token_id=last,
        max_position_embeddings=77,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def t5_tokenizer() -> T5Tokenizer:
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=64)


def t5(width: int = 32) -> nn.Module:
    return T5EncoderModel(T5Config(vocab_size=120, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4))


def autoencoder(**config: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        **config,
    )


def unet(**config: Any) -> UNet2DConditionModel:
    usual = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "sample_size": 16,
        "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(**(usual | config))


def _sd_parts(prediction: str = "epsilon", **unet_config: Any) -> dict[str, Any]:
    return {
        "vae": autoencoder(scaling_factor=0.18215),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(**unet_config),
        "scheduler": DDIMScheduler(
            **BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type=prediction
        ),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def stable_diffusion(prediction: str = "epsilon") -> Any:
    return StableDiffusionPipeline(**_sd_parts(prediction))


def zero_snr() -> Any:
    pipeline = stable_diffusion("v_prediction")
    # Keywords, for of a configuration diffusers leaves out what it calls _use_default_values, whatever they are now.
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, **changes)
    return pipeline


def controlnet() -> Any:
    parts = _sd_parts()
    control = ControlNetModel.from_unet(parts["unet"], conditioning_channels=3)
    kind = type(control.controlnet_cond_embedding)
    # The usual one makes an eighth of the picture, and this autoencoder makes half of it.
    control.controlnet_cond_embedding = kind(16, block_out_channels=(8, 8), conditioning_channels=3)
    return StableDiffusionControlNetPipeline(**parts, controlnet=control)


def inpainting() -> Any:
    return StableDiffusionInpaintPipeline(**_sd_parts(in_channels=9))


def sdxl(scheduler: Any = None, width: int = 32) -> Any:
    """``width``  of the second text encoder."""
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip(),
        text_encoder_2=clip(projection=True, width=width),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=32 + width,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=width + 6 * 8,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
        ),
        scheduler=scheduler or EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        add_watermarker=False,
    )


def sd3() -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=32,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(scaling_factor=1.5, shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(64),
        tokenizer_3=t5_tokenizer(),
    )


def flux(*, distilled: bool) -> Any:
    """FLUX dev, which is told its guidance, or schnell."""
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=distilled,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=transformer,
    )


def pixart() -> Any:
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=autoencoder(),
        transformer=transformer,
        scheduler=DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False),
    )


def dit() -> Any:
    transformer = DiTTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=4,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    names = {i: "crane" if i in (134, 517) else f"tench {i}, fish {i}" for i in range(1000)}
    return DiTPipeline(transformer=transformer, vae=autoencoder(), scheduler=scheduler, id2label=names)


def plain_unet(channels: int, **config: Any) -> UNet2DModel:
    return UNet2DModel(
        sample_size=16,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **config,
    )


def ldm() -> Any:
    vqvae = VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        num_vq_embeddings=32,
    )
    return LDMPipeline(vqvae=vqvae, unet=plain_unet(3), scheduler=DDIMScheduler(**BETAS, clip_sample=False))


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).random((SIDE, SIDE, 3)) * 255
    return Image.fromarray(pixels.astype("uint8"))


def mask() -> Image.Image:
    rows = np.arange(SIDE)[:, None] * np.ones((1, SIDE)) > SIDE / 2
    return Image.fromarray(rows.astype("uint8") * 255)


PIPELINES: dict[str, Callable[[], Any]] = {
    "SD 1.5": stable_diffusion,
    "SD 2.1 v": lambda: stable_diffusion("v_prediction"),
    "SD 2.1 zero SNR": zero_snr,
    "SDXL": sdxl,
    "SDXL EDM": lambda: sdxl(EDMEulerScheduler()),
    "SD3": sd3,
    "FLUX dev": lambda: flux(distilled=True),
    "FLUX schnell": lambda: flux(distilled=False),
    "PixArt": pixart,
    "ControlNet": controlnet,
    "inpainting": inpainting,
}


# Those that are told no text, and take no latents.
WITHOUT_TEXT: dict[str, Callable[[], Any]] = {
    "DiT": dit,
    "LDM": ldm,
    "DDPM": lambda: DDPMPipeline(plain_unet(3), DDPMScheduler(clip_sample=False)),
    "DDIM": lambda: DDIMPipeline(plain_unet(3), DDIMScheduler(clip_sample=False)),
}


def build(name: str) -> Any:
    """The pipeline called ``name``, with every weight filled."""
    torch.manual_seed(0)
    return filled({**PIPELINES, **WITHOUT_TEXT}[name]())


def filled(pipeline: Any) -> Any:
    """The ``pipeline`` with weights in the place of zeros."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
            for parameter in part.parameters():
                if parameter.ndim and float(parameter.abs().max()) == 0:
                    nn.init.normal_(parameter, std=0.05)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
