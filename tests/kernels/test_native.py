"""C++ files are compiled once, cached, and safe between processes; without a compiler the reason is told."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmlm.kernels import native

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
#include "shared.h"
extern "C" void add_one(float* x, long n, int threads) {
    #pragma omp parallel for num_threads(threads) if (threads > 1)
    for (long i = 0; i < n; ++i) x[i] += STEP;
}
extern "C" long twice(long n) { return 2 * n; }
"""
FUNCTIONS = {"add_one": [native.ADDRESS, native.SIZE, ctypes.c_int], "twice": [native.SIZE]}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MMLM_NATIVE", raising=False)
    folder = tmp_path / "op"
    folder.mkdir()
    (folder / "shared.h").write_text("#define STEP 1.0f\n")
    path = folder / "fast.cpp"
    path.write_text(SOURCE)
    native.forget()
    yield path
    native.forget()


def built(source):
    return sorted((source.parent.parent / "cache" / "mmlm" / "native").glob("op-*"))


def call(library, count=5):
    values = (ctypes.c_float * count)(*range(count))
    library.add_one(values, count, 2)
    return list(values)


def test_a_file_is_compiled_once_and_called(source):
    library = native.load(source, FUNCTIONS, {"twice": ctypes.c_long})
    assert call(library) == [1, 2, 3, 4, 5]
    assert library.twice(21) == 42
    stamp = [path.stat().st_mtime_ns for path in built(source)]
    native.forget()
    assert call(native.load(source, FUNCTIONS)) == [1, 2, 3, 4, 5]
    assert [path.stat().st_mtime_ns for path in built(source)] == stamp and len(stamp) == 1


def test_a_changed_header_is_compiled_anew(source):
    assert call(native.load(source, FUNCTIONS))[0] == 1
    (source.parent / "shared.h").write_text("#define STEP 3.0f\n")
    native.forget()
    assert call(native.load(source, FUNCTIONS))[0] == 3
    assert len(built(source)) == 2


def test_a_damaged_library_in_the_cache_is_replaced(source):
    native.load(source, FUNCTIONS)
    (path,) = built(source)
    path.unlink()
    path.write_bytes(b"cut short")
    native.forget()
    assert call(native.load(source, FUNCTIONS)) == [1, 2, 3, 4, 5]


def test_a_read_only_cache_falls_back_to_a_private_temporary_folder(source, tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert native.cache_folder().parent == tmp_path
    assert call(native.load(source, FUNCTIONS)) == [1, 2, 3, 4, 5]


def test_switched_off_or_without_a_compiler_the_reason_is_told(source, monkeypatch):
    monkeypatch.setenv("MMLM_NATIVE", "0")
    with pytest.raises(native.Unavailable, match="MMLM_NATIVE=0") as off:
        native.load(source, FUNCTIONS)
    monkeypatch.delenv("MMLM_NATIVE")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(native.Unavailable, match="no C\\+\\+ compiler") as none:
        native.load(source, FUNCTIONS)
    assert not off.value.broke and not none.value.broke


def test_a_file_that_does_not_compile_says_why_and_is_not_tried_again(source, monkeypatch):
    source.write_text('extern "C" int broken( {')
    with pytest.raises(native.Unavailable, match="fast.cpp.*error") as failed:
        native.load(source, FUNCTIONS)
    assert failed.value.broke
    monkeypatch.setattr(native, "_build", lambda path: pytest.fail("compiled again"))
    with pytest.raises(native.Unavailable):
        native.load(source, FUNCTIONS)


def test_processes_that_compile_at_once_both_succeed(source):
    code = (
        "import ctypes; from mmlm.kernels import native\n"
        f"library = native.load({str(source)!r}, {{'twice': [native.SIZE]}}, {{'twice': ctypes.c_long}})\n"
        "print(library.twice(4))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    both = [subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in both] == ["8", "8"]
    assert len(built(source)) == 1


def test_little_work_opens_no_parallel_region(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert native.threads(1e-5) == 1 and native.threads(1.0) == 8
