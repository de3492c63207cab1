"""Compiles every Triton program for a GPU that is not there, and prints their names: its interpreter runs what the compiler would refuse.

`test_triton.py` runs this file. The operations are called as on a GPU, forwards and backwards, in bfloat16; a launch ends when its program
has become the GPU's intermediate code (layouts, pipelines, matrix instructions).
"""

from __future__ import annotations

import sys

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mmlm.kernels.attention.reference import Rule
from mmlm.kernels.attention.triton import attention_triton
from mmlm.kernels.conv1d.triton import causal_conv1d_triton
from mmlm.kernels.cross_entropy.tiles import logit_terms
from mmlm.kernels.cross_entropy.triton import TritonPasses
from mmlm.kernels.delta_rule.reference import DeltaRule
from mmlm.kernels.delta_rule.triton import delta_rule_triton
from mmlm.kernels.gla.reference import Gla
from mmlm.kernels.gla.triton import gla_triton
from mmlm.kernels.lrpe.fast import lrpe_triton
from mmlm.kernels.rms_norm.triton import rms_norm_triton
from mmlm.kernels.rope.triton import turn_triton
from mmlm.kernels.running_softmax.reference import RunningSoftmax
from mmlm.kernels.running_softmax.triton import running_softmax_triton
from mmlm.kernels.selective_scan.reference import SelectiveScan
from mmlm.kernels.selective_scan.triton import selective_scan_triton
from mmlm.kernels.ssd.reference import Ssd
from mmlm.kernels.ssd.triton import ssd_triton
from mmlm.kernels.swiglu.triton import swiglu_triton

BF16 = torch.bfloat16
TARGET = GPUTarget("cuda", int(sys.argv[1]), 32)
compiled: list[str] = []


class Absent:
    """The driver of a GPU that is not there."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return TARGET


def without_machine_code(self=None, stages=None, *more):
    if stages is None:
        return "intermediate", "intermediate"
    for name in list(stages)[2:]:
        del stages[name]
    return None


def compile_only(self, key, signature, device, constexprs, options, attrs, warmup):
    triton.compile(self.ASTSource(self, signature, constexprs, attrs), target=TARGET, options=options.__dict__)
    compiled.append(f"{self.fn.__module__.split('.')[-2]}.{self.fn.__name__}")


driver.set_active(Absent())
knobs.runtime.add_stages_inspection_hook = without_machine_code
triton.compiler.compiler.CompiledKernel = lambda *given: None
JITFunction._do_compile = compile_only


def zeros(*shape, dtype=BF16):
    return torch.zeros(shape, dtype=dtype).requires_grad_()


def back(outputs):
    sum(y.float().sum() for y in outputs if y.requires_grad).backward()


document = torch.tensor([[1] * 60 + [2] * 30 + [0] * 10] * 2)
goes_on = torch.tensor([True, False])
mask, heads = torch.ones(1, 1, 100, 100, dtype=torch.bool), [zeros(2, h, 100, 64) for h in (4, 2, 2)]
back([attention_triton(*heads, mask, torch.ones(4), Rule(True, 9, 0, 0.1, 5.0), document)])
back(causal_conv1d_triton(zeros(2, 100, 96), zeros(96, 4), zeros(96), document, zeros(2, 96, 3), goes_on, "silu"))
step, decay = zeros(2, 100, 4, dtype=torch.float32), zeros(4, dtype=torch.float32)
keys = zeros(2, 100, 2, 128), zeros(2, 100, 2, 128)
state = zeros(2, 4, 64, 128, dtype=torch.float32)
back(ssd_triton(Ssd(zeros(2, 100, 4, 64), step, decay, *keys, document, state, goes_on, 64)))
state = zeros(2, 4, 128, 64, dtype=torch.float32)
back(delta_rule_triton(DeltaRule(*keys, zeros(2, 100, 4, 64), step, step, document, state, goes_on, 16)))
state, decays = zeros(2, 2, 128, 64, dtype=torch.float32), zeros(2, 100, 2, 128, dtype=torch.float32)
back(gla_triton(Gla(*keys, zeros(2, 100, 2, 64), decays, document, state, goes_on)))
x, keys = [zeros(2, 100, 96) for _ in range(3)], [zeros(2, 100, 16) for _ in range(2)]
rates = zeros(96, dtype=torch.float32), zeros(96, 16, dtype=torch.float32), zeros(96, dtype=torch.float32)
state = zeros(2, 96, 16, dtype=torch.float32)
back(selective_scan_triton(SelectiveScan(*x[:2], *rates[:2], *keys, rates[2], x[2], document, state, goes_on, True)))
back(running_softmax_triton(RunningSoftmax(x[0], document, zeros(2, 96, dtype=torch.float32), goes_on)))
back(rms_norm_triton(zeros(200, 768), zeros(768), 1e-6, zeros(200, 768, dtype=torch.float32), BF16))
back([swiglu_triton(zeros(200, 512))])
back([turn_triton(zeros(2, 100, 4, 64), torch.zeros(1, 100, 24), torch.zeros(1, 100, 24))])
back(lrpe_triton(zeros(2, 100, 4, 64), zeros(2, 100, 4, 64), zeros(1, 100, 4, 64, dtype=torch.float32), BF16))
terms = logit_terms(TritonPasses(), zeros(30, 64), zeros(500, 64), torch.zeros(30, dtype=torch.long), None, range(500), 5.0, BF16)
back(terms[:4])
print(*sorted(set(compiled)), sep="\n")
