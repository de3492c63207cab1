"""No network, no home, a package and data that cannot be written, names with spaces and letters of other alphabets: all still works."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.tiny import PARTS, TASKS, TRAIN, write_data

pytestmark = pytest.mark.quality
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("mmlm", "tokenizers", "encoders", "heads", "kernels", "demos", "recipes", "pyproject.toml")
PROGRAM = """
import os, sys
from pathlib import Path

def refuse(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        print("reached for", args)
        os._exit(9)

sys.addaudithook(refuse)
import mmlm
from mmlm.cli import main
from mmlm.serving.demo import build
from mmlm.serving.uses import uses_of

source, data, output = map(Path, sys.argv[1:])
assert Path(mmlm.__file__).is_relative_to(source)
is_bound = not os.access(source / "mmlm", os.W_OK) and not os.access(data, os.W_OK)
for kind, more in KINDS:
    run = str(output / f"r\\u00fcn {kind}")
    assert main(["train", str(data / f"{kind}.yaml"), f"output={run}"]) == 0
    for words in more:
        assert main([each.replace("RUN", run).replace("DATA", str(data)).replace("OUTPUT", str(output)) for each in words]) == 0
build([use for kind, _ in KINDS for use in uses_of(Path(output / f"r\\u00fcn {kind}"))])
print("all done", is_bound)
"""
KINDS = [
    ("text", [["generate", "RUN", "--text", "The 3. line", "--output", "OUTPUT/s\u00e4id.txt"], ["evaluate", "RUN"]]),
    ("picture_classes", [["encode", "RUN", "DATA/pictures/bright/0.png", "--output", "OUTPUT/v 1.npy"]]),
    ("enhancement", []),
]


def test_a_machine_that_gives_nothing_but_room_for_the_output(tmp_path):
    source, data, output = (tmp_path / name for name in ("s\u00f6urce code", "d\u00e4ta \u6570\u636e", "out put"))
    source.mkdir()
    output.mkdir()
    for name in SOURCES:
        place = ROOT / name
        shutil.copytree(place, source / name) if place.is_dir() else shutil.copy(place, source / name)
    write_data(data)
    for kind, _ in KINDS:
        text = f"schema: 1\nname: {kind}{TASKS[kind]}{TRAIN}"
        for name, part in PARTS.items():
            text = text.replace(name, part)
        for file in ("texts", "said.jsonl", "pictures"):
            text = text.replace(f"FOLDER/{file}", f'"{data}/{file}"')
        (data / f"{kind}.yaml").write_text(text, encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("for kind, more in KINDS:", f"KINDS = {KINDS!r}\nfor kind, more in KINDS:"), encoding="utf-8")
    folders = [path for folder in (source, data) for path in [folder, *folder.rglob("*")] if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 and shutil.which("setpriv") else []
    try:
        done = subprocess.run(
            [*bound, sys.executable, "-P", str(program), str(source), str(data), str(output)],
            env=env, cwd="/", capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
    finally:
        for path in folders:
            path.chmod(0o755)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "all done" in done.stdout and (not bound or "all done True" in done.stdout)
    assert {path.name for path in output.iterdir()} == {*(f"r\u00fcn {kind}" for kind, _ in KINDS), "s\u00e4id.txt", "v 1.npy"}
