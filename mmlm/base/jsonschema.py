"""JSON schema of a section, with every registered component written out, so that editors complete and check recipes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mmlm.base.registry import REGISTRIES


def json_schema(model: type[BaseModel], title: str) -> dict[str, Any]:
    """The schema of `model`. A choice from a registry becomes one of its components' sections, or a component's name."""
    kinds = {kind: {name: registry.entries[name] for name in registry.names()} for kind, registry in sorted(REGISTRIES.items())}
    components = [config for entries in kinds.values() for config in entries.values()]
    refs, whole = models_json_schema([(each, "validation") for each in dict.fromkeys([model, *components])], by_alias=True)
    definitions = whole["$defs"]
    for config in components:
        definition = definitions[_name(refs[config, "validation"])]
        definition["required"] = ["type", *(key for key in definition.get("required", ()) if key != "type")]
    sections = {kind: [refs[config, "validation"] for config in entries.values()] for kind, entries in kinds.items()}

    def filled(node: Any) -> Any:
        if isinstance(node, list):
            return [filled(item) for item in node]
        if not isinstance(node, dict):
            return node
        if (kind := node.get("x-registry")) is not None:
            return {**node, "oneOf": [*sections[kind], {"enum": list(kinds[kind])}]}
        return {key: filled(value) for key, value in node.items()}

    definitions = filled(definitions)
    used = _reached(definitions, _name(refs[model, "validation"]))
    root = definitions[_name(refs[model, "validation"])]
    root = {**root, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": title}
    return {**root, "$defs": {name: definitions[name] for name in sorted(used)}}


def _name(ref: Any) -> str:
    return ref["$ref"].rpartition("/")[2]


def _reached(definitions: dict[str, Any], start: str) -> set[str]:
    """Names of the definitions that `start` refers to, directly or through others."""
    reached: set[str] = set()
    todo: list[Any] = [definitions[start]]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, dict):
            name = node["$ref"].rpartition("/")[2] if isinstance(node.get("$ref"), str) else ""
            if name and name not in reached:
                reached.add(name)
                todo.append(definitions[name])
            todo += [value for key, value in node.items() if key not in ("default", "enum", "const")]
    return reached
