"""Word error rate and time at every setting: a table, a plot, and transcripts.

  python -m sew_jax.main --config=configs/evaluate.py --config.init_from=runs/finetune
  python -m sew_jax.main --config=configs/evaluate.py --config.init_from=runs/finetune \\
    --config.data=/data/LibriSpeech --config.split=test-clean,test-other --config.settings=s1q1k1,s2q1k1,s2q1.1.2.2k1 \\
    --config.lm=4-gram.arpa --config.tune_split=dev-other

  python -m sew_jax.main --config=configs/evaluate.py --config.init_from=runs/finetune \\
    --config.runtimes=jax,onnxruntime,openvino --config.dtypes=float32,bfloat16,int8

Needs a fine-tuned model and transcribed audio. The small model at 8 settings took 57 s for 5 minutes of speech on 2
CPU cores, 5 timed rounds included; the tables are in docs/results.md. With an n-gram of words (ARPA or KenLM binary;
configs/lm.py makes one) each split is also decoded by beam search, side by side.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "evaluate"
    config.init_from = ""  # workdir of a finetune run, or hf:PATH
    config.language = ""  # of a checkpoint of many, such as swh of MMS; empty: the one it was saved with
    config.data = "demo"
    config.split = "test"  # several, joined by commas, have a table each
    config.settings = ""  # names joined by commas; empty: the settings it was trained on
    # none, upper, lower, basic (punctuation away) or several, joined by commas: done to references and hypotheses
    config.text_normalizer = ""  # empty: as in training
    config.repeats = 5  # timed rounds after the warm-up
    config.dtype = ""  # float32, bfloat16 or int8; empty: as in training
    # Several, joined by commas, are measured side by side: jax, onnxruntime, openvino
    config.runtimes = "jax"
    config.dtypes = ""  # of those of a run time each: float32, bfloat16, int8; empty: dtype, else as in training
    add_beam(config)
    config.tune_split = ""  # choose lm_weight and word_score for each setting by WER on this split of data
    config.tune_trials = 30
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.input = ConfigDict()
    config.input.batch_seconds = 250.0  # audio of a batch (SEW: 4 M samples)
    config.input.buckets = 4
    config.input.max_bad = 10.0  # as in pretrain.py
    config.input.workers = 0
    config.input.threads = 4
    return config


def add_beam(config: ConfigDict) -> None:
    """Adds the keys of `sew_jax.decoding.beam.chosen_options`; weights are fairseq's and SEW's."""
    config.lm = ""  # an n-gram, ARPA or KenLM binary; none: beam search without; empty: no beam search
    config.beam = ConfigDict()
    config.beam.lexicon = ""  # a list of words, with their spelling or without; empty: those of the n-gram
    config.beam.beam = 50  # hypotheses kept at each frame
    config.beam.beam_tokens = 12  # symbols of a frame that may go on; 0: all
    config.beam.threshold = 20.0  # a hypothesis so far behind the best one is dropped; SEW's is 25
    config.beam.lm_weight = 2.0
    config.beam.word_score = -1.0
    config.beam.sil_score = 0.0
    config.beam.log_add = False
    config.beam.hot_words = ""  # words and phrases that are favoured, joined by commas
    config.beam.hot_boost = 5.0  # for each word of theirs: how much likelier its logarithm becomes
    config.beam.nbest = 1  # hypotheses of each utterance in transcripts/
    config.beam.workers = -1  # processes; -1: as many as cores
