from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlm.base import yaml
from mmlm.base.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4), ("5e-1", 0.5), ("1E3", 1000.0), ("1.5", 1.5), (".5", 0.5), ("-2.", -2.0), ("1_000", 1000), ("-7", -7), ("+3", 3),
        ("0", 0), ("007", "007"), ("0x1f", "0x1f"), ("12:30:45", "12:30:45"), ("no", "no"), ("on", "on"), ("Yes", "Yes"), ("True", "True"),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None), ("2026-11-24", "2026-11-24"), ("1.2.3", "1.2.3"),
        (".inf", math.inf), ("-.inf", -math.inf), ("'1'", "1"), ("<<", "<<"), ("=", "="), ("e5", "e5"), ("1e", "1e"), ("-", [None]),
    ],
)  # fmt: skip
def test_values_are_read_as_people_mean_them(text, value):
    got = yaml.parse(text, "x")
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x, line 3: key 'a' stands twice (first in line 1)."),
        ("a: {b: 1, b: 2}", "key 'b' stands twice"),
        ("a: &x [1]\nb: *x", "x, line 2: aliases (*name) are not allowed"),
        ("a: !!python/object/apply:os.system [ls]", "tags ('tag:yaml.org,2002:python/object/apply:os.system') are not allowed"),
        ("a: !!float '1'", "tags"),
        ("!local 3", "tags"),
        ("1: a", "key 1 must be a text"),
        ("[a]: b", "key ['a'] must be a text"),
        ("{{x: 1}: 2}", "must be a text"),
        ("a: [1, 2", "x, line 1"),
        ("a: b: c", "x, line 1"),
        ("a\x00b: 1", "U+0000"),
        ("a: 1\n---\nb: 2", "x, line 2"),
        ("[" * 100 + "]" * 100, "nested deeper than 40"),
        ("[" * 100_000, "nested deeper than 40"),
        ("{a: " * 100 + "1" + "}" * 100, "nested deeper than 40"),
        ("9" * 10_000, "not YAML"),
        ("\tx: 1", "x, line 1"),
    ],
)
def test_what_is_refused_names_the_line(text, message):
    with pytest.raises(RecipeError) as error:
        yaml.parse(text, "x")
    assert message in str(error.value) and len(str(error.value)) < 400


def test_repeated_keys_can_be_collected_and_the_first_counts():
    repeated: list[str] = []
    assert yaml.parse("a: 1\na: 2\nb: {c: 3, c: 4}", "x", repeated) == {"a": 1, "b": {"c": 3}}
    assert [line[:6] for line in repeated] == ["line 2", "line 3"]


def test_forty_levels_are_allowed():
    assert yaml.parse("[" * 40 + "]" * 40, "x")


letters = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | letters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc1e-.:# ", min_size=1, max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(plain)
def test_what_is_dumped_reads_back_equal(value):
    got = yaml.parse(yaml.dump(value), "x")
    assert got == value and repr(got) == repr(value)
