"""What a finished run can be asked for: checked inputs, outputs by name, tasks that are declared elsewhere."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmlm.base.errors import CheckpointError, DataError
from mmlm.serving.examples import examples_of
from mmlm.serving.uses import runs_below, uses_of
from mmlm.sound import Sound
from mmlm.tasks.answers import ClassAnswers
from mmlm.tasks.config import TASKS
from mmlm.tasks.forms import AskedOfOne, AskedOfSeveral, Audio, Choice, Flag, Image, Number, Part, Pictures, Points, Table, Text, checked

DEMOS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "demos").glob("*.py"))
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def uses(runs):
    return {name: uses_of(folder)[0] for name, folder in runs.items()}


def test_runs_are_found_newest_first_and_none_is_an_error(runs, tmp_path):
    assert {path.name for path in runs_below(runs["words"].parent)} == set(runs)
    with pytest.raises(CheckpointError, match="no finished run"):
        runs_below(tmp_path)


@pytest.mark.parametrize(("name", "command"), [("words", "--text"), ("seen", "--image picture.jpg"), ("rows", "--table new.csv")])
def test_the_card_of_a_run_says_how_it_is_used(runs, name, command):
    card = (runs[name] / "README.md").read_text(encoding="utf-8")
    assert all(f"    mmlm {verb} {runs[name]}" in card for verb in ("generate", "demo", "serve")) and command in card


def test_a_text_grows_token_by_token(uses):
    seen = [found["text"] for found in uses["words"].answer({"text": "The 3.", "max_new_tokens": 6})]
    assert 2 <= len(seen) <= 8 and seen[0] == "The 3."
    assert all(later.startswith("The 3.") for later in seen) and len(set(seen)) > 1
    assert seen[-1] == [found["text"] for found in uses["words"].answer({"text": "The 3.", "max_new_tokens": 6})][-1]


def test_what_new_tokens_looked_at_is_told_where_it_is_asked_for(uses):
    asked = {"text": "The 3.", "max_new_tokens": 6}
    assert [found["attention"] for found in uses["words"].answer(asked) if "attention" in found] == [None]
    *_, found = uses["words"].answer({**asked, "attention": True})
    names, weights_et = found["attention"]["names"], np.array(found["attention"]["weights"])
    assert found["text"].startswith("".join(names).replace("<|endoftext|>", "")) and len(names) == len(weights_et)
    first = len(names) - weights_et.shape[1]  # the token that wrote the first new one
    prompt = uses["words"].task.prompt(uses["words"].model, "The 3.")
    assert 0 < weights_et.shape[1] == len(names) + 1 - len(prompt) <= 6  # a column each new token
    assert np.allclose(weights_et.sum(0), 1, atol=0.02)
    assert all(not weights_et[first + step + 1 :, step].any() for step in range(weights_et.shape[1]))  # nobody sees what comes later
    with pytest.raises(DataError, match="attention: is shown of up to 512 tokens"):
        list(uses["words"].answer({**asked, "max_new_tokens": 512, "attention": True}))


def test_a_picture_is_answered_with_words_boxes_and_a_drawing(uses):
    use = uses["seen"]
    assert {"caption", "expression"} & set(use.inputs["kind"].options) and "phrases" not in use.inputs["kind"].options
    (found,) = use.answer({"image": NOISE, "kind": "expression", "words": "the red circle"})
    assert found["image"].dtype == np.uint8 and isinstance(found["text"], str) and isinstance(found["boxes"], list)
    with pytest.raises(DataError, match="words: are needed where 'expression' is asked"):
        list(use.answer({"image": NOISE, "kind": "expression"}))
    with pytest.raises(DataError, match="words: have no place"):
        list(use.answer({"image": NOISE, "kind": "grounded_caption", "words": "red"}))


def test_of_a_part_of_a_picture_it_is_said_what_is_said_of_the_part_alone(uses):
    use, left, top = uses["seen"], 20, 8
    asked = {"kind": "expression", "words": "the red circle"}
    (alone,) = use.answer({"image": np.ascontiguousarray(NOISE[top:, left:52]), **asked})
    (found,) = use.answer({"image": NOISE, **asked, "part": [left, top, 52, 999]})
    assert found["text"] == alone["text"] and found["boxes"] and found["image"].shape[1] / found["image"].shape[0] == 60 / 40
    for one, other in zip(found["boxes"], alone["boxes"], strict=True):
        moved = [[x1 + left, y1 + top, x2 + left, y2 + top] for x1, y1, x2, y2 in other["boxes"]]
        assert np.allclose(one["boxes"], moved, atol=0.02)
    with pytest.raises(DataError, match=r"\[70, 0, 80, 9\] lies outside of the picture of 60 x 40"):
        list(use.answer({"image": NOISE, **asked, "part": [70, 0, 80, 9]}))


def test_rows_get_a_value_and_probabilities(uses, monkeypatch):
    (given,), why = examples_of(uses["rows"])
    task, counted = uses["rows"].task, []
    predict = task.predict_proba
    monkeypatch.setattr(task, "predict_proba", lambda *asked: counted.append(1) or predict(*asked))
    assert not why and "species" not in given["table"][0]
    known = [{name: cell for name, cell in row.items() if name != "species"} for row in given["shots"]]
    assert not any(row in known for row in given["table"]) and len({row["species"] for row in given["shots"]}) == 3
    (found,) = uses["rows"].answer(given)
    assert counted == [1]  # classes and their probabilities are read off together
    assert len(found["table"]) == len(given["table"]) == len(found["probabilities"])
    for row, chances in zip(found["table"], found["probabilities"], strict=True):
        assert row["species"] == max(chances, key=chances.__getitem__) and abs(sum(chances.values()) - 1) < 0.01
    with pytest.raises(DataError, match="no column 'price'"):
        list(uses["rows"].answer({**given, "target": "price"}))


def test_examples_are_made_of_records_that_were_held_out(uses):
    for name in ("words", "seen"):
        found, why = examples_of(uses[name], 2)
        assert not why and len(found) >= 1
        assert list(uses[name].answer({**found[0], **({"max_new_tokens": 2} if name == "words" else {})}))


def test_where_the_data_are_gone_there_are_no_examples_but_a_reason(uses, monkeypatch):
    monkeypatch.setattr(type(uses["words"].recipe.data.train[0]), "build", lambda self: (_ for _ in ()).throw(DataError("gone: no file.")))
    found, why = examples_of(uses["words"])
    assert not found and "gone: no file." in why


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (Text("t"), 3, "must be a text"),
        (Text("t"), " ", "is empty"),
        (Text("t"), "a" * 20_001, "20,001 characters"),
        (Text("t"), "a\0b", "NUL"),
        (Number("n", low=0, high=2), float("nan"), "must be a number"),
        (Number("n", low=0, high=2), True, "must be a number"),
        (Number("n", low=0, high=2), "2", "must be a number"),
        (Number("n", low=0, high=2), 3, "from 0 to 2"),
        (Number("n", low=0, high=2), 10**400, "must be a number"),
        (Choice("c", options=("left", "right")), "lefd", "Did you mean"),
        (Audio("a"), "x.wav", "holds no sound"),
        (Audio("a"), Sound(np.zeros(0, np.float32), 8000), "holds no sound"),
        (Audio("a", most_seconds=1), Sound(np.zeros(16001, np.float32), 8000), "longer than the 1 s"),
        (Audio("a"), Sound(np.full(9, np.nan, np.float32), 8000), "no numbers"),
        (Image("i"), NOISE[..., :2], "holds no picture"),
        (Image("i"), NOISE.astype(float), "holds no picture"),
        (Flag("f"), 1, "must be true or false"),
        (Pictures("ps"), NOISE, "holds no pictures"),
        (Pictures("ps"), [], "holds no pictures"),
        (Pictures("ps"), [NOISE, NOISE[..., :2]], "given, picture 2: holds no picture"),
        (Pictures("ps"), [NOISE] * 33, "holds 33 pictures; 32 are allowed"),
        (Pictures("ps"), [np.broadcast_to(NOISE[:1, :1], (3000, 3000, 3))] * 2, "16,000,000 pixels that are allowed in all"),
        (Part("b"), [0, 0, 5], "left, top, right, bottom"),
        (Part("b"), [4, 0, 4, 9], "left, top, right, bottom"),
        (Part("b"), [0, 0, float("nan"), 9], "left, top, right, bottom"),
        (Part("b"), [0, 0, 10**400, 9], "left, top, right, bottom"),
        (Points("p"), np.zeros((3, 3)), "holds no points"),
        (Table("r"), [], "list of rows"),
        (Table("r"), [{"a": [1]}], "row 1, column 'a'"),
        (Table("r"), [{"a": 1}] * 10_001, "10,001 rows"),
        (Table("r"), [{"a": 1}, {"a": 10**400}], "row 2, column 'a'"),
        (Table("r"), [{f"c{at}": 1} for at in range(501)], "row 501: is where the columns become more than the 500"),
    ],
)
def test_what_is_none_of_a_field_is_refused_by_name(field, value, words):
    with pytest.raises(DataError, match="given") as error:
        checked({"given": field}, {"given": value})
    assert words in str(error.value)


def test_what_is_missing_or_unknown_is_named():
    fields = {"text": Text("t"), "seed": Number("s", is_optional=True, usual=7, high=9)}
    assert checked(fields, {"text": "a"}) == {"text": "a", "seed": 7}
    with pytest.raises(DataError, match="text: is missing"):
        checked(fields, {"seed": 1})
    with pytest.raises(DataError, match="unknown input 'sed'.*Did you mean 'seed'"):
        checked(fields, {"text": "a", "sed": 1})


def test_every_task_is_asked_by_people_or_says_why_not():
    asked = set()
    for name, config in TASKS.entries.items():
        module, _, attribute = config.builds.partition(":")
        task = getattr(importlib.import_module(module), attribute)
        has_examples = issubclass(task, AskedOfOne) or issubclass(task, AskedOfSeveral)
        if {"inputs", "outputs", "answer"} <= set(dir(task)) and has_examples or issubclass(task, ClassAnswers):
            asked.add(name)
        assert bool(config.never_asked) != (name in asked), name
    assert len(TASKS.entries) == 16 and sorted(asked) == DEMOS and len(DEMOS) == 14


def test_two_people_at_once_get_their_own_answers(uses):
    use = uses["words"]
    alone = {text: list(use.answer({"text": text, "max_new_tokens": 8}))[-1]["text"] for text in ("The 3.", "line")}
    found: dict[str, str] = {}

    def ask(text: str) -> None:
        found[text] = list(use.answer({"text": text, "max_new_tokens": 8}))[-1]["text"]

    threads = [threading.Thread(target=ask, args=(text,)) for text in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_runs_that_trained_a_tokenizer_are_found_too(tmp_path):
    (tmp_path / "codec" / "tokenizers" / "codec").mkdir(parents=True)
    (tmp_path / "codec" / "recipe.yaml").touch()
    with pytest.raises(CheckpointError):
        runs_below(tmp_path)
    (tmp_path / "codec" / "tokenizers" / "codec" / "codec.safetensors").touch()
    assert runs_below(tmp_path) == [tmp_path / "codec"]
    (tmp_path / "towers").mkdir()
    for name in ("recipe.yaml", "open_clip_model.safetensors"):
        (tmp_path / "towers" / name).touch()
    assert set(runs_below(tmp_path)) == {tmp_path / "codec", tmp_path / "towers"}


def test_an_answer_may_be_taken_piece_by_piece_by_different_threads(uses):
    answer, found, done = uses["words"].answer({"text": "The 3.", "max_new_tokens": 4}), [], threading.Event()
    threads = []
    for _ in range(8):
        taken = threading.Event()

        def take(taken: threading.Event = taken) -> None:
            found.extend(each["text"] for each in [next(answer, None)] if each)
            taken.set()
            done.wait()  # a thread that has ended would lend its number to the next one

        threads.append(threading.Thread(target=take, daemon=True))
        threads[-1].start()
        assert taken.wait(20)
    done.set()
    assert len(found) >= 2 and list(uses["words"].answer({"text": "The 3.", "max_new_tokens": 4}))[-1]["text"] == found[-1]


def test_a_text_beyond_the_context_is_refused_with_both_lengths(uses):
    with pytest.raises(DataError, match=r"text: is 36 tokens long; the context of this model is 24"):
        list(uses["words"].answer({"text": "Zq " * 12, "max_new_tokens": 2}))
    task = uses["words"].task
    model = SimpleNamespace(
        backbone=SimpleNamespace(config=SimpleNamespace(learned_positions=20)), vocabulary=uses["words"].model.vocabulary
    )
    assert len(task.prompt(model, "abc", 16)) < 5
    with pytest.raises(DataError, match="with 19 new ones are more than the 20"):
        task.prompt(model, "abc", 19)
