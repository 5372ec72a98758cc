"""What errors say, for a file or for another message."""

from __future__ import annotations


def in_a_line(error: BaseException) -> str:
    """What ``error`` says, in one line; its kind, if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
