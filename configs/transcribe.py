"""Text with times of audio files, folders and standard input, at one setting.

  python -m sew_jax.main --config=configs/transcribe.py --config.init_from=runs/finetune --config.audio=talk.mp3
  python -m sew_jax.main --config=configs/transcribe.py --config.init_from=runs/finetune \\
    --config.audio=a.wav,recordings --config.budget=0.5 --config.tradeoff=runs/evaluate
  ffmpeg -i film.mkv -f wav - | python -m sew_jax.main --config=configs/transcribe.py \\
    --config.init_from=runs/finetune --config.audio=- --config.format=srt

Results alone go to standard output, in the order of the audio: a JSON object a line, with words, their times in
seconds and their confidence; or plain text, SRT or WebVTT. Subtitles of several files are written below the workdir,
and their paths to standard output. Audio of any rate, width and channel count that libsndfile reads; what can't be
read is named and left out, and the exit status is 2.

Long audio is computed in chunks that overlap; memory does not grow with its length. Needs a fine-tuned model.
"""

from ml_collections import ConfigDict

from configs.evaluate import add_beam


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.mode = "transcribe"
    config.init_from = ""  # workdir of a finetune run, or hf:PATH
    config.language = ""  # of a checkpoint of many, such as swh of MMS; empty: the one it was saved with
    config.audio = ""  # files, folders (with all below) and - (standard input), joined by commas
    config.setting = ""  # a name; empty: what the budget picks, or the first of its training
    # 0.5 (of the time of s1q1k1), rtf=0.05 (seconds for a second of audio) or wer=12%: picks a point of `tradeoff`
    config.budget = ""
    config.tradeoff = (
        ""  # workdir of an evaluate run, or its tradeoff.json; empty: the one with the model, for a budget
    )
    config.format = "jsonl"  # text, srt, vtt
    config.nbest = 1  # hypotheses of each file, which stand in the JSON; several are found by beam search
    add_beam(config)
    del config.beam.workers, config.beam.nbest  # files are decoded as they are heard
    config.chunk_seconds = 30.0  # longer audio is computed in chunks
    config.overlap_seconds = 4.0  # of two neighbours, at least
    config.runtime = ""  # jax, onnxruntime or openvino; empty: what the budget picks, or jax
    config.dtype = ""  # float32, bfloat16 or (not openvino) int8; empty: what the budget picks, or as in training
    config.mesh = ConfigDict({"data": -1, "fsdp": 1})
    config.input = ConfigDict({"batch_seconds": 120.0})  # audio of a batch
    return config
