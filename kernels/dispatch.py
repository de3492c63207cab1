"""Which back end serves an operation: chosen in sight, asked for by name, told by `mmlm kernels`.

    reference   reads like the equation, any dtype and device, the measure of all others
    torch       the fast form in plain PyTorch, always there
    native      C++ on the CPU, compiled at first use
    triton      GPU, compiled by Triton at first use
    flash-attn, mamba-ssm, causal-conv1d, flash-linear-attention
                GPU, by these packages where the user has installed them; nothing asks for them

`auto` takes the last of these that can serve the tensors at hand. `MMLM_KERNEL=reference` (or `MMLM_KERNEL=ssd=reference,torch`) replaces
`auto` for every operation (or for one and the rest), to find out whether a kernel is at fault; `forced("reference")` does it for a block.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlm.base.errors import RecipeError, unknown_name

PACKAGES = {
    "flash-attn": "flash_attn",
    "mamba-ssm": "mamba_ssm",
    "causal-conv1d": "causal_conv1d",
    "flash-linear-attention": "fla",
}  # and the module of each
BACKENDS = (*PACKAGES, "triton", "native", "torch", "reference")  # in the order `auto` asks them
PACKAGE_DEVICE = "cuda"  # where they compute
logger = logging.getLogger(__name__)

OPS = {
    "attention": "mmlm.kernels.attention.fast",
    "causal_conv1d": "mmlm.kernels.conv1d.fast",
    "decode": "mmlm.kernels.decode.fast",
    "delta_rule": "mmlm.kernels.delta_rule.fast",
    "gla": "mmlm.kernels.gla.fast",
    "linear_cross_entropy": "mmlm.kernels.cross_entropy.fast",
    "long_conv": "mmlm.kernels.long_conv.fast",
    "lrpe": "mmlm.kernels.lrpe.fast",
    "packed_attention": "mmlm.kernels.attention.fast",
    "rms_norm": "mmlm.kernels.rms_norm.fast",
    "rope": "mmlm.kernels.rope.fast",
    "running_softmax": "mmlm.kernels.running_softmax.fast",
    "selective_scan": "mmlm.kernels.selective_scan.fast",
    "ssd": "mmlm.kernels.ssd.fast",
    "ssm_conv": "mmlm.kernels.long_conv.ssm",
    "swiglu": "mmlm.kernels.swiglu.fast",
}
FLOATS = (torch.float32, torch.bfloat16)  # that native code takes
GPU_FLOATS = (*FLOATS, torch.float16)

Serves = Callable[..., str | None]


class Status(NamedTuple):
    """One line of `mmlm kernels`: whether a back end serves an operation on this machine, and why not, or for what alone."""

    op: str
    backend: str
    serves: bool
    reason: str


class Kernel(dict[str, Callable[..., Any]]):
    """The back ends of one operation, by name; `serves` tells for each what it needs, `absent` why there is none of a name, `remarks` where
    `auto` passes one over though it serves."""

    def __init__(self) -> None:
        super().__init__()
        self.serves: dict[str, Serves] = {}
        self.absent: dict[str, str] = {}
        self.remarks: dict[str, str] = {}


KERNELS: dict[str, Kernel] = {}
_forced: list[str] = []


def always(*arguments: Any) -> None:
    """A back end that serves everything."""


def register(op: str, backend: str, function: Callable[..., Any], serves: Serves = always, *, remark: str = "") -> None:
    """Add a back end. serves(*arguments) of its function: None if it can compute them, else the reason; without any: whether it can run
    here at all. remark: for what `auto` takes it, where that is not everything."""
    if backend not in BACKENDS:
        raise ValueError(f"{backend!r} is none of {', '.join(BACKENDS)}")
    kernel = KERNELS.setdefault(op, Kernel())
    kernel[backend] = function
    kernel.serves[backend] = serves
    kernel.remarks[backend] = remark


def absent(op: str, backend: str, reason: str) -> None:
    """Say why an operation has no such back end."""
    KERNELS.setdefault(op, Kernel()).absent[backend] = reason


def choose(op: str, backend: str = "auto", *arguments: Any) -> str:
    """The name of the back end that serves these arguments of the operation's functions, the first of which is a tensor.

    Raises RecipeError if a back end asked for by name is not known or cannot serve; the text says why.
    """
    kernel, where = KERNELS[op], "backend"
    if backend == "auto":
        backend, where = asked(op), "forced()" if _forced else "MMLM_KERNEL"
    if backend == "auto":
        for name in BACKENDS:
            if name in kernel and kernel.serves[name](*arguments) is None:
                return name
        raise RuntimeError(f"no back end of {op!r} serves; {', '.join(kernel)} are registered")
    if backend not in BACKENDS:
        raise RecipeError(f"{where}: {unknown_name('back end', backend, ['auto', *BACKENDS])}")
    if backend not in kernel:
        why = f" ({kernel.absent[backend]})" if backend in kernel.absent else ""
        raise RecipeError(f"{where}: {op} has no back end {backend!r}, only {', '.join(sorted(kernel))}{why}.")
    reason = kernel.serves[backend](*arguments)
    if reason is not None:
        raise RecipeError(f"{where}: back end {backend!r} cannot serve {op}: {reason}.")
    return backend


def check_shapes(op: str, beside: str, wanted: Mapping[str, tuple[Tensor | None, Sequence[int]]]) -> None:
    """Raises RecipeError naming the first tensor whose shape is not the wanted one. beside: what says which shape is wanted."""
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != tuple(shape):
            raise RecipeError(f"{op}: {name} must be {list(shape)} beside {beside}, but is {list(tensor.shape)}.")


def run(op: str, backend: str, *arguments: Any) -> Any:
    """Call the back end that serves the arguments, the first of which is a tensor, with autocast off; it sees every dtype as it is."""
    function = KERNELS[op][choose(op, backend, *arguments)]
    device = arguments[0].device.type
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return function(*arguments)
    return function(*arguments)


def asked(op: str) -> str:
    """What `auto` means for an operation now: the back end of the innermost `forced` block, that of MMLM_KERNEL, or auto.

    Raises RecipeError where MMLM_KERNEL names an operation that is none.
    """
    if _forced:
        return _forced[-1]
    found = "auto"
    for part in os.environ.get("MMLM_KERNEL", "").split(","):
        name, equals, value = part.strip().rpartition("=")
        if equals and name not in OPS and name not in KERNELS:
            raise RecipeError(f"MMLM_KERNEL: {unknown_name('operation', name, OPS)}")
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


def pointers(*arguments: Any, dtypes: tuple[torch.dtype, ...] = FLOATS) -> str | None:
    """Why native code cannot read the tensors among the arguments by their addresses, or None if it can."""
    for x in arguments:
        if not isinstance(x, Tensor):
            continue
        if x.device.type != "cpu":
            return f"a tensor is on {x.device}, not on the CPU"
        if x.is_floating_point() and x.dtype not in dtypes:
            return _wrong_dtype(x.dtype, dtypes)
        if type(x) not in _PLAIN or torch._C._functorch.is_functorch_wrapped_tensor(x):
            return f"{type(x).__name__} is not a plain tensor"
    if arguments and (torch.compiler.is_compiling() or torch.jit.is_tracing()):
        return "the operation is being traced"
    return None


def on_gpu(*arguments: Any, dtypes: tuple[torch.dtype, ...] | None = None) -> str | None:
    """Why Triton cannot compute the tensors among the arguments, or None if it can. Under its interpreter (TRITON_INTERPRET=1) it takes
    those of the CPU.

    dtypes: of floating-point numbers that the programs take; None for all.
    """
    if not _exists("triton"):
        return "the package triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for x in arguments:
        if not isinstance(x, Tensor):
            continue
        if x.device.type != "cuda" and not (interpreted and x.device.type == "cpu"):
            return f"a tensor is on {x.device}, not on a CUDA device"
        if dtypes is not None and x.is_floating_point() and x.dtype not in dtypes:
            return _wrong_dtype(x.dtype, dtypes)
        if torch._C._functorch.is_functorch_wrapped_tensor(x):
            return f"{type(x).__name__} is not a plain tensor"
    return None if arguments or interpreted or torch.cuda.is_available() else "no CUDA device"


def multiplies_bf16_faster(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 outrun those in float32: a GPU with units for them, or a CPU with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)
    return device.type == "cpu" and any(capabilities().get(unit) for unit in ("amx_bf16", "avx512_bf16"))


def installed(
    package: str, *arguments: Any, dtypes: tuple[torch.dtype, ...], least_capability: tuple[int, int] | None = None
) -> str | None:
    """Why a package of PACKAGES cannot compute the tensors among the arguments, or None if it can; least_capability: of a CUDA device."""
    module = PACKAGES[package]
    if not _exists(module):
        return "the package is not installed"
    for x in arguments:
        if not isinstance(x, Tensor):
            continue
        if x.device.type != PACKAGE_DEVICE:
            return f"a tensor is on {x.device}, not on a CUDA device"
        if x.is_floating_point() and x.dtype not in dtypes and x.dtype != torch.float32:
            return _wrong_dtype(x.dtype, dtypes)
    if arguments and arguments[0].dtype not in dtypes:
        return _wrong_dtype(arguments[0].dtype, dtypes)
    if PACKAGE_DEVICE == "cuda":
        if not torch.cuda.is_available():
            return "no CUDA device"
        if least_capability is not None and torch.cuda.get_device_capability() < least_capability:
            return f"the CUDA device is older than capability {'.'.join(map(str, least_capability))}"
    return _import_error(module)


@functools.cache
def _import_error(module: str) -> str | None:
    """Why an installed package does not import, told once as a warning: it may have been built for another PyTorch."""
    try:
        importlib.import_module(module)
    except Exception as error:
        logger.warning("the package %s is installed but does not import: %s", module, error)
        return f"the package does not import: {error}"
    return None


@functools.cache
def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _wrong_dtype(found: torch.dtype, dtypes: tuple[torch.dtype, ...]) -> str:
    return f"dtype {str(found).removeprefix('torch.')} (it takes {', '.join(str(d).removeprefix('torch.') for d in dtypes)})"


_PLAIN = (Tensor, torch.nn.Parameter)


def available(op: str, *, but: str | None = None) -> list[str]:
    """Back ends of an operation that run on this machine."""
    importlib.import_module(OPS[op])
    kernel = KERNELS[op]
    return [name for name in BACKENDS if name in kernel and name != but and kernel.serves[name]() is None]


def report() -> list[Status]:
    """For `mmlm kernels`: every back end of every operation, in the order `auto` asks them, and why some have none. Compiles what is not
    compiled yet."""
    lines = []
    for op, module in OPS.items():
        importlib.import_module(module)
        for name in BACKENDS:
            if name in KERNELS[op]:
                reason = KERNELS[op].serves[name]()
                lines.append(Status(op, name, reason is None, reason or KERNELS[op].remarks[name]))
            elif name in KERNELS[op].absent:
                lines.append(Status(op, name, False, f"there is none: {KERNELS[op].absent[name]}"))
    return lines
