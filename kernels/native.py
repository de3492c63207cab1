"""Small C++ files compiled at first use and called on data pointers.

A kernel's `fast.cpp` includes no torch header, so it compiles in about a second and is bound to no version of torch. The shared library is
kept under the user's cache folder by a hash of the source, its own headers, the flags, the compiler and the CPU; a second process finds it
there. Where no compiler is found the caller takes its PyTorch form; `Unavailable` says why.

`MMLM_NATIVE=0` in the environment switches all native code off. `CXX` names a compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmlm.base.errors import MmlmError

logger = logging.getLogger(__name__)

# No -ffast-math: linked into a library it would make the whole process flush small numbers to zero, it forgets NaN, and it reorders sums
# that were ordered on purpose. A loop that may sum in any order says so: #pragma omp simd reduction(+ : sum).
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")
PARALLEL_SECONDS = 2e-4  # below this much work a parallel region costs more than it saves, far more on a busy machine
ADDRESS = ctypes.c_void_p
SIZE = ctypes.c_int64
REAL = ctypes.c_float


class Unavailable(MmlmError):
    """Native code cannot be had here. `broke` tells a compiler that failed from one that is absent or switched off."""

    def __init__(self, reason: str, *, broke: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.broke = reason, broke


def load(source: Path | str, functions: Mapping[str, Sequence[Any]], returns: Mapping[str, Any] | None = None) -> Any:
    """An object with one callable a function of a C++ file, compiled if this machine has not done so before.

    functions: name -> ctypes types of its arguments. returns: name -> ctypes type of the result, for those that have one.
    Raises Unavailable with the reason; a failure is remembered, not tried again.
    """
    if os.environ.get("MMLM_NATIVE") == "0":
        raise Unavailable("switched off by MMLM_NATIVE=0")
    found = _library(str(Path(source).resolve()))
    if isinstance(found, Unavailable):
        raise Unavailable(found.reason, broke=found.broke)
    callables = {}
    for name, types in functions.items():
        function = getattr(found, name)
        function.argtypes, function.restype = list(types), (returns or {}).get(name)
        callables[name] = function
    return SimpleNamespace(**callables)


class Library:
    """A C++ file loaded when it is first called for, then at the cost of a look at the environment; arguments as for `load`."""

    def __init__(self, source: Path | str, functions: Mapping[str, Sequence[Any]], returns: Mapping[str, Any] | None = None) -> None:
        self.source, self.functions, self.returns = Path(source), functions, returns
        self._found: Any = None

    def __call__(self) -> Any:
        """The object with the functions. Raises Unavailable."""
        if self._found is None or os.environ.get("MMLM_NATIVE") == "0":
            self._found = load(self.source, self.functions, self.returns)
        return self._found

    def missing(self) -> str | None:
        """Why the functions cannot be had, or None. A compiler that failed is told once as a warning."""
        if self._found is not None and os.environ.get("MMLM_NATIVE") != "0":
            return None
        try:
            self()
        except Unavailable as unavailable:
            if unavailable.broke and unavailable.reason not in _told:
                _told.add(unavailable.reason)
                logger.warning("native kernels fall back to PyTorch: %s", unavailable.reason)
            return unavailable.reason
        return None


_told: set[str] = set()


def threads(work_seconds: float) -> int:
    """Threads to give a loop that takes this long on one: those of torch, or 1 for little work."""
    if work_seconds < PARALLEL_SECONDS:
        return 1
    import torch

    return torch.get_num_threads()


def address(x: Any) -> int | None:
    """Where a tensor's numbers lie; None for None."""
    return None if x is None else x.data_ptr()


def letters(*tensors: Any) -> str:
    """One letter a tensor, f for float32 and b for bfloat16: how functions for several types are named."""
    return "".join("b" if x.element_size() == 2 else "f" for x in tensors)


def for_each_type(**functions: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """The argument types of functions that stand in a file once a letter of `letters`: forward gives forward_f and forward_b."""
    return {f"{name}_{letter}": types for name, types in functions.items() for letter in "fb"}


def local_includes(source: Path) -> list[Path]:
    """The file and the headers beside it that it includes in quotes, directly or through others."""
    found, waiting = [], [source]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        text = path.read_text(encoding="utf-8")
        waiting += [(path.parent / name).resolve() for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', text, flags=re.MULTILINE)]
    return found


def cache_folder() -> Path:
    """Where compiled libraries lie: $XDG_CACHE_HOME/mmlm (default ~/.cache/mmlm), or a private temporary folder if that is read-only."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    uid = getattr(os, "getuid", lambda: 0)()
    for folder in (Path(base) / "mmlm" / "native", Path(tempfile.gettempdir()) / f"mmlm-native-{uid}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError:
            continue
        if getattr(folder.stat(), "st_uid", uid) == uid:  # a library laid there by another user is not loaded
            return folder
    return _temporary_folder()


@functools.cache
def _temporary_folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="mmlm-native-"))


@functools.cache
def _library(source: str) -> ctypes.CDLL | Unavailable:
    try:
        return _build(Path(source))
    except Unavailable as reason:
        return reason


def _build(source: Path) -> ctypes.CDLL:
    compiler, version = _compiler()
    text = b"".join(path.read_bytes() for path in local_includes(source))
    reason = ""
    for compile_flags, link_flags in _openmp():
        flags = [*FLAGS, *compile_flags, *link_flags]
        key = hashlib.sha256(b"\0".join([text, " ".join(flags).encode(), version.encode(), _cpu().encode()])).hexdigest()
        target = cache_folder() / f"{source.parent.name}-{key[:32]}{'.dylib' if sys.platform == 'darwin' else '.so'}"
        for _ in range(2):  # a cached library that does not load is made again
            cached = target.is_file()
            try:
                if not cached:
                    _compile(compiler, source, target, [*FLAGS, *compile_flags], link_flags)
                return ctypes.CDLL(str(target))
            except (OSError, _Failed) as failed:
                reason = str(failed)
                target.unlink(missing_ok=True)
            if not cached:
                break
    raise Unavailable(f"{compiler} could not make {source.parent.name}/{source.name}: {reason}", broke=True)


class _Failed(Exception):
    pass


def _compile(compiler: str, source: Path, target: Path, flags: list[str], link_flags: list[str]) -> None:
    """Compile beside the target and rename, so that another process sees a whole library or none."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made, result = os.path.join(folder, "kernel.o"), os.path.join(folder, target.name)
        for command in (
            [compiler, *flags, "-c", str(source), "-o", made],
            [compiler, "-shared", made, "-o", result, *link_flags],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise _Failed(str(error)) from None
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
                raise _Failed(" ".join(lines[:3]) or f"exit code {done.returncode}")
        os.replace(result, target)
    logger.info("compiled %s/%s in %.1f s", source.parent.name, source.name, time.perf_counter() - begin)


def _openmp() -> list[tuple[list[str], list[str]]]:
    """Flags to try in turn: the OpenMP pool that torch has loaded (one pool, one number of threads), an own one, none."""
    with_torch = hasattr(ctypes.CDLL(None), "GOMP_parallel") if os.name == "posix" else False
    return [*([(["-fopenmp"], [])] if with_torch else []), (["-fopenmp"], ["-fopenmp"]), (["-Wno-unknown-pragmas"], [])]


@functools.cache
def _compiler() -> tuple[str, str]:
    """Path and version of the first C++ compiler that answers. Raises Unavailable."""
    asked = os.environ.get("CXX", "").split()[:1]
    for name in (*asked, "g++", "clang++", "c++"):
        path = shutil.which(name)
        if path is None:
            continue
        try:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return path, done.stdout
    raise Unavailable("no C++ compiler found (g++, clang++ or c++ on PATH, or CXX)")


@functools.cache
def _cpu() -> str:
    """What -march=native depends on."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            kept = {line.strip() for line in file if line.startswith(("vendor_id", "cpu family", "model\t", "flags", "Features"))}
        return "\n".join(sorted(kept))
    except OSError:
        return f"{platform.machine()} {platform.processor()} {platform.version()}"


def forget() -> None:
    """Drop what is remembered of compilers and libraries, for tests that change the environment."""
    for remembered in (_library, _compiler, _cpu, _temporary_folder):
        remembered.cache_clear()
