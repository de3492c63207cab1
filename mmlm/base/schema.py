"""Strict schemas, and all faults of a file told at once.

Recipe sections are pydantic models that refuse unknown keys. `check` turns what pydantic found into sentences with the dotted path, the
value, what is allowed and the nearest known key.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mmlm.base.errors import RecipeError, nearest

M = TypeVar("M", bound=BaseModel)


class Strict(BaseModel):
    """A section of a recipe: unknown keys are refused, values are not changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, protected_namespaces=())


def check(model: type[M], raw: Any, where: str) -> M:
    """`raw` as a `model`, or a RecipeError that lists every fault. where: the file, for the message."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = _sentences(error.errors(include_url=False), (), model)
        count = f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
        raise RecipeError("\n".join([f"{where}: {count}", *(f"  {line}" for line in lines)])) from None


def _sentences(errors: list[Any], prefix: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    lines: list[str] = []
    for error in errors:
        if error["type"] == "nested":
            context = error["ctx"]
            lines += _sentences(context["errors"], (*prefix, *error["loc"]), context["model"])
            continue
        name = ".".join(str(part) for part in (*prefix, *error["loc"])) or "recipe"
        lines.append(f"{name}: {_sentence(error, model)}")
    return lines


def _sentence(error: Any, model: type[BaseModel]) -> str:
    context = error.get("ctx", {})
    shown = repr(error.get("input"))
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    match error["type"]:
        case "extra_forbidden":
            *parents, key = error["loc"]
            known = _keys_at(model, parents)
            return f"unknown key.{nearest(str(key), known)} Known: {', '.join(sorted(known)) or 'none'}."
        case "missing":
            return "is missing."
        case "greater_than_equal":
            return f"must be at least {context['ge']}, but is {shown}."
        case "greater_than":
            return f"must be greater than {context['gt']}, but is {shown}."
        case "less_than_equal":
            return f"must be at most {context['le']}, but is {shown}."
        case "less_than":
            return f"must be less than {context['lt']}, but is {shown}."
        case "literal_error":
            near = nearest(str(error.get("input")), re.findall(r"'([^']*)'", context["expected"]))
            return f"must be {context['expected']}, but is {shown}.{near}"
        case "choice" | "value_error":
            return f"{str(error['msg']).removeprefix('Value error, ').rstrip('.')}."
        case _:
            text = str(error["msg"]).removeprefix("Input should be ")
            return f"must be {text}, but is {shown}." if text != error["msg"] else f"{text}: {shown}."


def _keys_at(model: type[BaseModel], path: list[Any]) -> list[str]:
    """The keys that the section at `path` below `model` knows."""
    section: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, str) and section is not None:
            field = section.model_fields.get(part)
            section = _section_in(field.annotation) if field else None
    return [field.alias or name for name, field in section.model_fields.items()] if section else []


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)
