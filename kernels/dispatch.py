"""Which back end serves an operation: chosen in sight, asked for by name, told by `mmlm kernels`.

    reference   reads like the equation, any dtype and device, the measure of all others
    torch       the fast form in plain PyTorch, always there
    native      C++ on the CPU, compiled at first use
    triton      GPU

`auto` takes the last of these that can serve the tensors at hand. `MMLM_KERNEL=reference` (or `MMLM_KERNEL=ssd=reference,torch`) replaces
`auto` for every operation (or for one and the rest), to find out whether a kernel is at fault; `forced("reference")` does it for a block.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError, unknown_name

BACKENDS = ("triton", "native", "torch", "reference")  # in the order `auto` asks them
OPS = {
    "attention": "mmlm.kernels.attention.fast",
    "causal_conv1d": "mmlm.kernels.conv1d.fast",
    "decode": "mmlm.kernels.decode.fast",
    "delta_rule": "mmlm.kernels.delta_rule.fast",
    "packed_attention": "mmlm.kernels.attention.fast",
    "linear_cross_entropy": "mmlm.kernels.cross_entropy.fast",
    "long_conv": "mmlm.kernels.long_conv.fast",
    "rms_norm": "mmlm.kernels.rms_norm.fast",
    "rope": "mmlm.kernels.rope.fast",
    "selective_scan": "mmlm.kernels.selective_scan.fast",
    "ssd": "mmlm.kernels.ssd.fast",
    "ssm_conv": "mmlm.kernels.long_conv.ssm",
    "swiglu": "mmlm.kernels.swiglu.fast",
}
FLOATS = (torch.float32, torch.bfloat16)

Serves = Callable[..., str | None]


class Status(NamedTuple):
    """One line of `mmlm kernels`: whether a back end serves an operation on this machine, and why not."""

    op: str
    backend: str
    serves: bool
    reason: str


class Kernel(dict[str, Callable[..., Any]]):
    """The back ends of one operation, by name; `serves` tells for each what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.serves: dict[str, Serves] = {}


KERNELS: dict[str, Kernel] = {}
_forced: list[str] = []


def always(*tensors: Tensor | None) -> None:
    """A back end that serves everything."""


def register(op: str, backend: str, function: Callable[..., Any], serves: Serves = always) -> None:
    """Add a back end. serves(*tensors): None if it can compute them, else the reason; without tensors: whether it can run here at all."""
    if backend not in BACKENDS:
        raise ValueError(f"{backend!r} is none of {', '.join(BACKENDS)}")
    kernel = KERNELS.setdefault(op, Kernel())
    kernel[backend] = function
    kernel.serves[backend] = serves


def choose(op: str, backend: str = "auto", *tensors: Tensor | None) -> str:
    """The name of the back end that serves these tensors.

    Raises RecipeError if a back end asked for by name is not known or cannot serve; the text says why.
    """
    kernel, where = KERNELS[op], "backend"
    if backend == "auto":
        backend, where = asked(op), "forced()" if _forced else "MMLM_KERNEL"
    if backend == "auto":
        for name in BACKENDS:
            if name in kernel and kernel.serves[name](*tensors) is None:
                return name
        raise RuntimeError(f"no back end of {op!r} serves; {', '.join(kernel)} are registered")
    if backend not in BACKENDS:
        raise RecipeError(f"{where}: {unknown_name('back end', backend, ['auto', *BACKENDS])}")
    if backend not in kernel:
        raise RecipeError(f"{where}: {op} has no back end {backend!r}, only {', '.join(sorted(kernel))}.")
    reason = kernel.serves[backend](*tensors)
    if reason is not None:
        raise RecipeError(f"{where}: back end {backend!r} cannot serve {op}: {reason}.")
    return backend


def run(op: str, backend: str, tensors: tuple[Tensor | None, ...], *arguments: Any, **options: Any) -> Any:
    """Call the back end that serves the tensors, the first of which is given, with autocast off; it sees every dtype as it is."""
    name = choose(op, backend, *tensors)
    function = KERNELS[op][name]
    device = tensors[0].device.type  # type: ignore[union-attr]
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return function(*arguments, **options)
    return function(*arguments, **options)


def asked(op: str) -> str:
    """What `auto` means for an operation now: the back end of the innermost `forced` block, that of MMLM_KERNEL, or auto."""
    if _forced:
        return _forced[-1]
    found = "auto"
    for part in os.environ.get("MMLM_KERNEL", "").split(","):
        name, equals, value = part.strip().rpartition("=")
        if equals and name == op:
            return value
        if value and not equals:
            found = value
    return found


@contextlib.contextmanager
def forced(backend: str) -> Iterator[None]:
    """Within the block `auto` means this back end, for all operations; `reference` allows gradients of gradients."""
    _forced.append(backend)
    try:
        yield
    finally:
        _forced.pop()


def pointers(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] = FLOATS) -> str | None:
    """Why native code cannot read these tensors by their addresses, or None if it can."""
    for x in tensors:
        if x is None:
            continue
        if x.device.type != "cpu":
            return f"a tensor is on {x.device}, not on the CPU"
        if x.is_floating_point() and x.dtype not in dtypes:
            return f"dtype {str(x.dtype).removeprefix('torch.')} (it takes {', '.join(str(d).removeprefix('torch.') for d in dtypes)})"
        if type(x) not in _PLAIN or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return f"{type(x).__name__} is not a plain tensor"
    if tensors and (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return "the operation is being traced"
    return None


def on_gpu(*tensors: Tensor | None, dtypes: tuple[torch.dtype, ...] | None = None) -> str | None:
    """Why Triton cannot compute these tensors, or None if it can. Under its interpreter (TRITON_INTERPRET=1) it takes those of the CPU.

    dtypes: of floating-point numbers that the programs take; None for all.
    """
    if not _has_triton():
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for x in tensors:
        if x is not None and x.device.type != "cuda" and not (interpreted and x.device.type == "cpu"):
            return f"a tensor is on {x.device}, not on a CUDA device"
        if x is not None and dtypes is not None and x.is_floating_point() and x.dtype not in dtypes:
            return f"dtype {str(x.dtype).removeprefix('torch.')} (it takes {', '.join(str(d).removeprefix('torch.') for d in dtypes)})"
        if x is not None and torch._C._functorch.is_functorch_wrapped_tensor(x):
            return f"{type(x).__name__} is not a plain tensor"
    return None if tensors or interpreted or torch.cuda.is_available() else "no CUDA device"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


_PLAIN = (Tensor, torch.nn.Parameter)


def available(op: str, *, but: str | None = None) -> list[str]:
    """Back ends of an operation that run on this machine."""
    importlib.import_module(OPS[op])
    kernel = KERNELS[op]
    return [name for name in BACKENDS if name in kernel and name != but and kernel.serves[name]() is None]


def report() -> list[Status]:
    """For `mmlm kernels`: every back end of every operation, in the order `auto` asks them. Compiles what is not compiled yet."""
    lines = []
    for op, module in OPS.items():
        importlib.import_module(module)
        for name in BACKENDS:
            if name in KERNELS[op]:
                reason = KERNELS[op].serves[name]()
                lines.append(Status(op, name, reason is None, reason or ""))
    return lines
