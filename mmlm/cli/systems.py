"""The page of published systems: which papers the code says it follows, where, by which recipes, and what tests them.

Nothing is listed by hand. A paper is in the product where a module or a registered component names it by its number at arXiv; its name is
what stands before the number there. Recipes are those that use the component; tests are those that name the paper, or import its module.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmlm.base.registry import REGISTRIES
from mmlm.cli.listing import first_comment

PACKAGES = ("mmlm", "tokenizers", "encoders", "heads", "kernels")
PAPER = re.compile(r"arXiv:(\d{4}\.\d{5})")
NAME_AFTER = re.compile(r" \(([A-Za-z][\w .+-]{1,30})\)")
BREAKS = re.compile(r"[;:,()`|\"]|\.\s|\bas in\b|\bof\b|\bin\b(?= [A-Z])|\bSources?\b")
COLUMN = re.compile(r"(?<=\S) {3,}(?=\S)")
NO_NAME = re.compile(r"[=<>{}']|\bsection|\beq\b|^\d")
AUTHORS = re.compile(r"et al|\d{4}$")  # who found it, where it has no name
COST = re.compile(r"Cost[^:]*: (?:at most )?((?:about )?\d[\d.]* (?:to \d[\d.]* )?(?:minutes?|s|hours?)\b)")
PATTERNS = "docs/patterns.md"
OF_REGISTRY = 5  # what a registered source says counts so many times as much as what stands elsewhere
MOST = 3  # modules, recipes or tests that a cell names
HEADINGS = {
    "tasks": "Tasks",
    "mixers": "Layers that mix tokens",
    "patterns": "Backbones as patterns of layers",
    "feed-forwards": "Feed-forward layers",
    "objectives": "Objectives",
    "heads": "Heads",
    "tokenizers": "Tokenizers",
    "quantizers": "Quantizers",
    "encoders": "Encoders",
    "optimizers": "Optimizers",
    "schedules": "Schedules",
    "sources": "Data",
    "": "Methods within these",
}


@dataclass
class System:
    """A paper and what of the product follows it. kind: the registry of the first component that names it, or nothing."""

    paper: str
    kind: str = ""
    names: Counter[str] = field(default_factory=Counter)
    modules: Counter[str] = field(default_factory=Counter)
    components: set[str] = field(default_factory=set)
    recipes: set[str] = field(default_factory=set)
    tests: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called most often; names proper before descriptions, the shorter one of two."""
        return min(
            self.names, key=lambda name: (bool(AUTHORS.search(name)), not _is_proper(name), -self.names[name], len(name), name), default=""
        )


def systems(root: Path, uses: Mapping[str, Mapping[str, list[str]]]) -> list[System]:
    """All of them, in the order of the page. root: the checkout.   uses: recipes by registry and component."""
    found: dict[str, System] = {}
    for kind in HEADINGS:
        registry = REGISTRIES.get(kind)
        for name in registry.names() if registry else ():
            config = registry.entries[name]  # type: ignore[union-attr]
            for paper, called in papers(config.source):
                system = found.setdefault(paper, System(paper, kind))
                system.names.update(called * OF_REGISTRY)
                system.modules[_file(root, config.builds)] += OF_REGISTRY
                system.recipes |= set(uses.get(kind, {}).get(name, []))
                system.components.add(name)
    for title, section in re.findall(r"^## ([^:,\n]+)(.*?)(?=^## |\Z)", _text(root / PATTERNS), flags=re.MULTILINE | re.DOTALL):
        for paper, _ in papers(section):
            system = found.setdefault(paper, System(paper, "patterns"))
            system.names.update([title] * OF_REGISTRY)
            system.modules[PATTERNS] += 1
    for path in _files(root, PACKAGES):
        for paper, called in papers(" ".join(COLUMN.sub("; ", _text(path)).split())):
            system = found.setdefault(paper, System(paper))
            system.names.update(called)
            system.modules[path.relative_to(root).as_posix()] += 0 if _is_config(path) else 1
    _add_recipes_and_tests(root, found)
    order = list(HEADINGS)
    return sorted(found.values(), key=lambda each: (order.index(each.kind), each.name.lower(), each.paper))


def _add_recipes_and_tests(root: Path, found: Mapping[str, System]) -> None:
    """Comparisons that use a component where no recipe does, and the tests of every system."""
    comparisons = {f"comparisons/{path.stem}": _text(path) for path in sorted((root / "recipes/comparisons").glob("*.yaml"))}
    tests = {path.relative_to(root).as_posix(): _text(path) for path in _files(root, ["tests"]) if path.name.startswith("test_")}
    for system in found.values():
        if not system.recipes:
            used = {name for name, text in comparisons.items() for each in system.components if re.search(rf"\b{each}\b", text)}
            system.recipes |= used
        system.tests = _tests(system, tests)


def papers(text: str) -> Iterator[tuple[str, list[str]]]:
    """(number, [name]) of every paper in a text; no name where none stands beside the number."""
    for match in PAPER.finditer(text):
        before = BREAKS.split(text[: match.start()].rstrip(" ,("))[-1].strip()
        after = NAME_AFTER.match(text, match.end())
        name = (after[1] if after else before.removeprefix("and ")).partition("'s ")[0]
        is_name = 1 < len(name) <= 50 and "arXiv" not in name and not NO_NAME.search(name)
        yield match[1], [name] if is_name else []


def page(root: Path, uses: Mapping[str, Mapping[str, list[str]]]) -> str:
    """The page in Markdown."""
    found, costs = systems(root, uses), _costs(root)
    parts = [HEAD.format(count=len(found))]
    for kind, heading in HEADINGS.items():
        rows = [system for system in found if system.kind == kind]
        if not rows:
            continue
        parts.append(f"\n## {heading}\n\n| | paper | code | recipes | tests |\n|---|---|---|---|---|\n")
        parts += [_row(system, costs) for system in rows]
    return "".join([*parts, *_learned(root)])


HEAD = """# Published systems

Generated by `make docs` from what the code says of its sources; do not edit.

{count} papers that the code follows, in whole or in part. Code: the files that name the paper. Recipes: some that use it, with their cost
where it was measured. Tests: those in `tests/quality` train until something has been learned (`make quality`), those in `tests/bench`
measure speed (`make bench`).
"""


def _row(system: System, costs: Mapping[str, tuple[str, str]]) -> str:
    link = f"[{system.paper}](https://arxiv.org/abs/{system.paper})"
    code = _links([name for name, count in system.modules.most_common(MOST) if count or len(system.modules) == 1])
    first = sorted(system.recipes, key=lambda name: (system.name not in costs.get(name, ("", ""))[1], name.startswith("joint/"), name))
    recipes = ", ".join(f"`{name}`{costs.get(name, ('', ''))[0]}" for name in first[:MOST])
    return f"| {system.name or '-'} | {link} | {code} | {recipes or '-'} | {_links(system.tests[:MOST]) or '-'} |\n"


def _links(files: Iterable[str]) -> str:
    return ", ".join(f"[{file.removesuffix('.py')}](../{file})" for file in files)


def _costs(root: Path) -> dict[str, tuple[str, str]]:
    """What a recipe says that it costs, and its text, by its name."""
    found = {}
    for path in (root / "recipes").rglob("*.yaml"):
        match = COST.search(first_comment(_text(path).splitlines()))
        found[path.relative_to(root / "recipes").with_suffix("").as_posix()] = (f" ({match[1]})" if match else "", _text(path))
    return found


def _learned(root: Path) -> Iterator[str]:
    """What each test of learning promises: the first sentence of its module."""
    yield "\n## What must have been learned\n\n| test | what it asks for |\n|---|---|\n"
    for path in _files(root, ["tests/quality"]):
        if path.name.startswith("test_"):
            told = re.match(r'"""(.*?)(?:\n\n|""")', _text(path), flags=re.DOTALL)
            sentence = " ".join(told[1].split()) if told else ""
            yield f"| [{path.stem}](../{path.relative_to(root).as_posix()}) | {sentence} |\n"


def _tests(system: System, texts: Mapping[str, str]) -> list[str]:
    """Test files by how much they say of it: the paper, its name, its recipes, its modules."""
    modules = [_module(file) for file, _ in system.modules.most_common(MOST)]
    stems = {part for file in system.modules for part in (Path(file).stem, Path(file).parent.name)} - {"config", "__init__"}
    scores = {}
    for file, text in texts.items():
        score = 8 * (system.paper in text) + 4 * (_is_proper(system.name) and _has_word(text, system.name))
        score += 3 * any(f'"{recipe}"' in text for recipe in system.recipes)
        is_meant = score > 0
        score += any(f'"{stem}' in text for stem in stems)
        score += 2 * any(_has_word(text, module) for module in modules) + 3 * (Path(file).stem.removeprefix("test_") in stems)
        if score:
            scores[file] = score + is_meant * (2 * ("/quality/" in file) + ("/bench/" in file))
    scores = scores or {file: 1 for file, text in texts.items() if any(_has_word(text, stem) for stem in stems)}
    return sorted(scores, key=lambda file: (-scores[file], file))


def _has_word(text: str, word: str) -> bool:
    """Whether it stands there by itself. A search for the letters alone comes first: it is many times as fast."""
    return word in text and re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


def _is_proper(name: str) -> bool:
    return any(letter.isupper() or letter.isdigit() for letter in name[:1] + name[-1:]) and len(name.split()) <= 3


def _file(root: Path, builds: str) -> str:
    """The file that a component is built by."""
    parts = builds.partition(":")[0].split(".")
    for begin in (0, 1):
        path = root.joinpath(*parts[begin:])
        for each in (path.with_suffix(".py"), path / "__init__.py"):
            if each.is_file():
                return each.relative_to(root).as_posix()
    return builds


def _module(file: str) -> str:
    """The name under which a file is imported; of a kernel the name of its folder."""
    path = Path(file)
    if path.parts[0] == "kernels" and len(path.parts) == 3:
        path = path.parent
    parts = [*path.with_suffix("").parts]
    return ".".join(parts if parts[0] == "mmlm" else ["mmlm", *parts])


def _files(root: Path, folders: Iterable[str]) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py") if "__pycache__" not in path.parts)


def _is_config(path: Path) -> bool:
    return "config" in path.stem or path.parent.name == "config"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
