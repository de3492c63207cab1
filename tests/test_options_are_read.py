"""Every option of a recipe is read by some code: a key that nobody reads is a promise that nobody keeps."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mmlm", "tokenizers", "encoders", "heads", "kernels", "demos")


def attributes_read() -> Counter[str]:
    """How often each attribute name is read, outside the class that declares it as a field; keys of raw data count too."""
    read: Counter[str] = Counter()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read[node.attr] += 1
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("pop", "get"):
                    read.update(each.value for each in node.args[:1] if isinstance(each, ast.Constant) and isinstance(each.value, str))
    return read


def fields() -> list[tuple[str, str]]:
    """(class, field) of every option of a section or component, from a fresh interpreter that has loaded the recipe alone.

    A section in a section is no option, its fields are; nor is a field with one value only.
    """
    code = (
        "import json, mmlm.recipe\n"
        "from typing import Literal, get_args, get_origin\n"
        "from mmlm.base.schema import Strict\n"
        "def below(c):\n"
        "    yield c\n"
        "    for each in c.__subclasses__(): yield from below(each)\n"
        "def option(a): return not (get_origin(a) is Literal and len(get_args(a)) == 1 or isinstance(a, type) and issubclass(a, Strict))\n"
        "found = {(c.__module__ + ':' + c.__name__, n) for c in below(Strict) for n, f in c.model_fields.items() if option(f.annotation)}\n"
        "print(json.dumps(sorted(found)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    return [tuple(each) for each in json.loads(done.stdout)]


def test_every_option_is_read_somewhere():
    read, found = attributes_read(), fields()
    assert len(found) > 80
    assert [f"{name}.{field}" for name, field in found if not read[field]] == []
