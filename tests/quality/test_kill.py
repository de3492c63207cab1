"""A run killed at ten random moments and resumed each time ends with the weights of a run that was left alone."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.quality
ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "train.steps=120", "train.max_seconds=null", "train.batch_size=2", "train.checkpoint_every=7", "train.log_every=1",
    "backbone.width=32", "backbone.num_layers=4", "data.train=[{type: real_tables},{type: structural_tables}]",
]  # fmt: skip


def start(folder: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command line, training into a folder."""
    words = ["train", "tabular/quickstart", f"output={folder}", f"train.workers={workers}", *SMALL]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mmlm", *words], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    assert start(folder, 0).wait() == 0
    return (folder / "model.safetensors").read_bytes(), time.monotonic() - began


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_kills_at_random_moments_leave_the_weights_of_an_undisturbed_run(tmp_path, whole, workers):
    weights, seconds = whole
    rng, killed, runs = random.Random(workers), 0, 0
    while killed < 10:
        runs += 1
        process = start(tmp_path / "run", workers)
        try:
            process.wait(timeout=rng.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            continue
        assert process.returncode == 0, process.stderr.read().decode()
        if killed < 10 and (tmp_path / "run" / "model.safetensors").is_file():
            assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
            (tmp_path / "run").rename(tmp_path / f"finished-{runs}")
    process = start(tmp_path / "run", workers)
    assert process.wait() == 0, process.stderr.read().decode()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == weights
    print(f"\nworkers {workers}: {killed} kills in {runs + 1} starts, weights equal")
