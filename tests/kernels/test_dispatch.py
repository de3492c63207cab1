"""The choice of a back end: in sight, by name, by environment, with the reason; and what `mmlm kernels` is told."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.kernels import dispatch, native
from mmlm.kernels.dispatch import KERNELS, OPS, available, choose, forced, pointers, register, report
from mmlm.kernels.rms_norm import fast
from mmlm.kernels.rms_norm.fast import rms_norm

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def op(monkeypatch):
    monkeypatch.setitem(KERNELS, "toy", dispatch.Kernel())
    monkeypatch.delenv("MMLM_KERNEL", raising=False)
    register("toy", "reference", lambda x: "reference")
    register("toy", "torch", lambda x: "torch")
    register("toy", "native", lambda x: "native", lambda *x: "too odd" if x and x[0].dtype == torch.float64 else None)
    return "toy"


def test_auto_takes_the_fastest_that_serves(op):
    assert choose(op, "auto", torch.zeros(1)) == "native"
    assert choose(op, "auto", torch.zeros(1, dtype=torch.float64)) == "torch"


def test_a_back_end_asked_for_by_name_serves_or_says_why_not(op):
    assert choose(op, "reference", torch.zeros(1)) == "reference"
    with pytest.raises(RecipeError, match="backend: back end 'native' cannot serve toy: too odd"):
        choose(op, "native", torch.zeros(1, dtype=torch.float64))
    with pytest.raises(RecipeError, match="toy has no back end 'triton', only native, reference, torch"):
        choose(op, "triton")
    with pytest.raises(RecipeError, match="unknown back end 'referense'. Did you mean 'reference'"):
        choose(op, "referense")


def test_the_environment_and_a_block_replace_auto_alone(op, monkeypatch):
    x = torch.zeros(1)
    monkeypatch.setenv("MMLM_KERNEL", "reference")
    assert choose(op, "auto", x) == "reference" and choose(op, "torch", x) == "torch"
    monkeypatch.setenv("MMLM_KERNEL", "ssd=reference,torch")
    assert choose(op, "auto", x) == "torch"
    monkeypatch.setenv("MMLM_KERNEL", "torch, toy=reference")
    assert choose(op, "auto", x) == "reference"
    monkeypatch.setenv("MMLM_KERNEL", "fastest")
    with pytest.raises(RecipeError, match="MMLM_KERNEL: unknown back end 'fastest'"):
        choose(op, "auto", x)
    monkeypatch.setenv("MMLM_KERNEL", "atention=reference")
    with pytest.raises(RecipeError, match="MMLM_KERNEL: unknown operation 'atention'. Did you mean 'attention'"):
        choose(op, "auto", x)
    with forced("reference"), forced("torch"):
        assert choose(op, "auto", x) == "torch"


def test_a_back_end_that_an_operation_does_not_have_is_explained(op):
    dispatch.absent(op, "triton", "it is a toy")
    with pytest.raises(RecipeError, match="toy has no back end 'triton', only native, reference, torch .it is a toy.."):
        choose(op, "triton")


def test_native_code_reads_plain_cpu_tensors_of_its_dtypes_only():
    x = torch.zeros(2)
    assert pointers(x, None, torch.nn.Parameter(x), torch.zeros(1, dtype=torch.bool)) is None
    assert "float64" in pointers(x.double())
    assert "on meta" in pointers(torch.zeros(2, device="meta"))
    assert "not a plain tensor" in pointers(x.as_subclass(type("Own", (torch.Tensor,), {})))
    seen = []
    torch.vmap(lambda row: seen.append(pointers(row)) or row)(torch.zeros(3, 2))
    assert "not a plain tensor" in seen[0]


def test_every_operation_is_told_with_its_back_ends_in_order():
    lines = report()
    assert {line.op for line in lines} == set(OPS) and len(OPS) >= 9
    for name in OPS:
        mine = [line for line in lines if line.op == name]
        assert [line.backend for line in mine] == [b for b in dispatch.BACKENDS if b in KERNELS[name] or b in KERNELS[name].absent]
        assert {"triton", "native"} <= {line.backend for line in mine}, "each is there, or the reason why it is not"
        assert mine[-1].backend == "reference" and all(line.serves or line.reason for line in mine)


def test_every_native_file_compiles_where_there_is_a_compiler(monkeypatch):
    monkeypatch.delenv("MMLM_NATIVE", raising=False)
    try:
        native._compiler()
    except native.Unavailable:
        assert all("native" not in available(name) for name in OPS)
        return
    assert [name for name in OPS if "native" not in available(name)] == []


def test_without_native_code_the_torch_form_serves_and_the_report_says_why(monkeypatch):
    monkeypatch.setenv("MMLM_NATIVE", "0")
    told = {line.reason for line in report() if line.backend == "native" and "native" in KERNELS[line.op]}
    assert choose("swiglu", "auto", torch.zeros(2)) == "torch"
    assert told == {"switched off by MMLM_NATIVE=0"}


def test_a_compiler_that_fails_is_told_once_and_one_that_is_absent_is_not(monkeypatch, caplog, tmp_path):
    monkeypatch.delenv("MMLM_NATIVE", raising=False)
    broken = tmp_path / "fast.cpp"
    broken.write_text("this is no C++")
    monkeypatch.setattr(fast, "_library", native.Library(broken, {}))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            rms_norm(torch.ones(2, 3), torch.ones(3))
    assert len(caplog.records) == 1 and "fall back to PyTorch" in caplog.text and "fast.cpp" in caplog.text
    caplog.clear()
    monkeypatch.setenv("MMLM_NATIVE", "0")
    rms_norm(torch.ones(2, 3), torch.ones(3))
    assert not caplog.records


def test_importing_the_operations_compiles_nothing(tmp_path):
    code = f"import {', '.join(OPS.values())}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "PATH": ""}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=120)
    assert not list(tmp_path.rglob("*"))


def test_gradients_of_gradients_go_through_the_reference():
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with forced("reference"):
        (slope,) = torch.autograd.grad(rms_norm(x, torch.ones(5)).pow(3).sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), x)
    assert curve.abs().sum() > 0
