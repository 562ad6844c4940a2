"""TFDS names: what they need, and that what TFDS holds arrives sample for sample."""

import importlib.util

import numpy as np
import pytest
import soundfile

from configs.prepare import get_config
from sew_jax.data.audio import read
from sew_jax.data.prepare import prepare
from sew_jax.data.sources import open_source
from sew_jax.errors import UserError

TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def prepared(name, workdir, **options):
    config = get_config()
    config.update({"data": f"tfds:{name}", "workers": 0} | options)
    prepare(config, workdir)
    return open_source(str(workdir), "train", min_samples=1, need_text=True, max_bad=0)[0]


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is installed")
def test_without_tensorflow_it_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"needs TensorFlow \(pip install tensorflow .*tar xf"):
        prepared("librispeech", tmp_path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A folder of FLAC files, and names of two TFDS datasets of the same noise at 8 kHz, one with FLAC as it is."""
    pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("noise")
    patch = pytest.MonkeyPatch()
    patch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(folder / "tfds"))

    class Noise(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        LAZY = False

        def _info(self):
            audio = tfds.features.Audio(sample_rate=8000, dtype=np.int16, file_format="flac", lazy_decode=self.LAZY)
            features = {"speech": audio, "text": tfds.features.Text(), "id": np.str_, "speaker_id": np.int64}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                speech = str(folder / f"{i}.flac") if self.LAZY else waves[i]
                yield i, {"speech": speech, "text": f"NUMBER  {i}", "id": f"u{i}", "speaker_id": i % 2}

    class NoiseFiles(Noise):
        LAZY = True

    random = np.random.default_rng(0)
    waves = [random.normal(0, 3000, 8000 + 100 * i).astype(np.int16) for i in range(6)]
    for i, wave in enumerate(waves):
        soundfile.write(folder / f"{i}.flac", wave, 8000)
    yield folder, (Noise.name, NoiseFiles.name)
    patch.undo()


def test_it_holds_what_tfds_holds(dataset, tmp_path):
    folder, names = dataset
    for name in names:
        source = prepared(name, tmp_path / name)
        assert sorted(source.id(i) for i in range(len(source))) == [f"u{i}" for i in range(6)]
        for i in range(len(source)):
            number = source.id(i)[1:]
            assert source.text(i) == f"NUMBER {number}"
            np.testing.assert_array_equal(source.audio(i), read(str(folder / f"{number}.flac")))


def test_names_that_lead_nowhere(dataset, tmp_path):
    with pytest.raises(UserError, match=r"has no split dev; it has: test, train"):
        prepared(dataset[1][0], tmp_path / "out", split="dev")
    with pytest.raises(UserError, match="tfds:no_such_speech is unknown to TFDS"):
        prepared("no_such_speech", tmp_path / "out")
