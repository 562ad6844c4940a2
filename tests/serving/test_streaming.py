"""Streams say what transcribers make of their audio; what is wrong with one is told, and whose fault it is."""

import io

import numpy as np
import pytest
import soundfile

from sew_jax.transcription.recordings import Recording
from sew_jax.transcription.transcriber import Transcriber
from tests.serving.services import SETTINGS, Faulty, TestClient, make_app, open_service, sound, wait_until


def test_a_stream_says_what_it_heard_so_far_and_all_of_it_in_the_end(client, transcribers, service):
    data, setting = sound(4.1), SETTINGS[1]
    wave, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    chunking, texts = service._streaming[setting], []
    with client.websocket_connect("/v1/audio/stream") as stream:
        stream.send_json({"type": "start", "setting": setting.name})
        for part in np.split(wave, [100, 8000, 30_000, 50_001]):
            stream.send_bytes(part.tobytes())
        stream.send_json({"type": "end"})
        while (message := stream.receive_json())["type"] == "partial":
            texts.append(message)
    whole = Transcriber(
        transcribers[setting]._recognizer, setting, chunking, transcribers[setting]._decode, {32_000: 8}
    )
    [(_, [expected])] = whole.transcribe([Recording("x", "x", wave, len(wave))])
    assert message["type"] == "final" and message["text"] == expected.text != "" and message["seconds"] == 4.1
    assert [w["word"] for w in message["words"]] == [w.text for w in expected.words]
    assert len(texts) >= 3 and [t["seconds"] for t in texts] == sorted(t["seconds"] for t in texts)
    said_before = texts[-1]["text"].split()[:-1]  # its last word may go on
    assert said_before and expected.text.split()[: len(said_before)] == said_before


@pytest.mark.parametrize(
    ("messages", "wrong"),
    [
        ([b"\0\0"], "a stream begins with a text"),
        (["hello"], "must be JSON"),
        (["[]"], "must be an object"),
        (['{"rate": 7}'], "rate: 7 is no sample rate"),
        (['{"speed": 7}'], "field 'speed' is unknown"),
        (['{"setting": "s4q1k1"}'], "not served"),
        (['{"hot_words": ["A"]}'], "hot_words: it must be a text"),
        (['{"hot_words": "Ä"}'], "which the vocabulary lacks"),
        (['{"type": "start"}', b"\0"], "half of one"),
        (['{"type": "start"}', '{"type": "stop"}'], "audio comes as bytes"),
    ],
    ids=str,
)
def test_bad_streams_are_told_what_is_wrong(client, service, messages, wrong):
    with client.websocket_connect("/v1/audio/stream") as stream:
        for message in messages:
            stream.send_bytes(message) if isinstance(message, bytes) else stream.send_text(message)
        answer = stream.receive_json()
        assert answer["type"] == "error" and wrong in answer["error"]["message"]
        assert stream.receive()["code"] == 1008
    assert service._accepted == 0


def test_a_stream_ends_where_it_is_as_long_as_it_may_be(client):
    with client.websocket_connect("/v1/audio/stream") as stream:
        stream.send_json({"rate": 8000})
        stream.send_bytes(np.zeros(8000 * 21, np.int16).tobytes())
        while (message := stream.receive_json())["type"] == "partial":
            pass
        assert message["seconds"] == 20.0 and stream.receive()["code"] == 1009


@pytest.mark.parametrize("ends", ["by itself", "by more audio", "by the client", "by leaving"])
def test_a_fault_of_a_program_ends_a_stream_and_is_logged(runs, transcribers, capsys, ends):
    """A client's leaving is another status: starlette's error for it and a program's are of one class."""
    faulty = {s: Faulty(t) for s, t in transcribers.items()}
    service, wave = open_service(runs, faulty), np.ones(20_000, np.int16).tobytes()
    try:
        with TestClient(make_app(service)) as client:

            def wait_for(status):  # within a stream's block, whose end cancels what answers it
                line = f'sew_jax_requests_total{{endpoint="stream",status="{status}"}} 1.0'
                wait_until(lambda: line in client.get("/metrics").text)

            with client.websocket_connect("/v1/audio/stream") as stream:
                stream.send_json({"type": "start"})
                stream.send_bytes(wave)
                wait_until(faulty[SETTINGS[0]].let.is_set)
                if ends == "by leaving":
                    stream.close()
                else:
                    if ends != "by itself":
                        stream.send_json({"type": "end"}) if ends == "by the client" else stream.send_bytes(wave)
                    assert stream.receive_json()["error"]["code"] == "internal" and stream.receive()["code"] == 1011
                wait_for(500)
            with client.websocket_connect("/v1/audio/stream") as stream:
                stream.send_json({"type": "start"})
                stream.close()
                wait_for(499)
    finally:
        service.close()
    assert "! /v1/audio/stream: JaxRuntimeError: out of memory" in capsys.readouterr().out
