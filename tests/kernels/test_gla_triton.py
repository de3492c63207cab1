"""The Triton form of gated linear attention under Triton's interpreter, in a process of its own, told before Triton is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.gla.fast import gla

ROOT = Path(__file__).resolve().parents[2]
CASES = """
import torch
from mmlm.kernels.gla.tolerance import TOLERANCE
from mmlm.kernels.dispatch import choose
from mmlm.kernels.parity import disagreements
from test_gla import as_double, both, inputs, layouts

count = 0
for length, state, dtype, size in [(20, True, torch.float32, {"v": 40}), (3, False, torch.bfloat16, {"k": 20})]:
    tensors, document = inputs(length, dtype, state=state, rows=2, heads=1, **size), layouts(length)[[1, 3]]
    given = {"document_bt": document, "continues": torch.tensor([True, False]) if state else None}
    wanted = both(as_double(tensors), **given, backend="reference")
    assert choose("gla", "auto", *tensors.values()) == "triton"
    wrong = disagreements(both(tensors, **given, backend="triton"), wanted, TOLERANCE[dtype])
    assert wrong == [], (length, dtype, wrong)
    count += 1
print(count, "cases agree")
"""


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")
def test_outputs_and_gradients_equal_the_step_loop_under_the_interpreter():
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", CASES], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "2 cases agree"


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter takes tensors of the CPU")
def test_tensors_of_the_cpu_are_refused_with_the_reason():
    x = torch.ones(1, 3, 1, 2)
    with pytest.raises(RecipeError, match="back end 'triton' cannot serve gla: (a tensor is on cpu|triton is not installed)"):
        gla(x, x, x, x, torch.ones(1, 3, dtype=torch.int32), backend="triton")
    wide = torch.ones(1, 3, 1, 300)
    with pytest.raises(RecipeError, match="keys of 300 channels .it takes at most 256"):
        gla(wide, wide, x, wide, torch.ones(1, 3, dtype=torch.int32), backend="triton")
