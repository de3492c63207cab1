"""An index of vectors: what lies nearest, what is refused, and that a folder is whole or told to be damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmlm
from mmlm.base.errors import CheckpointError, DataError, RecipeError
from mmlm.cli import main
from mmlm.retrieval.index import ABOUT, AT_ONCE, Index

faiss = pytest.importorskip("faiss")
TOWERS = (
    "{type: open_clip, sizes: {size: 12, picture: {image_size: 32, width: 24, layers: 2, heads: 2}, "
    "text: {context: 16, width: 16, layers: 2, heads: 2}}, path: FILE}"
)


def vectors(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def filled(**options) -> Index:
    index = Index(8, **options)
    index.add([f"item {number}" for number in range(50)], vectors(50))
    return index


@pytest.mark.parametrize("metric", ["cosine", "inner"])
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_the_nearest_are_those_of_all_products(metric, kind) -> None:
    queries, held = vectors(6, seed=1), vectors(50)
    scores = mmlm.similarity(queries, held) if metric == "cosine" else queries @ held.T
    for row, found in zip(scores, filled(metric=metric, kind=kind).search(queries, top=3), strict=True):
        assert [one.name for one in found] == [f"item {place}" for place in np.argsort(-row)[:3]]
        assert np.allclose([one.score for one in found], np.sort(row)[::-1][:3], atol=1e-5)


def test_fewer_are_found_where_the_index_holds_fewer() -> None:
    index = Index(8)
    with pytest.raises(DataError, match="the index is empty; add items first"):
        index.search(vectors(1))
    index.add(["a", "b"], vectors(2))
    assert {one.name for one in index.search(vectors(1))[0]} == {"a", "b"} and index.search(vectors(0)) == []


def test_what_cannot_be_added_changes_nothing() -> None:
    index, wrong = filled(), vectors(2)
    wrong[1, 3] = np.nan
    for names, given, told in (
        (["a"], vectors(1, 7), r"the vectors to add must be \[n, 8\], as this index has them, but are \[1, 7\]"),
        (["a"], vectors(1)[0], r"must be \[n, 8\].*but are \[8\]"),
        (["a", "b"], wrong, "hold numbers that are not finite, the first in row 1"),
        (["a"], vectors(2), "these are 1 names and 2 vectors"),
        (["a", "item 7"], vectors(2), "'item 7' is in the index already"),
        (["a", "b", "a", "b"], vectors(4), "'a' comes twice, and so do 1 more"),
        (["a", 3], vectors(2), "a name is a text, but this is int 3"),
    ):
        with pytest.raises(DataError, match=told):
            index.add(names, given)
    assert len(index) == 50 and index._vectors.ntotal == 50
    for options, told in (({"metric": "l2"}, "metric must be one of cosine, inner"), ({"kind": "ivf"}, "kind must be one of flat, hnsw")):
        with pytest.raises(RecipeError, match=told):
            Index(8, **options)
    with pytest.raises(RecipeError, match="size must be at least 1"):
        Index(0)
    with pytest.raises(RecipeError, match="top must be at least 1, but is 0"):
        index.search(vectors(1), top=0)
    with pytest.raises(DataError, match=r"the queries must be \[n, 8\]"):
        index.search(vectors(1, 9))


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_saved_index_is_the_same_and_goes_on(kind, tmp_path: Path) -> None:
    index = filled(kind=kind, fingerprint="f", encoder="e")
    index.save(tmp_path / "new" / "x")
    again = Index.load(tmp_path / "new" / "x")
    assert again.search(vectors(5, seed=2)) == index.search(vectors(5, seed=2))
    assert (again.metric, again.kind, again.fingerprint, again.encoder, again.size) == ("cosine", kind, "f", "e", 8)
    again.add(["one more"], vectors(1, seed=3))
    again.save(tmp_path / "new" / "x")
    assert len(list((tmp_path / "new" / "x").iterdir())) == 2
    assert Index.load(tmp_path / "new" / "x").search(vectors(1, seed=3), 1)[0][0].name == "one more"
    with pytest.raises(DataError, match="'one more' is in the index already"):
        Index.load(tmp_path / "new" / "x").add(["one more"], vectors(1))


@pytest.mark.parametrize("step", range(4))
def test_a_save_that_is_stopped_leaves_the_index_as_it_was(step, tmp_path: Path, monkeypatch) -> None:
    filled().save(tmp_path)
    later, calls = Index.load(tmp_path), 0
    later.add(["one more"], vectors(1, seed=3))

    def stops(real):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls > step:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(os, "fsync", stops(os.fsync))
    monkeypatch.setattr(os, "replace", stops(os.replace))
    with pytest.raises(OSError, match="No space left"):
        later.save(tmp_path)
    monkeypatch.undo()
    assert len(Index.load(tmp_path)) == 50


def test_damage_is_told_and_never_given_to_faiss(tmp_path: Path, monkeypatch) -> None:
    filled().save(tmp_path / "good")
    (file,) = (tmp_path / "good").glob("*.faiss")
    about, content = json.loads((tmp_path / "good" / ABOUT).read_text()), file.read_bytes()

    def damaged(told: str, whole: bytes = content, **changed: object) -> None:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / file.name).write_bytes(whole)
        (tmp_path / "bad" / ABOUT).write_text(json.dumps({**about, **changed}))
        with pytest.raises(CheckpointError, match=told):
            Index.load(tmp_path / "bad")

    damaged("names 49 items of 8 numbers, but .* holds 50 vectors of 8 numbers", names=about["names"][:49])
    damaged("names 50 items of 9 numbers", size=9)
    damaged("names 49 items", names=[*about["names"][:49], about["names"][0]])
    damaged("names: must all be texts", names=[3, *about["names"][1:]])
    monkeypatch.setattr(faiss, "deserialize_index", lambda content: pytest.fail("faiss was given a damaged file"))
    for place in (0, 10, len(content) // 2, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 4
        damaged("is damaged: its SHA-256 is not that of", bytes(flipped))
        damaged("is damaged", content[:place])
    damaged("no such file, but .* names it", file="vectors-other.faiss")
    damaged("no such file", file=f"../good/{file.name}")
    damaged("format: must be 1, but is 2", format=2)
    damaged("size: must be of the type int, but is 8", size="8")
    damaged("kind must be one of", kind="ivf")
    damaged("must hold one object with the keys", further=1)
    (tmp_path / "bad" / ABOUT).write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        Index.load(tmp_path / "bad")
    with pytest.raises(CheckpointError, match="no index: index.json is missing. Make one: mmlm encode"):
        Index.load(tmp_path / "nowhere")


class Counting:
    """An encoder of numbers, of which negative ones cannot be read."""

    def __new__(cls, seen: list[int]):
        from mmlm.encoders.vectors import Vectors

        class Made(Vectors):
            size, fingerprint = 2, "counting"

            def encode(self, items, *, batch_size=1, normalize=False, precision="auto", progress=None):
                seen.extend(items)
                if bad := [item for item in items if item < 0]:
                    raise DataError(f"{bad[0]} is negative.")
                return np.array([[1.0, item] for item in items], dtype=np.float32).reshape(-1, 2)

        return Made()


def test_items_go_through_in_parts_and_bad_ones_are_left_out() -> None:
    index, told, seen = Index(2, metric="inner"), [], []
    numbers = [number if number % 1000 else -number - 1 for number in range(AT_ONCE + 3000)]
    pairs = ((str(number), number) for number in numbers)
    added = index.add_stream(pairs, Counting(seen), batch_size=64, skip=lambda number, error: told.append((number, str(error))))
    good = [number for number in numbers if number >= 0]
    assert index.names == [str(number) for number in good] and added == len(good) and told[1] == (1000, "-1001 is negative.")
    places = np.random.default_rng(0).choice(len(good), 50)
    for place in places:  # the name that a vector has is that of its item
        assert index._vectors.reconstruct(int(place))[1] == good[place]
    again = Index(2, metric="inner")
    with pytest.raises(DataError, match="item 999: -1001 is negative"):
        again.add_stream(((str(number), number) for number in numbers[1:]), Counting(seen), batch_size=1)
    other = Index(2, fingerprint="another", encoder="log_mel")
    with pytest.raises(DataError, match=r"of the encoder another \(log_mel\), but the encoder is counting"):
        other.add_stream([], Counting(seen))


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> str:
    pytest.importorskip("open_clip")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("towers") / "towers.pt"
    torch.save(mmlm.encoder(TOWERS.replace(", path: FILE", "")).encoder.model.state_dict(), path)
    return TOWERS.replace("FILE", str(path))


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    rng, names = np.random.default_rng(0), []
    for number in range(5):
        names.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(names[-1])
    return names


def test_pictures_are_found_by_pictures_and_by_texts_on_the_command_line(towers, pictures, tmp_path: Path, capsys) -> None:
    folder = str(tmp_path / "pets.index")
    assert main(["encode", towers, *pictures[:3], "--index", folder]) == 0
    assert "3 items added, 3 in all" in capsys.readouterr().out
    assert main(["encode", towers, *pictures[3:], "--index", folder]) == 0
    assert "2 items added, 5 in all" in capsys.readouterr().out
    assert main(["search", folder, pictures[4], "two dogs", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == pictures[4] and lines[1] == f"1.0000\t{pictures[4]}" and lines[3] == "two dogs" and len(lines) == 6
    encoder = mmlm.encoder(towers)
    row = mmlm.similarity(encoder.encode_texts(["two dogs"]), encoder.encode(pictures))[0]
    assert lines[4:] == [f"{row[place]:.4f}\t{pictures[place]}" for place in np.argsort(-row)[:2]]
    assert main(["search", folder, "two dogs", "--top", "1"]) == 0
    assert capsys.readouterr().out.count("\n") == 1

    for words, told in (
        (["search", folder, "a", "--encoder", towers.replace("width: 24", "width: 36")], "do not fit the model"),
        (["search", folder, "a", "--encoder", towers.split(", path")[0] + "}"], "its settings or weights are others"),
        (["encode", towers.split(", path")[0] + "}", pictures[0], "--index", folder], "their vectors cannot be compared"),
        (["encode", towers, pictures[0], "--index", folder], "0.png' is in the index already; a name stands for one item"),
        (["search", str(tmp_path / "none"), "a"], "no index: index.json is missing"),
        (["search", folder, "a", "--top", "0"], "top must be at least 1"),
        (["encode", towers.split(", path")[0] + "}", pictures[0], "--index", f"{folder}2"], "has first weights, which are others"),
        (["encode", towers, pictures[0]], "give --output VECTORS.npy or --index FOLDER, one of them"),
        (["encode", towers, pictures[0], "--index", folder, "--output", "a.npy"], "one of them"),
        (["encode", towers, pictures[0], "--index", folder, "--normalize"], "--normalize has no effect with --index"),
        (["encode", towers, pictures[0], "--output", "a.npy", "--skip"], "--skip has no effect with --output"),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err
    assert len(Index.load(folder)) == 5


def test_files_that_cannot_be_read_are_told_and_left_out_if_asked(towers, pictures, tmp_path: Path, capsys) -> None:
    Path(pictures[1]).write_bytes(b"none")
    folder = str(tmp_path / "x")
    assert main(["encode", towers, *pictures, "--index", folder]) == 2
    told = capsys.readouterr().err
    assert "1.png: is no picture" in told and f"Nothing was added to {folder}; with --skip" in told and not Path(folder).exists()
    assert main(["encode", towers, *pictures, "--index", folder, "--skip"]) == 0
    out, err = capsys.readouterr()
    assert "4 items added, 4 in all; 1 could not be read" in out and "1.png: is no picture" in err
    assert Index.load(folder).names == [pictures[0], *pictures[2:]]


def test_rows_and_texts_are_found_by_a_run_that_reads_texts(text_folder: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "people.csv").write_text("name,age\nAnn,3\nBob,\n")
    (tmp_path / "note.txt").write_text("two dogs")
    folder = str(tmp_path / "x")
    items = [str(tmp_path / "people.csv"), str(tmp_path / "note.txt"), "a cat"]
    assert main(["encode", text_folder, *items, "--index", folder]) == 0
    index = Index.load(folder)
    assert index.names == [f"{items[0]}, row 1", f"{items[0]}, row 2", items[1], "a cat"]
    assert main(["search", folder, "two dogs", items[0], "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0] == "two dogs" and lines[1] == f"1.0000\t{items[1]}" and lines[3] == f"1.0000\t{items[0]}, row 1"
    assert main(["encode", text_folder, *items, "--output", str(tmp_path / "v.npy")]) == 0
    wanted = mmlm.encoder(text_folder).encode([{"name": "Ann", "age": "3"}, {"name": "Bob"}, "two dogs", "a cat"])
    assert np.allclose(np.load(tmp_path / "v.npy"), wanted, atol=1e-6)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    assert main(["encode", text_folder, str(tmp_path / "bad.txt"), "--index", folder]) == 2
    assert "bad.txt: cannot be read as a text" in capsys.readouterr().err
    assert main(["encode", text_folder, str(tmp_path), "--index", folder]) == 2  # whose path is no text
    assert "is a folder; name the files in it" in capsys.readouterr().err and len(Index.load(folder)) == 4


def test_a_sound_is_not_found_by_a_text(tmp_path: Path, capsys) -> None:
    pytest.importorskip("torchaudio")
    from mmlm.data.audio_files import write_sound
    from mmlm.sound import Sound

    write_sound(tmp_path / "a.wav", Sound(np.random.default_rng(0).normal(size=4000).astype(np.float32) / 9, 16_000))
    assert main(["encode", "log_mel", str(tmp_path / "a.wav"), "--index", str(tmp_path / "x")]) == 0
    assert main(["search", str(tmp_path / "x"), str(tmp_path / "a.wav")]) == 0
    assert "1.0000\t" in capsys.readouterr().out
    assert main(["search", str(tmp_path / "x"), "a dog that barks"]) == 2
    assert "this encoder reads no texts" in capsys.readouterr().err
