"""`mmlm list`: what there is to name in a recipe, with its source."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Iterable

from mmlm.base.errors import RecipeError, unknown_name


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("kind", nargs="?", metavar="KIND", help="recipes, mixers, ...; left out: all kinds and how many each has")
    parser.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="part of a name, or a pattern with * and ?")


def run(arguments: argparse.Namespace) -> int:
    """Print one name a line, first on it, then what it is and where it comes from."""
    kinds = known_kinds()
    if arguments.kind is None:
        width = max(map(len, kinds))
        for kind in kinds:
            print(f"{kind:<{width}}  {len(entries(kind))}")
        return 0
    if arguments.kind not in kinds:
        raise RecipeError(f"mmlm list: {unknown_name('kind', arguments.kind, kinds)}")
    rows = [row for row in entries(arguments.kind) if matches(row[0], arguments.pattern)]
    if not rows and arguments.pattern != "*":
        names = [row[0] for row in entries(arguments.kind)]
        raise RecipeError(f"mmlm list {arguments.kind}: {unknown_name('name', arguments.pattern, names)}")
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    return 0


def matches(name: str, pattern: str) -> bool:
    """A pattern with wildcards fits the whole name, one without any part of it."""
    return fnmatch.fnmatchcase(name, pattern) if any(mark in pattern for mark in "*?[") else pattern in name


def known_kinds() -> list[str]:
    """Comparisons, recipes, and the plural of every registry that a recipe draws from."""
    import mmlm.recipe  # noqa: F401  its imports fill the registries
    from mmlm.base.registry import REGISTRIES

    return ["comparisons", "recipes", *sorted(kind for kind, registry in REGISTRIES.items() if registry.group.startswith("mmlm."))]


def entries(kind: str) -> list[tuple[str, str]]:
    """(name, description and source) of everything of a kind, sorted by name."""
    if kind in ("comparisons", "recipes"):
        from mmlm.recipe import shipped

        return [(name, first_comment(path.read_text(encoding="utf-8").splitlines())) for name, path in sorted(shipped(kind).items())]
    from mmlm.base.registry import REGISTRIES

    registry = REGISTRIES[kind]
    return [(name, f"{first_line(registry.get(name))}  [{registry.get(name).source}]") for name in registry.names()]


def first_line(config: type) -> str:
    """The first line of a class's docstring."""
    return (config.__doc__ or "").strip().partition("\n")[0]


def first_comment(lines: Iterable[str]) -> str:
    """The first comment of a recipe, without its mark."""
    return next((line.lstrip("# ").rstrip() for line in lines if line.startswith("#")), "")
