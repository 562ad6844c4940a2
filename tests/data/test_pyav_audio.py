"""Audio that libsndfile cannot read, encoded and decoded by PyAV where the extra is installed."""

import numpy as np
import pytest

from sew_jax.data import audio
from sew_jax.data.audio import AudioError
from sew_jax.data.sources import open_source
from sew_jax.transcription.recordings import find_recordings

av = pytest.importorskip("av")

# name -> encoder, its rate, whether it gives every sample back
CODINGS = {
    "a.m4a": ("aac", 44_100, False),
    "b.webm": ("libopus", 48_000, False),
    "c.aac": ("aac", 16_000, False),
    "d.mka": ("aac", 22_050, False),
    "e.MP4": ("aac", 16_000, False),
    "f.wv": ("wavpack", 16_000, True),
    "g.tta": ("tta", 16_000, True),
    "h.m4b": ("alac", 16_000, True),
    "i.mov": ("pcm_s16le", 16_000, True),
    "j.ac3": ("ac3", 48_000, False),
    "k.mkv": ("flac", 16_000, True),
}


def tone(rate, seconds=2.0):
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(path, coding, rate, channels=1, scales=()):
    wave, scales = tone(rate), scales or (1.0,) * channels
    channels = len(scales)
    layout = {1: "mono", 2: "stereo"}[channels]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(coding, rate=rate, layout=layout)
        known = [kind.name for kind in stream.codec_context.codec.audio_formats or ()]
        wanted = next((kind for kind in ("s16", "s16p") if kind in known), None)
        if wanted:
            stream.codec_context.format = wanted
        resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        for begin in range(0, len(wave), 1024):
            piece = np.stack([scale * wave[begin : begin + 1024] for scale in scales]).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = rate, begin
            for ready in resampler.resample(frame):
                container.mux(stream.encode(ready))
        for ready in resampler.resample(None):
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))


def similarity(wave):
    """How much of it is a tone of 440 Hz, whatever its phase: 0 to 1."""
    middle = wave[4000:20_000].astype(np.float64)
    time = np.arange(len(middle)) / 16_000
    return abs(np.exp(-2j * np.pi * 440 * time) @ middle) / np.linalg.norm(middle) / np.sqrt(len(middle) / 2)


@pytest.mark.parametrize("name", CODINGS)
def test_it_is_decoded_wherever_audio_is_read(name, tmp_path):
    coding, rate, exact = CODINGS[name]
    path = str(tmp_path / name)
    encode(path, coding, rate)
    wave = audio.read(path)
    assert wave.dtype == np.int16 and abs(len(wave) - 32_000) <= 2100 and similarity(wave) > 0.99
    if exact:
        np.testing.assert_allclose(wave / 2**15, tone(16_000), atol=2**-15)
    assert audio.probe(path) == len(wave)
    np.testing.assert_array_equal(np.concatenate(list(audio.blocks(path, 0.3))), wave)
    np.testing.assert_array_equal(audio.read(path, 5000, 700), wave[5000:5700])
    if CODINGS[name][0] != "ac3" and not name.endswith("aac"):
        with open(path, "rb") as file:
            np.testing.assert_array_equal(audio.read(file.read()), wave)
    source, problems = open_source(str(tmp_path), "", min_samples=1, need_text=False, max_bad=0)
    assert not problems and source.samples.tolist() == [len(wave)]
    np.testing.assert_array_equal(source.audio(0), wave)
    assert [recording.samples for recording in find_recordings(str(tmp_path)).recordings] == [len(wave)]


def test_channels_are_averaged_or_taken(tmp_path):
    encode(tmp_path / "a.m4a", "alac", 16_000, channels=2)
    np.testing.assert_allclose(audio.read(str(tmp_path / "a.m4a")) / 2**15, tone(16_000), atol=2**-14)
    encode(tmp_path / "b.m4a", "alac", 16_000, scales=(1.0, 0.25))
    for channel, scale in ((0, 1.0), (1, 0.25), (None, 0.625)):
        wave = audio.read(str(tmp_path / "b.m4a"), channel=channel)
        np.testing.assert_allclose(wave / 2**15, scale * tone(16_000), atol=2**-14)
    with pytest.raises(AudioError, match="has no channel 2; it has 2"):
        audio.read(str(tmp_path / "b.m4a"), channel=2)
    encode(tmp_path / "c.m4a", "alac", 16_000, scales=(1.0, -1.0))
    with pytest.raises(AudioError, match="opposite phase"):
        audio.read(str(tmp_path / "c.m4a"))


def test_a_cut_file_is_named_or_read_up_to_its_end(tmp_path):
    encode(tmp_path / "a.mkv", "aac", 16_000)
    content = (tmp_path / "a.mkv").read_bytes()
    for size in np.random.default_rng(0).integers(1, len(content), 40).tolist():
        (tmp_path / "cut.mkv").write_bytes(content[:size])
        try:
            assert 0 < len(audio.read(str(tmp_path / "cut.mkv"))) <= 34_000
        except AudioError as error:
            assert str(error)


def test_a_play_list_opens_no_other_file(tmp_path):
    """FFmpeg would follow the names in it."""
    encode(tmp_path / "secret.mkv", "flac", 16_000)
    lists = {
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{tmp_path}/secret.mkv\n#EXT-X-ENDLIST\n",
        "list.mkv": f"ffconcat version 1.0\nfile {tmp_path}/secret.mkv\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError, match="cannot be decoded"):
            audio.read(str(tmp_path / name))


def test_a_film_without_sound_is_named(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode(None))
    with pytest.raises(AudioError, match="without a sound track"):
        audio.read(str(tmp_path / "a.mp4"))
