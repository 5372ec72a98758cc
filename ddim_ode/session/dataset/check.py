"""A look at a data set: some of its latents are decoded, and what comes back is compared with their pictures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import nsmallest
from pathlib import Path
from statistics import median

from torch import Tensor

from ddim_ode.images import ImageFileError, pixel_mse
from ddim_ode.messages import in_a_line
from ddim_ode.session.dataset.encoder import identity_of
from ddim_ode.session.dataset.home import read_home
from ddim_ode.session.dataset.load import load_dataset
from ddim_ode.session.dataset.manifest import read_lines
from ddim_ode.session.dataset.sources import Pictures
from ddim_ode.session.session import Session

# So many latents say how good the others are, and take little time.
CHECKED = 16


@dataclass(frozen=True)
class Checked:
    """What came back of some latents of a data set.

    ``errors``  MSE per dimension, pixels in [0, 1], by the names of the pictures.
    ``failed``  why others could not be decoded or compared.
    """

    errors: Mapping[str, float]
    failed: Sequence[str]

    def report(self) -> str:
        """The errors, in a line."""
        if not self.errors:
            return "none decoded"
        worst = max(self.errors, key=lambda name: self.errors[name])
        return (
            f"{len(self.errors)} decoded: MSE {median(self.errors.values()):.3g} on [0, 1] (median), "
            f"{self.errors[worst]:.3g} at most, of '{worst}'"
        )


def check_dataset(folder: Path, pictures: Pictures, session: Session, count: int = CHECKED) -> Checked:
    """Decode up to ``count`` latents of the data set in ``folder``, whose ``pictures`` these are.

    They are those with the smallest identities, which are hashes: any of them alike, wherever they stand.

    Raises:
        WorkError, LatentError: if the data set is damaged.
        DataError: if the pictures cannot be listed any more.
    """
    failed = list[str]()
    originals = _originals(folder, pictures, session, count, failed)
    found, names = load_dataset(folder), list(originals)
    errors = dict[str, float]()
    for decoded in session.decode_all(
        [partial(found.__getitem__, name) for name in names], on_error=lambda error: failed.append(in_a_line(error))
    ):
        name = names[decoded.index]
        errors[name] = float(pixel_mse(originals[name], decoded.picture.image[None]))
    return Checked(errors, failed)


def _originals(folder: Path, pictures: Pictures, session: Session, count: int, failed: list[str]) -> dict[str, Tensor]:
    """The pixels of the pictures to compare with, ``(1, C, H, W)`` in [-1, 1], by name; the rest goes to ``failed``."""
    key, chosen = read_home(folder)["key"], _choose(folder, count)
    found = dict[str, Tensor]()
    for entry in pictures.entries() if chosen else ():
        if entry.name in chosen:
            identity = chosen.pop(entry.name)
            try:
                content = pictures.read(entry)
                if identity_of(hashlib.sha256(content).digest(), key) != identity:
                    raise ImageFileError(f"'{entry.name}' was changed meanwhile, and is not compared")
                found[entry.name] = session.model.space.read(content).pixels
            except ImageFileError as error:
                failed.append(str(error))
            if not chosen:  # the others need not be listed
                break
    return found


def _choose(folder: Path, count: int) -> dict[str, str]:
    """Up to ``count`` identities, by the names of their pictures; of pictures that are the same, by the first name."""
    names = dict[str, str]()
    for line in read_lines(folder):
        if line.shard is not None and line.identity is not None:
            names[line.identity] = min(line.name, names.get(line.identity, line.name))
    return {name: identity for identity, name in nsmallest(count, names.items())}
