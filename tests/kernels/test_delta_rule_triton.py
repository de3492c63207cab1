"""The Triton form of the delta rule under Triton's interpreter, in a process of its own, which must be told before Triton is imported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.delta_rule.fast import delta_rule

ROOT = Path(__file__).resolve().parents[2]
CASES = """
import torch
from mmlm.kernels.delta_rule.tolerance import TOLERANCE
from mmlm.kernels.dispatch import choose
from mmlm.kernels.parity import disagreements
from test_delta_rule import LAYOUTS, as_double, both, inputs

count = 0
for length, layout, state, decay, dtype, size in [
    (1, "plain", False, True, torch.float32, {"heads": 2}),
    (15, "padded", True, False, torch.float32, {"k": 20, "heads": 2}),
    (33, "packed", True, True, torch.float32, {"v": 40, "groups": 1, "heads": 2}),
    (20, "padding between", False, True, torch.bfloat16, {"groups": 1, "heads": 1}),
    (33, "plain", False, False, torch.float32, {"groups": 1, "heads": 1}),
]:
    tensors = inputs(length, dtype, state=state, decay=decay, **size)
    document = torch.tensor([LAYOUTS[layout](length), [1] * length, [0] * length])
    given = {"document_bt": document, "continues": torch.tensor([True, False, False]) if state else None}
    wanted = both(as_double(tensors), **given, backend="reference")
    assert choose("delta_rule", "auto", *tensors.values()) == "triton"
    wrong = disagreements(both(tensors, **given, backend="triton"), wanted, TOLERANCE[dtype])
    assert wrong == [], (length, layout, wrong)
    count += 1
print(count, "cases agree")
"""


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")
def test_outputs_and_gradients_equal_the_step_loop_under_the_interpreter():
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'kernels'}"}
    done = subprocess.run([sys.executable, "-c", CASES], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "5 cases agree"


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter takes tensors of the CPU")
def test_tensors_of_the_cpu_are_refused_with_the_reason():
    x = torch.ones(1, 3, 1, 2)
    with pytest.raises(RecipeError, match="back end 'triton' cannot serve delta_rule: (a tensor is on cpu|triton is not installed)"):
        delta_rule(x, x, x, x[..., 0], None, torch.ones(1, 3, dtype=torch.int32), backend="triton")
    wide = torch.ones(1, 3, 1, 300)
    with pytest.raises(RecipeError, match="keys of 300 channels .it takes at most 256"):
        delta_rule(wide, wide, x, x[..., 0], None, torch.ones(1, 3, dtype=torch.int32), backend="triton")
