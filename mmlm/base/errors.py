"""The one family of errors, and the sentences they share.

A message says where (file, line or key), what was found, what is allowed and what to do. The CLI prints the message alone and exits
2 for a user's mistake (RecipeError, DataError, MissingExtra) and 1 for a failure.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class MmlmError(Exception):
    """Base of every error that mmlm raises on purpose."""

    exit_code = 1


class RecipeError(MmlmError, ValueError):
    """A recipe, an override or a command line that cannot be used as written."""

    exit_code = 2


class DataError(MmlmError, ValueError):
    """An input file, record or value that cannot be used; the message names file and line."""

    exit_code = 2


class CheckpointError(MmlmError):
    """A run folder, checkpoint or weight file that is damaged, incomplete or does not fit the model."""

    exit_code = 2


class MissingExtra(MmlmError):
    """An optional package is not installed; the message is the command that installs it."""

    exit_code = 2


class NumericsError(MmlmError):
    """A loss, gradient or weight that is not finite."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint (" Did you mean 'x'?") with the closest known name, or an empty string."""
    best = closest(name, known)
    return f" Did you mean {best!r}?" if best else ""


def closest(name: str, known: Iterable[str]) -> str:
    """The known name that was most likely meant, or an empty string."""
    name, best, most = str(name)[:100], "", 0.5
    for each in map(str, known):
        likeness = _likeness(name.lower().replace("-", "_"), each.lower().replace("-", "_"))
        if likeness > most:
            best, most = each, likeness
    return best


def _likeness(name: str, known: str) -> float:
    """0 to 1: equal letters in order, whole words in common, or one standing for the first letters of the other's words."""
    mine, theirs = name.split("_"), known.split("_")
    if len(theirs) > 1 and name == "".join(word[:1] for word in theirs) or len(mine) > 1 and known == "".join(word[:1] for word in mine):
        return 0.9
    words = 0.7 if set(mine) <= set(theirs) or set(theirs) <= set(mine) else 0.0
    return max(words, difflib.SequenceMatcher(None, name, known).ratio())


def unknown_name(kind: str, name: str, known: Iterable[str], shown: int = 40) -> str:
    """The sentence for a name that is not known: nearest first, then all known names (the first `shown` of them)."""
    names = sorted(str(k) for k in known)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"unknown {kind} {str(name)[:100]!r}.{nearest(name, names)} Known: {', '.join(names[:shown]) or 'none'}{more}."


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package where it is used.

    module: the module to import. extra: the extra of mmlm that installs it.
    Raises MissingExtra with the command that installs it, or with the reason why an installed package does not import.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name is not None
        if missing and str(error.name).partition(".")[0] == module.partition(".")[0]:
            raise MissingExtra(f"{module!r} is not installed. Install it with: pip install 'mmlm[{extra}]'") from None
        raise MissingExtra(f"{module!r} is installed but cannot be imported: {error}.") from error
