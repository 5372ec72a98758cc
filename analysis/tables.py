"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence


def markdown(heads: Sequence[str], rows: Iterable[Sequence[object]], *, words: Collection[int] = (0,)) -> str:
    """A table with ``heads`` above ``rows`` of cells.

    ``words``  the numbers of the columns that hold words, and begin at the left; the others hold figures.
    """
    rule = "".join("---|" if i in words else "---:|" for i in range(len(heads)))
    lines = [f"| {' | '.join(heads)} |", f"|{rule}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, cells))} |" for cells in rows)])
