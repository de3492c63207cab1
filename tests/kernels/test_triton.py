"""The Triton forms under Triton's interpreter and through its compiler, in processes of their own: Triton is told at its import which.

The interpreter shows that the numbers are right (interpreted.py), the compiler that the programs are programs for a GPU (compiled.py).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels.attention.fast import attention
from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.kernels.cross_entropy.fast import linear_cross_entropy
from mmlm.kernels.delta_rule.fast import delta_rule
from mmlm.kernels.dispatch import KERNELS, OPS, choose
from mmlm.kernels.long_conv.fast import long_conv
from mmlm.kernels.long_conv.ssm import ssm_conv
from mmlm.kernels.rms_norm.fast import add_rms_norm, rms_norm
from mmlm.kernels.swiglu.fast import swiglu

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")


def run(*command, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_every_form_equals_its_reference_under_the_interpreter(request):
    command = ["-m", "pytest", "-q", "-rp", "-p", "no:cacheprovider", str(HERE / "interpreted.py")]
    for module in OPS.values():
        importlib.import_module(module)
    ops = sorted(OPS, key=len, reverse=True)
    found = []
    for name, case in re.findall(r"^PASSED .*::test_(\w+)(?:\[(.*)\])?", run(*command, TRITON_INTERPRET="1"), re.MULTILINE):
        found += [next(op for op in ops if name.startswith(op) or (name == "elementwise" and case.removeprefix("add_").endswith(op)))]
        request.node.user_properties.append(("kernel", f"{found[-1]} triton"))
    assert set(found) == {op for op in OPS if "triton" in KERNELS[op]} and len(found) >= 52


def test_every_program_compiles_for_a_gpu(tmp_path):
    """All but the parts that others call."""
    found = run(str(HERE / "compiled.py"), "80", TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0").split()
    texts = {path.parent.name: path.read_text() for path in ROOT.glob("kernels/*/triton.py")}
    programs = {name: re.findall(r"^@triton\.jit\ndef (\w+)", text, re.MULTILINE) for name, text in texts.items()}
    launched = {f"{name}.{program}" for name in texts for program in programs[name] if re.search(rf"\b{program}\[", texts[name])}
    assert set(found) == launched and len(launched) >= 28


DOCUMENT = torch.ones(1, 3, dtype=torch.int32)


def heads(channels, dtype=torch.float32):
    return torch.ones(1, 2, 3, channels, dtype=dtype)


@pytest.mark.parametrize(
    ("function", "arguments", "given", "reason"),
    [
        (attention, (heads(257),) * 3, {"causal": True}, r"heads of 257 channels \(it takes at most 256\)"),
        (attention, (heads(8), heads(8), heads(8, torch.bfloat16)), {"causal": True}, "queries, keys and values differ in dtype"),
        (attention, (heads(8),) * 3, {"causal": True, "slopes_h": torch.ones(2).requires_grad_()}, "it gives no gradient for slopes"),
        (causal_conv1d, (torch.ones(1, 3, 2), torch.ones(2, 33), None, DOCUMENT), {}, "33 taps are more than 32"),
        (long_conv, (torch.ones(1, 3, 2), torch.ones(2, 33), DOCUMENT), {}, "33 taps are more than 32, with which .* cuFFT, are faster"),
        (delta_rule, (*(torch.ones(1, 3, 1, 257),) * 3, torch.ones(1, 3, 1), None, DOCUMENT), {}, "keys of 257 channels"),
        (rms_norm, (torch.ones(1, 16385), torch.ones(16385)), {}, r"rows of 16385 numbers \(it takes at most 16384\)"),
        (rms_norm, (torch.ones(1, 2), torch.ones(2)), {"dtype": torch.float64}, "outputs of float64"),
        (add_rms_norm, (torch.ones(1, 2), torch.ones(2, 2), torch.ones(2)), {}, "x and the residual differ in shape"),
        (linear_cross_entropy, (*[torch.ones(2, 2).double()] * 2, torch.zeros(2)), {}, "products in float64"),
        (swiglu, (torch.ones(1, 2),), {}, "a tensor is on cpu, not on a CUDA device"),
        (ssm_conv, (torch.ones(1, 3, 2, 1), None, DOCUMENT), {}, "has no back end 'triton', .* cuFFT and cuBLAS"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_a_program_was_not_made_for_is_refused_with_the_reason(function, arguments, given, reason):
    with pytest.raises(RecipeError, match=reason):
        function(*arguments, **given, backend="triton")


def test_the_interpreter_alone_lets_tensors_of_the_cpu_through(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("swiglu", "auto", torch.ones(1, 2)) == "triton"
    with pytest.raises(RecipeError, match=r"dtype float64 \(it takes float32, bfloat16, float16\)"):
        choose("swiglu", "triton", torch.ones(1, 2).double())
