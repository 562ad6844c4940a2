"""One small corpus in every form that people have."""

import csv
import gzip
import json
import unicodedata
import urllib.parse

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from sew_jax.data.sources import open_source

RATE = 16_000
TEXTS = ("ONE TWO", "WHAT'S THE TIME", "NINE", "ÄÖ Ü", "FIVE SIX SEVEN EIGHT")
SPEAKERS = ("ann", "ann", "bob", "bob", "cy")
LENGTHS = (16_000, 20_000, 12_345, 24_000, 17_001)
BEGINS = np.cumsum([0, *LENGTHS])[:-1]


def random_waves():
    random = np.random.default_rng(5)
    return [random.integers(-9000, 9000, n).astype(np.int16) for n in LENGTHS]


def opened(data, split="train", **options):
    return open_source(str(data), split, **(dict(min_samples=1, need_text=True, max_bad=0) | options))


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def json_lines(rows):
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def files(root, waves, folder="audio", suffix=".flac"):
    """Each utterance as a file of its own: their names below `root`."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{folder}/u{i}{suffix}" for i in range(len(waves))]
    for name, wave in zip(names, waves, strict=True):
        soundfile.write(root / name, wave, RATE, subtype="PCM_16")
    return names


def recording(root, waves, name="long.wav", channels=1):
    """All utterances in one file, one after another; of two channels the second holds them."""
    wave = np.concatenate(waves)
    wave = np.stack([wave // 3 + 7, wave], 1) if channels == 2 else wave
    soundfile.write(root / name, wave, RATE, subtype="PCM_16")
    return name


def seconds(samples):
    return samples / RATE


def make_ours(root, waves):
    rows = [{"audio": n, "text": t} for n, t in zip(files(root, waves), TEXTS, strict=True)]
    write_lines(root / "list.jsonl", json_lines(rows))
    return root / "list.jsonl"


def make_nemo(root, waves):
    rows = [
        {"audio_filepath": name, "text": text, "duration": round(seconds(n), 2)}
        for name, text, n in zip(files(root, waves), TEXTS, LENGTHS, strict=True)
    ]
    write_lines(root / "manifest.json", json_lines(rows))
    return root / "manifest.json"


def make_nemo_segments(root, waves):
    name = recording(root, waves)
    rows = [
        {"audio_filepath": name, "text": text, "offset": seconds(begin), "duration": seconds(n)}
        for text, begin, n in zip(TEXTS, BEGINS.tolist(), LENGTHS, strict=True)
    ]
    del rows[-1]["duration"]  # to the end
    write_lines(root / "manifest.json", json_lines(rows))
    return root / "manifest.json"


def make_array(root, waves):
    rows = [{"path": n, "sentence": t} for n, t in zip(files(root, waves), TEXTS, strict=True)]
    (root / "list.json").write_text(json.dumps(rows, indent=1), encoding="utf-16")
    return root / "list.json"


def make_bom(root, waves):
    rows = [{"wav": n, "txt": t, "key": n} for n, t in zip(files(root, waves), TEXTS, strict=True)]
    (root / "list.list").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json_lines(rows)).encode())
    return root / "list.list"


def make_windows(root, waves):
    """Names as a program on Windows writes them."""
    names = [".\\" + n.replace("/", "\\") for n in files(root, waves, "größe")]
    write_lines(root / "list.jsonl", json_lines({"audio": n, "text": t} for n, t in zip(names, TEXTS, strict=True)))
    return root / "list.jsonl"


def make_addresses(root, waves):
    """`file:` addresses, names as a Mac spells them, and small letters where the header has capitals."""
    names = [f"file://{urllib.parse.quote(str(root / n))}" for n in files(root, waves, "zwei große")]
    names[0] = unicodedata.normalize("NFD", files(root, waves[:1], "größe")[0])
    write_lines(root / "list.csv", ["Path,Sentence", *(f"{n},{t}" for n, t in zip(names, TEXTS, strict=True))])
    return root / "list.csv"


def make_begin_and_end(root, waves):
    """Parts of one file; of a file that was cut out already they say where it lay."""
    name, ends = recording(root, waves), (BEGINS + LENGTHS).tolist()
    rows = [
        {"audio": name, "text": text, "start": seconds(begin), "end": seconds(end)}
        for text, begin, end in zip(TEXTS, BEGINS.tolist(), ends, strict=True)
    ]
    rows[1]["audio"] = files(root, waves)[1]
    rows[2] |= {"end": None, "duration": seconds(LENGTHS[2])}
    write_lines(root / "list.jsonl", json_lines(rows))
    return root / "list.jsonl"


def make_speechbrain(root, waves):
    names = [f"{{data_root}}/{n}" for n in files(root, waves)]
    rows = {f"u{i}": {"wav": n, "words": t} for i, (n, t) in enumerate(zip(names, TEXTS, strict=True))}
    (root / "train.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    return root / "train.json"


def make_object_with_a_list(root, waves):
    rows = [{"wav": n, "wrd": t} for n, t in zip(files(root, waves), TEXTS, strict=True)]
    (root / "train.json").write_text(json.dumps({"version": 1, "data": rows}), encoding="utf-8")
    return root / "train.json"


def lhotse_recording(name, samples, channels=1):
    source = {"type": "file", "channels": list(range(channels)), "source": name}
    whole = {"sampling_rate": RATE, "num_samples": samples, "duration": seconds(samples)}
    return {"id": name.split(".")[0], "sources": [source]} | whole | {"channel_ids": list(range(channels))}


def write_gz(path, rows):
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in json_lines(rows)).encode()))


def make_cuts(root, waves):
    """A cut a file."""
    rows = []
    for i, name in enumerate(files(root, waves)):
        whole = {"start": 0.0, "duration": seconds(LENGTHS[i]), "channel": 0}
        said = [{"id": f"s{i}", "recording_id": f"u{i}", "text": TEXTS[i], "speaker": SPEAKERS[i], **whole}]
        rows.append({"id": f"c{i}", **whole, "supervisions": said, "type": "MonoCut"})
        rows[-1]["recording"] = lhotse_recording(name, LENGTHS[i])
    write_gz(root / "cuts.jsonl.gz", rows)
    return root / "cuts.jsonl.gz"


def make_cut_with_supervisions(root, waves):
    """One cut of the second channel of a file, with a supervision for each utterance."""
    name = recording(root, waves, channels=2)
    said = [
        {"id": f"s{i}", "recording_id": "long", "start": seconds(b), "duration": seconds(n), "channel": 1, "text": t}
        for i, (b, n, t) in enumerate(zip(BEGINS.tolist(), LENGTHS, TEXTS, strict=True))
    ]
    total = sum(LENGTHS)
    cut = {"id": "c", "start": 0.0, "duration": seconds(total), "channel": 1, "supervisions": said, "type": "MonoCut"}
    write_lines(root / "cuts.jsonl", json_lines([cut | {"recording": lhotse_recording(name, total, 2)}]))
    return root / "cuts.jsonl"


def make_supervisions(root, waves):
    name, total = recording(root, waves, channels=2), sum(LENGTHS)
    write_gz(root / "tiny_recordings_train.jsonl.gz", [lhotse_recording(name, total, 2)])
    said = [
        {"id": f"s{i}", "recording_id": "long", "start": seconds(b), "duration": seconds(n), "channel": 1, "text": t}
        for i, (b, n, t) in enumerate(zip(BEGINS.tolist(), LENGTHS, TEXTS, strict=True))
    ]
    write_gz(root / "tiny_supervisions_train.jsonl.gz", said)
    return root / "tiny_supervisions_train.jsonl.gz"


def make_kaldi(root, waves):
    folder = root / "data" / "train"
    folder.mkdir(parents=True)
    names = files(folder, waves)
    write_lines(folder / "wav.scp", [f"u{i} {name}" for i, name in enumerate(names)])
    write_lines(folder / "text", [f"u{i}\t{text}" for i, text in enumerate(TEXTS)])
    write_lines(folder / "utt2spk", [f"u{i} {speaker}" for i, speaker in enumerate(SPEAKERS)])
    return root / "data"


def make_kaldi_segments(root, waves):
    write_lines(root / "wav.scp", [f"long {root / recording(root, waves)}"])
    ends = (BEGINS + LENGTHS).tolist()
    spans = [f"{seconds(b):.6f} {seconds(e):.6f}" for b, e in zip(BEGINS.tolist(), ends, strict=True)]
    write_lines(root / "segments", [f"u{i} long {span}" for i, span in enumerate(spans)])
    write_lines(root / "text", [f"u{i} {text}" for i, text in enumerate(TEXTS)])
    return root


def make_kaldi_channels(root, waves):
    """Each side of a call is an utterance."""
    write_lines(root / "wav.scp", [f"long {recording(root, waves, channels=2)}"])
    spans = [f"{seconds(b):.6f} {seconds(b + n):.6f}" for b, n in zip(BEGINS.tolist(), LENGTHS, strict=True)]
    write_lines(root / "segments", [f"u{i} long {span} {'1B'[i % 2]}" for i, span in enumerate(spans)])
    write_lines(root / "text", [f"u{i} {text}" for i, text in enumerate(TEXTS)])
    return root


def make_common_voice(root, waves):
    names = files(root, waves, "clips")
    header = "client_id\tpath\tsentence\tup_votes"
    rows = [f"{s}\t{n.split('/')[1]}\t{t}\t2" for s, n, t in zip(SPEAKERS, names, TEXTS, strict=True)]
    write_lines(root / "train.tsv", [header, *rows])
    write_lines(root / "validated.tsv", [header, *rows])
    write_lines(root / "test.tsv", [header, rows[0]])
    return root


def make_csv(root, waves):
    with (root / "list.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "transcription"])
        writer.writerows(zip(files(root, waves), TEXTS, strict=True))
    return root / "list.csv"


def make_quoted_tsv(root, waves):
    """As pandas writes it with all fields quoted."""
    rows = [f'"{n}"\t"{t}"' for n, t in zip(files(root, waves), TEXTS, strict=True)]
    write_lines(root / "list.tsv", ['"path"\t"sentence"', *rows])
    return root / "list.tsv"


def make_audio_folder(root, waves):
    (root / "train").mkdir()
    names = files(root / "train", waves, "parts")
    rows = [{"file_name": n, "transcription": t} for n, t in zip(names, TEXTS, strict=True)]
    write_lines(root / "train" / "metadata.jsonl", json_lines(rows))
    return root


def make_ljspeech(root, waves):
    names = files(root, waves, "wavs", ".wav")
    lines = [f"{n.split('/')[1][:-4]}|{t.lower()}|{t}" for n, t in zip(names, TEXTS, strict=True)]
    write_lines(root / "metadata.csv", lines)
    return root


def make_list_of_four(root, waves):
    """FILE|SPEAKER|LANGUAGE|TEXT, as trainers of voices have it."""
    write_lines(root / "train.list", [f"{n}|ann|en|{t}" for n, t in zip(files(root, waves), TEXTS, strict=True)])
    return root / "train.list"


def make_fairseq_letters(root, waves):
    make_fairseq(root, waves)
    (root / "train.wrd").unlink()
    write_lines(root / "train.ltr", [f"{' '.join(text.replace(' ', '|'))} |" for text in TEXTS])
    return root / "train.tsv"


def make_fairseq(root, waves):
    names = files(root, waves, suffix=".wav")
    write_lines(root / "train.tsv", [root, *(f"{n}\t{k}" for n, k in zip(names, LENGTHS, strict=True))])
    write_lines(root / "train.wrd", TEXTS)
    return root / "train.tsv"


def audio_column(root, waves):
    data = [{"bytes": (root / n).read_bytes(), "path": n.split("/")[1]} for n in files(root, waves)]
    return pa.array(data, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def make_parquet(root, waves):
    table = pa.table({"audio": audio_column(root / "made", waves), "text": list(TEXTS)})
    (root / "hub" / "data").mkdir(parents=True)
    pq.write_table(table[:2], root / "hub/data/train-00000-of-00002.parquet", row_group_size=1)
    pq.write_table(table[2:], root / "hub/data/train-00001-of-00002.parquet", row_group_size=2)
    pq.write_table(table[:1], root / "hub/data/test-00000-of-00001.parquet")
    return root / "hub"


def make_saved(root, waves):
    """As `DatasetDict.save_to_disk` writes it."""
    table = pa.table({"audio": audio_column(root / "made", waves), "sentence": list(TEXTS)})
    folder = root / "saved" / "train"
    folder.mkdir(parents=True)
    for part, rows in enumerate((table[:3], table[3:])):
        with pa.ipc.new_stream(str(folder / f"data-0000{part}-of-00002.arrow"), rows.schema) as writer:
            writer.write_table(rows, max_chunksize=2)
    names = [{"filename": f"data-0000{part}-of-00002.arrow"} for part in range(2)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": "train"}))
    (folder / "dataset_info.json").write_text("{}")
    (root / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return root / "saved"


MAKERS = [value for name, value in sorted(globals().items()) if name.startswith("make_")]
