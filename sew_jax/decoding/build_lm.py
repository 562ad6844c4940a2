"""An n-gram of words from transcripts and text, as lm.arpa in a workdir."""

import time
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from sew_jax.console import format_duration, say
from sew_jax.data.normalize_text import normalize_text
from sew_jax.data.sources import open_source
from sew_jax.data.text_files import open_lines
from sew_jax.decoding.beam import sentence_log10
from sew_jax.decoding.ngram import NGram, arpa, estimate
from sew_jax.errors import UserError
from sew_jax.files import FOLDER_HINT, local_folder, write_whole, writing_to
from sew_jax.storage import raise_if_away


def build_lm(config: ConfigDict, workdir: Path) -> Path:
    """Writes lm.arpa into the workdir, from the transcripts of `data` and the lines of `text`; returns its path.

    Raises:
      UserError: there is no text, or it cannot be read.
    """
    begin = time.monotonic()
    say("sew_jax lm")
    sentences = []
    if config.data:
        sentences += _transcripts(config, config.split)
        empty = f", {sentences.count('')} of them empty" if "" in sentences else ""
        say(f"  data      {config.data}:{config.split}: {len(sentences):,} transcripts{empty}")
    if config.text:
        lines = [line for raw in _lines(config.text) if (line := normalize_text(raw, config.text_normalizer))]
        say(f"  text      {config.text}: {len(lines):,} lines")
        sentences += lines
    say(f"  words     text_normalizer={config.text_normalizer or 'none'}; Unicode's NFC, no format characters")
    model = estimate(sentences, config.order)
    for order, grams in enumerate(model.orders, 1):
        remark = "; too few to tell discounts, which are 0.5, 1 and 1.5" if order in model.undiscounted else ""
        say(f"  {order}-grams   {len(grams.probability_N):,}{remark}")
    if len(model.orders) < config.order:
        say(f"  ! no sentence is long enough for order {config.order}; it is {len(model.orders)}")
    path = workdir / "lm.arpa"
    with writing_to(workdir, FOLDER_HINT), local_folder(workdir) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / path.name, arpa(model).encode())
        if config.eval_split:
            _say_perplexity(config, model, folder / path.name)
    say(f"done in {format_duration(time.monotonic() - begin)}: {path}")
    return path


def _say_perplexity(config: ConfigDict, model: NGram, path: Path) -> None:
    """Of the split that is held out, ends of sentences included."""
    held_out = [line.split() for line in _transcripts(config, config.eval_split) if line]
    if not held_out:
        say(f"  perplexity none: {config.eval_split} holds no words")
        return
    total = sum(sentence_log10(str(path), map(" ".join, held_out)))
    words, known = [word for line in held_out for word in line], set(model.words)
    unknown = sum(word not in known for word in words)
    perplexity = 10 ** (-total / (len(words) + len(held_out)))
    say(
        f"  perplexity {perplexity:.1f} of {config.eval_split}: {len(words):,} words and {len(held_out):,} ends; "
        f"{unknown:,} words are not in the model"
    )


def _transcripts(config: ConfigDict, split: str) -> list[str]:
    source, _ = open_source(config.data, split, min_samples=1, need_text=True, max_bad=config.input.max_bad)
    return [normalize_text(source.text(i) or "", config.text_normalizer) for i in range(len(source))]


def _lines(path: str) -> Iterator[str]:
    try:
        with open_lines(path) as file:
            yield from (line for line in file if line.strip())
    except OSError as error:
        raise_if_away(error)
        raise UserError(f"text: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"text: {path} is no text in UTF-8 or UTF-16 ({error})") from error
