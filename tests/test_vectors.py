"""Vectors for applications: streams of items, likeness, naming pictures by texts, texts and rows, and the names of what made them."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmlm
from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.encoders.vectors import GROUP
from mmlm.layout import Layout
from mmlm.sound import Sound
from mmlm.text_vectors import TextEmbedder

SIZES = "{size: 12, picture: {image_size: 32, width: 24, layers: 2, heads: 2}, text: {context: 16, width: 16, layers: 2, heads: 2}}"
TOWERS = f"{{type: open_clip, sizes: {SIZES}}}"


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20 + number, 24, 3), dtype=np.uint8) for number in range(count)]


@pytest.fixture(scope="module")
def towers():
    pytest.importorskip("open_clip")
    torch.manual_seed(0)
    return mmlm.encoder(TOWERS)


def test_a_stream_gives_what_encode_gives_and_holds_a_few_batches_only(towers) -> None:
    asked = 0

    def endless():
        nonlocal asked
        for picture in itertools.cycle(pictures(5)):
            asked += 1
            yield picture

    found = list(itertools.islice(towers.encode_stream(endless(), batch_size=3, normalize=True), 13))
    wanted = towers.encode(list(itertools.islice(itertools.cycle(pictures(5)), 13)), normalize=True)
    assert found[0].shape == (12,) and np.allclose(found, wanted, atol=1e-6)
    assert asked == 2 * GROUP * 3  # 13 vectors lie in two groups


def test_an_item_of_a_stream_that_is_bad_is_named_or_skipped(towers, tmp_path: Path) -> None:
    files = []
    for number, picture in enumerate(pictures(7)):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(picture).save(files[-1])
    good = towers.encode(files)
    files[2].write_bytes(b"no picture")
    files[5] = tmp_path / "nowhere.png"
    told: list[tuple[int, str]] = []
    found = list(towers.encode_stream(files, batch_size=1, skip=lambda number, error: told.append((number, str(error)))))
    assert np.allclose(found, good[[0, 1, 3, 4, 6]], atol=1e-6)
    assert [number for number, _ in told] == [2, 5] and "2.png: is no picture" in told[0][1] and "nowhere.png" in told[1][1]
    seen = []
    with pytest.raises(DataError, match=r"item 2: .*2\.png: is no picture"):
        for vector in towers.encode_stream(files):
            seen.append(vector)
    assert len(seen) == 2
    assert list(towers.encode_stream([])) == []
    with pytest.raises(RecipeError, match="batch_size must be at least 1, but is 0"):
        list(towers.encode_stream(files, batch_size=0))
    with pytest.raises(RecipeError, match="precision must be one of"):
        list(towers.encode_stream(files, precision="int3", skip=lambda number, error: None))


def test_sounds_molecules_texts_and_rows_stream_too(text_folder: str) -> None:
    pytest.importorskip("torchaudio")
    pytest.importorskip("rdkit")
    sounds = [Sound(np.random.default_rng(number).normal(size=4000 + number).astype(np.float32), 16_000) for number in range(3)]
    for encoder, items in (
        (mmlm.encoder("log_mel"), sounds),
        (mmlm.encoder("fingerprints"), ["CCO", "CCN"]),
        (mmlm.encoder(text_folder), ["two dogs", {"age": 3, "name": "Ann"}, "a"]),
    ):
        found = list(encoder.encode_stream(iter(items), batch_size=1))
        assert np.allclose(found, encoder.encode(items), atol=1e-6) and found[0].shape == (encoder.size,)


def test_similarity_is_the_cosine() -> None:
    a, b = np.array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]]), np.array([[2.0, 0.0], [0.0, -1.0]])
    found = mmlm.similarity(a, b)
    assert found.dtype == np.float32 and np.allclose(found, [[1, 0], [0.6, -0.8], [0, 0]])
    with pytest.raises(DataError, match=r"\[n, d\] and \[m, d\], but these are \[3, 2\] and \[2\]"):
        mmlm.similarity(a, b[:, 0])


def test_pictures_are_named_as_open_clip_would_name_them(towers) -> None:
    labels, templates = ["red-circle", "square", "dog"], ["{}", "a picture of a {}"]
    found = towers.zero_shot(pictures(4), labels, templates)
    model, tokenizer = towers.encoder.model, towers.encoder.tokenizer
    with torch.no_grad():
        classes = []
        for label in ("red circle", "square", "dog"):
            each = torch.nn.functional.normalize(model.encode_text(tokenizer([label, f"a picture of a {label}"])), dim=-1).mean(0)
            classes.append(torch.nn.functional.normalize(each, dim=-1))
        vectors = model.encode_image(torch.stack([towers.encoder.prepare(each) for each in pictures(4)]), normalize=True)
        wanted = (model.logit_scale.exp() * vectors @ torch.stack(classes).T).softmax(-1).numpy()
    assert found.dtype == np.float32 and np.allclose(found, wanted, atol=1e-5) and np.allclose(found.sum(1), 1, atol=1e-6)
    assert towers.zero_shot([], labels).shape == (0, 3)
    for given, told in (
        (([],), "labels must be one at least"),
        ((["a", "a"],), "each once, but are 'a', 'a'"),
        ((["a"], ["a photo"]), "'a photo' does not"),
        ((["a"], []), "'none' does not"),
    ):
        with pytest.raises(RecipeError, match=told):
            towers.zero_shot(pictures(1), *given)
    with pytest.raises(RecipeError, match="encoder 'timm' reads no texts"):
        mmlm.encoder("timm").zero_shot(pictures(1), labels)
    with pytest.raises(RecipeError, match="reads no texts"):
        mmlm.encoder("log_mel").encode_texts(["a"])


def test_a_text_is_the_mean_of_a_decoders_last_states_whatever_is_read_with_it(text_folder: str) -> None:
    ours = mmlm.encoder(text_folder)
    assert isinstance(ours, TextEmbedder) and ours.size == 16
    texts = ["two dogs and a cat", "a", "The age is 3. The name is Ann."]
    told: list[tuple[int, int]] = []
    found = ours.encode(texts, batch_size=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 3), (3, 3)]
    for text, vector in zip(texts, found, strict=True):
        ids = torch.tensor(ours.text.ids([text]))
        with torch.no_grad():
            h_btd, _ = ours.model.backbone(ours.model.embedding(ids), Layout.plain(*ids.shape))
        assert np.allclose(vector, h_btd[0].mean(0).numpy(), atol=1e-5)
    rows = [{"age": 3, "name": "Ann", "missing": None, "empty": float("nan")}]
    assert np.allclose(ours.encode(rows), found[2:], atol=1e-6) and np.allclose(ours.encode_texts(texts[:1]), found[:1], atol=1e-6)
    assert np.allclose(np.linalg.norm(ours.encode(texts, normalize=True), axis=1), 1, atol=1e-6) and ours.encode([]).shape == (0, 16)
    with pytest.raises(DataError, match="text 1: holds no token"):
        ours.encode(["a", ""])
    with pytest.raises(DataError, match="text 0: is a text, or a row as a mapping, but is int 3"):
        ours.encode([3])
    with pytest.raises(RecipeError, match="precision must be auto or fp32"):
        ours.encode(texts, precision="bf16")


def test_long_texts_are_read_a_few_at_once(text_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, counts = mmlm.encoder(text_folder), list[int]()
    texts = ["two dogs and a cat"] * 3 + ["a"] * 4
    whole, pooled = ours.encode(texts), ours._pooled
    long = len(ours.text.ids(texts[:1])[0])
    monkeypatch.setattr("mmlm.text_vectors.TOKENS_AT_ONCE", long + 1)
    monkeypatch.setattr(ours, "_pooled", lambda ids: counts.append(sum(map(len, ids))) or pooled(ids))
    told: list[tuple[int, int]] = []
    assert np.allclose(ours.encode(texts, progress=lambda *both: told.append(both)), whole, atol=1e-6)
    assert max(counts) <= long + 1 and len(counts) > 2 and told[-1] == (7, 7)
    monkeypatch.setattr("mmlm.text_vectors.TOKENS_AT_ONCE", 1)
    assert np.allclose(ours.encode(texts), whole, atol=1e-6)


def test_a_folder_without_a_tokenizer_and_options_of_a_folder_are_refused(text_folder: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the folder decides what is encoded; leave out layer"):
        mmlm.encoder(text_folder, layer=3)
    shutil.copytree(text_folder, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "tokenizers")
    with pytest.raises(CheckpointError, match="bare: has no text tokenizer beside its weights"):
        mmlm.encoder(tmp_path / "bare")


def test_encoders_share_a_fingerprint_where_their_vectors_can_be_compared(text_folder: str, tmp_path: Path, towers) -> None:
    pytest.importorskip("torchaudio")
    pytest.importorskip("rdkit")
    names = {
        each: mmlm.encoder(each).fingerprint
        for each in ("log_mel", "{type: log_mel, context: 1}", "fingerprints", "{type: fingerprints, radius: 3}", text_folder)
    }
    assert len(set(names.values())) == len(names) and all(len(each) == 16 for each in names.values())
    shutil.copytree(text_folder, tmp_path / "moved")
    moved = mmlm.encoder(tmp_path / "moved")
    assert moved.fingerprint == names[text_folder]
    with torch.no_grad():
        moved.model.embedding.weight[3, 0] += 1e-3
    del moved.__dict__["fingerprint"]
    assert moved.fingerprint != names[text_folder]
    torch.manual_seed(1)
    assert mmlm.encoder(TOWERS).fingerprint != towers.fingerprint
    torch.save(towers.encoder.model.state_dict(), tmp_path / "towers.pt")
    given = f"{{type: open_clip, precision: bf16, path: {tmp_path / 'towers.pt'}, sizes: {SIZES}}}"
    assert mmlm.encoder(given).fingerprint == towers.fingerprint
    assert json.dumps(towers.made_of()[0])
