"""Runs to serve, and servers that listen while a test needs them."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager
from threading import Thread

import numpy as np
import pytest
import uvicorn
from PIL import Image as Pictures

from mmlm.recipe import Recipe
from mmlm.run import train
from mmlm.serving.app import create_app
from mmlm.serving.uses import uses_of

from .tiny import PICTURES

TEXT = """
schema: 1
name: tiny
task: {type: text, context: 24}
data: {train: [{type: text_files, path: FOLDER}]}
tokenizers: {text: {type: text, vocabulary_size: 300}}
backbone: {width: 16, num_layers: 2, pattern: [{type: attention, num_heads: 2}, {type: mamba2, head_size: 8, state_size: 8}]}
train: {steps: 3, batch_size: 2, log_every: 1}
"""
TABLE = """
schema: 1
name: tiny
task: {type: tabular, episode: {num_rows: 12, max_shots: 8, max_columns: 4}}
data: {train: [{type: structural_tables}]}
encoders: {cell: {type: table_cells, hidden: 16}}
backbone:
  width: 16
  num_layers: 2
  pattern:
    - {mixer: {type: attention, num_heads: 2, over: column, causal: false, rope: null}, feed_forward: null}
    - {mixer: {type: attention, num_heads: 2, over: row, causal: false, rope: null}}
train: {steps: 2, batch_size: 2, log_every: 1}
"""
MOLECULES = """
schema: 1
name: tiny
task: {type: regression_transformer, properties: [size]}
objective: {type: permutation, alternate_every: 2}
data: {train: [{type: molecule_manifest, path: FILE, hold_out: 0.2, validate_share: 0.2}]}
tokenizers: {sequence: {type: molecules}, numbers: {type: numbers, whole_digits: 1, decimals: 1}}
backbone: {width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}
train: {steps: 2, batch_size: 4, log_every: 1}
"""
CLASSES = """
schema: 1
name: tiny
task: {type: picture_classes, encoder: {type: timm, model: test_vit, image_size: 32}}
data: {train: [{type: picture_folder, path: FOLDER, captions: folders, hold_out: 0.25, validate_share: 0.25}]}
train: {steps: 2, batch_size: 4, log_every: 1}
"""
TOKEN = "a-token-of-tests"


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="session")
def text_run(home, tmp_path_factory):
    lines = [json.dumps({"text": f"The {number}. line says how many lines came before it: {number}. Ünd so on."}) for number in range(24)]
    folder = tmp_path_factory.mktemp("texts")
    (folder / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train(Recipe.read(TEXT.replace("FOLDER", str(folder)), [f"output={home / 'words'}"]))
    return home / "words"


@pytest.fixture(scope="session")
def table_run(home):
    train(Recipe.read(TABLE, [f"output={home / 'rows'}"]))
    return home / "rows"


@pytest.fixture(scope="session")
def picture_run(home):
    train(Recipe.read("grounded_captioning/quickstart", [*PICTURES, f"output={home / 'seen'}"]))
    return home / "seen"


@pytest.fixture(scope="session")
def molecule_run(tmp_path_factory):
    pytest.importorskip("rdkit")
    rings, tails = ("c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CC1", "c1ccsc1", "C1CCNC1"), ("C", "O", "CC", "CN")
    lines = [json.dumps({"smiles": ring + tail, "properties": {"size": len(ring + tail) / 10}}) for ring in rings for tail in tails]
    path = tmp_path_factory.mktemp("compounds") / "compounds.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    train(Recipe.read(MOLECULES.replace("FILE", str(path)), [f"output={path.parent / 'compounds'}"]))
    return path.parent / "compounds"


@pytest.fixture(scope="session")
def class_run(tmp_path_factory):
    pytest.importorskip("timm")
    folder, draws = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, level in (("bright", 220), ("dark", 30)):
        (folder / name).mkdir()
        for number in range(8):
            pixels = np.clip(level + draws.normal(0, 9, (30, 40, 3)), 0, 255).astype(np.uint8)
            Pictures.fromarray(pixels).save(folder / name / f"{number}.png")
    run = tmp_path_factory.mktemp("classes") / "classes"
    train(Recipe.read(CLASSES.replace("FOLDER", str(folder)), [f"output={run}"]))
    return run


@pytest.fixture(scope="session")
def runs(text_run, picture_run, table_run):
    return {folder.name: folder for folder in (text_run, picture_run, table_run)}


@pytest.fixture(scope="session")
def text_use(text_run):
    return uses_of(text_run)[0]


@contextmanager
def listening(uses, token=TOKEN, limits=None):
    """The address of a server that listens on a free port, and its `Server`."""
    app = create_app(uses, token=token, limits=limits)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}", app.state.server
    finally:
        server.should_exit = True
        thread.join(20)
