"""The package as others get it: a wheel, an editable install, and a checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BESIDE = ("tokenizers", "encoders", "heads", "kernels", "recipes", "demos")
LIGHT = "mmlm.recipe, mmlm.encoders.config, mmlm.heads.config"


def git_files() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.splitlines()


def run(*words: str, cwd: Path, path: str = "") -> str:
    env = {**os.environ, "PYTHONPATH": path, "PIP_NO_INDEX": "1"}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tracked files, so that building leaves nothing in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    for name in git_files():
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(out), str(source), cwd=out)
    (path,) = out.glob("mmlm-*.whl")
    return path


def test_the_wheel_holds_every_source_and_data_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    expected = set()
    for name in git_files():
        top = name.partition("/")[0]
        if top == "mmlm" or top in BESIDE:
            expected.add(name if top == "mmlm" else f"mmlm/{name}")
    assert len(expected) > 20
    assert sorted(expected - inside) == []
    assert [name for name in inside if not name.startswith(("mmlm/", "mmlm-"))] == []
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_the_wheel_imports_from_an_empty_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    code = f"import {LIGHT}; import tokenizers; print(mmlm.recipe.__file__, mmlm.heads.config.__file__, tokenizers.__file__)"
    ours, heads, theirs = run(sys.executable, "-c", code, cwd=tmp_path / "empty", path=str(tmp_path / "site")).split()
    assert ours.startswith(str(tmp_path)) and heads.startswith(str(tmp_path)) and "site-packages" in theirs
    text = run(sys.executable, "-m", "mmlm", "list", cwd=tmp_path / "empty", path=str(tmp_path / "site"))
    assert re.search(r"^mixers +\d", text, re.MULTILINE)


def test_an_editable_install_imports_from_an_empty_folder(source, tmp_path):
    code = "import sys; from setuptools import build_meta; print(build_meta.build_editable(sys.argv[1]))"
    name = run(sys.executable, "-c", code, str(tmp_path), cwd=source).splitlines()[-1]
    with zipfile.ZipFile(tmp_path / name) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    packages = sysconfig.get_paths()["purelib"]  # as plain folder, so that an mmlm installed there in editable form does not count
    code = f"import site, sys; site.addsitedir(sys.argv[1]); sys.path.append(sys.argv[2]); import {LIGHT}, tokenizers"
    words = ("-S", "-c", f"{code}; print(mmlm.heads.config.__file__)", str(tmp_path / "site"), packages)
    assert run(sys.executable, *words, cwd=tmp_path / "empty").startswith(str(source))


@pytest.mark.parametrize("folder", ["root", "empty"])
def test_a_checkout_imports_without_being_installed(folder, tmp_path):
    code = f"import {LIGHT}, tokenizers; print(tokenizers.__file__)"
    cwd, path = (ROOT, "") if folder == "root" else (tmp_path, str(ROOT))
    assert "site-packages" in run(sys.executable, "-c", code, cwd=cwd, path=path)


def test_dependencies_have_floors_and_no_ceilings_but_those_with_a_reason():
    listed = [*PROJECT["dependencies"], *(each for extra in PROJECT["optional-dependencies"].values() for each in extra)]
    ceilings = [each for each in listed if re.search(r"<|==|~=", each)]
    assert ceilings == ["pillow>=11,<13", "librosa>=0.10,<2"]  # gradio and trackio need pillow below 13; librosa 2 is to break names
    assert "torch>=2.10" in listed  # the safe mode of torch.load was not safe below
    assert "transformers>=5.3" in listed  # config.json could load remote code below
    assert {"torch", "numpy", "safetensors", "pydantic"} <= {re.split(r"[<>=\[]", each)[0] for each in PROJECT["dependencies"]}


def test_the_extra_all_holds_every_other_but_dev_and_what_is_under_the_gpl():
    extras = set(PROJECT["optional-dependencies"]) - {"phonemes"}
    (line,) = PROJECT["optional-dependencies"]["all"]
    assert set(re.findall(r"\[(.*)\]", line)[0].split(",")) == extras - {"all", "dev"}


def test_every_extra_that_an_error_names_exists():
    named = {}
    for name in git_files():
        if name.endswith(".py") and not name.startswith("tests/"):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require" and len(node.args) == 2:
                    assert isinstance(node.args[1], ast.Constant), f"{name}:{node.lineno}: name the extra as it is"
                    named[node.args[1].value] = f"{name}:{node.lineno}"
    assert {extra: at for extra, at in named.items() if extra not in PROJECT["optional-dependencies"]} == {}
