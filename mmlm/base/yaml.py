"""Reading YAML as people mean it.

PyYAML's safe loader reads `1e-4` as text, `no` as false, `12:30:45` as 45045 and keeps the last of two equal keys. This loader
reads numbers as numbers, only true and false as booleans, and refuses equal keys, aliases, tags and very deep nesting.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from mmlm.base.errors import RecipeError

_MAX_DEPTH = 40


class RecipeLoader(yaml.SafeLoader):
    """Safe loader with the project's own rules; knows no tags and no aliases."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = 0
        self.repeated: list[str] = []

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node, refusing aliases (they can grow without bound), tags and nesting deeper than 40."""
        event = self.peek_event()
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed here", mark)
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(None, None, f"tags ({shorten(event.tag)}) are not allowed here", mark)
        if self.depth == _MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {_MAX_DEPTH}", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are texts; of equal keys the first counts and the others are noted in `repeated`."""
        seen: dict[str, int] = {}
        kept = []
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {shorten(key)} must be a text", key_node.start_mark)
            if key in seen:
                self.repeated.append(f"line {line}: key {shorten(key)} stands twice (first in line {seen[key]}).")
            else:
                seen[key] = line
                kept.append((key_node, value_node))
        node.value = kept
        return super().construct_mapping(node, deep=deep)


def shorten(value: Any, limit: int = 60) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


RecipeLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:null", r"^(?:null|~|)$", ["n", "~", ""]),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9_]*)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)$",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:float", r"^[-+]?\.(?:inf|nan)$", "-+."),
):
    RecipeLoader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def parse(text: str, where: str, repeated: list[str] | None = None) -> Any:
    """The value of a YAML text. where: name of the file or option, for messages.

    repeated: takes a sentence for each key that stands twice in one section; without it such a key is an error.
    Raises RecipeError with the line.
    """
    try:
        loader = RecipeLoader(text)
        value = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line}: {error.problem or error.context}.") from None
    except yaml.reader.ReaderError as error:
        character = error.character if isinstance(error.character, int) else ord(error.character[:1])
        raise RecipeError(f"{where}: the character U+{character:04X} at place {error.position} is not allowed.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: not YAML: {error}.") from None
    if repeated is None and loader.repeated:
        raise RecipeError(f"{where}, {' '.join(loader.repeated)}")
    if repeated is not None:
        repeated += loader.repeated
    return value


class _Dumper(yaml.SafeDumper):
    """Writes what RecipeLoader reads back unchanged."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = RecipeLoader.yaml_implicit_resolvers


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(repr(value), repr(value))
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _represent_float)


def dump(value: Any) -> str:
    """YAML text of plain data (dict, list, str, numbers), keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=130)
