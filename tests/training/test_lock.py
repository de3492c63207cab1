"""One run folder, one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import time

import pytest

from mmlm.base.errors import RecipeError
from mmlm.training import lock
from mmlm.training.lock import RunLock


def hold(folder, ready, sleeper):
    with RunLock(folder):
        if sleeper:
            os.fork() or time.sleep(60)  # a loader's process, which outlives a killed run
        ready.set()
        time.sleep(60)


def refused(folder):
    lock._held.clear()  # which a process of its own would not have
    try:
        with RunLock(folder):
            os._exit(0)
    except RecipeError:
        os._exit(7)


@pytest.fixture
def holder(tmp_path):
    started = []

    def begin(sleeper=False):
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        process = context.Process(target=hold, args=(tmp_path, ready, sleeper))
        process.start()
        started.append(process)
        assert ready.wait(20)
        return process

    yield begin
    for process in started:
        process.kill()
        process.join()


def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path, holder):
    process = holder()
    with pytest.raises(RecipeError) as error, RunLock(tmp_path):
        pass
    assert f"process {process.pid}, since 2" in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("sleeper", [False, True], ids=["alone", "with a child that lives on"])
def test_the_lock_of_a_killed_process_is_no_lock(tmp_path, holder, sleeper):
    process = holder(sleeper)
    process.kill()
    process.join()
    assert (tmp_path / ".lock").exists()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / ".lock").exists()


def test_the_same_process_is_refused_too_and_keeps_its_lock(tmp_path):
    with RunLock(tmp_path):
        for _ in range(2):
            with pytest.raises(RecipeError, match=f"this process .{os.getpid()}."), RunLock(tmp_path):
                pass
        process = multiprocessing.get_context("fork").Process(target=refused, args=(tmp_path,))
        process.start()
        process.join(20)
        assert process.exitcode == 7
    with RunLock(tmp_path):
        pass


def test_two_runs_in_one_folder_do_not_mix(toy, start, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, {**toy.FULL, "steps": 500}, 0.01)
    begun = time.monotonic()
    while not (folder / ".lock").exists() or not (folder / ".lock").read_text():
        assert time.monotonic() - begun < 20
        time.sleep(0.005)
    with pytest.raises(RecipeError, match=f"process {process.pid}"):
        toy.train(folder, toy.FULL)
    assert process.is_alive()
    process.kill()
    process.join()
    toy.train(folder, {**toy.FULL, "steps": 500, "max_seconds": 0.01})


def test_a_lock_file_that_is_not_ours_to_read_is_still_a_lock(tmp_path, holder):
    holder()
    (tmp_path / ".lock").write_text("{")
    with pytest.raises(RecipeError, match="another process"), RunLock(tmp_path):
        pass
