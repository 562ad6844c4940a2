"""Tables: aligned columns for the screen, Markdown for model cards and TensorBoard."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line for each row; cells are shown as they are, whatever characters they hold."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(_cell(text) for text in line) + " |\n" for line in lines)


def align_columns(head: Sequence[str], rows: Sequence[Sequence[str]], indent: int = 4) -> str:
    """Lines of text: the first column to the left, the others to the right."""
    lines = [head, *rows]
    first, *rest = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        " " * indent + "  ".join([line[0].ljust(first), *(c.rjust(w) for c, w in zip(line[1:], rest, strict=True))])
        for line in lines
    )


def _cell(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    for special in "\\|*`":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
