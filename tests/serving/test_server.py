"""The server as clients see it: OpenAI's own client, plain HTTP, and a task of this file that it has never heard of."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import shutil
import socket
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import openai
import pytest
from PIL import Image as Pictures

from mmlm.base.giving_up import go_on
from mmlm.cli import main
from mmlm.embedding import encoder
from mmlm.generation import generate
from mmlm.serving.asked import Chat
from mmlm.serving.chat import Writer
from mmlm.serving.figures import Figures
from mmlm.serving.guard import Guard, Limits
from mmlm.serving.uses import Use, uses_of
from mmlm.serving.values import sound_file
from mmlm.sound import Sound
from mmlm.tasks import forms

from .conftest import TOKEN, listening

ROWS = [{"a": number, "b": number % 3, "kind": "odd" if number % 2 else "even"} for number in range(12)]


def own(name, inputs, outputs, call):
    """A use of a task that only this file knows."""
    return Use(Path(f"/nowhere/{name}"), name, name, inputs, outputs, call, None, SimpleNamespace(), None)


def speak(given):
    yield {"audio": Sound(np.linspace(-1, 1, len(given["text"]) * 100, dtype=np.float32), 8000)}


def speak_slowly(given):
    """A tone of ten pieces, each a fifth of a second later."""
    wave_n = np.sin(np.arange(8000) / 5).astype(np.float32) / 2
    for count in range(1, 11):
        yield {"audio": Sound(wave_n[: 800 * count], 8000)}
        time.sleep(0.2)
        go_on()


def reverse(given):
    for size in range(len(given["words"]) + 1):
        yield {"backwards": given["words"][::-1][:size], "loudest": float(np.abs(given["sound"].wave_n).max()) if given["sound"] else None}


OWN = [
    own("speaker", {"text": forms.Text("Text"), "seed": forms.Number("Seed", "", True, 0, 0, 9)}, {"audio": forms.Audio("Speech")}, speak),
    own("talker", {"text": forms.Text("Text")}, {"audio": forms.Audio("Speech")}, speak_slowly),
    own("mirror", {"words": forms.Text("Words"), "sound": forms.Audio("Sound", "", True)}, {"backwards": forms.Text("Back")}, reverse),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(text_use, table_run, picture_run):
    with listening([text_use, *uses_of(table_run), *uses_of(picture_run), *OWN]) as (address, server):
        yield address, server


@pytest.fixture
def client(served):
    return openai.OpenAI(base_url=served[0] + "/v1", api_key=TOKEN, max_retries=0)


@pytest.fixture
def http(served):
    with httpx.Client(base_url=served[0], headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as one:
        yield one


def alone(use, text, count):
    span = use.model.vocabulary.span("text")
    import torch

    ids = [*(use.task.text.first or []), *use.task.text.ids([text])[0]]
    found = generate(use.model, [torch.tensor(ids) + span.start], max_new_tokens=count, stop=[span.start + each for each in use.task.ends])
    return use.task.text.decode([index - span.start for index in found[0].ids if index - span.start not in use.task.ends])


def png(pixels):
    buffer = io.BytesIO()
    Pictures.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


PICTURE = png(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def test_openais_client_lists_models_and_chats(client, text_use):
    assert [model.id for model in client.models.list()] == ["words", "rows", "seen", "speaker", "talker", "mirror"]
    assert client.models.retrieve("rows").id == "rows"
    answer = client.chat.completions.create(model="words", messages=[{"role": "user", "content": "The 3. line"}], max_tokens=20)
    assert answer.choices[0].message.content == alone(text_use, "The 3. line", 20)
    assert answer.usage.completion_tokens == 20 and answer.choices[0].finish_reason == "length"


def test_a_stream_is_the_same_text_in_pieces(client, text_use):
    steps = client.chat.completions.create(model="words", messages=[{"role": "user", "content": "The 4. line"}], max_tokens=24, stream=True)
    pieces = [step.choices[0].delta.content or "" for step in steps]
    assert "".join(pieces) == alone(text_use, "The 4. line", 24) and sum(map(bool, pieces)) > 2
    asked = {"model": "words", "messages": [{"role": "user", "content": "The 4. line"}], "max_tokens": 5}
    *_, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert not last.choices and last.usage == client.chat.completions.create(**asked).usage


def test_clients_at_once_get_each_their_own_answer(client, text_use):
    texts = [f"The {number}. line says" for number in range(16)]

    def ask(text):
        return client.chat.completions.create(model="words", messages=[{"role": "user", "content": text}], max_tokens=16)

    with ThreadPoolExecutor(16) as pool:
        said = [answer.choices[0].message.content for answer in pool.map(ask, texts)]
    assert said == [alone(text_use, text, 16) for text in texts]


def test_a_stop_text_ends_the_answer_before_it(client, text_use):
    whole = alone(text_use, "The 3. line", 20)
    stop = whole[6:9]
    answer = client.chat.completions.create(model="words", messages=[{"role": "user", "content": "The 3. line"}], max_tokens=20, stop=stop)
    assert answer.choices[0].message.content == whole[: whole.find(stop)] and answer.choices[0].finish_reason == "stop"


def test_a_picture_is_described_and_asked_about(client):
    for words in ([], [{"type": "text", "text": "the red circle"}]):
        content = [{"type": "image_url", "image_url": {"url": PICTURE}}, *words]
        answer = client.chat.completions.create(model="seen", messages=[{"role": "user", "content": content}])
        assert isinstance(answer.choices[0].message.content, str)
    assert len(answer.boxes) == 1
    asked = {"model": "seen", "messages": [{"role": "user", "content": content}], "max_tokens": 20}
    *said, end = client.chat.completions.create(stream=True, **asked)
    assert "".join(each.choices[0].delta.content for each in said) == answer.choices[0].message.content
    assert end.choices[0].finish_reason == "stop" and end.boxes == answer.boxes


def test_answers_about_pictures_are_drawn_as_asked(client):
    content = [{"type": "image_url", "image_url": {"url": PICTURE}}]

    def said(temperature: float, seed: int, top_p: float = 1.0) -> str:
        asked = {"model": "seen", "messages": [{"role": "user", "content": content}]}
        return client.chat.completions.create(**asked, temperature=temperature, seed=seed, top_p=top_p).choices[0].message.content

    assert said(1.5, 1) == said(1.5, 1) != said(1.5, 2)
    assert said(0, 1) == said(0, 2**30, 0.9), "the likeliest tokens hang on no draw"


def test_speech_comes_as_wav_pcm_and_flac(client):
    found = {form: client.audio.speech.create(model="speaker", voice="default", input="hello", response_format=form).content
             for form in ("wav", "pcm", "flac")}  # fmt: skip
    assert found["wav"][:4] == b"RIFF" and found["flac"][:4] == b"fLaC" and len(found["pcm"]) == 1000
    with pytest.raises(openai.BadRequestError, match="response_format"):
        client.audio.speech.create(model="speaker", voice="default", input="hello", response_format="mp3")


def test_speech_is_heard_while_it_is_written(client, http):
    whole = client.audio.speech.create(model="talker", voice="default", input="a", response_format="pcm").content
    for form, head in (("pcm", 0), ("wav", 44)):
        began, times, parts = time.monotonic(), [], []
        asked = {"model": "talker", "voice": "default", "input": "a", "response_format": form, "extra_body": {"stream_format": "audio"}}
        with client.audio.speech.with_streaming_response.create(**asked) as answer:
            for part in answer.iter_bytes():
                times.append(time.monotonic() - began)
                parts.append(part)
        found = b"".join(parts)
        assert found[head:] == whole and times[0] < 0.5 < 1.5 < times[-1] and answer.headers["x-sample-rate"] == "8000"
    with wave.open(io.BytesIO(found)) as file:  # a head of unknown length
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2) and file.readframes(9000) == whole
    asked = {"model": "talker", "input": "a", "response_format": "pcm", "stream_format": "sse"}
    events = [json.loads(line[6:]) for line in http.post("/v1/audio/speech", json=asked).text.splitlines() if line]
    assert [event["type"] for event in events] == ["speech.audio.delta"] * 10 + ["speech.audio.done"]
    assert b"".join(base64.b64decode(event.get("audio", "")) for event in events) == whole
    refused = http.post("/v1/audio/speech", json={**asked, "response_format": "flac"})
    assert refused.status_code == 400 and "flac comes whole" in refused.text
    assert http.post("/v1/audio/speech", json={**asked, "input": ""}).status_code == 400
    one = http.post("/v1/audio/speech", json={**asked, "model": "speaker", "stream_format": "audio"})
    assert len(one.content) == 200


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/tasks/talker", "/v1/chat/completions"])
def test_what_streams_is_given_up_after_its_time_and_when_its_client_goes(path, text_use):
    body = {
        "/v1/audio/speech": {"model": "talker", "input": "a", "stream_format": "sse"},
        "/v1/tasks/talker": {"inputs": {"text": "a"}, "stream": True},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 50_000, "stream": True},
    }[path]
    uses, limits = [OWN[1], text_use], Limits(seconds=0.7, new_tokens=50_000)
    with listening(uses, limits=limits) as (address, server):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        text = httpx.post(address + path, json=body, headers=headers, timeout=20).text
        assert "longer than 0.7 s" in text.split("data: ")[-2 if "chat" in path else -1]
        with httpx.Client(base_url=address, headers=headers) as http, http.stream("POST", path, json=body) as answer:
            next(answer.iter_lines())
        began = time.monotonic()
        while (server.turns["talker"].waiting or server.writers["words"].batcher.running) and time.monotonic() - began < 10:
            time.sleep(0.01)
        assert time.monotonic() - began < 1.5


@pytest.mark.parametrize(
    ("path", "more"),
    [("/v1/tasks/late", {"inputs": {"text": "a"}, "stream": True}), ("/v1/audio/speech", {"input": "a", "stream_format": "audio"})],
)
def test_who_goes_before_a_stream_begins_keeps_no_turn(path, more):
    def late(given):
        for _ in range(80):
            time.sleep(0.1)
            go_on()
        yield {"audio": Sound(np.ones(9, dtype=np.float32), 8000)}

    with listening([own("late", {"text": forms.Text("Text")}, {"audio": forms.Audio("Speech")}, late)]) as (address, server):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(address + path, json=more, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=0.5)
        began = time.monotonic()
        while server.turns["late"].waiting and time.monotonic() - began < 10:
            time.sleep(0.01)
        assert time.monotonic() - began < 3


def test_a_text_left_before_its_first_piece_is_given_up(text_use):
    async def left():
        writer = Writer(text_use, Limits(new_tokens=100_000), Figures())
        try:
            writing = writer.begin(Chat(messages=[{"role": "user", "content": "a"}], max_tokens=100_000))
            events = writer.events("words", writing)
            await anext(events)
            await events.aclose()
            assert writing.request.is_gone
        finally:
            writer.batcher.close()

    asyncio.run(left())


def test_what_no_run_can_is_told_in_openais_form(client):
    with pytest.raises(openai.NotFoundError, match="speaker does not write down speech"):
        client.audio.transcriptions.create(model="speaker", file=("a.wav", b"RIFF"))
    with pytest.raises(openai.NotFoundError, match="has no encoder"):
        client.embeddings.create(model="rows", input="text")
    with pytest.raises(openai.NotFoundError, match="Did you mean 'words'"):
        client.chat.completions.create(model="word", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.NotFoundError, match="rows does not chat; those that do: words, seen"):
        client.chat.completions.create(model="rows", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(openai.BadRequestError, match="'tools' is not supported"):
        client.chat.completions.create(model="words", messages=[{"role": "user", "content": "a"}], tools=[{"type": "function"}])


def test_vectors_are_those_of_the_run(molecule_run):
    texts = ["c1ccccc1C", "C1CC1CN", "c1ccsc1O"]
    with listening(uses_of(molecule_run)) as (address, _):
        client = openai.OpenAI(base_url=address + "/v1", api_key=TOKEN, max_retries=0)
        found = client.embeddings.create(model="compounds", input=texts)
        as_base64 = client.embeddings.create(model="compounds", input=texts[1], encoding_format="base64")
        with pytest.raises(openai.BadRequestError, match="C1CC"):
            client.embeddings.create(model="compounds", input=[texts[0], "C1CC"])
        with pytest.raises(openai.BadRequestError, match="1 to 2,048 items"):
            client.embeddings.create(model="compounds", input=[])
    vectors = encoder(molecule_run).encode(texts)
    assert vectors.shape == (3, 16) and np.allclose([each.embedding for each in found.data], vectors, atol=1e-6)
    assert np.allclose(np.frombuffer(base64.b64decode(as_base64.data[0].embedding), "<f4"), vectors[1], atol=1e-6)


@pytest.mark.parametrize("kind", ["text", "molecule", "class"])
def test_vectors_come_from_the_model_that_is_open_already(kind, request, tmp_path):
    run = Path(shutil.copytree(request.getfixturevalue(f"{kind}_run"), tmp_path / "once"))
    texts = [png(np.full((40, 50, 3), 9, np.uint8))] if kind == "class" else ["CCO"]
    with listening(uses_of(run)) as (address, _):
        for weights in run.glob("*.safetensors"):
            weights.unlink()
        client = openai.OpenAI(base_url=address + "/v1", api_key=TOKEN, max_retries=0)
        assert len(client.embeddings.create(model="once", input=texts).data) == 1


def test_weights_of_an_encoder_that_are_missing_are_no_missing_encoder(tmp_path):
    (tmp_path / "heard").mkdir()
    units = f"tokenizers: {{units: {{type: units, encoder: {{type: whisper, path: {tmp_path / 'none'}}}}}}}"
    (tmp_path / "heard" / "recipe.yaml").write_text(f"schema: 1\nname: heard\n{units}\n")
    with listening([replace(OWN[0], run=tmp_path / "heard")]) as (address, _):
        client = openai.OpenAI(base_url=address + "/v1", api_key=TOKEN, max_retries=0)
        with pytest.raises(openai.InternalServerError, match="its log tells more"):
            client.embeddings.create(model="heard", input="YWJj")


def test_texts_become_vectors_too(client, text_run):
    texts = ["The 3. line", "Und so on"]
    found = client.embeddings.create(model="words", input=texts)
    vectors = encoder(text_run).encode(texts)
    assert vectors.shape == (2, 16) and np.allclose([each.embedding for each in found.data], vectors, atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="text 1: holds no token"):
        client.embeddings.create(model="words", input=["a", ""])


def test_vectors_of_pictures_are_those_of_the_run(class_run):
    pixels = np.random.default_rng(1).integers(0, 255, (5, 40, 50, 3), dtype=np.uint8)
    with listening(uses_of(class_run)) as (address, _):
        client = openai.OpenAI(base_url=address + "/v1", api_key=TOKEN, max_retries=0)
        found = client.embeddings.create(model="classes", input=[png(each) for each in pixels], encoding_format="float")
        bare = client.embeddings.create(model="classes", input=png(pixels[3]).partition(",")[2])
        for given, said in (("https://example.org/a.png", "not fetched"), ("YWJj", "input.0"), ("/etc/passwd", "base64")):
            with pytest.raises(openai.BadRequestError, match=said):
                client.embeddings.create(model="classes", input=given)
    vectors = encoder(class_run).encode(list(pixels))
    assert vectors.shape == (5, 64) and vectors.std(0).max() > 0
    assert np.allclose([each.embedding for each in found.data], vectors, atol=1e-6)
    assert np.allclose(bare.data[0].embedding, vectors[3], atol=1e-6)


def test_vectors_of_sounds_are_those_of_the_encoder_of_a_run(tmp_path):
    (tmp_path / "heard").mkdir()
    units = "tokenizers: {units: {type: units, encoder: {type: log_mel, num_bands: 7, context: 0}}}"
    (tmp_path / "heard" / "recipe.yaml").write_text(f"schema: 1\nname: heard\n{units}\n")
    use = replace(OWN[0], run=tmp_path / "heard")
    draws = np.random.default_rng(2)
    sounds = [Sound((draws.normal(size=rate_hz) / 8).astype(np.float32), rate_hz) for rate_hz in (16_000, 8_000)]
    with listening([use]) as (address, _):
        client = openai.OpenAI(base_url=address + "/v1", api_key=TOKEN, max_retries=0)
        urls = ["data:audio/wav;base64," + base64.b64encode(sound_file(sound, "wav")).decode() for sound in sounds]
        found = client.embeddings.create(model="heard", input=urls)
        flac = base64.b64encode(sound_file(sounds[0], "flac")).decode()
        again = client.embeddings.create(model="heard", input=flac)
        with pytest.raises(openai.BadRequestError, match="input.0"):
            client.embeddings.create(model="heard", input=urls[0][:200])
    vectors = encoder(tmp_path / "heard").encode(sounds)
    assert vectors.shape == (2, 7) and np.allclose([each.embedding for each in found.data], vectors, atol=0.02)
    assert np.allclose(again.data[0].embedding, vectors[0], atol=0.02)


def test_rows_are_predicted(http):
    asked = {"model": "rows", "examples": ROWS[:9], "rows": [{"a": 20, "b": 1}, {"a": 21, "b": 2}], "target": "kind"}
    found = http.post("/v1/tabular/predict", json=asked).json()
    assert len(found["predictions"]) == 2 and set(found["predictions"]) <= {"odd", "even"}
    assert all(sum(row.values()) == pytest.approx(1, abs=1e-3) for row in found["probabilities"])


def test_cells_that_name_files_of_the_server_are_texts(http, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"no picture, which opening it would tell")
    examples = [{**row, "photo": str(secret)} for row in ROWS[:9]]
    asked = {"model": "rows", "examples": examples, "rows": [{"a": 20, "b": 1, "photo": str(secret)}], "target": "kind"}
    found = http.post("/v1/tabular/predict", json=asked)
    assert found.status_code == 200 and len(found.json()["predictions"]) == 1


def test_a_task_that_the_server_has_never_heard_of_has_an_endpoint(http, client):
    declared = {one["model"]: one for one in http.get("/v1/tasks").json()["data"]}
    assert declared["mirror"]["inputs"]["words"]["type"] == "text" and declared["speaker"]["outputs"]["audio"]["type"] == "audio"
    sound = base64.b64encode(client.audio.speech.create(model="speaker", voice="default", input="abc").content).decode()
    found = http.post("/v1/tasks/mirror", json={"inputs": {"words": "stressed", "sound": sound}}).json()
    assert found["outputs"]["backwards"] == "desserts" and found["outputs"]["loudest"] == pytest.approx(1, abs=1e-3)
    steps = http.post("/v1/tasks/mirror", json={"inputs": {"words": "abc"}, "stream": True}).text.split("\n\n")[:-1]
    assert len(steps) == 4 and '"cba"' in steps[-1]
    assert http.post("/v1/tasks/speaker", json={"inputs": {"text": "a"}}).json()["outputs"]["audio"].startswith("data:audio/wav;base64,")


def measure(given):
    said = f"{given['audio'].seconds:g} s, {given['language'] or 'any'}"
    for size in range(len(said) + 1):
        yield {"text": said[:size]}


def test_a_task_that_hears_and_writes_transcribes_for_openais_client():
    fields = {"audio": forms.Audio("Speech"), "language": forms.Text("Language", "", True)}
    heard = ("a.flac", sound_file(Sound(np.random.default_rng(0).uniform(-1, 1, 12_000).astype(np.float32), 8000), "flac"))
    with listening([*OWN, own("hearer", fields, {"text": forms.Text("Said")}, measure)]) as (address, _):
        client = openai.OpenAI(base_url=address + "/v1", api_key=TOKEN, max_retries=0)
        make = client.audio.transcriptions.create
        assert make(model="hearer", file=heard).text == "1.5 s, any"
        assert make(model="hearer", file=heard, language="de", temperature=0, response_format="text") == "1.5 s, de"
        *pieces, last = make(model="hearer", file=heard, stream=True)
        assert "".join(each.delta for each in pieces) == last.text == "1.5 s, any" and len(pieces) == 10
        with pytest.raises(openai.NotFoundError, match="speaker does not write down speech; those that do: hearer"):
            make(model="speaker", file=heard)  # bytes of a file are no text, and are not told as a wrong one
        for more, said in (
            ({"prompt": "a"}, "prompt: has no effect"),
            ({"temperature": 0.5}, "temperature: has no effect"),
            ({"response_format": "srt"}, "response_format: .*json"),
            ({"include": ["logprobs"]}, "not supported"),
            ({"file": ("a.wav", b"\xff\0 no sound")}, "audio: "),
        ):
            with pytest.raises(openai.BadRequestError, match=said) as told:
                make(**{"model": "hearer", "file": heard, **more})
            assert "/tmp" not in str(told.value)
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
            for body in ({"data": {"model": "hearer"}}, {"json": {"model": "hearer", "file": "/etc/passwd"}}):
                assert http.post("/v1/audio/transcriptions", **body).json()["error"]["message"].startswith("file: is missing")
            kind = {"Content-Type": "multipart/form-data; boundary=x"}
            for path in ("/v1/audio/transcriptions", "/v1/tasks/mirror"):
                assert http.post(path, content=b"--x\r\n\xff\0", headers=kind).status_code == 400


def test_without_the_token_there_is_health_alone(served):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}):
        with httpx.Client(base_url=served[0], headers=headers) as stranger:
            assert stranger.get("/health").json() == {"status": "ok"}
            for path in ("/v1/models", "/metrics", "/v1/tasks", "/nothing"):
                answer = stranger.get(path)
                assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"


def test_without_a_token_a_foreign_host_is_refused():
    with listening(OWN, token=None) as (address, _):
        assert httpx.get(address + "/v1/models").status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example:80", "evil.example:127.0.0.1", ""):
            assert httpx.get(address + "/v1/models", headers={"Host": host}).status_code in (400, 403), host


def test_without_a_token_a_page_of_another_origin_is_refused():
    with listening(OWN, token=None) as (address, _):
        for origin, status in ((address, 200), ("http://evil.example", 403), ("http://127.0.0.1:1", 403), ("null", 403), ("", 403)):
            assert httpx.get(address + "/v1/models", headers={"Origin": origin}).status_code == status, origin


def test_figures_are_counted_and_hold_nothing_that_was_asked(http):
    http.post("/v1/chat/completions", json={"model": "words", "messages": [{"role": "user", "content": "secret words"}], "max_tokens": 2})
    text = http.get("/metrics").text
    assert 'mmlm_requests_total{route="/v1/chat/completions",status="200"}' in text and "mmlm_tokens_total" in text
    assert "secret" not in text and 'mmlm_running{model="words"} 0.0' in text


def test_bodies_that_are_held_together_are_limited():
    async def all_of_them():
        free, told = asyncio.Event(), []

        async def app(scope, receive, send):
            await free.wait()

        async def body():
            return {"type": "http.request", "body": b" " * 900, "more_body": False}

        async def send(message):
            told.append(message.get("status"))

        guard, scope = Guard(app, None, Limits(body_bytes=1000)), {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
        waits = [asyncio.create_task(guard(scope, body, send)) for _ in range(4)]
        await asyncio.sleep(0)
        await asyncio.wait_for(guard(scope, body, send), 10)
        assert told[0] == 429 and guard.held == 3600
        free.set()
        await asyncio.gather(*waits)
        assert guard.held == 0 and len(told) == 2

    asyncio.run(all_of_them())


def test_limits_of_body_time_and_queue(text_use):
    def slow(given):
        time.sleep(0.6)
        yield {"backwards": given["words"]}

    uses = [text_use, own("slow", {"words": forms.Text("Words")}, {"backwards": forms.Text("Back")}, slow)]
    limits = Limits(body_bytes=2000, body_seconds=0.5, seconds=1.0, waiting=1, new_tokens=50_000)
    with listening(uses, limits=limits) as (address, server):
        with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30) as http:
            assert http.post("/v1/chat/completions", content=b" " * 3000).status_code == 413
            assert http.post("/v1/chat/completions", content=(b" " * 100 for _ in range(30))).status_code == 413

            def drip():
                for _ in range(20):
                    time.sleep(0.1)
                    yield b" "

            assert http.post("/v1/chat/completions", content=drip()).status_code == 408
            chat = {"model": "words", "messages": [{"role": "user", "content": "a"}], "max_tokens": 50_000}
            assert http.post("/v1/chat/completions", json=chat).status_code == 408
            with ThreadPoolExecutor(5) as pool:
                answers = list(pool.map(lambda _: http.post("/v1/tasks/slow", json={"inputs": {"words": "a"}}), range(5)))
            codes = sorted(answer.status_code for answer in answers)
            assert codes[0] == 200 and codes[-1] == 429 and set(codes) <= {200, 408, 429}
            assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 429)
            writer = server.writers["words"].batcher
            began = time.monotonic()
            while writer.running and time.monotonic() - began < 10:
                time.sleep(0.02)
            assert not writer.running  # the text that took too long was given up


def test_a_prompt_beyond_the_context_is_refused_with_both_lengths(client, http):
    with pytest.raises(openai.BadRequestError, match="is 40 tokens long; the context of this model is 24") as error:
        client.chat.completions.create(model="words", messages=[{"role": "user", "content": "Zq" * 20}])
    assert error.value.code == "context_length_exceeded" and error.value.param == "messages"
    answer = http.post("/v1/tasks/text", json={"inputs": {"text": "Zq" * 20}})
    assert answer.status_code == 400 and "40 tokens" in answer.text and "24" in answer.text


@pytest.mark.parametrize("kind", ["time", "gone"])
def test_a_model_that_nobody_waits_for_is_free_at_its_next_step(picture_run, kind, monkeypatch):
    (use,), steps = uses_of(picture_run), []

    def slow(layer, given):
        steps.append(time.sleep(0.1))

    hook = use.model.backbone.layers[0].register_forward_pre_hook(slow)
    asked = {"inputs": {"image": PICTURE, "kind": "grounded_caption"}}
    try:
        ends, waits = (0.5, 30) if kind == "time" else (30, 0.5)
        with listening([use], limits=Limits(seconds=ends)) as (address, server):
            http = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=waits)
            if kind == "time":
                assert http.post("/v1/tasks/grounded", json=asked).status_code == 408
            else:
                with pytest.raises(httpx.ReadTimeout):
                    http.post("/v1/tasks/grounded", json=asked)
            ended, count = time.monotonic(), len(steps)
            while server.turns["seen"].waiting and time.monotonic() - ended < 10:
                time.sleep(0.01)
            assert time.monotonic() - ended < 0.9 and count > 0 and len(steps) <= count + 6 and not use.lock.locked()
    finally:
        hook.remove()


def test_a_text_is_given_up_when_its_client_goes(text_use):
    with listening([text_use], limits=Limits(new_tokens=100_000)) as (address, server):
        chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 100_000}
        running = server.writers["words"].batcher
        for is_stream in (True, False):
            with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}) as http:
                if is_stream:
                    with http.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as answer:
                        lines = answer.iter_lines()
                        assert [next(lines) for _ in range(7)][6].startswith("data: ") and running.running
                else:
                    with pytest.raises(httpx.ReadTimeout):
                        http.post("/v1/chat/completions", json=chat, timeout=0.3)
            began = time.monotonic()
            while running.running and time.monotonic() - began < 10:
                time.sleep(0.02)
            assert not running.running


def test_the_verb_tells_the_port_that_was_free_and_refuses_one_that_is_not(text_run, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr("uvicorn.run", lambda app, **options: asked.append(options["port"]))
    assert main(["serve", str(text_run), "--port", "0"]) == 0
    assert asked[0] > 0 and f"http://127.0.0.1:{asked[0]}/v1" in capsys.readouterr().out
    monkeypatch.setattr("mmlm.serving.demo.launch", lambda uses, **options: asked.append(options["port"]))
    assert main(["demo", str(text_run), "--port", "0"]) == 0 and asked[1] > 0
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for words in (["serve", str(text_run), "--port", port], ["demo", str(text_run), "--port", port]):
            assert main(words) == 2
            assert f"127.0.0.1, port {port}: nobody can listen there" in capsys.readouterr().err


@pytest.mark.parametrize("token", ["", "short", "with a space"])
def test_a_page_is_protected_by_no_password_that_is_easily_guessed(token, tmp_path, capsys):
    assert main(["demo", str(tmp_path), "--host", "0.0.0.0", "--token", token]) == 2
    assert "mmlm demo: --token must be at least 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0", "--no-token"], "--no-token"),
        (["--no-token", "--token", "abcdefgh"], "--no-token"),
        (["--token", "short"], "at least 8"),
        (["--batch", "0"], "--batch"),
        (["--seconds", "nan"], "--seconds must be at least 0.1, but is nan"),
        ([], "no finished run"),
    ],
)
def test_the_verb_tells_what_is_wrong(words, said, tmp_path, capsys):
    assert main(["serve", str(tmp_path), *words]) == 2
    assert said in capsys.readouterr().err
