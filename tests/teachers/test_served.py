"""A served teacher answers as the model behind it, and every misbehaviour ends in a clear error."""

import math
import shutil
import socket
import subprocess

import pytest
import torch

from compress.contract import Want
from compress.errors import BadInput
from compress.teachers.http_json import JsonClient, is_local
from compress.teachers.served import ServedTeacher
from tests.teachers.fake_server import Behaviour, serving
from tests.teachers.toys import ToyTeacher, rows

LOGITS = Want(logits=True)


def ask(behaviour, batch=None, *, want=LOGITS, **settings):
    settings = {"vocab_size": 50, "top_k": 4, "backoff": 0.01, "retries": 2, **settings}
    with serving(behaviour) as url:
        return ServedTeacher(url, "toy", **settings).signal(batch or rows(3), want)


def test_served_entries_are_the_teachers_likeliest_tokens():
    teacher, batch = ToyTeacher(), rows(3)
    signal = ask(Behaviour(teacher), batch)
    values, tokens = teacher.log_probs(batch).topk(4)
    assert torch.equal(signal.tokens_BLK[:, :-1], tokens[:, :-1])
    assert torch.allclose(signal.log_probs_BLK[:, :-1], values[:, :-1])
    assert torch.allclose(signal.log_probs_BLK[:, -1], torch.tensor(-math.log(50)))


def test_padding_is_not_sent():
    teacher, batch = ToyTeacher(), rows(2)
    padded = {"input_ids": torch.nn.functional.pad(batch["input_ids"], (3, 0), value=49)}
    padded["attention_mask"] = torch.nn.functional.pad(torch.ones(2, 12), (3, 0))
    plain, found = ask(Behaviour(teacher), batch), ask(Behaviour(teacher), padded)
    assert torch.equal(found.log_probs_BLK[:, 3:], plain.log_probs_BLK)


def test_no_more_requests_than_allowed_are_in_flight():
    behaviour = Behaviour(ToyTeacher())
    ask(behaviour, rows(12), concurrency=3)
    assert behaviour.asked == 12 and 2 <= behaviour.most <= 3


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status):
    behaviour = Behaviour(ToyTeacher(), failures=2, status=status)
    ask(behaviour, rows(1))
    assert behaviour.asked == 3


def test_a_server_that_stays_busy_ends_the_run_with_its_words():
    with pytest.raises(BadInput, match=r"failed 3 times, last: 503 .*busy"):
        ask(Behaviour(ToyTeacher(), failures=99))


def test_a_refusal_is_not_repeated():
    behaviour = Behaviour(ToyTeacher(), failures=99, status=401)
    with pytest.raises(BadInput, match=r"refuses /v1/completions: 401"):
        ask(behaviour, rows(1))
    assert behaviour.asked == 1


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("flood", "sends more than"),
        ("html", "without JSON"),
        ("chat only", "does not answer as vLLM does"),
        ("cut", "IncompleteRead"),
    ],
)
def test_misbehaviour_is_told(mode, message):
    with pytest.raises(BadInput, match=message):
        ask(Behaviour(ToyTeacher(), mode=mode), rows(1), timeout=60.0, retries=1)


def test_a_server_that_drips_for_ever_is_cut_off():
    with pytest.raises(BadInput, match=r"failed 2 times, last: no answer within 1 s"):
        ask(Behaviour(ToyTeacher(), mode="drip"), rows(1), timeout=1.0, retries=1)


def test_a_server_that_is_down_is_told():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(BadInput, match=r"failed 2 times, last: ConnectionRefusedError"):
        ServedTeacher(f"http://127.0.0.1:{port}", "toy", vocab_size=50, retries=1, backoff=0.01)


def test_a_model_that_is_not_served_is_refused():
    with (
        serving(Behaviour(ToyTeacher())) as url,
        pytest.raises(BadInput, match=r"serves \['toy'\], not 'other'"),
    ):
        ServedTeacher(url, "other", vocab_size=50)


def test_another_vocabulary_is_refused():
    with pytest.raises(BadInput, match=r"beyond the student's vocabulary of 20"):
        ask(Behaviour(ToyTeacher()), vocab_size=20)


class CodePoints:
    def __init__(self, shift):
        self.shift = shift

    def encode(self, text, add_special_tokens):
        return [ord(c) + self.shift for c in text]


def test_another_tokenizer_is_refused():
    ask(Behaviour(ToyTeacher()), tokenizer=CodePoints(0))
    with pytest.raises(BadInput, match="serve a teacher of the student's family"):
        ask(Behaviour(ToyTeacher()), tokenizer=CodePoints(1))


def test_too_few_log_probabilities_are_refused():
    with pytest.raises(BadInput, match="--max-logprobs 9"):
        ask(Behaviour(ToyTeacher(), max_logprobs=4), top_k=9)


def test_features_are_refused():
    with pytest.raises(BadInput, match="gives logits alone, not layer"):
        ask(Behaviour(ToyTeacher()), want=Want(features=("layer",)))


@pytest.fixture
def certificate(tmp_path):
    """A certificate of 127.0.0.1 that no authority signed, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("makes a certificate with openssl, which is not installed")
    parts = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        "-subj", "/CN=teacher", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(parts[0]), "-out", str(parts[1]),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    return both


def test_a_certificate_is_believed_only_where_its_authority_is_named(certificate):
    with serving(Behaviour(ToyTeacher()), certificate=certificate) as url:
        named = ServedTeacher(
            url, "toy", vocab_size=50, top_k=4, ca_file=str(certificate.parent / "certificate.pem")
        )
        assert named.signal(rows(1), LOGITS).tokens_BLK.shape == (1, 12, 4)
        with pytest.raises(BadInput, match=r"certificate is not trusted.*ca_file"):
            ServedTeacher(url, "toy", vocab_size=50, retries=0)


def test_the_key_is_sent_and_never_in_clear_to_another_machine(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "secret")
    behaviour = Behaviour(ToyTeacher())
    ask(behaviour, rows(1), api_key_env="TEACHER_KEY")
    assert behaviour.keys == ["Bearer secret"]
    with pytest.raises(BadInput, match="in clear") as caught:
        JsonClient(url="http://teacher.example:8000", api_key="secret")
    assert "secret" not in str(caught.value)


def test_no_key_is_sent_that_nobody_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    behaviour = Behaviour(ToyTeacher())
    ask(behaviour, rows(1))
    assert behaviour.keys == [None]


def test_a_key_that_is_named_and_not_there_is_told(monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(BadInput, match="api_key_env=TEACHER_KEY: this environment variable is not"):
        ServedTeacher("http://127.0.0.1:9", "toy", vocab_size=50, api_key_env="TEACHER_KEY")


@pytest.mark.parametrize("url", [
    "http://me:SECRET@host:8000", "http://me:SEC/RET@host:8000", "https://SECRET@host",
    "https://host/v1?token=SECRET", "https://host/v1#SECRET", "ftp://me:SECRET@host",
    "http://me:SECRET@host:port",
])  # fmt: skip
def test_an_address_with_a_secret_is_refused_and_not_repeated(url):
    with pytest.raises(BadInput, match="teacher url") as refused:
        JsonClient(url=url)
    assert "SEC" not in str(refused.value) and "RET" not in str(refused.value)


@pytest.mark.parametrize("url", [
    "http://127.0.0.1.example.org", "http://localhost.example.org:8000", "http://127.0.0.1@evil",
    "http://[::1", "http://evil#localhost", "http://evil?127.0.0.1",
])  # fmt: skip
def test_what_only_looks_local_is_not(url):
    assert not is_local(url)
    assert is_local("http://127.0.0.1:8000/v1") and is_local("https://[::1]:8000")
