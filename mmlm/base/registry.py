"""One registry per kind of component.

What is registered is a *config class*: a strict pydantic model whose `type` is the component's name and whose `builds` names the
class it builds, as "module:Class". Configs import no torch, so a recipe is checked in a moment; the class is imported when it is built.

Another package adds a component by an entry point in the group of the registry (for example `mmlm.mixers`) whose name is the `type`
and whose value is the config class. Entry points are looked up only when a recipe names something that is not built in.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, GetJsonSchemaHandler, SerializeAsAny
from pydantic.functional_validators import BeforeValidator
from pydantic_core import PydanticCustomError

from mmlm.base.errors import RecipeError, unknown_name
from mmlm.base.schema import Strict

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger = logging.getLogger(__name__)
C = TypeVar("C", bound="type[Component]")


class Component(Strict):
    """Base of every registered config."""

    builds: ClassVar[str] = ""
    source: ClassVar[str] = ""
    type: str

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The component itself: `builds` imported and called with this config first. Raises RecipeError where it names nothing."""
        module, _, name = self.builds.partition(":")
        found = getattr(importlib.import_module(module), name, None)
        if found is None:
            raise RecipeError(f"{self.type!r} is registered to build {self.builds}, but {module} has no {name}.")
        return found(self, *args, **kwargs)

    def without_weights(self) -> Self:
        """The same where a saved model holds the weights: files that this config names are not read again."""
        return self


def components_in(value: Any) -> Iterator[Component]:
    """All components of a recipe or a part of one, each before those within it."""
    if isinstance(value, Component):
        yield value
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from components_in(getattr(value, name))
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from components_in(item)


@functools.lru_cache(maxsize=64)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """What installed packages offer in a group; looked up once for each search path."""
    from importlib.metadata import entry_points

    return tuple(entry_points(group=group))


def type_name(config: type[Component]) -> Any:
    """The name under which a config class is registered: the default of its `type`."""
    return config.model_fields["type"].default


REGISTRIES: dict[str, Registry] = {}
"""Every registry whose module has been imported, by its plural."""


class Registry:
    """Names of one kind of component. kind: the word for messages. group: entry-point group for other packages."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self.entries: dict[str, type[Component]] = {}
        self._loaded: set[str] = set()
        REGISTRIES[self.plural] = self

    @property
    def plural(self) -> str:
        """The word that lists use, such as mixers."""
        return self.group.removeprefix("mmlm.").replace("_", "-")

    def register(self, target: str, source: str) -> Callable[[C], C]:
        """Decorator for a config class. target: "module:Class" that it builds. source: paper and equation, or standard."""

        def add(config: C) -> C:
            name = type_name(config)
            if not isinstance(name, str):
                raise RecipeError(f"{config.__name__}: `type` needs a default, the name of the {self.kind}.")
            if name in self.entries and self.entries[name] is not config:
                raise RecipeError(f"{self.kind} {name!r} is registered twice: {self.entries[name].builds} and {target}.")
            config.builds, config.source = target, source
            self.entries[name] = config
            return config

        return add

    def load_plugin(self, name: str) -> None:
        """Register the component that another installed package offers by this name, if one does."""
        for point in self._offers():
            if point.name == name:
                self._load(point)

    def _offers(self) -> Iterable[EntryPoint]:
        return [point for point in _entry_points(self.group, tuple(sys.path)) if point.value not in self._loaded]

    def _load(self, point: EntryPoint) -> None:
        where = f"entry point {point.name!r} of {self.group} ({point.value})"
        try:
            config = point.load()
        except (ImportError, AttributeError) as error:
            raise RecipeError(f"{where} cannot be imported: {error}.") from error
        if (known := self.entries.get(point.name, config)) is not config:
            raise RecipeError(f"{where}: {self.kind} {point.name!r} is registered already, by {known.builds}.")
        if not (isinstance(config, type) and issubclass(config, Component) and config.builds):
            raise RecipeError(f"{where} must be a config class registered with a target, but is {config!r}.")
        if type_name(config) != point.name:
            raise RecipeError(f"{where} is a config of the type {type_name(config)!r}.")
        self.entries[point.name] = config
        self._loaded.add(point.value)

    def get(self, name: str) -> type[Component]:
        """The config class called `name`. Raises RecipeError with the nearest known name."""
        if name not in self.entries:
            self.load_plugin(name)
        if name not in self.entries:
            raise RecipeError(unknown_name(self.kind, name, self.entries))
        return self.entries[name]

    def names(self) -> list[str]:
        """All known names, those of other packages included, sorted. A package that cannot be used is logged and left out."""
        for point in self._offers():
            try:
                self._load(point)
            except RecipeError as error:
                logger.warning("%s", error)
        return sorted(self.entries)

    def parse(self, value: Any) -> Any:
        """A config from recipe data: `{type: name, ...}`, or the name alone."""
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            value = {"type": value}
        known = sorted(self.entries)
        if not isinstance(value, dict) or "type" not in value:
            want = f"a {self.kind}: a name or {{type: name, ...}}, with one of {', '.join(known) or 'none'} for the name"
            raise PydanticCustomError("wrong_kind", "{want}", {"want": want})
        name = value["type"]
        if not isinstance(name, str):
            raise PydanticCustomError("wrong_kind", "{want}", {"want": f"a {self.kind} whose type is a name"})
        if name not in self.entries:
            try:
                self.load_plugin(name)
            except RecipeError as error:
                raise ValueError(str(error)) from error
        if name not in self.entries:
            raise PydanticCustomError("unknown_name", "unknown {kind}", {"kind": self.kind, "name": name, "known": known})
        return self.entries[name].model_validate(value)

    @property
    def choice(self) -> Any:
        """Type annotation of a schema field that holds one component of this registry."""
        return Annotated[SerializeAsAny[Component], BeforeValidator(self.parse), _Choice(self)]


class _Choice:
    """Stands for a registry in a type annotation; a JSON schema is filled in later, when all entries are known."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"x-registry": self.registry.plural}
