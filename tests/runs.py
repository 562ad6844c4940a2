"""Runs that take seconds: a tiny corpus, and the project's own configs made small."""

import contextlib

import jax
import numpy as np
import soundfile

from configs import finetune as finetune_config
from configs import pretrain as pretrain_config
from sew_jax.checkpoints.checkpointer import Checkpoints
from sew_jax.files import write_json
from sew_jax.training.setup import open_task
from sew_jax.training.step import new_state

WORDS = ("ONE", "TWO", "THREE")


def make_corpus(root):
    """Twelve utterances of noise with words in `train`, five of another speaker in `test`."""
    random = np.random.default_rng(0)
    for split, speaker, count in (("train", 1, 12), ("test", 2, 5)):
        folder = root / split / str(speaker) / "1"
        folder.mkdir(parents=True)
        lines = []
        for i in range(count):
            name = f"{speaker}-1-{i:04d}"
            soundfile.write(folder / f"{name}.flac", random.normal(size=12_000 + 400 * i) * 0.1, 16_000)
            lines.append(f"{name} {WORDS[i % 3]}\n")
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))
    return root


def tiny(config, corpus):
    config.data = str(corpus)
    config.num_steps, config.checkpoint_every, config.log_every = 12, 5, 4
    config.compression.squeeze, config.compression.query_pool = (1, 2), (1,)
    config.input.batch_seconds, config.input.buckets = 6.0, 1
    config.mesh.data, config.mesh.fsdp = 4, 2
    return config


def pretraining(corpus):
    """Covers the parts with state of their own: layer-drop, dropout and BatchNorm heads."""
    config = tiny(pretrain_config.get_config(), corpus)
    config.model.update(width=32, layers=1, heads=2, ffn_width=32, pos_kernel=5, layerdrop=0.3, dropout=0.1)
    config.head.update(codes=8, code_width=8, final_width=8, negatives=5, projection="mlp", mlp_width=16)
    return config


def finetuning(corpus, init_from):
    config = tiny(finetune_config.get_config(), corpus)
    config.init_from = str(init_from)
    return config


def begin(config, workdir):
    """The workdir of a run at its first update, its weights as drawn: for tests that need a model, and no training."""
    task = open_task(config)
    state = jax.jit(lambda key: new_state(task.init(key), task.optimizer))(jax.random.key(0))
    record = {"config": config.to_dict(), "architecture": task.architecture, "data": {}, "rows": {}}
    workdir.mkdir(parents=True)
    write_json(workdir / "config.json", record)
    if task.vocabulary:
        task.vocabulary.save(workdir)
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        checkpoints.save(state, 1, {"step": 1, **record})


def begin_finetuned(root):
    """A corpus, and pretrain/ and finetune/ as `begin` leaves them; returns the corpus."""
    corpus = make_corpus(root / "corpus")
    begin(pretraining(corpus), root / "pretrain")
    begin(finetuning(corpus, root / "pretrain"), root / "finetune")
    return corpus


def held_out_programs(held_out):
    """What `HeldOut.measure` takes, compiled where it is first called."""
    jitted = jax.jit(held_out.function, static_argnames="compression")
    return {
        (setting, bucket): lambda variables, batch, setting=setting: jitted(variables, batch, compression=setting)
        for setting in held_out.settings
        for bucket in held_out.buckets
    }
