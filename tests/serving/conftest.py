"""A served model; what serving needs may be missing, so it is imported when it is asked for."""

import pytest

import sew_jax
from sew_jax.decoding.incremental import make_decoder
from sew_jax.evaluation.outputs import write_tradeoff
from sew_jax.transcription.chunking import make_chunking
from sew_jax.transcription.transcriber import Transcriber
from tests.evaluation.test_tradeoff import point
from tests.runs import begin_finetuned


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("serving")
    begin_finetuned(root)
    others = [point("s2q2k1", 0.11, 1.0), point("s1q1k1", 0.1, 0.9, engine=("jax", "bfloat16"))]
    write_tradeoff([point(), point("s2q1k1", 0.12, 1.0), *others], root)  # the others are not served
    return root


@pytest.fixture(scope="module")
def transcribers(runs):
    from tests.serving.services import SETTINGS

    recognizer = sew_jax.load(runs / "finetune")._recognizer
    decode = make_decoder(recognizer.vocabulary, None)
    return {s: Transcriber(recognizer, s, make_chunking(2.0, 0.5, s, 1), decode, {32_000: 8}) for s in SETTINGS}


@pytest.fixture(scope="module")
def service(runs, transcribers):
    from tests.serving.services import open_service

    service = open_service(runs, transcribers)
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service):
    from tests.serving.services import TestClient, make_app

    with TestClient(make_app(service), raise_server_exceptions=False) as client:
        yield client
