"""Lists as the command line spells them."""


def split_names(joined: str) -> list[str]:
    """The parts of a list that is joined by commas; empty ones are none."""
    return [name.strip() for name in joined.split(",") if name.strip()]
