"""Hostile input: each is answered with an error of its own, in OpenAI's form and without a path; the server goes on."""

from __future__ import annotations

import base64
import io
import json
import socket

import httpx
import numpy as np
import pytest
from PIL import Image as Pictures

from mmlm.serving.errors import told
from mmlm.serving.uses import uses_of
from mmlm.tasks import forms
from tests.corrupt import huge_png, silence

from .conftest import TOKEN, listening
from .test_server import PICTURE, ROWS, own

CHAT = {"model": "words", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}
TABLE = {"model": "rows", "examples": ROWS[:9], "rows": [{"a": 20, "b": 1}], "target": "kind"}


def chat(**changes):
    return "/v1/chat/completions", {**CHAT, **changes}


def said(content):
    return chat(messages=[{"role": "user", "content": content}])


def seen(*urls, **changes):
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return chat(**{"model": "seen", "max_tokens": None, "messages": [{"role": "user", "content": content}], **changes})


def table(**changes):
    return "/v1/tabular/predict", {**TABLE, **changes}


def heard(sound):
    return "/v1/tasks/ear", {"inputs": {"sound": sound}}


def b64(data):
    return base64.b64encode(data).decode()


def _saved(form, size=(8, 8)):
    buffer = io.BytesIO()
    Pictures.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


PNG = base64.b64decode(PICTURE.partition(",")[2])
WAV = b"RIFF$\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00@\x1f\x00\x00\x80>\x00\x00\x02\x00\x10\x00data"
BROKEN = {
    "empty": b"", "zeros": bytes(1000), "text": b"hello", "html": b"<html><script>1</script>", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pdf": b"%PDF-1.4 ...", "zip": b"PK\x03\x04" + bytes(40), "gzip": b"\x1f\x8b\x08" + bytes(20), "pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    "elf": b"\x7fELF" + bytes(60), "png head": PNG[:20], "png half": PNG[: len(PNG) // 2], "jpeg half": _saved("JPEG", (64, 64))[:300],
    "gif head": _saved("GIF")[:10], "wav head": WAV, "wav cut": WAV + b"\xff\xff\xff\x7f", "flac head": b"fLaC" + bytes(30), "ogg head": b"OggS" + bytes(30),
    "mp4": b"\x00\x00\x00\x18ftypmp42" + bytes(30),
}  # fmt: skip
STRINGS = ["\0", "a\0b", "", "   ", "x" * 30_000]
PATHS = ["/etc/passwd", "../../words", "file:///etc/passwd", "http://169.254.169.254/latest", "https://example.org/a.png", "pipe:id", "words\0", "%2e%2e/x"]  # fmt: skip
CASES = {
    **{f"body {body!r:.20}": ("/v1/chat/completions", body) for body in (b"", b"{", b"null", b"[]", b"1", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000)},
    **{f"model {name!r}": chat(model=name) for name in PATHS},
    **{f"model of type {kind!r:.20}": chat(model=kind) for kind in (1, [], {}, True)},
    **{f"messages {kind!r:.20}": chat(messages=kind) for kind in ([], "a", None, {}, [1], [{}], [{"role": "root", "content": "a"}], [{"role": "user"}])},
    **{f"text {text!r:.12} {len(text)}": said(text) for text in STRINGS},
    "half a character": ("/v1/chat/completions", json.dumps(said("\ud800")[1]).encode()),
    "half a character in three bytes": ("/v1/tasks/text", b'{"inputs": {"text": "\xed\xa0\x80"}}'),
    "half a character in UTF-16": ("/v1/tasks/text", json.dumps({"inputs": {"text": "\ud800"}}).encode("utf-16-le")),
    "a number of 400 digits": ("/v1/tasks/text", {"inputs": {"text": "a", "seed": 10**400}}),
    "a cell of 400 digits": table(rows=[{"a": 10**400, "b": 1}]),
    "a long text to embed": ("/v1/embeddings", {"model": "words", "input": "x" * 20_001}),
    "many long texts to embed": ("/v1/embeddings", {"model": "words", "input": ["x" * 20_000] * 11}),
    "a long stop": chat(stop="a" * 201),
    "many stops": chat(stop=["a"] * 17),
    **{f"{key} {value!r:.12}": chat(**{key: value}) for key, value in (
        ("temperature", -1), ("temperature", "hot"), ("temperature", 1e300), ("temperature", None), ("top_p", 0), ("top_p", 2), ("max_tokens", 0),
        ("max_tokens", 10**30), ("max_tokens", 1.5), ("max_tokens", "9"), ("seed", -1), ("seed", 2**70), ("stop", 5), ("stream", "yes"), ("n", 3),
        ("logprobs", True), ("tools", [1]), ("__class__", "a"), ("response_format", {"type": "json_object"}),
    )},
    "nan": ("/v1/chat/completions", json.dumps(chat(temperature=float("nan"))[1]).encode()),
    **{f"picture {name}": seen("data:image/png;base64," + b64(data)) for name, data in BROKEN.items()},
    **{f"picture at {url!r}": seen(url) for url in (*PATHS, "data:image/png,abc", "data:image/png;base64,????")},
    "no picture": seen(),
    "two pictures": seen(PICTURE, PICTURE),
    "a picture behind another message": seen(messages=[{"role": "system", "content": "a"}, seen(PICTURE)[1]["messages"][0]]),
    **{f"a picture with {key}": seen(PICTURE, **{key: value}) for key, value in (("max_tokens", 9), ("temperature", 2.5), ("stop", "a"))},
    "a picture with a temperature and top_p": seen(PICTURE, temperature=0.5, top_p=0.5),
    "a picture for words": said([{"type": "image_url", "image_url": {"url": PICTURE}}]),
    **{f"sound {name}": heard(b64(data)) for name, data in BROKEN.items()},
    **{f"sound at {url!r}": heard(url) for url in PATHS},
    **{f"sound of type {kind!r}": heard(kind) for kind in (1, [], {"path": "/etc/passwd"}, True)},
    **{f"rows {kind!r:.20}": table(rows=kind) for kind in ([], "a", None, [1], [[]], [{"a": {"b": 1}}], [{"a": [1]}], [{}], [{"": None}])},
    **{f"examples {kind!r:.20}": table(examples=kind) for kind in ([], "a", [{}], [{"kind": "x"}], [{"a": 1, "kind": "x"}] * 3, ROWS[:1])},
    **{f"target {kind!r:.20}": table(target=kind) for kind in ("", "none", "\0", 5, None, "a" * 30_000)},
    "a picture of 20,000 x 20,000 pixels": seen("data:image/png;base64," + b64(huge_png())),
    "an hour of silence": heard(b64(silence(1.0))),
    "many columns": table(rows=[{f"c{at}": 1 for at in range(501)}]),
    "many rows": table(rows=[{"a": 1, "b": 2}] * 10_001),
    **{f"inputs {kind!r:.20}": ("/v1/tasks/ear", {"inputs": kind}) for kind in (None, [], "a", {}, {"sounds": "a"}, {"run": "/etc"})},
    **{f"{method} {path}": (method, path) for method, path in (
        ("GET", "/v1/../etc/passwd"), ("GET", "/v1/models/%2e%2e%2fetc"), ("GET", "/v1/models/" + "a" * 5000), ("GET", "/docs"), ("GET", "/openapi.json"),
        ("DELETE", "/v1/models"), ("GET", "/v1/chat/completions"), ("POST", "/v1/tasks/..%2f"), ("POST", "/v1/embeddings"), ("TRACE", "/v1/models"),
    )},
}  # fmt: skip


def listen(given):
    yield {"loudest": float(given["sound"].wave_n.max())}


@pytest.fixture(scope="module")
def address(text_use, table_run, picture_run):
    ear = own("ear", {"sound": forms.Audio("Sound")}, {"loudest": forms.Data("Loudest")}, listen)
    with listening([text_use, *uses_of(table_run), *uses_of(picture_run), ear]) as (address, _):
        yield address


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as one:
        yield one


def test_there_are_as_many_cases_as_seen():
    assert len(CASES) == 172 and len(BROKEN) >= 17


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_request_gets_an_error_of_its_own(name, http):
    first, second = CASES[name]
    if first.isupper():
        answer = http.request(first, second)
    else:
        content = second if isinstance(second, bytes) else json.dumps(second).encode()
        answer = http.post(first, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text[:500]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and 0 < len(error["message"]) < 3000
    assert "/tmp" not in answer.text and "/nowhere" not in answer.text and "Traceback" not in answer.text and "mmlm-" not in answer.text
    assert http.get("/health").status_code == 200


def test_forms_with_broken_files_and_hostile_fields_are_refused():
    hearer = own("hearer", {"audio": forms.Audio("Sound")}, {"text": forms.Text("Said")}, listen)
    files = [({}, data, "audio") for data in BROKEN.values()]
    fields = [({name: value}, silence(0.001), name) for name in ("model", "prompt", "seed", "__class__") for value in PATHS]
    with listening([hearer]) as (address, _), httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
        for given, data, said in (*files, *fields):
            answer = http.post("/v1/audio/transcriptions", data=given, files={"file": ("../../etc/passwd", data)})
            assert answer.status_code in (400, 404) and said in answer.text, (given, answer.text)
            assert "/tmp" not in answer.text and "mmlm-" not in answer.text and answer.json()["error"]["message"]
        many = [("file", ("a.wav", b"a"))] * 2
        assert http.post("/v1/audio/transcriptions", files=many).status_code == 400
        assert http.post("/v1/audio/transcriptions", data={str(number): "a" for number in range(30)}, files=many[:1]).status_code == 400
        assert http.get("/health").status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET", b"\x16\x03\x01\x02\x00", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{", b"\0" * 70_000])  # fmt: skip
def test_a_connection_closed_in_the_middle_harms_nobody(sent, address, http):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as one:
        one.sendall(sent)
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_messages_lose_the_folders_of_paths():
    body = told("/home/me/runs/x/model.safetensors: is damaged; see https://example.org/a/b.", 400)
    assert body["error"]["message"] == "model.safetensors: is damaged; see https://example.org/a/b."
