"""Tables in Markdown, for model cards and TensorBoard."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line for each row; cells are shown as they are, whatever characters they hold."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(_cell(text) for text in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    for special in "\\|*`":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())
