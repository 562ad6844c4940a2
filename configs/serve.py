"""A server that OpenAI's clients can ask for transcriptions, with the setting as the model's name.

  python -m sew_jax.main --config=configs/serve.py --config.init_from=runs/finetune

Needs a fine-tuned model, and `pip install 'sew_jax[serve]'`. It compiles all programs, then says that it is ready, and
how to ask it; docs/serving.md says the rest.
"""

from ml_collections import ConfigDict

from configs.evaluate import add_beam


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "serve"
    config.init_from = ""  # workdir of a finetune run, or hf:PATH
    config.language = ""  # of a checkpoint of many, such as swh of MMS; empty: the one it was saved with
    config.settings = ""  # those that can be asked for, joined by commas; empty: those of its training
    config.tradeoff = ""  # workdir of an evaluate run, for requests with a budget; empty: the one with the model
    config.host = "127.0.0.1"  # 0.0.0.0: also for other machines
    config.port = 8000  # 0: one that is free
    config.queue = 64  # requests that are accepted at once; more are told to come again
    config.max_mib = 25.0  # of a file
    config.max_seconds = 1800.0  # of a file's audio
    config.stream = ConfigDict()  # audio that comes as it is spoken
    config.stream.chunk_seconds = 6.0  # are computed at once; words so far come after each
    config.stream.overlap_seconds = 2.0  # of two neighbours
    add_beam(config)
    del config.beam.workers, config.beam.nbest  # a request names how many hypotheses it wants
    config.runtime = ""  # jax, onnxruntime or openvino; empty: jax
    config.dtype = ""  # float32, bfloat16 or int8; empty: as in training
    return config
