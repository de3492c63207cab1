from __future__ import annotations

import sys
from typing import Literal

import pytest

from mmlm.base.errors import RecipeError
from mmlm.base.jsonschema import json_schema
from mmlm.base.registry import REGISTRIES, Component, Registry
from mmlm.base.schema import Strict, check


@pytest.fixture
def gadgets():
    registry = Registry("gadget", "test.gadgets")

    @registry.register("collections:Counter", source="nobody 1970")
    class Counter(Component):
        """Counts."""

        type: Literal["counter"] = "counter"
        start: int = 0

    yield registry
    del REGISTRIES[registry.plural]


def install(folder, monkeypatch, module: str, source: str, points: dict[str, str], group: str = "test.gadgets") -> None:
    """A package of somebody else, as pip would lay it down."""
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items()))
    monkeypatch.syspath_prepend(folder)


THEIRS = '''
from typing import Literal
from mmlm.base.registry import REGISTRIES, Component

class Built:
    def __init__(self, config, width):
        self.size = config.size + width

@REGISTRIES["test.gadgets"].register("their_gadgets:Built", source="them")
class Theirs(Component):
    """Theirs."""
    type: Literal["theirs"] = "theirs"
    size: int = 5

@REGISTRIES["test.gadgets"].register("their_gadgets:Built", source="them")
class Other(Component):
    """Other."""
    type: Literal["other"] = "other"
'''
POINTS = {"theirs": "their_gadgets:Theirs", "other": "their_gadgets:Other"}


@pytest.fixture(autouse=True)
def forget_their_modules():
    yield
    for module in ("their_gadgets", "bad_gadgets"):
        sys.modules.pop(module, None)


def test_a_component_knows_its_name_target_and_source(gadgets):
    config = gadgets.parse({"type": "counter", "start": 2})
    assert (config.builds, config.source, config.start) == ("collections:Counter", "nobody 1970", 2)
    assert gadgets.parse("counter") == type(config)() and gadgets.parse(config) is config
    assert gadgets.names() == ["counter"] and gadgets.get("counter") is type(config)


def test_the_same_name_twice_is_an_error(gadgets):
    with pytest.raises(RecipeError, match=r"gadget 'counter' is registered twice: collections:Counter and x:Y"):

        @gadgets.register("x:Y", source="")
        class Twice(Component):
            type: Literal["counter"] = "counter"


def test_a_component_without_a_name_is_an_error(gadgets):
    with pytest.raises(RecipeError, match="needs a default"):

        @gadgets.register("x:Y", source="")
        class Nameless(Component):
            size: int = 1


def test_another_package_adds_components_by_entry_points(gadgets, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "their_gadgets", THEIRS, POINTS)
    config = gadgets.parse({"type": "theirs", "size": 4})
    assert config.build(3).size == 7
    assert gadgets.names() == ["counter", "other", "theirs"]
    assert gadgets.get("other").source == "them"


def test_entry_points_are_looked_up_only_for_names_that_are_not_built_in(gadgets, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "their_gadgets", THEIRS, POINTS)
    gadgets.parse("counter")
    assert "their_gadgets" not in sys.modules


@pytest.mark.parametrize(
    ("source", "points", "message"),
    [
        ("import no_such_thing", {"bad": "bad_gadgets:Bad"}, "cannot be imported: No module named 'no_such_thing'"),
        ("", {"bad": "bad_gadgets:Bad"}, "cannot be imported"),
        ("Bad = print", {"bad": "bad_gadgets:Bad"}, "must be a config class registered with a target"),
        (THEIRS, {"bad": "bad_gadgets:Theirs"}, "is a config of the type 'theirs'"),
    ],
)
def test_a_package_that_offers_nonsense_is_named(gadgets, tmp_path, monkeypatch, caplog, source, points, message):
    install(tmp_path, monkeypatch, "bad_gadgets", source, points)

    class Holder(Strict):
        gadget: gadgets.choice

    with pytest.raises(RecipeError) as error:
        check(Holder, {"gadget": "bad"}, "f")
    assert message in str(error.value) and "entry point 'bad' of test.gadgets (bad_gadgets:" in str(error.value)
    assert "counter" in gadgets.names() and message in caplog.text


def test_a_package_cannot_take_a_built_in_name(gadgets, tmp_path, monkeypatch, caplog):
    source = THEIRS.replace("theirs", "counter").replace('@REGISTRIES["test.gadgets"].register("their_gadgets:Built", source="them")', "")
    install(tmp_path, monkeypatch, "bad_gadgets", source, {"counter": "bad_gadgets:Theirs"})
    assert gadgets.names() == ["counter"] and "registered already, by collections:Counter" in caplog.text
    assert gadgets.get("counter").builds == "collections:Counter"


def test_the_json_schema_writes_out_every_component_and_the_names_alone(gadgets, tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "their_gadgets", THEIRS, POINTS)

    class Holder(Strict):
        """Holds."""

        gadget: gadgets.choice
        more: dict[str, gadgets.choice] = {}

    schema = json_schema(Holder, "holder")
    choices = schema["properties"]["gadget"]["oneOf"]
    assert [choice.get("$ref") for choice in choices[:-1]] == ["#/$defs/Counter", "#/$defs/Other", "#/$defs/Theirs"]
    assert choices[-1] == {"enum": ["counter", "other", "theirs"]}
    assert schema["$defs"]["Theirs"]["required"] == ["type"] and schema["additionalProperties"] is False
    assert set(schema["$defs"]) == {"Counter", "Other", "Theirs"}
