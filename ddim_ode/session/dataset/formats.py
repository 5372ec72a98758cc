"""The formats of shards by name: each is a kind of file that programs read which know nothing of us.

Importing this is cheap. Each format is a module beside this one, which is a ``Kind``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

    from ddim_ode.session.dataset.heads import Head

DEFAULT_FORMAT = "safetensors"


class ShardFile(Protocol):
    """A shard's file, which was found whole."""

    head: Head

    def tensors(self, row: int) -> tuple[Tensor, Tensor | None]:
        """The latent in ``row``, ``(1, C, H, W)``, and its companion, if there is one, in the dtype they came in.

        Any exception: if the file is damaged there.
        """


class Kind(Protocol):
    """A kind of file for shards. Whatever a damaged file provokes is for the caller to name."""

    def write(self, head: Head, tensors: Mapping[str, Tensor]) -> bytes:
        """The content of the file; ``tensors`` are x_T and perhaps its companion, each ``(N, C, H, W)``."""

    def open_shard(self, path: Path) -> ShardFile:
        """The file ``path``; its tensors stay there until they are asked for."""


@dataclass(frozen=True)
class Format:
    """A format of shards: what their names end in, and the module that is its ``Kind``.

    ``package``  that it needs beside ours, and ``extra`` that installs it.
    """

    suffix: str
    module: str
    package: str | None = None
    extra: str | None = None

    def kind(self) -> Kind:
        """What reads and writes it.

        Raises:
            ValueError: if a package that it needs is not installed.
        """
        if self.package is not None and find_spec(self.package) is None:
            raise ValueError(
                f"shards in '{self.suffix}' files need {self.package}; install it with: pip install "
                f"'ddim-ode[{self.extra}]'"
            )
        return cast(Kind, import_module(f"ddim_ode.session.dataset.{self.module}"))


FORMATS: Mapping[str, Format] = {
    "safetensors": Format(".safetensors", "safetensors_shards"),
    "webdataset": Format(".tar", "webdataset_shards"),
    "parquet": Format(".parquet", "parquet_shards", package="pyarrow", extra="parquet"),
}


def kind_of(name: str) -> Kind:
    """What reads and writes the shard called ``name``.

    Raises:
        ValueError: if that is no name of a shard, or as ``Format.kind`` does.
    """
    found = next((own for own in FORMATS.values() if name.endswith(own.suffix)), None)
    if found is None:
        endings = ", ".join(own.suffix for own in FORMATS.values())
        raise ValueError(f"the name of a shard must end in one of: {endings}; but it is '{name:.200}'")
    return found.kind()
