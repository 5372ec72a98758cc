"""Fingerprints of weights, and cheap stamps that show whether weights have changed since."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from threading import Lock

import torch
from torch import Tensor, nn

from ddim_ode.kinds import ModelError


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of the weights of ``module``.

    Raises:
        ModelError: if they are kept elsewhere, as sequential offloading does.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_here(value.detach()).contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stamp(module: nn.Module) -> str:
    """What changes when the weights of ``module`` do, and not when they are moved to another device.

    It is of the names, shapes and counts of changes of all weights, and of a few numbers of each: of what is written
    past torch's count, as a LoRA is that is fused, they show all that changes more than a few. Errors are those of
    ``fingerprint``.
    """
    digest = hashlib.sha256()
    samples = defaultdict[tuple[torch.device, torch.dtype], list[Tensor]](list)
    for name, value in module.state_dict().items():
        changes = 0 if value.is_inference() else value._version
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {changes};".encode())
        samples[value.device, value.dtype].append(_some(value.detach()))
    for parts in samples.values():
        digest.update(_here(torch.cat(parts)).double().numpy().data)  # some devices have no float64
    return digest.hexdigest()


def _some(value: Tensor) -> Tensor:
    """Two numbers of ``value`` along each of its dimensions, ``(A,)``, without a copy of the others."""
    return value[tuple(slice(None, None, max(1, (size + 1) // 2)) for size in value.shape)].flatten()


def _here(value: Tensor) -> Tensor:
    """``value`` on the CPU."""
    try:
        return value.cpu()
    except NotImplementedError as error:  # of a tensor without numbers
        raise ModelError(
            "weights of this pipeline are kept elsewhere, layer by layer, and cannot be read; offload it whole, "
            "with enable_model_cpu_offload"
        ) from error


# One for all, since a model that holds a lock could not be copied or sent to another process.
_FINDING = Lock()


class Fingerprints:
    """Fingerprints by name, found out once; anew where weights have changed since, if they are ``watched``.

    Threads may ask at the same time; the work is done by one of them.
    """

    def __init__(self, *, watched: bool) -> None:
        self._watched = watched
        self._known: dict[str, tuple[str, str]] = {}

    def of(self, name: str, module: nn.Module) -> str:
        """That of ``module``, called ``name``. Errors are those of ``fingerprint``."""
        with _FINDING:
            now, known = self._stamp(module), self._known.get(name)
            if known is None or known[0] != now:
                known = self._known[name] = (now, fingerprint(module))
            return known[1]

    def of_others(self, modules: Mapping[str, nn.Module]) -> Fingerprints:
        """Those known here for ``modules``, by name, which hold the same weights in another form."""
        found = Fingerprints(watched=self._watched)
        found._known = {name: (self._stamp(module), self._known[name][1]) for name, module in modules.items()}
        return found

    def _stamp(self, module: nn.Module) -> str:
        return stamp(module) if self._watched else ""
