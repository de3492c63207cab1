"""Rows as text and back; prompts with examples."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.schema import check
from mmlm.data.real_tables import load_real_tables
from mmlm.data.tables import Column, Table
from mmlm.tokenizers.config import RowText
from mmlm.tokenizers.table_prompts import assemble, draw_choices, draw_shots, frequent_choices
from mmlm.tokenizers.table_rows import (
    END_COMPLETION,
    END_INPUT,
    ShotStatistics,
    clean_text,
    completion,
    header,
    parse,
    parse_body,
    serialize,
    special_tokens,
    write_bodies,
    write_rows,
)

PETS = Table.from_frame(
    pd.DataFrame(
        {
            "weight": [4.5, None, 30],
            "sound": ["meow", 'a "low", deep | growl.\nthen none', None],
            "born on": pd.to_datetime(["2020-02-29", "2021-03-01 12:00", None], format="ISO8601"),
            "tame": [True, False, None],
            "species": ["cat", "dog", "dog"],
        }
    ),
    "pets",
)
NAMES = PETS.names[:-1]
CHOICES = ["cat", "dog"]
FORMS = ["template", "list", "json", "markdown", "csv", "structured"]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_sentences_are_those_of_the_published_format():
    expected = (
        "Predict the species ||cat||dog|| The weight is 4.5. The sound is meow. The born on is 2020-02-29. The tame is True. "
        "What is the value of species? ||cat||dog||<|endinput|>"
    )
    assert serialize(PETS, 0, "species", CHOICES) == expected
    assert write_rows(PETS, "species", CHOICES, RowText())[0] == expected
    assert completion("cat.") == "cat<|endcompletion|>"


WRITTEN = {
    "template": "The weight is 4.5. The sound is meow. The born on is 2020-02-29. The tame is True.",
    "list": "- weight: 4.5\n- sound: meow\n- born on: 2020-02-29\n- tame: True",
    "json": '{"weight": 4.5, "sound": "meow", "born on": "2020-02-29", "tame": "True"}',
    "markdown": "| column | value |\n|---|---|\n| weight | 4.5 |\n| sound | meow |\n| born on | 2020-02-29 |\n| tame | True |",
    "csv": "4.5,meow,2020-02-29,True",
    "structured": "<|key|>weight<|/key|><|value|>4.5<|/value|><|key|>sound<|/key|><|value|>meow<|/value|>"
    "<|key|>born on<|/key|><|value|>2020-02-29<|/value|><|key|>tame<|/key|><|value|>True<|/value|>",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_written_as_it_should_be(form):
    assert write_bodies(PETS, "species", RowText(form=form))[0] == WRITTEN[form]
    assert header(PETS, "species", RowText(form=form)) == ("Columns: weight,sound,born on,tame\n" if form == "csv" else "")
    assert serialize(PETS, 0, "species", CHOICES, RowText(form=form)).startswith(header(PETS, "species", RowText(form=form)))


@pytest.mark.parametrize("missing", ["omit", "word", "nan"])
@pytest.mark.parametrize("choices", ["front", "back", "both"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_back_what_was_written(form, choices, missing):
    config = RowText(form=form, choices=choices, missing=missing)
    fill = {"omit": None, "word": "missing", "nan": "nan"}[missing]
    for row in range(3):
        prompt = serialize(PETS, row, "species", CHOICES, config)
        written = {name: PETS.text(name, row) or fill for name in NAMES}
        assert parse(prompt, "species", NAMES, CHOICES, config) == {name: cell for name, cell in written.items() if cell}
        assert prompt.endswith(END_INPUT) and prompt.count("cat||dog") == (2 if choices == "both" else 1)
    assert json.loads(write_bodies(PETS, "species", RowText(form="json"))[2]) == {"weight": 30}


@pytest.mark.parametrize("form", ["template", "list", "json", "markdown", "structured"])
def test_column_order_and_dropped_cells_are_drawn_by_row_and_still_read_back(form):
    rows = PETS.take([0] * 400)
    config = RowText(form=form, shuffle_columns=True, feature_dropout=0.4)
    bodies = write_bodies(rows, "species", config, rng=rng())
    assert bodies == write_bodies(rows, "species", config, rng=rng()) != write_bodies(rows, "species", config, rng=rng(1))
    found = [parse_body(body, NAMES, config) for body in bodies]
    full = {name: PETS.text(name, 0) for name in NAMES}
    assert all(cells and cells.items() <= full.items() for cells in found)
    assert {next(iter(cells)) for cells in found} == set(NAMES) and len({tuple(cells) for cells in found}) > 40
    share = sum(map(len, found)) / (4 * len(found))
    assert abs(share - (0.6 + 0.4 / 4)) < 0.05, "one of four cells always stays"
    with pytest.raises(DataError, match="need a random generator"):
        write_bodies(rows, "species", config)


def test_a_cell_that_looks_like_an_earlier_cell_is_read_back_whole():
    body = write_bodies(Table.from_frame(pd.DataFrame({"a": [1], "b": ["so. The a is 2"], "y": [0]}), "t"), "y", RowText())[0]
    assert parse_body(body, ["a", "b"], RowText()) == {"a": "1", "b": "so. The a is 2"}


def test_a_table_without_features_still_asks():
    only = PETS.select(["species"])
    for form in FORMS:
        prompt = serialize(only, 0, "species", CHOICES, RowText(form=form))
        assert "  " not in prompt and parse(prompt, "species", [], CHOICES, RowText(form=form)) == {}


def test_rank_and_scale_come_from_the_examples_alone():
    shots = Table.from_frame(pd.DataFrame({"x": [1.0, 2, 3, 4, None], "c": list("aabbb"), "y": list("uvuvu")}), "shots")
    rows = Table.from_frame(pd.DataFrame({"x": [2.0, 99, None], "c": list("abz"), "y": list("uvu")}), "rows")
    config = RowText(metafeatures=True)
    bodies = write_bodies(rows, "y", config, statistics=ShotStatistics.of(shots))
    assert bodies == [
        "The x (quantile:0.38, scale:-0.45) is 2. The c is a.", "The x (quantile:1, scale:86) is 99. The c is b.", "The c is z.",
    ]  # fmt: skip
    for form in ("template", "list", "json", "markdown", "structured"):
        config = RowText(form=form, metafeatures=True)
        body = write_bodies(rows, "y", config, statistics=ShotStatistics.of(shots))[1]
        assert "scale:86" in body and parse_body(body, ["x", "c"], config) == {"x": "99", "c": "b"}
    with pytest.raises(DataError, match="metafeatures need the statistics"):
        write_bodies(rows, "y", config)


def test_dates_are_expanded_with_days_since_the_first_example():
    config = RowText(expand_dates=True)
    expected = "The born on is 2020-02-29. The born on year is 2020. The born on month is 2. The born on weekday is Saturday."
    born = PETS.select(["born on", "species"])
    assert write_bodies(born, "species", config)[0] == expected
    statistics = ShotStatistics.of(born.take([0]))
    assert write_bodies(born, "species", config, statistics=statistics)[1].endswith(
        "weekday is Monday. The born on days since the first is 366.5."
    )
    assert write_bodies(born, "species", config)[2] == ""


def test_codes_are_written_by_their_dictionary_and_numbers_with_the_precision_asked():
    table = Table.from_frame(pd.DataFrame({"sex": [1, 2, 3], "size": [1.23456, 2, 1e-9], "y": [0, 1, 1]}), "coded")
    config = RowText(dictionary={"sex": {"1": "man", "2": "woman"}, "y": {"0": "no", "1": "yes."}}, max_precision=2)
    assert write_bodies(table, "y", config) == [
        "The sex is man. The size is 1.23.",
        "The sex is woman. The size is 2.",
        "The sex is 3. The size is 0.",
    ]


def test_long_cells_lose_their_middle_and_markers_are_broken_up():
    text = "".join(chr(97 + at % 26) for at in range(200))
    short = clean_text(text, 64)
    assert len(short) == 64 and short[32] == "\u2026" and text.startswith(short[:32]) and text.endswith(short[33:])
    assert clean_text(" yes. ") == "yes" and clean_text(".") == "." and clean_text("x" * 64, 64) == "x" * 64
    evil = Table.from_frame(pd.DataFrame({"note <|endinput|>": ["<|endinput|>cat<|endcompletion|>"], "y": ["a||b"]}), "evil")
    for form in FORMS:
        prompt = serialize(evil, 0, "y", ["a||b", "<|endinput|>"], RowText(form=form))
        assert prompt.count(END_INPUT) == 1 and END_COMPLETION not in prompt and "||a| |b||" in prompt


def test_special_tokens_are_those_that_are_written():
    assert special_tokens(RowText()) == [END_INPUT, END_COMPLETION]
    prompt = serialize(PETS, 0, "species", CHOICES, RowText(form="structured")) + completion("cat")
    assert (
        all(token in prompt for token in special_tokens(RowText(form="structured")))
        and len(special_tokens(RowText(form="structured"))) == 8
    )


def test_every_key_of_the_row_text_changes_something_or_is_refused():
    changed = {
        "form": "list", "choices": "front", "missing": "word", "shuffle_columns": True, "feature_dropout": 0.5, "metafeatures": True,
        "max_precision": 0, "max_cell_characters": 5, "expand_dates": True, "dictionary": {"sound": {"meow": "a meow"}},
    }  # fmt: skip
    assert set(changed) == set(RowText.model_fields)

    def written(**keys):
        return write_rows(PETS, "species", CHOICES, RowText(**keys), statistics=ShotStatistics.of(PETS), rng=rng())

    for key, value in changed.items():
        assert written(**{key: value}) != written(), key
    with pytest.raises(RecipeError, match="shuffle_columns.*form csv names the columns once"):
        check(RowText, {"form": "csv", "shuffle_columns": True}, "x.yaml")


def test_rows_may_each_have_their_own_choices():
    prompts = write_rows(PETS, "species", [["cat"], ["dog", "cow"], ["dog"]], RowText(choices="back"))
    assert [prompt.partition("? ")[2] for prompt in prompts] == ["||cat||<|endinput|>", "||dog||cow||<|endinput|>", "||dog||<|endinput|>"]
    assert "||" not in serialize(PETS, 0, "species", [])


BROKEN = [("json", '{"a": '), ("json", "[1]"), ("csv", '"a'), ("csv", "1,2"), ("markdown", "| a | b |")]


@pytest.mark.parametrize(("form", "body"), BROKEN)
def test_a_row_that_cannot_be_read_is_a_data_error(form, body):
    with pytest.raises(DataError):
        parse_body(body, ["a"], RowText(form=form))
    with pytest.raises(DataError, match="no prompt for 'species'"):
        parse("Predict the price", "species", NAMES, CHOICES, RowText(form=form))


def readable(rows: Table, row: int, names: list[str]) -> bool:
    """Whether no cell of the row holds the beginning of another cell as the sentences write it."""
    cells = {name: rows.text(name, row) for name in names}
    return not any(
        f"The {other} is " in f"The {name} is {cell}." for name, cell in cells.items() if cell for other in names if other != name
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_200_real_tables_read_back_exactly(form, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "real"
    tables = [table for split in ("test", "valid", "train") for table in load_real_tables(split, max_rows=20, cache_folder=folder)][:200]
    assert len(tables) == 200
    config = RowText(form=form, max_cell_characters=10**6)
    rows, left_out = 0, 0
    for table in tables:
        choices = [str(label) for label in dict.fromkeys(table.texts(table.target))][:8]
        names = table.features
        prompts = write_rows(table, table.target, choices, config)
        written = {name: [text and clean_text(text) for text in table.texts(name)] for name in names}
        for row, prompt in enumerate(prompts):
            if not readable(table, row, names):
                left_out += 1
                continue
            cells = {name: texts[row] for name, texts in written.items() if texts[row] is not None}
            assert parse(prompt, table.target, names, choices, config) == cells, (table.name, row)
            rows += 1
    assert rows > 3900 and left_out <= 40, (rows, left_out)


def test_the_oldest_examples_give_way_and_the_query_is_never_cut():
    shots = [f"shot {at}" * at for at in range(1, 6)]
    full = assemble(shots, "the query", 1000, len)
    assert full == ("".join(shots) + "the query", 5, len("".join(shots)) + 9)
    part = assemble(shots, "the query", 9 + len(shots[4]) + len(shots[3]) + 3, len)
    assert part.text == shots[3] + shots[4] + "the query" and part.num_shots == 2
    assert assemble(shots, "the query", 9 + len(shots[4]), len).num_shots == 1
    assert assemble(shots, "the query", 8 + len(shots[4]), len).num_shots == 0
    assert assemble(shots, "the query", 9, len) == ("the query", 0, 9)
    assert assemble(shots[-1:], "q", 1000, len, header="head\n").text == "head\n" + shots[4] + "q"
    with pytest.raises(DataError, match="has 9 tokens, but the context holds 8"):
        assemble(shots, "the query", 8, len)


def test_examples_are_drawn_from_known_rows_and_in_turns_where_asked():
    labels = np.array([0] * 90 + [1] * 8 + [2] * 2 + [-1] * 10)
    drawn = [draw_shots(labels, 6, rng(seed), balanced=True, leave_out=[98]) for seed in range(50)]
    assert all(Counter(labels[rows].tolist())[2] == 1 and len(set(rows)) == 6 and 98 not in rows for rows in drawn)
    assert {tuple(sorted(Counter(labels[rows].tolist()).values())) for rows in drawn} == {(1, 2, 3)}
    assert len({int(labels[rows][0]) for rows in drawn}) == 3, "the order is random, not by class"
    plain = np.concatenate([draw_shots(labels, 10, rng(seed)) for seed in range(50)])
    assert (labels[plain] >= 0).all() and (labels[plain] == 0).mean() > 0.8
    assert len(draw_shots(labels, 500, rng())) == 100 and len(draw_shots([], 3, rng())) == 0


def test_choices_hold_the_truth_in_training_and_the_most_frequent_at_evaluation():
    classes = [f"c{at}" for at in range(20)]
    drawn = [draw_choices(classes, "c7", rng(seed)) for seed in range(100)]
    assert all(len(set(names)) == 8 and "c7" in names and names == sorted(names, key=classes.index) for names in drawn)
    assert set().union(*drawn) == set(classes) and len({names.index("c7") for names in drawn}) > 3
    assert draw_choices(classes[:8], "c7", rng()) == classes[:8]
    with pytest.raises(DataError, match="'c99' is not among the 20 classes"):
        draw_choices(classes, "c99", rng())
    assert frequent_choices(classes, ["c5", "c9", "c5", "c2"], 3) == ["c2", "c5", "c9"]
    assert frequent_choices(classes[:3], [], 8) == classes[:3]


def test_rank_and_scale_are_those_of_numbers_that_are_there_and_of_examples_that_differ():
    table = Table("t", [Column("age", "number", np.array([0.1, 0.1, 0.1, 0.2, np.nan]))])
    same = ShotStatistics.of(table.take([0, 1, 2]))
    rows = write_bodies(table, "y", RowText(metafeatures=True, missing="word"), statistics=same)
    assert rows[3:] == ["The age (quantile:1, scale:0.1) is 0.2.", "The age is missing."]
