"""A server's answers are the transcriber's, whoever asks beside; and what is wrong with a request is a clear 4xx."""

import asyncio
import concurrent.futures
import http.client
import importlib
import io
import json
import os
import re
import signal
import socket

import numpy as np
import pytest
import soundfile

import sew_jax
from configs import serve as serve_config
from sew_jax.checks.check import check_config
from sew_jax.decoding.beam_options import BeamOptions
from sew_jax.decoding.incremental import make_decoder
from sew_jax.evaluation.outputs import write_tradeoff
from sew_jax.serving.requests import BadRequest
from sew_jax.serving.serve import _listen, _open, _run, serve
from sew_jax.transcription.recordings import Recording
from sew_jax.transcription.subtitles import srt, vtt
from sew_jax.transcription.transcriber import Transcriber
from tests.evaluation.test_tradeoff import point
from tests.serving.services import (
    PATH,
    SETTINGS,
    Faulty,
    Held,
    TestClient,
    ask,
    make_app,
    open_service,
    said,
    sound,
    wait_until,
)


def test_every_form_holds_what_the_transcriber_says(client, transcribers):
    data = sound(5.3)
    samples, expected = said(transcribers, data, SETTINGS[1])
    assert len(expected.words) > 2
    forms = {f: ask(client, data, model="s2q1k1", response_format=f) for f in ("json", "text", "srt", "vtt")}
    assert all(answer.status_code == 200 for answer in forms.values())
    assert forms["json"].json() == {
        "text": expected.text,
        "usage": {"type": "duration", "seconds": 6},
        "setting": "s2q1k1",
    }
    assert forms["text"].text == expected.text + "\n" and forms["text"].headers["content-type"].startswith("text/plain")
    assert forms["srt"].text == srt(expected.words) and forms["vtt"].text == vtt(expected.words)
    both = {"timestamp_granularities[]": ["word", "segment"], "response_format": "verbose_json", "language": "en"}
    verbose = ask(client, data, setting="s2q1k1", **both).json()
    assert verbose["duration"] == round(samples / 16_000, 3) and verbose["language"] == "en"
    assert [w["word"] for w in verbose["words"]] == [w.text for w in expected.words]
    assert [w["start"] for w in verbose["words"]] == [round(0.02 * w.begin, 2) for w in expected.words]
    assert " ".join(s["text"] for s in verbose["segments"]) == expected.text
    segments = ask(client, data, model="s2q1k1", response_format="verbose_json").json()
    assert "words" not in segments and segments["segments"] == verbose["segments"]


def test_the_setting_is_that_asked_for(client, service, transcribers):
    data = sound(2, seed=3)
    texts = {s.name: said(transcribers, data, s)[1].text for s in SETTINGS}
    assert len(set(texts.values())) == 2
    for fields, name in [
        ({}, "s1q1k1"),
        ({"model": "s2q1k1"}, "s2q1k1"),
        ({"model": service.served.name}, "s1q1k1"),
        ({"model": service.served.name, "setting": "s2q1k1"}, "s2q1k1"),
        ({"model": "s1q1k1", "budget": "0.6"}, "s2q1k1"),
        ({"budget": "wer=10%"}, "s1q1k1"),
    ]:
        answer = ask(client, data, **fields).json()
        assert (answer["setting"], answer["text"]) == (name, texts[name]), fields
    models = client.get("/v1/models").json()
    assert models["object"] == "list" and [model["id"] for model in models["data"]] == ["s1q1k1", "s2q1k1"]
    assert client.get("/v1/models/s2q1k1").json() == models["data"][1]
    assert client.get("/v1/models/s9q1k1").json()["error"]["code"] == "model_not_found"


def test_hot_words_and_several_hypotheses_are_those_of_the_request(client, transcribers):
    data, served = sound(0.7), transcribers[SETTINGS[0]]
    wave, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    plain, texts, words = said(transcribers, data)[1].text, [], {"hot_words": "FIG, A B"}
    for fields in (words, words | {"hot_boost": "0"}, words | {"nbest": "3"}):
        options = BeamOptions(
            hot_boost=float(fields.get("hot_boost", 40.0)),
            hot_words=("FIG", "A B"),
            nbest=int(fields.get("nbest", 1)),
        )
        search = make_decoder(served._recognizer.vocabulary, options)
        alone = Transcriber(served._recognizer, SETTINGS[0], served.chunking, search, {32_000: 8}, options.nbest)
        [(_, expected)] = alone.transcribe([Recording("x", "x", wave, len(wave))])
        answer = ask(client, data, **fields).json()
        assert answer["text"] == expected[0].text and len(expected) == options.nbest
        nbest = [{"text": h.text, "score": round(h.score, 4)} for h in expected]
        assert answer.get("nbest") == (nbest if "nbest" in fields else None)
        texts.append(answer["text"])
    assert texts == [texts[0], plain, texts[0]] and "FIG" in texts[0].split() and "FIG" not in plain.split()
    assert answer == ask(client, data, prompt="FIG, A B", nbest="3").json()
    assert ask(client, data, prompt="").json()["text"] == plain
    with client.websocket_connect("/v1/audio/stream") as stream:
        stream.send_json({"hot_words": "FIG, A B", "hot_boost": 40, "nbest": 3})
        stream.send_bytes(wave.tobytes())
        stream.send_json({"type": "end"})
        assert (message := stream.receive_json())["type"] == "final"
    assert (message["text"], message["nbest"]) == (answer["text"], nbest)


def long_flac():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(2 * 3600 * 4000, np.int16), 4000, format="FLAC")
    return file.getvalue()


BAD = {
    "not audio": (lambda c: ask(c, b"hello world " * 50), 400, "file", "file: it "),
    "empty": (lambda c: ask(c, b""), 400, "file", "is empty"),
    "no samples": (lambda c: ask(c, sound(0, form="WAV")), 400, "file", "holds no audio"),
    "2 hours": (lambda c: ask(c, long_flac()), 413, "file", "lasts 7200 s, and this server takes 20 s"),
    "large": (lambda c: ask(c, sound(10, form="WAV")), 413, "file", "larger than 0.286"),
    "too large to be read": (lambda c: ask(c, b"x" * 10**6), 413, "file", "larger than"),
    "damaged": (lambda c: ask(c, sound(9)[:-3000]), 400, "file", "file: it "),
    "no file": (lambda c: c.post(PATH, files={"model": (None, "s1q1k1")}), 400, "file", "there is none"),
    "a text for a file": (lambda c: c.post(PATH, files={"file": (None, "/etc/passwd")}), 400, "file", "an upload"),
    "a path for a name": (lambda c: ask(c, name="../../etc/passwd"), 400, "file", "without a path"),
    "wrong field": (lambda c: ask(c, speed="2"), 400, "speed", "field 'speed' is unknown; this server knows file,"),
    "words that the model cannot spell": (lambda c: ask(c, prompt="mélon"), 400, "hot_words", "'mélon' has "),
    "the same words twice": (lambda c: ask(c, prompt="A", hot_words="A"), 400, "prompt", "both given"),
    "a boost of nothing": (lambda c: ask(c, hot_boost="3"), 400, "hot_boost", "no words to favour"),
    "boost": (lambda c: ask(c, hot_words="A", hot_boost="nan"), 400, "hot_boost", "'nan' must be a number from -100"),
    "half a hypothesis": (lambda c: ask(c, nbest="1.5"), 400, "nbest", "'1.5' must be a whole number from 1 to 50"),
    "several as text": (lambda c: ask(c, nbest="3", response_format="text"), 400, "nbest", "response_format=json"),
    "field twice": (lambda c: ask(c, setting=["s1q1k1", "s2q1k1"]), 400, "setting", "given twice"),
    "unknown model": (lambda c: ask(c, model="whisper-1"), 404, "model", "choose one of s1q1k1, s2q1k1"),
    "unknown setting": (lambda c: ask(c, setting="fast"), 400, "setting", "setting 'fast' is unknown"),
    "setting that is not served": (lambda c: ask(c, setting="s4q1k1"), 400, "setting", "not served"),
    "bad budget": (lambda c: ask(c, budget="cheap"), 400, "budget", "not understood"),
    "two that pick": (lambda c: ask(c, budget="0.6", setting="s1q1k1"), 400, "budget", "both given"),
    "unknown form": (lambda c: ask(c, response_format="docx"), 400, "response_format", "'docx' is unknown"),
    "times of text": (
        lambda c: ask(c, **{"timestamp_granularities[]": "word"}),
        400,
        "timestamp_granularities[]",
        "verbose_json",
    ),
    "temperature": (lambda c: ask(c, temperature="hot"), 400, "temperature", "'hot' must be a number"),
    "JSON": (lambda c: c.post(PATH, json={"model": "s1q1k1"}), 400, None, "must be multipart/form-data"),
    "no boundary": (
        lambda c: c.post(PATH, content=b"x", headers={"content-type": "multipart/form-data"}),
        400,
        None,
        "boundary",
    ),
    "upload that breaks off": (
        lambda c: c.post(
            PATH,
            content=b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\nfLaC',
            headers={"content-type": "multipart/form-data; boundary=B"},
        ),
        400,
        "file",
        "broke off",
    ),
    "nowhere": (lambda c: c.post("/v1/audio/translations"), 404, None, "Not Found"),
    "GET": (lambda c: c.get(PATH), 405, None, "Method Not Allowed"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_told_what_is_wrong_and_counted_so(client, service, case):
    send, status, param, message = BAD[case]
    before = service.metrics.text()
    answer = send(client)
    error = answer.json()["error"]
    assert answer.status_code == status and error["param"] == param and message in error["message"], answer.text
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert "\n" not in error["message"] and service._accepted == 0
    if case not in ("nowhere", "GET"):  # which no route takes
        assert counted(service.metrics.text(), status) == counted(before, status) + 1


def counted(metrics, status):
    found = re.search(rf'sew_jax_requests_total{{endpoint="transcriptions",status="{status}"}} (\S+)', metrics.decode())
    return float(found[1]) if found else 0.0


def waiting(service):
    """Chunks."""
    with service._batcher._changed:
        return sum(map(len, service._batcher._waiting.values()))


def test_requests_that_wait_share_batches_and_past_the_bound_there_is_429(runs, transcribers):
    held = {s: Held(t) for s, t in transcribers.items()}
    service = open_service(runs, held, queue=5)
    files = [sound(0.5 + 0.2 * i, seed=i) for i in range(5)]
    try:
        with TestClient(make_app(service)) as client, concurrent.futures.ThreadPoolExecutor(5) as pool:
            answers = [pool.submit(ask, client, files[0], setting="s2q1k1")]
            wait_until(lambda: held[SETTINGS[1]].sizes == [1])  # else others could be in the batch that is held
            answers += [pool.submit(ask, client, data, setting="s2q1k1") for data in files[1:]]
            wait_until(lambda: waiting(service) == 4)
            assert client.get("/health").json() == {"status": "ok"}
            refused = ask(client)
            with client.websocket_connect("/v1/audio/stream") as stream:
                assert stream.receive_json()["error"]["code"] == "queue_full" and stream.receive()["code"] == 1013
            held[SETTINGS[1]].let.set()
            texts = [answer.result().json()["text"] for answer in answers]
            metrics = client.get("/metrics").text
            assert ask(client, setting="s2q1k1").status_code == 200  # there is room again
    finally:
        held[SETTINGS[1]].let.set()
        service.close()
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full" and refused.json()["error"]["type"] == "rate_limit_error"
    assert texts == [said(transcribers, data, SETTINGS[1])[1].text for data in files]
    assert held[SETTINGS[1]].sizes[:2] == [1, 4]
    for line in (
        'sew_jax_requests_total{endpoint="transcriptions",status="200"} 5.0',
        'sew_jax_requests_total{endpoint="transcriptions",status="429"} 1.0',
        "sew_jax_accepted 0.0",
        "sew_jax_batch_chunks_sum 5.0",
    ):
        assert line in metrics
    assert float(re.search(r'sew_jax_audio_seconds_total{setting="s2q1k1"} (\S+)', metrics)[1]) == pytest.approx(4.5)


def test_a_fault_of_a_program_is_an_answer_and_the_next_is_served(runs, transcribers):
    service = open_service(runs, {s: Faulty(t) for s, t in transcribers.items()})
    try:
        with TestClient(make_app(service), raise_server_exceptions=False) as client:
            assert ask(client).json()["error"]["code"] == "internal"
            assert ask(client).status_code == 200
    finally:
        service.close()


def test_it_answers_what_it_accepted_and_then_ends(runs, transcribers):
    """A true server in this thread; clients in others, OpenAI's among them; SIGTERM while requests are under way.

    An open stream gets the text of what it sent.
    """
    held = {s: Held(t) for s, t in transcribers.items()}
    held[SETTINGS[0]].let.set()
    service, listening = open_service(runs, held, queue=8), _listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    data, address = sound(1.5), f"ws://127.0.0.1:{port}"
    wave, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    connect = importlib.import_module("websockets.sync.client").connect

    def post():
        body = b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.flac"\r\n\r\n' + data
        body += b'\r\n--B\r\nContent-Disposition: form-data; name="setting"\r\n\r\ns2q1k1\r\n--B--\r\n'
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", PATH, body, {"Content-Type": "multipart/form-data; boundary=B"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["text"]

    def break_off():
        """A place is held while the rest of an upload may come, and free again when its client has left."""
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=B\r\n"
            client.sendall(f"{head}Content-Length: 5000\r\n\r\n--B\r\n".encode())
            wait_until(lambda: service._accepted == 1)
        wait_until(lambda: service._accepted == 0)

    def use():
        try:
            break_off()
            text = openai_text(port, data)
            with concurrent.futures.ThreadPoolExecutor(6) as pool, connect(f"{address}/v1/audio/stream") as stream:
                stream.send('{"type": "start", "setting": "s1q1k1"}')
                stream.send(wave.tobytes())
                answers = [pool.submit(post) for _ in range(6)]
                wait_until(lambda: service._accepted == 7)
                stream.ping().wait(30)  # what was sent before has come
                os.kill(os.getpid(), signal.SIGTERM)
                wait_until(lambda: service.closing)
                held[SETTINGS[1]].let.set()
                *_, last = map(json.loads, stream)  # until it is closed
                return text, [answer.result() for answer in answers], last
        finally:
            held[SETTINGS[1]].let.set()
            if not service.closing:  # something above failed: end the server all the same
                os.kill(os.getpid(), signal.SIGTERM)

    with listening, concurrent.futures.ThreadPoolExecutor(1) as pool:
        used = []
        asyncio.run(asyncio.wait_for(_run(service, listening, lambda: used.append(pool.submit(use))), 60))
        text, answers, streamed = used[0].result()
    service.close()
    assert answers == [(200, said(transcribers, data, SETTINGS[1])[1].text)] * 6
    assert streamed["type"] == "final" and streamed["seconds"] == 1.5 and streamed["text"]
    assert text in (None, said(transcribers, data)[1].text)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def openai_text(port, data):
    """What OpenAI's own client reads; None where it is not installed."""
    try:
        import openai
    except ImportError:
        return None
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["s1q1k1", "s2q1k1"]
        file = ("a.flac", data)
        with pytest.raises(openai.NotFoundError, match="'whisper-1' is not served"):
            client.audio.transcriptions.create(model="whisper-1", file=file)
        verbose = client.audio.transcriptions.create(
            model="s1q1k1", file=file, response_format="verbose_json", timestamp_granularities=["word"]
        )
        assert " ".join(word.word for word in verbose.words) == verbose.text
        text = client.audio.transcriptions.create(model="s1q1k1", file=file, response_format="text")
        assert text.strip() == verbose.text
        return client.audio.transcriptions.create(model="s1q1k1", file=file).text


def test_another_run_time_says_the_same_and_has_its_own_points(runs, transcribers, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    by_jax = [point(), point("s2q1k1", 0.3, 1.0)]
    by_ort = point("s2q1k1", 0.12, 1.0, engine=("onnxruntime", "float32"))
    write_tradeoff([*by_jax, by_ort, point("s1q1k1", 0.12, 0.9, engine=("onnxruntime", "int8"))], tmp_path)
    config = serve_config.get_config()
    config.init_from, config.tradeoff, config.runtime = str(runs / "finetune"), str(tmp_path), "onnxruntime"
    config.settings = "s1q1k1,s2q1k1"
    service, data = _open(config), sound(2, seed=3)
    try:
        assert service.served.setting({"budget": "wer=12%"}) == SETTINGS[1]
        write_tradeoff(by_jax, tmp_path)
        with pytest.raises(BadRequest, match="jax float32, none of onnxruntime in float32 at s1q1k1, s2q1k1; run conf"):
            service.served.setting({"budget": "wer=12%"})
        for setting in SETTINGS:
            assert service.transcribe(data, setting).text == said(transcribers, data, setting)[1].text
    finally:
        service.close()
    config.dtype = "bfloat16"
    with pytest.raises(sew_jax.UserError, match="onnxruntime does not compute in bfloat16; name runtime=jax or openv"):
        check_config(config)


def test_an_address_that_is_taken(runs):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = serve_config.get_config()
        config.init_from, config.port = str(runs / "finetune"), taken.getsockname()[1]
        with pytest.raises(sew_jax.UserError, match=r"port: 127\.0\.0\.1:\d+ cannot be listened at"):
            serve(config, runs)
