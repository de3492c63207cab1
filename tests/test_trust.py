"""No call in the source can unpickle or run a shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mmlm", "tokenizers", "encoders", "heads", "kernels", "demos")

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pty", "commands"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all",
    "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "runpy.run_path", "runpy.run_module",
}  # fmt: skip
SAFE_MODE = ("mmlm/interop/", "mmlm/weights.py")  # where weights of others are read, with weights_only=True
ENDS = {"read_pickle", "to_pickle", "fromfile_pickle", "load_pickle", "extractall"}
KEYWORDS = {"shell": {True}, "allow_pickle": {True}, "trust_remote_code": {True}, "weights_only": {False}}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def hits(source: str, path: str = "x.py") -> list[str]:
    """Places in a source that could run foreign code."""
    found, names = [], {}
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                names[alias.asname or alias.name.split(".")[0]] = whole if alias.asname or "." not in alias.name else whole.split(".")[0]
                if whole.split(".")[0] in MODULES or whole in CALLS:
                    found.append((node, f"imports {whole}"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in BUILTINS and names.get(node.id, node.id) == node.id:
            found.append((node, node.id))
        if not isinstance(node, ast.Call):
            continue
        head, _, rest = dotted(node.func).partition(".")
        name = ".".join(part for part in (names.get(head, head), rest) if part)
        given = {key.arg: key.value for key in node.keywords}
        if name in CALLS or name.rpartition(".")[2] in ENDS:
            found.append((node, name))
        if name == "yaml.load" and not any(dotted(arg).endswith("RecipeLoader") for arg in [*node.args, *given.values()]):
            found.append((node, "yaml.load without the project's loader"))
        if name == "torch.load" and not (isinstance(given.get("weights_only"), ast.Constant) and path.startswith(SAFE_MODE)):
            found.append((node, "torch.load"))
        for key, bad in KEYWORDS.items():
            if key in given and (not isinstance(given[key], ast.Constant) or given[key].value in bad):
                found.append((node, f"{key}=..."))
    return [f"{path}:{node.lineno} {what}" for node, what in found]


def test_no_call_can_unpickle_or_run_a_shell():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert len(files) >= 7
    assert [hit for path in files for hit in hits(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())] == []


BAD = [
    "import pickle", "from pickle import loads as quiet", "import dill as d", "import joblib",
    "import torch\ntorch.load(p)", "import torch as t\nt.load(p, weights_only=False)", "from torch import load\nload(p)",
    "import torch\ntorch.load(p, weights_only=True)", "torch.jit.load(p)", "np.load(p, allow_pickle=True)", "np.load(p, allow_pickle=flag)",
    "eval(x)", "exec(x)", "run = eval", "compile(x, 'f', 'exec')", "__import__(x)",
    "import os\nos.system(x)", "from os import system", "import os as o\no.popen(x)", "subprocess.run(x, shell=True)",
    "subprocess.Popen(x, shell=flag)", "yaml.load(x)", "yaml.load(x, Loader=yaml.Loader)", "yaml.unsafe_load(x)",
    "from yaml import full_load as safe\nsafe(x)", "AutoModel.from_pretrained(p, trust_remote_code=True)", "pd.read_pickle(p)",
    "archive.extractall(p)",
]  # fmt: skip
GOOD = [
    "model.eval()",
    "re.compile(x)",
    "torch.compile(m)",
    "np.load(p, allow_pickle=False)",
    "yaml.load(x, RecipeLoader)",
    "subprocess.run(['cc'])",
]


@pytest.mark.parametrize("source", BAD)
def test_the_reading_finds_dangerous_calls(source):
    assert hits(source)


@pytest.mark.parametrize("source", GOOD)
def test_the_reading_leaves_harmless_calls(source):
    assert not hits(source)


def test_safe_mode_is_allowed_where_weights_of_others_are_read_alone():
    assert not hits("import torch\ntorch.load(p, weights_only=True)", "mmlm/interop/pt.py")
    assert not hits("import torch\ntorch.load(p, weights_only=True)", "mmlm/weights.py")
    assert hits("import torch\ntorch.load(p, weights_only=False)", "mmlm/weights.py")
    assert hits("import torch\ntorch.load(p, weights_only=False)", "mmlm/interop/pt.py")


NETWORK = {
    "socket",
    "ssl",
    "http",
    "urllib.request",
    "ftplib",
    "smtplib",
    "xmlrpc",
    "requests",
    "httpx",
    "aiohttp",
    "urllib3",
    "websockets",
}
LISTENS = ("mmlm/serving/", "demos/")


def reaches(source: str) -> list[str]:
    """Imports of a source through which it could call somebody."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [name for name in names if name in NETWORK or name.partition(".")[0] in NETWORK]
    return found


def test_nothing_but_what_listens_imports_a_network_package():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix(): reaches(path.read_text(encoding="utf-8")) for path in files}
    assert {name: each for name, each in found.items() if each and not name.startswith(LISTENS)} == {}


@pytest.mark.parametrize(
    "source", ["import requests", "from urllib import request", "import urllib.request as u", "from http.client import X"]
)
def test_the_reading_finds_network_packages(source):
    assert reaches(source)
    assert not reaches("from urllib.parse import quote\nfrom . import http")


def test_no_source_file_is_long_or_left_unfinished():
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    long = {path.name: lines for path in files if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 600}
    marks = [path.name for path in files if any(mark in path.read_text(encoding="utf-8") for mark in ("TODO", "FIXME", "XXX"))]
    assert (long, marks) == ({}, [])
