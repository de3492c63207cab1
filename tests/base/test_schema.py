from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from mmlm.base.errors import RecipeError
from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict, beyond_defaults, check

WIDGETS = Registry("widget", "test.widgets")


@WIDGETS.register("json:JSONDecoder", source="x")
class Small(Component):
    """A small one."""

    type: Literal["small"] = "small"
    size: int = Field(3, ge=1, le=10)


@WIDGETS.register("json:JSONEncoder", source="y")
class Large(Component):
    """A large one."""

    type: Literal["large"] = "large"
    inner: WIDGETS.choice | None = None


class One(Strict):
    type: Literal["one"] = "one"
    count: int = 1


class Two(Strict):
    type: Literal["two"] = "two"
    share: float = 0.5


class Layer(Strict):
    widget: WIDGETS.choice
    residual: bool = True

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, value):
        return {"widget": value} if isinstance(value, str) or (isinstance(value, dict) and "type" in value) else value


class Deep(Strict):
    schedule: Literal["constant", "cosine"] = "cosine"
    final_share: float = Field(0.1, ge=0, le=1)
    num_steps: int | Literal["auto"] = 10

    def without_effect(self):
        return {"final_share": "the schedule is constant"} if self.schedule == "constant" else {}


class Whole(Strict):
    schema_version: Literal[1] = Field(1, alias="schema")
    name: str = Field("x", pattern="^[a-z]+$")
    deep: Deep = Deep()
    deeps: dict[str, Deep] = {}
    layers: list[Layer] = Field([Layer(widget="small")], min_length=1)
    tagged: Annotated[One | Two, Field(discriminator="type")] = One()
    either: Deep | list[Deep] | None = None
    widgets: dict[str, WIDGETS.choice] = {}
    numbers: list[float] = []
    on: bool = False
    text_or_number: str | int = 0


def faults(raw) -> list[str]:
    try:
        check(Whole, raw, "f")
    except RecipeError as error:
        head, *lines = str(error).splitlines()
        assert head == f"f: {len(lines)} problem{'s' if len(lines) > 1 else ''}"
        return [line.strip() for line in lines]
    return []


CASES = {
    "typo at the top": ({"nmae": "a"}, "nmae: unknown key. Did you mean 'name'?"),
    "alias is the known key": ({"scheme": 1}, "scheme: unknown key. Did you mean 'schema'?"),
    "typo in a section": ({"deep": {"schedul": "cosine"}}, "deep.schedul: unknown key. Did you mean 'schedule'?"),
    "typo in a dict of sections": ({"deeps": {"a": {"num_step": 1}}}, "deeps.a.num_step: unknown key. Did you mean 'num_steps'?"),
    "typo in a list": ({"layers": [{"widget": "small", "residul": True}]}, "layers.0.residul: unknown key. Did you mean 'residual'?"),
    "typo in a component": ({"widgets": {"a": {"type": "small", "sise": 2}}}, "widgets.a.sise: unknown key. Did you mean 'size'?"),
    "typo in a nested component": (
        {"widgets": {"a": {"type": "large", "inner": {"type": "small", "sise": 2}}}},
        "widgets.a.inner.sise: unknown key. Did you mean 'size'?",
    ),
    "typo in a component written alone": ({"layers": ["small", {"type": "small", "sise": 2}]}, "layers.1.sise: unknown key."),
    "unknown component": ({"layers": ["smal"]}, "layers.0: unknown widget 'smal'. Did you mean 'small'? Known: large, small."),
    "unknown component in a section": ({"layers": [{"widget": {"type": "lage"}}]}, "layers.0.widget: unknown widget 'lage'."),
    "typo in a tagged union": ({"tagged": {"type": "two", "shar": 1}}, "tagged.shar: unknown key. Did you mean 'share'?"),
    "unknown tag": ({"tagged": {"type": "tow"}}, "tagged: unknown type 'tow'. Did you mean 'two'? Known: one, two."),
    "no tag": ({"tagged": {"share": 1}}, "tagged: needs a key 'type'."),
    "typo in a union of section and list": ({"either": {"schedul": 1}}, "either.schedul: unknown key."),
    "typo in the list of that union": ({"either": [{"schedul": 1}]}, "either.0.schedul: unknown key. Did you mean 'schedule'?"),
    "neither": ({"either": 3}, "either: must be a section with keys or a list, but is 3."),
    "unknown value": ({"deep": {"schedule": "cosin"}}, "must be 'constant' or 'cosine', but is 'cosin'. Did you mean 'cosine'?"),
    "number or word": ({"deep": {"num_steps": "aut"}}, "must be a whole number or 'auto', but is 'aut'. Did you mean 'auto'?"),
    "text for a number": ({"numbers": [1, "2e-4"]}, "numbers.1: must be a number, but is '2e-4'."),
    "true for a number": ({"widgets": {"a": {"type": "small", "size": True}}}, "widgets.a.size: must be a whole number, but is true."),
    "text for true or false": ({"on": "yes"}, "on: must be true or false, but is 'yes'."),
    "number for true or false": ({"on": 1}, "on: must be true or false, but is 1."),
    "number for a text": ({"name": 3}, "name: must be a text, but is 3."),
    "null": ({"on": None}, "on: must be true or false, but is null."),
    "too small": ({"widgets": {"a": {"type": "small", "size": 0}}}, "widgets.a.size: must be at least 1, but is 0."),
    "too large": ({"deep": {"final_share": 2}}, "deep.final_share: must be at most 1.0, but is 2."),
    "fraction": ({"tagged": {"type": "one", "count": 1.5}}, "tagged.count: must be a whole number, but is 1.5."),
    "infinite": ({"numbers": [float("inf")]}, "numbers.0: must be a finite number, but is inf."),
    "pattern": ({"name": "A b"}, "name: string should match pattern '^[a-z]+$', but is 'A b'."),
    "empty list": ({"layers": []}, "layers: must have at least 1 items, but has 0."),
    "no section": ({"deep": 3}, "deep: must be a section with keys, but is 3."),
    "missing": ({"layers": [{}]}, "layers.0.widget: is missing."),
    "no effect": (
        {"deep": {"schedule": "constant", "final_share": 0.2}},
        "deep.final_share: has no effect: the schedule is constant. Leave it out.",
    ),
    "no effect at its default": ({"deep": {"schedule": "constant", "final_share": 0.1}}, "deep.final_share: has no effect"),
    "not a section": ([1], "recipe: must be a section with keys, but is [1]."),
}


@pytest.mark.parametrize("case", CASES)
def test_a_fault_is_told_once_with_its_path_value_and_nearest_name(case):
    raw, sentence = CASES[case]
    found = faults(raw)
    assert len(found) == 1 and sentence in found[0]


def test_all_faults_of_a_file_are_told_at_once():
    raw: dict = {}
    for key, value in (("nmae", 1), ("on", 3), ("numbers", ["x", True]), ("deep", {"a": 1, "b": 2, "schedule": "x"})):
        raw[key] = value
    raw["layers"] = ["smal", {"type": "small", "size": -1, "sise": 1}]
    assert len(faults(raw)) == 1 + 1 + 2 + 3 + 1 + 2


def test_a_good_file_passes_and_its_dump_reads_back_equal():
    raw = {
        "schema": 1,
        "deep": {"schedule": "constant"},
        "layers": ["small", {"widget": {"type": "large", "inner": "small"}}],
        "either": [{"num_steps": "auto"}],
        "widgets": {"a": {"type": "small", "size": 7}},
        "numbers": [1, 2.5],
        "text_or_number": "7",
    }
    whole = check(Whole, raw, "f")
    plain = whole.model_dump(mode="json", by_alias=True)
    assert plain["widgets"]["a"] == {"type": "small", "size": 7} and plain["layers"][1]["widget"]["inner"]["size"] == 3
    assert "final_share" not in plain["deep"] and plain["deep"]["num_steps"] == 10 and plain["schema"] == 1
    assert check(Whole, plain, "f") == whole


def test_a_fault_under_a_shorter_key_is_told_at_the_key_that_was_written():
    class Jobs(Strict):
        shorthand = {"jobs": "job"}
        jobs: list[Deep]

        @model_validator(mode="before")
        @classmethod
        def _one(cls, raw):
            return {"jobs": [raw["job"]]} if "job" in raw else raw

    for raw, path in (({"job": {"num_step": 1}}, "job.num_step"), ({"jobs": [{"num_step": 1}]}, "jobs.0.num_step")):
        with pytest.raises(RecipeError, match=rf"  {path}: unknown key. Did you mean 'num_steps'"):
            check(Jobs, raw, "f")


def test_configs_made_in_python_say_what_is_wrong():
    with pytest.raises(ValidationError, match=r"sise: unknown key. Did you mean 'size'"):
        Small(sise=3)
    assert Small(size=4).size == 4 and Layer(widget=Small(size=2)).widget.size == 2


def test_messages_stay_short():
    assert len(faults({"name": ["x" * 10**6]})[0]) < 200
    assert len(faults({"y" * 10**5: 1})[0]) < 400


class Wind(Strict):
    type: Literal["wind"] = "wind"
    speed: float = 1.0


class Rain(Strict):
    type: Literal["rain"] = "rain"
    hours: list[int] = Field([], description="of the day")
    wind: Wind | None = None


def test_what_a_recipe_says_beyond_the_defaults_does_not_change_by_an_option_that_is_new():
    class Later(Rain):
        drops: int = 3
        cold: bool | None = None

    given = {"hours": [1, 2], "wind": {"speed": 2}}
    assert (
        beyond_defaults(Rain(**given))
        == beyond_defaults(Later(**given))
        == {"type": "rain", "hours": [1, 2], "wind": {"type": "wind", "speed": 2.0}}
    )
    assert beyond_defaults([Rain(), Wind()]) == [{"type": "rain"}, {"type": "wind"}]
    assert beyond_defaults({"a": Later(drops=3)}) == {"a": {"type": "rain"}} and beyond_defaults(Later(drops=4)) == {
        "type": "rain",
        "drops": 4,
    }
