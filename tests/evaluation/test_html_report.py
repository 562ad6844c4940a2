"""The page holds what it was given, needs nothing else, and draws itself in a browser without an error."""

import html
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from sew_jax.compression import Compression
from sew_jax.evaluation.html_report import write_page
from sew_jax.evaluation.outputs import write_outputs
from sew_jax.evaluation.scoring import Scored
from sew_jax.evaluation.tradeoff import mark_front, why_withheld
from sew_jax.metrics.confusions import align, word_errors
from tests.evaluation.test_tradeoff import point

REFERENCES = ["ONE TWO THREE", "FOUR FIVE", "SIX", "", "SEVEN EIGHT NINE TEN"]
HYPOTHESES = {
    "s1q1k1/greedy": ["ONE TOO THREE", "FOUR FIVE", "SIX", "", "SEVEN EIGHT NINE TEN"],
    "s2q1k1/greedy": ["WON TOO THREE", "FIVE", "SIX SIX", "OH", "SEVEN EIGHT NINE TEN TEN"],
    "s1q1k1/lm": ["ONE TWO THREE", " FOUR  FIVE", "SIX", "", "SEVEN EIGHT NINE TEN"],
    "s2q1k1/lm": ["ONE TWO THREE", "FIVE", "", "", "SEVEN NINE TEN"],
}


def row(split, key, seconds):
    setting, decoder = key.split("/")
    errors = [word_errors(alignment) for alignment in align(REFERENCES, HYPOTHESES[key])]
    return {
        "setting": setting,
        "decoder": decoder,
        "split": split,
        "wer": sum(errors) / 10,
        "wer_low": 0.0,
        "wer_high": 0.9,
        "cer": 0.1,
        "sub": 1,
        "del": 2,
        "ins": 3,
        "words": 10,
        "utterances": 5,
        "seconds": seconds,
        "audio_seconds": 100.0,
        "rtf": seconds / 100,
        "relative_time": seconds / 2,
        "macs_per_s": seconds * 1e9,
        "relative_macs": seconds / 2,
        "decode_seconds": 0.5,
        "trained": setting == "s1q1k1",
        "on_front": True,
    }


def payload(splits=("test-clean", "test-other")):
    ids = [f"1-2-{i:04d}" for i in range(len(REFERENCES))]
    return {
        "about": {
            "model": "runs/finetune",
            "device": "1 x cpu",
            "command": "python -m sew_jax.main --config=configs/evaluate.py",
        },
        "rows": [row(split, key, 2.0 if "s1" in key else 1.0) for split in splits for key in HYPOTHESES],
        "transcripts": {s: {"ids": ids, "references": REFERENCES, "hypotheses": HYPOTHESES} for s in splits},
    }


def embedded(path):
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(data)


def read_edits(reference, hypothesis, edits):
    """What html_report.html makes of them."""
    given, decoded, pairs = reference.split(), hypothesis.split(), []
    for right, kind in [*re.findall(r"(\d*)([sdi])", edits), (len(reference.split()), "")]:
        for _ in range(min(int(right or 0), len(given))):
            pairs.append((given.pop(0), decoded.pop(0)))
        if kind:
            pairs.append(("" if kind == "i" else given.pop(0), "" if kind == "d" else decoded.pop(0)))
    assert not given and not decoded
    return pairs


def test_the_page_holds_what_it_was_given(tmp_path):
    given = payload()
    write_page(tmp_path / "tradeoff.html", given)
    data = embedded(tmp_path / "tradeoff.html")
    assert data["about"] == given["about"] and data["rows"] == given["rows"]
    assert list(data["splits"]) == ["test-clean", "test-other"]
    for split in data["splits"].values():
        assert split["ids"] == given["transcripts"]["test-clean"]["ids"] and split["references"] == REFERENCES
        for key, hypotheses in HYPOTHESES.items():
            plain = [" ".join(text.split()) for text in hypotheses]
            texts, edits = split["systems"][key]["texts"], split["systems"][key]["edits"]
            assert [r if t is None else t for r, t in zip(REFERENCES, texts, strict=True)] == plain
            assert list(map(read_edits, REFERENCES, plain, edits)) == align(REFERENCES, plain)
    assert [p.name for p in tmp_path.iterdir()] == ["tradeoff.html"]


def test_each_row_says_what_went_wrong(tmp_path):
    write_page(tmp_path / "tradeoff.html", payload())
    details = embedded(tmp_path / "tradeoff.html")["splits"]["test-other"]["details"]
    assert details["s2q1k1/greedy"]["substitutions"] == [["ONE", "WON", 1], ["TWO", "TOO", 1]]
    assert details["s2q1k1/greedy"]["insertions"] == [["OH", 1], ["SIX", 1], ["TEN", 1]]
    assert details["s2q1k1/lm"]["deletions"] == [["EIGHT", 1], ["FOUR", 1], ["SIX", 1]]
    assert [worst[0] for worst in details["s2q1k1/lm"]["worst"]] == ["1-2-0002", "1-2-0001", "1-2-0004"]
    assert details["s1q1k1/lm"]["worst"] == []


def test_a_row_is_compared_with_the_first_of_its_decoder_and_with_the_first_decoder(tmp_path):
    write_page(tmp_path / "tradeoff.html", payload())
    details = embedded(tmp_path / "tradeoff.html")["splits"]["test-clean"]["details"]
    others = {key: [other for other, *_ in detail["compared"]] for key, detail in details.items()}
    assert others == {
        "s1q1k1/greedy": [],
        "s2q1k1/greedy": ["s1q1k1/greedy"],
        "s1q1k1/lm": ["s1q1k1/greedy"],
        "s2q1k1/lm": ["s1q1k1/lm", "s2q1k1/greedy"],
    }
    (_, difference, low, high), _ = details["s2q1k1/lm"]["compared"]
    assert low <= difference <= high and difference == pytest.approx(0.3)


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    write_page(tmp_path / "tradeoff.html", payload())
    page = tmp_path.joinpath("tradeoff.html").read_text()
    assert "//" not in re.sub(r"(?m)(^|\s)// .*$", "", page)  # comments aside, no address at all
    assert not re.search(r"@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|\ssrc=", page)
    assert "default-src 'none'" in page  # and a browser would refuse it


HOSTILE = "</script><script>document.title='BROKEN'</script><!-- <b>& \u2028 \"'` ${1} __DATA__"


def test_transcripts_cannot_break_the_page(tmp_path):
    given = payload(["test"])
    given["transcripts"]["test"] |= {"references": [HOSTILE] * 5, "ids": [HOSTILE] * 5}
    given["about"]["model"] = HOSTILE
    write_page(tmp_path / "tradeoff.html", given)
    data = embedded(tmp_path / "tradeoff.html")
    assert data["splits"]["test"]["references"] == [" ".join(HOSTILE.split())] * 5 and data["about"]["model"] == HOSTILE
    assert tmp_path.joinpath("tradeoff.html").read_text().count("<script") == 2


def test_too_many_transcripts_are_sampled_and_errors_counted_on_all(tmp_path):
    given = payload(["test"])
    texts = given["transcripts"]["test"]
    texts["ids"] = [f"u{i}" for i in range(1000)]
    texts["references"] = REFERENCES * 200
    texts["hypotheses"] = {key: hypotheses * 200 for key, hypotheses in HYPOTHESES.items()}
    write_page(tmp_path / "whole.html", given)
    write_page(tmp_path / "part.html", given, most_bytes=30_000)
    whole, part = (embedded(tmp_path / name)["splits"]["test"] for name in ("whole.html", "part.html"))
    assert len(json.dumps(part, separators=(",", ":"))) < 35_000 < len(json.dumps(whole, separators=(",", ":")))
    assert whole["utterances"] == part["utterances"] == 1000 == len(whole["ids"])
    assert 100 < len(part["ids"]) < 1000 and part["ids"][0] == "u0" and part["ids"][-1] == "u999"
    assert part["details"] == whole["details"]
    number = {name: i for i, name in enumerate(whole["ids"])}
    for i, name in enumerate(part["ids"]):
        assert part["references"][i] == whole["references"][number[name]]
        for key, system in part["systems"].items():
            assert system["texts"][i] == whole["systems"][key]["texts"][number[name]]


def test_what_is_no_number_is_refused(tmp_path):
    given = payload()
    given["rows"][0]["wer"] = float("nan")  # no browser would read it
    with pytest.raises(ValueError, match="JSON"):
        write_page(tmp_path / "tradeoff.html", given)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("node"), reason="needs node")
def test_the_front_is_that_of_the_table(tmp_path):
    """Rows that no budget picks neither stand there nor keep others from it."""
    engines = [("jax", "float32"), ("jax", "int8")]
    points = [
        *(point("s1q1k1", 0.1 + 0.01 * i, 2.0 - i, engine=engine) for i, engine in enumerate(engines)),  # moves WER
        *(point("s2q1k1", 0.12, 1.5 - 0.1 * i, engine=engine) for i, engine in enumerate(engines)),
        point("s4q1k1", 0.05, 0.1, engine=("jax", "int8")),  # without floats beside it
    ]
    marked = mark_front(points)
    assert [p.on_front for p in marked] == [True, False, False, True, False]
    write_outputs(tmp_path, marked, [scored_as(p) for p in marked], {})
    rows = embedded(tmp_path / "tradeoff.html")["rows"]
    assert [row["withheld"] for row in rows] == [why_withheld(p, points) for p in points] and rows[1]["withheld"]
    (front,) = re.findall(r"(?s)const onFront = .*?;\n", tmp_path.joinpath("tradeoff.html").read_text())
    script = f"const cost = row => row.relative_time, rows = {json.dumps(rows)};\n{front}"
    script += "console.log(JSON.stringify(rows.map(row => onFront(row, rows))))"
    done = subprocess.run(["node"], input=script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and json.loads(done.stdout) == [p.on_front for p in marked], done.stderr


def scored_as(made):
    """One utterance decoded as a point says."""
    part = SimpleNamespace(split=made.split, ids=["u"], references=["ONE TWO"])
    recognizer = SimpleNamespace(engine=made.engine, labels=None)
    return Scored(recognizer, part, Compression.parse(made.setting), made.decoder, ["ONE"], [], [])


CLICKS = """<script>
const seen = {}, press = element => element.dispatchEvent(new MouseEvent("click", { bubbles: true }));
const texts = query => [...document.querySelectorAll(query)].map(e => e.textContent);
seen.rows = texts("#rows tbody th");
seen.points = document.querySelectorAll("#plot .point").length;
press(document.querySelectorAll("#rows thead button")[2]);
seen.sorted = texts("#rows tbody tr td:nth-child(3)").map(Number);
seen.sort = document.querySelectorAll("#rows thead th")[2].ariaSort;
press([...document.querySelectorAll("#plot .point")].find(e => e.dataset.key === "s2q1k1/greedy"));
seen.errors = document.querySelector("#errors h2").textContent;
seen.kinds = texts("#errors .bar span");
seen.place = document.querySelector("#place").textContent;
seen.first = document.querySelector("#transcripts article").innerText.split("\\n");
seen.marks = [...document.querySelectorAll("#transcripts article:nth-child(5) mark")].map(
  e => [e.className, e.textContent]);
press(document.querySelector("#next"));
seen.second = document.querySelector("#place").textContent;
document.querySelector("#show").value = "differ";
document.querySelector("#show").dispatchEvent(new Event("change"));
seen.differ = document.querySelector("#place").textContent;
document.querySelector("#find").value = "fiv";
document.querySelector("#find").dispatchEvent(new Event("input"));
seen.found = document.querySelector("#place").textContent;
seen.trouble = !document.querySelector("#trouble").hidden;
document.body.replaceChildren(JSON.stringify(seen));
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_a_browser_draws_it(tmp_path):
    given = payload(["test"])
    texts = given["transcripts"]["test"]
    texts["ids"], texts["references"] = [f"u{i}" for i in range(50)], REFERENCES * 10
    texts["hypotheses"] = {key: hypotheses * 10 for key, hypotheses in HYPOTHESES.items()}
    texts["references"][0] = HOSTILE
    page = tmp_path / "tradeoff.html"
    write_page(page, given)
    page.write_text(page.read_text().replace("</body>", CLICKS + "</body>"))
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync"
    ran = subprocess.run(
        [
            "chromium",
            *flags.split(),
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path}/user",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "CONSOLE" not in ran.stderr and "BROKEN" not in re.sub("<body.*", "", ran.stdout, flags=re.DOTALL)
    seen = json.loads(html.unescape(re.search(r"<body>(.*)</body>", ran.stdout, re.DOTALL)[1]))
    assert seen["rows"] == ["s1q1k1", "s2q1k1", "s1q1k1", "s2q1k1"] and seen["points"] == 4
    assert seen["sorted"] == sorted(100 * r["wer"] for r in given["rows"]) and seen["sort"] == "ascending"
    assert seen["errors"] == "Errors of s2q1k1 greedy" and seen["kinds"][0].startswith("1, ")
    assert seen["first"][0] == "u0" and " ".join(HOSTILE.split()) in " ".join(seen["first"])
    assert seen["marks"] == [["del", "EIGHT"]]  # of s1q1k1 greedy and s2q1k1 lm, the first and the last
    assert seen["place"] == "1 to 20 of 50" and seen["second"] == "21 to 40 of 50"
    differ = sum(
        len({" ".join(HYPOTHESES[k][i].split()) for k in ("s1q1k1/greedy", "s2q1k1/lm")}) > 1 for i in range(5)
    )
    assert seen["differ"] == f"1 to 20 of {10 * differ}" and seen["found"] == "1 to 10 of 10"
    assert not seen["trouble"]
