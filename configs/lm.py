"""An n-gram of words, for beam search, from transcripts and from text.

  python -m sew_jax.main --config=configs/lm.py --config.data=/data/LibriSpeech \\
    --config.split=train-clean-100 --workdir=runs/lm
  python -m sew_jax.main --config=configs/lm.py --config.data= --config.text=sentences.txt --workdir=runs/lm

Leaves lm.arpa. Words are taken as they stand between white space, in Unicode's NFC, so that text must be written as
the model's transcripts are (the default vocabulary: capitals and apostrophe); `text_normalizer` helps. Modified
Kneser-Ney, interpolated; nothing is pruned. All of it is held in memory, some hundred bytes for each word: for
billions of words use KenLM's lmplz, whose files are read here too.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "lm"
    config.data = "demo"  # whose transcripts; empty: none
    config.split = "train"
    config.text = ""  # a file with a sentence on each line
    # as the model's: none, upper, lower, basic (punctuation away) or several, joined by commas
    config.text_normalizer = "none"
    config.order = 4
    config.eval_split = ""  # of data, whose perplexity is told
    config.input = ConfigDict({"max_bad": 10.0})
    return config
