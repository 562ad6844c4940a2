"""Every container and coding that libsndfile writes, whole and spoiled: read to its end, or named."""

import io
import os
import struct

import numpy as np
import pytest
import soundfile

from sew_jax.data.audio import AudioError, blocks, probe, read

SAMPLES = 4000  # at 16 kHz
# whose headers say nothing of a length, or where libsndfile alone knows where
UNTOLD = {"IRCAM", "PAF", "PVF", "MAT4", "MAT5", "MPC2K", "XI"}
OWN_RATE = {"HTK": 1.01, "VOC": 1.05, "WVE": 6.0, "XI": 6.0}  # their headers know no such rate, or not exactly


def speech(seconds, rate, channels, seed=0):
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * 300 * time) + 0.01 * np.random.default_rng(seed).normal(size=len(time))
    return np.stack([wave] * channels, axis=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(container, coding, rate, channels) -> path, of all that can be written."""
    paths = {}
    for container in soundfile.available_formats():
        if container == "RAW":  # which is no container
            continue
        folder = tmp_path_factory.mktemp(container)  # SD2 writes a second file
        for coding in soundfile.available_subtypes(container):
            for rate in (8000, 16_000, 44_100):
                for channels in (1, 2):
                    path = folder / f"{coding}-{rate}-{channels}.{container.lower()}"
                    try:
                        soundfile.write(path, speech(0.25, rate, channels), rate, format=container, subtype=coding)
                    except (soundfile.SoundFileError, ValueError):  # not all go together
                        path.unlink(missing_ok=True)
                        continue
                    paths[container, coding, rate, channels] = path
    return paths


def outcomes(data):
    """Samples by `probe`, `read` and `blocks`; the reason where a file is named."""
    found = []
    for reader in (probe, lambda data: len(read(data)), lambda data: sum(map(len, blocks(data, seconds=0.1)))):
        try:
            found.append(reader(data))
        except AudioError as error:
            assert "\n" not in str(error) and "<" not in str(error)
            found.append(str(error))
    return found


def test_whatever_libsndfile_writes_is_read_to_its_end(written):
    assert len(written) >= 270 and {container for container, *_ in written} >= {"WAV", "FLAC", "OGG", "MP3", "SD2"}
    for (container, *rest), path in written.items():
        samples, *others = outcomes(path)
        assert [samples] * 2 == others, (container, rest, samples, others)
        slack = OWN_RATE.get(container, 1.0)  # codings of blocks fill the last
        assert SAMPLES / slack - 1 <= samples <= (SAMPLES + 1200) * slack, (container, rest, samples)


def test_sound_stays_what_it_is(written):
    """Of all codings at 16 kHz, against the wave that was written."""
    wave = speech(0.25, 16_000, 1)[:, 0]
    for (container, coding, rate, _), path in written.items():
        if rate == 16_000 and container not in OWN_RATE:
            got = read(path)[:SAMPLES].astype(float)
            likeness = max(np.corrcoef(got[lag:], wave[: SAMPLES - lag])[0, 1] for lag in range(2))
            assert likeness > 0.95, (container, coding, likeness)


def test_cut_and_spoiled_files_are_read_or_named(written, tmp_path):
    """No other error, no other length by the header than by decoding, and none that is short without a word."""
    random = np.random.default_rng(0)
    names, counts, cut_short = list(written), {"cut": 0, "flipped": 0}, 0
    for turn in range(800):
        name = names[random.integers(len(names))]
        container = name[0]
        data = written[name].read_bytes()
        if turn % 3:
            kind, data = "cut", data[: random.integers(1, len(data))]
        else:
            kind, spoiled = "flipped", bytearray(data)
            places = random.integers(len(data) if turn % 4 else min(len(data), 100), size=random.integers(1, 5))
            for place in places:
                spoiled[place] ^= 1 << int(random.integers(8))
            data = bytes(spoiled)
        counts[kind] += 1
        (tmp_path / "a").write_bytes(data)
        promised, decoded, by_blocks = outcomes(data if turn % 2 else tmp_path / "a")
        where = (name, kind, promised, decoded, by_blocks)
        assert isinstance(decoded, str) == isinstance(by_blocks, str), where
        if isinstance(decoded, int):
            assert promised == decoded == by_blocks, where
            if kind == "cut" and container not in UNTOLD:
                assert decoded >= SAMPLES / OWN_RATE.get(container, 1.0) - 25, where  # a cut within the last block
        else:
            cut_short += kind == "cut"
            assert isinstance(promised, str) or container == "FLAC" or kind == "flipped", where
    assert counts["cut"] >= 500 and cut_short >= 300 and counts["flipped"] >= 200


def patched(data, at, layout, *values):
    return data[:at] + struct.pack(layout, *values) + data[at + struct.calcsize(layout) :]


def as_file(wave, container, coding="PCM_16", rate=16_000):
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=container, subtype=coding)
    return file.getvalue()


def size_fields(container, data):
    """(place, layout, what it counts beside the audio) of the field that says how much audio there is."""
    return {
        "WAV": lambda: (data.index(b"data") + 4, "<I", 0),
        "WAVEX": lambda: (data.index(b"data") + 4, "<I", 0),
        "AIFF": lambda: (data.index(b"SSND") + 4, ">I", 8),
        "AU": lambda: (8, ">I", 0),
        "SVX": lambda: (data.index(b"BODY") + 4, ">I", 0),
        "W64": lambda: (data.index(b"data") + 16, "<Q", 24),
        "RF64": lambda: (data.index(b"ds64") + 16, "<Q", 0),
        "CAF": lambda: (data.index(b"data") + 4, ">Q", 4),
    }[container]()


SIZED = ("WAV", "WAVEX", "AIFF", "AU", "SVX", "W64", "RF64", "CAF")


@pytest.mark.parametrize("container", SIZED)
@pytest.mark.parametrize("value", ["none", "empty", "all ones", "2 GiB"])
def test_sizes_that_were_never_written(container, value):
    """A recorder that was stopped, or that wrote to a pipe: all that follows is audio."""
    wave = np.random.default_rng(0).integers(-1000, 1000, 5000).astype(np.int16)
    data = as_file(wave, container)
    at, layout, extra = size_fields(container, data)
    largest = 256 ** struct.calcsize(layout) - 1
    number = {"none": 0, "empty": extra, "all ones": largest, "2 GiB": 0x7FFFF000}[value]
    if value == "2 GiB" and layout[1] == "Q":
        number = 2**63 - 1
    endless = patched(data, at, layout, number)
    assert probe(endless) == 5000
    for found in (read(endless), np.concatenate(list(blocks(endless, seconds=0.1)))):
        np.testing.assert_array_equal(found, wave)
    np.testing.assert_array_equal(read(endless, 700, 300), wave[700:1000])


@pytest.mark.parametrize("container", [*SIZED, "NIST", "AVR", "VOC", "WVE"])
def test_a_file_that_was_cut_says_how_much_is_there(container, tmp_path):
    coding = "ALAW" if container == "WVE" else "PCM_16"
    data = as_file(np.random.default_rng(0).normal(size=8000) * 0.1, container, coding, 8000)
    path = tmp_path / "a.wav"
    path.write_bytes(data[: len(data) // 2])
    for reader in (probe, read, lambda path: list(blocks(path))):
        with pytest.raises(AudioError, match=r"^is truncated: \d+ of (16000|16012|8000) bytes of audio are there$"):
            reader(path)


def test_wav_beyond_its_own_limit_is_named(tmp_path):
    """The size of more than 4 GiB was written modulo 4 GiB, and most of the audio would pass unseen."""
    (tmp_path / "a.wav").write_bytes(as_file(np.arange(1000, dtype=np.int16), "WAV"))
    os.truncate(tmp_path / "a.wav", 5 * 2**30)  # takes no room on disk
    with pytest.raises(AudioError, match="longer than the 4 GiB that WAV can say"):
        probe(tmp_path / "a.wav")


def test_what_follows_the_audio_may_be_cut():
    """A list of tags at the end of a WAV is no audio, and a file whose audio is empty holds none."""
    wave = np.arange(1000, dtype=np.int16)
    data = as_file(wave, "WAV") + b"LIST" + struct.pack("<I", 100) + b"INFO"
    np.testing.assert_array_equal(read(data), wave)
    empty = as_file(wave[:0], "WAV") + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(AudioError, match="holds no audio"):
        read(empty)


def flac_of_a_pipe(wave, rate, total=0, **options):
    """FLAC whose header does not know how many samples there are, or believes in `total`."""
    data = as_file(wave, "FLAC", rate=rate, **options)
    (fields,) = struct.unpack(">Q", data[18:26])
    return patched(data, 18, ">Q", fields >> 36 << 36 | total)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_flac_that_went_through_a_pipe(rate):
    """Its header may say that it does not know its length."""
    wave = speech(1.3, rate, 1)
    endless, whole = flac_of_a_pipe(wave, rate), as_file(wave, "FLAC", rate=rate)
    assert probe(endless) == probe(whole) == len(read(whole))
    for found in (read(endless), np.concatenate(list(blocks(endless, seconds=0.3)))):
        np.testing.assert_array_equal(found, read(whole))
    np.testing.assert_array_equal(read(endless, 5000, 100), read(whole)[5000:5100])
    with pytest.raises(AudioError, match="cannot be decoded"):
        read(endless[: len(endless) // 2])


def test_a_header_that_promises_the_world_costs_no_memory():
    data = flac_of_a_pipe(speech(0.5, 16_000, 1), 16_000, total=2**36 - 1)
    for reader in (probe, read, lambda data: list(blocks(data))):
        with pytest.raises(AudioError, match=f"is truncated: .* bytes cannot hold the {2**36 - 1} samples"):
            reader(data)


def mp3(seconds, rate, seed):
    return as_file(speech(seconds, rate, 1, seed), "MP3", "MPEG_LAYER_III", rate)


def without_xing(data):
    """Without the first frame, which tells the length: of 288 bytes here."""
    after = data.index(data[:2], 4)
    assert b"Xing" in data[:after] or b"Info" in data[:after]
    return data[after:]


def test_mp3_files_that_were_joined():
    parts = [mp3(seconds, 16_000, seed) for seed, seconds in enumerate((0.5, 1.2, 0.7))]
    waves = [read(part) for part in parts]
    for joined in (b"".join(parts), parts[0] + b"TAG".ljust(128, b"\0") + parts[1] + parts[2]):
        assert probe(joined) == sum(map(len, waves))
        for found in (read(joined), np.concatenate(list(blocks(joined, seconds=0.3)))):
            np.testing.assert_array_equal(found, np.concatenate(waves))
    part = read(b"".join(parts), len(waves[0]) - 100, 200)
    np.testing.assert_array_equal(part, np.concatenate([waves[0][-100:], waves[1][:100]]))


def test_mp3_of_other_rates_that_were_joined():
    parts = [mp3(0.5, 16_000, 0), mp3(0.5, 44_100, 1)]
    assert probe(b"".join(parts)) == sum(map(probe, parts)) == len(read(b"".join(parts)))


def test_mp3_without_a_first_frame_that_counts():
    """Of a varying bit rate; libmpg123 would guess its length from the first frames, and end there."""
    quiet, loud = np.zeros(16_000), 0.3 * np.random.default_rng(0).normal(size=16_000)
    data = without_xing(as_file(np.concatenate([loud, quiet, quiet]), "MP3", "MPEG_LAYER_III"))
    assert probe(data) == len(read(data)) == sum(map(len, blocks(data, 0.3))) >= 48_000
    whole = mp3(1.0, 16_000, 0)
    assert len(read(whole + without_xing(whole))) == probe(whole + without_xing(whole)) >= 2 * 16_000


def test_an_mp3_whose_first_frame_counts_itself():
    """As some programs have it; a frame less than promised is no cut, unless the file ends within one."""
    data = mp3(1.0, 16_000, 0)
    at = data.index(b"Xing") + 8
    (frames,) = struct.unpack(">I", data[at : at + 4])
    more = patched(data, at, ">I", frames + 1)
    assert probe(more) == len(read(more)) >= 16_000
    with pytest.raises(AudioError, match=f"is truncated: {frames - 1} of {frames} frames are there"):
        probe(data[:-1])


@pytest.mark.parametrize(("word", "rate"), [(b"\xff\xfd\x40\xc4", 44_100), (b"\xff\xf5\x42\xc4", 22_050)])
def test_frames_of_layer_2(word, rate):
    """Silent ones, of 1,152 samples each; libmpg123 guesses their number from the size, and padding misleads it."""
    length = 208 + (word[2] >> 1 & 1)
    data = word.ljust(length, b"\0") * 40
    assert probe(data) == len(read(data)) == round(40 * 1152 * 16_000 / rate)
    assert probe(data[: 20 * length + 30]) == round(20 * 1152 * 16_000 / rate)


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_ogg_files_that_were_joined(coding, tmp_path):
    """Streams of the same file, too, which have the same number."""
    parts = [as_file(speech(seconds, 16_000, 1, i), "OGG", coding) for i, seconds in enumerate((0.5, 1.2))]
    for joined in (b"".join(parts), parts[0] * 3):
        one = [parts[0]] * 3 if joined == parts[0] * 3 else parts
        (tmp_path / "a.ogg").write_bytes(joined)
        for data in (joined, tmp_path / "a.ogg"):
            assert probe(data) == sum(map(probe, one))
            np.testing.assert_array_equal(read(data), np.concatenate([read(part) for part in one]))


@pytest.mark.parametrize("coding", ["VORBIS", "OPUS"])
def test_ogg_without_its_last_page_was_cut(coding):
    data = as_file(speech(3, 16_000, 1), "OGG", coding)
    at = data.rindex(b"OggS")  # where all pages before are whole
    for cut in (data[:at], data[: at + 20], data[:-1], data[:at] + data):
        for reader in (probe, read, lambda data: list(blocks(data))):
            with pytest.raises(AudioError, match="is truncated: the page that ends its stream is missing"):
                reader(cut)


def test_wav_files_that_were_joined():
    waves = [np.arange(n, dtype=np.int16) for n in (1000, 500)]
    joined = b"".join(as_file(wave, "WAV") for wave in waves)
    assert probe(joined) == 1500
    np.testing.assert_array_equal(read(joined), np.concatenate(waves))
    np.testing.assert_array_equal(read(joined, 1100, 50), waves[1][100:150])


def test_a_macs_companion_does_not_hide_an_mp3(tmp_path):
    """libsndfile would look into ._NAME for what an MP3 is."""
    (tmp_path / "a.mp3").write_bytes(mp3(0.5, 16_000, 0))
    (tmp_path / "._a.mp3").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X        ".ljust(200, b"\0"))
    assert len(read(tmp_path / "a.mp3")) == 8000


@pytest.mark.parametrize("name", ["a.raw", "a.wav"])
def test_a_name_in_raw_asks_for_nothing(tmp_path, name):
    wave = np.arange(1000, dtype=np.int16)
    (tmp_path / name).write_bytes(as_file(wave, "WAV"))
    np.testing.assert_array_equal(read(tmp_path / name), wave)
    (tmp_path / name).write_bytes(np.random.default_rng(0).integers(1, 255, 3000).astype(np.uint8).tobytes())
    reason = r"has no header that says what it is; give it one: sox -t raw" if name == "a.raw" else "cannot be decoded"
    with pytest.raises(AudioError, match=reason):
        read(tmp_path / name)


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(AudioError, match="is a folder"):
        read(tmp_path / "a.wav")


def test_integers_as_floats_are_named():
    """Floats of which 32768 is full scale would all be clipped."""
    with pytest.raises(AudioError, match=r"holds samples of up to 8e\+03, where 1 is full scale"):
        read(as_file(8000 * np.sin(np.arange(4000.0)), "WAV", "FLOAT"))


def test_rates_of_no_speech_are_named():
    data = as_file(np.arange(100, dtype=np.int16), "WAV")
    for rate in (1, 2**31 - 1):
        with pytest.raises(AudioError, match=f"sample rate of {rate} Hz"):
            read(patched(data, 24, "<I", rate))
