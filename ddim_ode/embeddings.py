"""Hashes of what a text encoder makes of a prompt: they tell one prompt from another, and do not give it away.

An ordinary hash of floating point numbers is another one on another device, whose last digits differ. This one has a
bit for each of some random directions, which side the embedding is on, so that the nearer two embeddings are, the fewer
bits differ: Charikar, "Similarity Estimation Techniques from Rounding Algorithms", STOC 2002.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

_BITS = 1024
_DIGITS = _BITS // 4
# Embeddings have millions of numbers; first they are added up, with random signs, in so many places.
_PLACES = 4096
# Rounding to half precision turns a few bits; with small random encoders another word at the end turned eight or more.
_SAME = 5
_SEED = 20_102_502
# What networks of diffusers call what they are told of a prompt.
_NAMES = ("encoder_hidden_states", "pooled_projections", "text_embeds")


@runtime_checkable
class Told(Protocol):
    """A network that is told a prompt: ``embedding`` is the hash of that, None before it is known."""

    @property
    def embedding(self) -> str | None:
        """The hash, as ``hash_of`` makes it."""


def _told(told: Mapping[str, Any]) -> list[Tensor]:
    """What is of texts among the arguments ``told`` of a network of diffusers, with a row for each answer."""
    flat = {**told, **(told.get("added_cond_kwargs") or {})}
    parts = [flat[name] for name in _NAMES if isinstance(flat.get(name), Tensor)]
    return [part for part in parts if part.ndim and len(part)]


def prompt_of(told: Mapping[str, Any], count: int) -> list[Tensor]:
    """What a network of diffusers is told of the prompt, for one image: of the arguments ``told`` with a batch.

    Batches have ``count`` images, last of all under the prompt itself: before it those that are to be avoided. Some
    give one row for all images.
    """
    return [part[-min(count, len(part))] for part in _told(told)]


def avoided_of(told: Mapping[str, Any], count: int) -> list[Tensor]:
    """The same of what is to be avoided, where a call has the answers for both."""
    return [part[0] for part in _told(told) if len(part) >= 2 * count]


def hash_of_told(told: Mapping[str, Any], count: int) -> str | None:
    """The hash of the prompt, followed by that of what is to be avoided, if a call has both; None if it has neither."""
    return "".join(hash_of(part) for part in (prompt_of(told, count), avoided_of(told, count)) if part) or None


def hash_of(embeddings: Iterable[Tensor]) -> str:
    """256 hexadecimal digits for ``embeddings``, tensors of any shapes."""
    values = torch.cat([part.detach().float().cpu().flatten() for part in embeddings])
    generator = torch.Generator().manual_seed(_SEED)
    directions = torch.randn(_BITS, _PLACES, generator=generator)
    signs = torch.randint(0, 2, (len(values),), generator=generator) * 2 - 1
    sums = torch.zeros(_PLACES).index_add(0, torch.arange(len(values)) % _PLACES, values * signs)
    return f"{int(''.join('01'[bit] for bit in (directions @ sums > 0).int().tolist()), 2):0{_DIGITS}x}"


def is_hash(text: object) -> bool:
    """Whether ``text`` is the hash of a prompt, or of that and of what is to be avoided."""
    return isinstance(text, str) and re.fullmatch(rf"([0-9a-f]{{{_DIGITS}}}){{1,2}}", text) is not None


def same_embedding(one: str, other: str) -> bool:
    """Whether two hashes are of one prompt and one text encoder, but for rounding; and of what both say is avoided."""
    starts = range(0, min(len(one), len(other)), _DIGITS)
    pairs = [(one[i : i + _DIGITS], other[i : i + _DIGITS]) for i in starts]
    return all((int(a, 16) ^ int(b, 16)).bit_count() <= _SAME for a, b in pairs)
