"""One registry per kind of component.

What is registered is a *config class*: a strict pydantic model whose `type` is the component's name and whose `target` names the class it
builds, as "module:Class". Configs import no torch, so a recipe is checked in a moment; the class is imported when it is built.

Another package adds a component by an entry point in the group of the registry (for example `mmlm.mixers`) whose name is the `type` and
whose value is the config class. Entry points are looked up only when a recipe names something that is not built in.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import GetJsonSchemaHandler, SerializeAsAny, ValidationError
from pydantic.functional_validators import BeforeValidator
from pydantic_core import PydanticCustomError

from mmlm.base.errors import RecipeError, unknown_name
from mmlm.base.schema import Strict

C = TypeVar("C", bound="type[Component]")


class Component(Strict):
    """Base of every registered config."""

    target: ClassVar[str] = ""
    source: ClassVar[str] = ""
    type: str

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The component itself: `target` imported and called with this config first."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)(self, *args, **kwargs)


class Registry:
    """Names of one kind of component. kind: the word for messages. group: entry-point group for other packages."""

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self.entries: dict[str, type[Component]] = {}

    def register(self, target: str, source: str) -> Callable[[C], C]:
        """Decorator for a config class. target: "module:Class" that it builds. source: paper and equation, or standard."""

        def add(config: C) -> C:
            name = config.model_fields["type"].default
            if not isinstance(name, str):
                raise RecipeError(f"{config.__name__}: `type` needs a default, the name of the {self.kind}.")
            if name in self.entries and self.entries[name] is not config:
                raise RecipeError(f"{self.kind} {name!r} is registered twice: {self.entries[name].target} and {target}.")
            config.target, config.source = target, source
            self.entries[name] = config
            return config

        return add

    def load_plugins(self, name: str | None = None) -> None:
        """Register what other installed packages offer: the entry point called `name`, or all."""
        from importlib.metadata import entry_points

        for point in entry_points(group=self.group):
            if (name is None or point.name == name) and point.name not in self.entries:
                config = point.load()
                if not (isinstance(config, type) and issubclass(config, Component) and config.target):
                    raise RecipeError(
                        f"entry point {point.name!r} of {self.group} ({point.value}) must be a config class registered with "
                        f"a target, but is {config!r}."
                    )
                if config.model_fields["type"].default != point.name:
                    raise RecipeError(f"entry point {point.name!r} of {self.group} names a config of another type.")
                self.entries[point.name] = config

    def get(self, name: str) -> type[Component]:
        """The config class called `name`. Raises RecipeError with the nearest known name."""
        if name not in self.entries:
            self.load_plugins(name)
        if name not in self.entries:
            raise RecipeError(unknown_name(self.kind, name, self.entries))
        return self.entries[name]

    def names(self) -> list[str]:
        """All known names, those of other packages included, sorted."""
        self.load_plugins()
        return sorted(self.entries)

    def parse(self, value: Any) -> Any:
        """A config from recipe data: `{type: name, ...}`, or the name alone."""
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            value = {"type": value}
        if not isinstance(value, dict):
            raise PydanticCustomError("choice", "must be a {kind} such as {{type: ...}}", {"kind": self.kind})
        if not isinstance(value.get("type"), str):
            raise PydanticCustomError(
                "choice",
                "needs a key 'type' that names the {kind}. Known: {known}.",
                {"kind": self.kind, "known": ", ".join(sorted(self.entries))},
            )
        try:
            config = self.get(value["type"])
        except RecipeError as error:
            raise PydanticCustomError("choice", "{text}", {"text": str(error)}) from None
        try:
            return config.model_validate(value)
        except ValidationError as error:
            context = {"errors": error.errors(include_url=False), "model": config}
            raise PydanticCustomError("nested", "nested", context) from None

    @property
    def choice(self) -> Any:
        """Type annotation of a schema field that holds one component of this registry."""
        registry = self

        class Schema:
            def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
                return {"x-mmlm-registry": registry.kind}

        return Annotated[SerializeAsAny[Component], BeforeValidator(self.parse), Schema()]
