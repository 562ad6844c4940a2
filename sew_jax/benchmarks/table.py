"""Columns for the screen."""

from collections.abc import Sequence


def align(head: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 4) -> str:
    """Lines of text: the first column to the left, the others to the right."""
    lines = [head, *rows]
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        " " * indent + "  ".join([line[0].ljust(first), *(c.rjust(w) for c, w in zip(line[1:], rest, strict=True))])
        for line in lines
    )
