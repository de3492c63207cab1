"""Strict schemas, and all faults of a file told at once.

Recipe sections are pydantic models that refuse unknown keys, texts where numbers belong and keys that have no effect. `check` turns
what was found into sentences with the dotted path as the user wrote it, the value, what is allowed and the nearest known key.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator
from pydantic.functional_validators import BeforeValidator, PlainValidator, WrapValidator
from pydantic_core import PydanticCustomError

from mmlm.base.errors import RecipeError, closest, nearest, unknown_name
from mmlm.base.yaml import shorten

_MOST = 100
M = TypeVar("M", bound=BaseModel)
Path = tuple[Any, ...]


class Strict(BaseModel):
    """A section of a recipe: unknown keys are refused, values are not changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False, protected_namespaces=(), defer_build=True)
    shorthand: ClassVar[dict[str, str]] = {}
    """Key as stored: key that a user may write in its place, for the paths in messages."""

    def without_effect(self) -> dict[str, str]:
        """Keys that do nothing in this combination, each with the reason, such as "the schedule is constant".

        Writing such a key is an error, and a dump leaves it out. A key of a section within this one is written with a dot, as in
        "section.key".
        """
        return {}

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, data: Any, handler: Callable[[Any], Any]) -> Any:
        faults: list[Any] = list(_wrong_kinds(cls, data)) if isinstance(data, dict) else []
        found = {fault["loc"] for fault in faults}
        try:
            section = handler(data)
        except ValidationError as error:
            faults += [fault for fault in error.errors(include_url=False) if fault["loc"] not in found]
        else:
            idle = section.without_effect()
            faults += [
                {"type": "no_effect", "loc": path, "ctx": {"why": why}, "input": value}
                for name, why in idle.items()
                for path, value in _if_set(section, name.split("."))
            ]
        if faults:
            context = {"errors": faults, "model": cls, "data": data}
            text = "; ".join(str(fault) for fault in _flat(faults, cls, data, ()))
            raise PydanticCustomError("section", "{text}", {**context, "text": text})
        return section

    @model_serializer(mode="wrap")
    def _what_counts(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = handler(self)
        for name in self.without_effect():
            _leave_out(self, name.split("."), found)
        return found


def _if_set(section: Strict, names: list[str]) -> Iterator[tuple[Path, Any]]:
    """The path and value of a key of a section, or of one within it, where it was written."""
    first, *rest = names
    if first in section.model_fields_set:
        here, value = (key_of(type(section), first),), getattr(section, first)
        yield from (((*here, *path), found) for path, found in _if_set(value, rest)) if rest else [(here, value)]


def _leave_out(section: Strict, names: list[str], dumped: dict[str, Any]) -> None:
    """Take a key out of what a section was dumped as."""
    first, *rest = names
    for key in {first, key_of(type(section), first)} & dumped.keys():
        if rest:
            _leave_out(getattr(section, first), rest, dumped[key])
        else:
            del dumped[key]


def key_of(model: type[BaseModel], name: str) -> str:
    """The key that a recipe uses for the field `name`."""
    field = model.model_fields.get(name)
    return field.alias or name if field else name


def keys(model: type[BaseModel]) -> list[str]:
    """The keys of a section, in their order."""
    return [key_of(model, name) for name in model.model_fields]


def check(model: type[M], raw: Any, where: str) -> M:
    """`raw` as a `model`, or a RecipeError that lists every fault. where: the file, for the message."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        faults = problems(error, model, raw)
    raise told_at_once(where, faults)


def problems(error: ValidationError, model: type[BaseModel], raw: Any) -> list[str]:
    """A sentence for each fault that pydantic found in `raw`."""
    return [str(fault) for fault in _flat(error.errors(include_url=False), model, raw, ())]


def told_at_once(where: str, faults: Iterable[str]) -> RecipeError:
    """One error for all faults of a file: how many, then a line for each."""
    lines = list(dict.fromkeys(faults))
    count = f"{len(lines)} problem{'s' if len(lines) != 1 else ''}"
    if len(lines) > _MOST:
        lines = [*lines[:_MOST], f"... and {len(lines) - _MOST:,} more."]
    return RecipeError("\n".join([f"{where}: {count}", *(f"  {line}" for line in lines)]))


@dataclass(frozen=True)
class _Fault:
    path: Path  # as the user wrote it
    branch: Path  # (place in path, name of the branch of a union) pairs still to be chosen among
    sentence: str
    value: Any = None
    want: str = ""  # "a number", to be joined by "or" with what other branches want; or empty
    known: tuple[str, ...] = ()  # names that would do

    def __str__(self) -> str:
        parts = [part if part.isprintable() and len(part) <= 60 else shorten(part) for part in map(str, self.path)]
        return f"{'.'.join(parts) or 'recipe'}: {self.sentence}"


def _flat(errors: Iterable[Any], model: type[BaseModel], data: Any, prefix: Path) -> list[_Fault]:
    """Faults of nested sections in one list, of each union the branch that was most likely meant."""
    faults: list[_Fault] = []
    errors = list(errors)
    mistyped = {(*loc[:-1], closest(str(loc[-1]), keys(model))) for loc in (e["loc"] for e in errors if e["type"] == "extra_forbidden")}
    for error in errors:
        if error["type"] == "missing" and error["loc"] in mistyped:
            continue
        path, labels = _as_written(error, model, data)
        here = tuple((len(prefix) + place, label) for place, label in labels)
        if error["type"] == "section":
            inner = error["ctx"]
            for fault in _flat(inner["errors"], inner["model"], inner["data"], (*prefix, *path)):
                faults.append(replace(fault, branch=(*here, *fault.branch)))
        else:
            faults.append(_Fault((*prefix, *path), here, *_sentence(error, model)))
    return _meant(faults)


def _as_written(error: Any, model: type[BaseModel], data: Any) -> tuple[Path, list[tuple[int, Any]]]:
    """Splits pydantic's location into keys that the user wrote and names of union branches or keys that were filled in."""
    path: list[Any] = []
    labels: list[tuple[int, Any]] = []
    shorthand = getattr(model, "shorthand", {})
    for at, part in enumerate(error["loc"]):
        last = at == len(error["loc"]) - 1
        written = shorthand.get(part, part) if isinstance(data, dict) and part not in data and not path else part
        if isinstance(data, dict) and written in data:
            path.append(written)
            data = data[written]
        elif isinstance(data, list | tuple) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
        elif last and error["type"] == "missing":
            path.append(part)
        else:
            labels.append((len(path), part))
    return tuple(path), labels


def _meant(faults: list[_Fault]) -> list[_Fault]:
    """For each union, the faults of the branch that fits best; where none fits, one sentence with all that would."""
    kept: list[_Fault] = []
    groups: dict[tuple[Path, int], dict[Any, list[_Fault]]] = {}
    for fault in faults:
        if fault.branch:
            place, label = fault.branch[0]
            rest = replace(fault, branch=fault.branch[1:])
            groups.setdefault((fault.path[:place], place), {}).setdefault(label, []).append(rest)
        else:
            kept.append(fault)
    for (path, _), branches in groups.items():
        choices = [_meant(branch) for branch in branches.values()]
        deeper = [branch for branch in choices if not any(fault.path == path and fault.want for fault in branch)]
        if deeper or len(choices) == 1:
            sizes = [len(branch) for branch in deeper or choices]
            kept += (deeper or choices)[sizes.index(min(sizes))]
        else:
            roots = [next(fault for fault in branch if fault.path == path and fault.want) for branch in choices]
            known = tuple(name for fault in roots for name in fault.known)
            want = " or ".join(dict.fromkeys(fault.want for fault in roots))
            value = roots[0].value
            hint = nearest(value, known) if isinstance(value, str) else ""
            kept.append(_Fault(path, (), f"must be {want}, but is {shown(value)}.{hint}", value, want, known))
    return kept


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML writes it, and short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, BaseModel):
        value = value.model_dump(by_alias=True)
    return shorten(value, 80)


def beyond_defaults(value: Any) -> Any:
    """Sections within a value as dicts of their types and of what differs from the defaults.

    Within one `schema` of recipes defaults do not change, so this tells what a recipe means, now and where later options are known."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        held = {name: getattr(value, name) for name in fields}
        return {
            name: beyond_defaults(each)
            for name, each in held.items()
            if name == "type" or each != fields[name].get_default(call_default_factory=True)
        }
    if isinstance(value, dict):
        return {name: beyond_defaults(each) for name, each in value.items()}
    return [beyond_defaults(each) for each in value] if isinstance(value, list | tuple) else value


_WANTS = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a section with keys",
    "model": "a section with keys",
    "none": "null",
}


def _sentence(error: Any, model: type[BaseModel]) -> tuple[str, Any, str, tuple[str, ...]]:
    """(sentence, value, what is wanted, names that would do) for one fault."""
    kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
    known: tuple[str, ...] = ()
    match kind:
        case "extra_forbidden":
            names = keys(model)
            near = nearest(str(error["loc"][-1]), names)
            return f"unknown key.{near} Known: {', '.join(sorted(names)) or 'none'}.", value, "", ()
        case "missing":
            return "is missing.", None, "", ()
        case "no_effect":
            return f"has no effect: {context['why']}. Leave it out.", value, "", ()
        case "union_tag_invalid":
            known = tuple(tag.strip(" '") for tag in context["expected_tags"].split(","))
            return unknown_name(context["discriminator"].strip("'"), context["tag"], known), value, "", ()
        case "union_tag_not_found":
            return f"needs a key {context['discriminator']}.", value, "", ()
        case "unknown_name":
            known = tuple(context["known"])
            want = f"a {context['kind']} ({', '.join(known)})"
            return unknown_name(context["kind"], context["name"], known), value, want, known
        case "value_error" | "assertion_error":
            return f"{str(error['msg']).removeprefix('Value error, ').rstrip('.')}.", value, "", ()
        case "greater_than_equal":
            want = f"at least {context['ge']}"
        case "greater_than":
            want = f"greater than {context['gt']}"
        case "less_than_equal":
            want = f"at most {context['le']}"
        case "less_than":
            want = f"less than {context['lt']}"
        case "wrong_kind":
            want = context["want"]
        case "literal_error":
            want = context["expected"]
            known = tuple(name.strip(" '") for name in want.replace(" or ", ",").split(","))
        case "too_short" | "too_long":
            bound = f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
            return f"must have {bound} items, but has {context['actual_length']}.", value, "", ()
        case _:
            want = _WANTS.get(kind) or _WANTS.get(kind.rpartition("_")[0]) or _WANTS.get(kind.partition("_")[0], "")
            message = str(error["msg"])
            if kind.endswith(("_too_short", "_too_long", "_mismatch")) or not want:
                want = message.removeprefix("Input should be ") if message.startswith("Input should be ") else ""
            if not want:
                return f"{message[0].lower()}{message[1:]}, but is {shown(value)}.", value, "", ()
    hint = nearest(value, known) if isinstance(value, str) else ""
    return f"must be {want}, but is {shown(value)}.{hint}", value, want, known


def _wrong_kinds(model: type[BaseModel], data: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """Faults that pydantic would convert away: true or a text where a number belongs, a number where true or false belongs."""
    own = {
        name
        for decorator in model.__pydantic_decorators__.field_validators.values()
        if decorator.info.mode != "after"
        for name in decorator.info.fields
    }
    for name, field in model.model_fields.items():
        key = field.alias if field.alias in data else name
        if key in data and name not in own and not any(_converts(mark) for mark in field.metadata):
            for loc, value, want in _wrong_kind(data[key], field.annotation):
                yield {"type": "wrong_kind", "loc": (key, *loc), "ctx": {"want": want}, "input": value}


def _converts(mark: Any) -> bool:
    return isinstance(mark, BeforeValidator | PlainValidator | WrapValidator)


def _wrong_kind(value: Any, annotation: Any) -> Iterator[tuple[Path, Any, str]]:
    options = list(_options(annotation))
    if isinstance(value, list):
        lists = [get_args(option) for option in options if get_origin(option) in (list, tuple)]
        if len(lists) == 1 and lists[0]:
            for place, item in enumerate(value):
                inside = lists[0][min(place, len(lists[0]) - 1)]
                for loc, found, want in _wrong_kind(item, inside if inside is not Ellipsis else lists[0][0]):
                    yield (place, *loc), found, want
    elif isinstance(value, dict):
        dicts = [get_args(option) for option in options if get_origin(option) is dict]
        if len(dicts) == 1 and len(options) - (types.NoneType in options) == 1:
            for key, item in value.items():
                for loc, found, want in _wrong_kind(item, dicts[0][1]):
                    yield (key, *loc), found, want
    elif isinstance(value, bool | str | int | float):
        plain = {option for option in options if option in (bool, int, float)}
        others = set(map(_hashable, options)) - plain - {types.NoneType}
        takes_bool, is_bool = bool in plain, isinstance(value, bool)
        if plain and not others and (isinstance(value, str) or is_bool != takes_bool and (is_bool or plain == {bool})):
            names = [name for kind, name in ((int, "a whole number"), (float, "a number"), (bool, "true or false")) if kind in plain]
            yield (), value, " or ".join(names)


def _hashable(option: Any) -> Any:
    return option if isinstance(option, type) else repr(option)


def _options(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself; a value that a validator converts counts as unknown."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _options(part)
    elif origin is Annotated:
        if any(_converts(mark) for mark in annotation.__metadata__):
            yield Literal
        else:
            yield from _options(get_args(annotation)[0])
    else:
        yield annotation
