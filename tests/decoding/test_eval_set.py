"""What is measured is each utterance once, in batches no larger than the utterances fill."""

import jax
import numpy as np
import pytest

from configs.evaluate import get_config
from sew_jax.compression import Compression
from sew_jax.data.vocabulary import LETTERS, Vocabulary
from sew_jax.decoding.eval_set import open_eval_sets
from sew_jax.decoding.recognizer import Recognizer
from sew_jax.models.config import BackboneConfig, CTCHeadConfig
from sew_jax.models.ctc import CTCModel
from sew_jax.runtime.sharding import make_mesh
from tests.runs import make_corpus


@pytest.mark.parametrize(("devices", "batch_seconds"), [(1, 250.0), (1, 2.5), (8, 250.0)])
def test_all_utterances_and_few_filler_rows(devices, batch_seconds, tmp_path):
    config = get_config()
    config.data, config.input.batch_seconds = str(make_corpus(tmp_path / "corpus")), batch_seconds
    mesh = make_mesh(devices, 1, jax.devices()[:devices])
    model = CTCModel(BackboneConfig(frontend="logmel"), CTCHeadConfig())
    recognizer = Recognizer("runs/small", "", model, {}, Vocabulary(LETTERS), [Compression()], mesh)
    sets = open_eval_sets(config, ["train", "test"], recognizer)
    shapes = {}
    for part, count in zip(sets, (12, 5), strict=True):
        assert sorted(u for _, _, members in part.batches for _, u in members) == list(range(count))
        assert part.ids == sorted(part.ids) and len(part.ids) == count
        for bucket, arrays, members in part.batches:
            rows = arrays["wave"].shape[0]
            assert rows % devices == 0 and rows * bucket <= max(batch_seconds * 16_000, devices * bucket)
            assert shapes.setdefault(bucket, rows) == rows  # one program for all splits
            for row, utterance in members:
                assert arrays["length"][row] == part.samples[utterance] <= bucket
    fullest = {bucket: max(len(m) for part in sets for b, _, m in part.batches if b == bucket) for bucket in shapes}
    assert all(rows - fullest[bucket] < devices for bucket, rows in shapes.items())
    assert np.all(sets[1].samples == 12_000 + 400 * np.arange(5))
