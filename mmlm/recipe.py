"""The recipe: one YAML file that names everything a run needs, checked whole before anything starts."""

from __future__ import annotations

from typing import Any

from mmlm.base import yaml
from mmlm.base.errors import RecipeError


def apply_override(raw: dict[str, Any], item: str) -> None:
    """Set one key of a loaded recipe from `path.to.key=value`; list items by number. Checked later by the schema."""
    path, equals, text = item.partition("=")
    if not equals or not path:
        raise RecipeError(f"override {item!r} must look like path.to.key=value.")
    *parents, leaf = path.split(".")
    node: Any = raw
    for at, key in enumerate([*parents, leaf]):
        where = ".".join([*parents, leaf][:at]) or "the recipe"
        if isinstance(node, list) and not (key.isdecimal() and int(key) < len(node)):
            raise RecipeError(f"override {item!r}: {where} is a list of {len(node)}; {key!r} is no place in it.")
        if not isinstance(node, dict | list):
            raise RecipeError(f"override {item!r}: {where} is {node!r} and has no keys.")
        place: Any = int(key) if isinstance(node, list) else key
        if at == len(parents):
            node[place] = yaml.parse(text, f"override {item!r}")
        else:
            if isinstance(node, dict) and node.get(place) is None:
                node[place] = {}
            node = node[place]
