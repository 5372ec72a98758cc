"""Weights under whatever names, put into a network that was made without memory for its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ddim_ode.formats.reading import Weights
from ddim_ode.kinds import ModelError, check_finite_weights, check_weights


def fill(
    network: nn.Module,
    path: Path,
    weights: Weights,
    source: Callable[[str], str],
    convert: Callable[[str, Tensor], Tensor] | None = None,
    *,
    config: str,
) -> None:
    """Give ``network``, on torch's device 'meta', the ``weights`` from ``path``, in float32, on the CPU.

    ``source``   the name that the file has for one of the network's.
    ``convert``  what makes the network's tensor, of the name that is given first, of the file's.
    ``config``   what messages call the place where the network's settings stand.

    Raises:
        ModelError: if the weights are not all there and no others, are of other shapes, or not finite.
    """
    wanted = {name: (source(name), value.shape) for name, value in network.state_dict().items()}
    sources = {name for name, _ in wanted.values()}
    check_weights(path, sorted(sources - weights.keys()), sorted(weights.keys() - sources), config=config)
    found = {}
    for name, (theirs, shape) in wanted.items():
        value = weights[theirs] if convert is None else convert(name, weights[theirs])
        if value.shape != shape:
            raise ModelError(
                f"'{theirs}' in '{path}' has the shape {tuple(weights[theirs].shape)}, which does not go with "
                f"{config}, where '{name}' has {tuple(shape)}; give the config of this very network"
            )
        # A copy of its own: the file may go.
        found[name] = value.to(torch.float32, copy=True).contiguous()
    check_finite_weights(path, found)
    network.load_state_dict(found, assign=True)
