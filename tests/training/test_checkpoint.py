"""A checkpoint is complete or absent, whatever happens while it is written, and damage is found before a weight is used."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import resource
import time

import pytest
import torch

from mmlm.base.errors import CheckpointError
from mmlm.training import checkpoint
from mmlm.training.config import TrainConfig
from mmlm.training.state import load_model
from mmlm.training.trainer import Trainer
from mmlm.weights import read_tensors


def tensors(value: float):
    """All numbers of one checkpoint are the same, so that a mixture of two shows."""
    files = {"model": {"w": (40, 7), "b": (3,)}, "optimizer": {"w/m": (40, 7), "w/step": ()}, "ema": {"w": (40, 7)}}
    return {stem: {name: torch.full(shape, value) for name, shape in names.items()} for stem, names in files.items()}


def save(root, step):
    return checkpoint.save(root, step, tensors(float(step)), {"step": step, "text": "x" * 50})


def assert_whole(root, step):
    found, state = checkpoint.read(root / checkpoint.step_name(step))
    assert state["step"] == step
    assert all(bool((tensor == step).all()) for names in found.values() for tensor in names.values())
    assert {stem: set(names) for stem, names in found.items()} == {stem: set(names) for stem, names in tensors(0).items()}


def test_a_checkpoint_comes_back_as_it_was_written(tmp_path):
    wanted = {
        "model": {"half": torch.randn(3, 4).bfloat16(), "whole": torch.arange(5), "empty": torch.zeros(0, 2), "flag": torch.tensor(True)},
        "optimizer": {},
    }
    folder = checkpoint.save(tmp_path, 7, wanted, {"step": 7, "third": 1 / 3})
    found, state = checkpoint.read(folder)
    assert folder.name == "step_000007" and state == {"step": 7, "third": 1 / 3}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted["model"].items():
        assert torch.equal(found["model"][name], tensor) and found["model"][name].dtype == tensor.dtype
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]


class Faulty:
    """The module os, whose call number `at` fails."""

    CALLS = ("open", "write", "fsync", "rename", "mkdir", "makedirs", "unlink", "rmdir", "listdir", "close")

    def __init__(self, at: int = -1) -> None:
        self.at, self.calls = at, []

    def __getattr__(self, name):
        real = getattr(os, name)
        if name not in self.CALLS:
            return real

        def call(*args, **kwargs):
            self.calls.append(name)
            if len(self.calls) - 1 == self.at:
                if name == "close":
                    real(*args, **kwargs)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call


def calls_of_a_save(tmp_path, monkeypatch):
    root = tmp_path / "count"
    save(root, 1)
    faulty = Faulty()
    monkeypatch.setattr(checkpoint, "os", faulty)
    save(root, 2)
    checkpoint.prune(root, {2})
    monkeypatch.undo()
    return faulty.calls


def test_an_error_at_any_system_call_leaves_the_previous_checkpoint_or_the_new_one(tmp_path, monkeypatch):
    calls = calls_of_a_save(tmp_path, monkeypatch)
    assert len(calls) >= 40 and set(calls) == set(Faulty.CALLS)
    for at, name in enumerate(calls):
        root = tmp_path / str(at)
        save(root, 1)
        monkeypatch.setattr(checkpoint, "os", Faulty(at))
        failed = False
        try:
            save(root, 2)
            checkpoint.prune(root, {2})  # failing to delete is no failure
        except CheckpointError as error:
            failed = True
            assert error.exit_code == 1 and str(root) in str(error) and "No space left" in str(error) and "GiB are free" in str(error), name
        monkeypatch.undo()
        newest = checkpoint.newest(root)
        assert newest is not None and (failed or newest.name == "step_000002"), name
        assert not failed or 1 in checkpoint.steps(root)
        for step in checkpoint.steps(root):
            assert_whole(root, step)
        checkpoint.clean(root)
        assert {path.name for path in root.iterdir()} <= {"step_000001", "step_000002"}, name
        save(root, 3)
        assert_whole(root, 3)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json"])
def test_a_full_disk_at_any_file_ends_the_run_with_one_line_and_keeps_the_last_checkpoint(toy, tmp_path, monkeypatch, file):
    real = os.write

    def write(descriptor, data):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if path.endswith(f"step_000008/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(checkpoint.os, "write", write)
    with pytest.raises(CheckpointError) as error:
        toy.train(tmp_path, toy.FULL)
    monkeypatch.undo()
    assert error.value.exit_code == 1 and "\n" not in str(error.value) and file in str(error.value)
    assert checkpoint.steps(tmp_path / "checkpoints") == [4, 6]
    toy.train(tmp_path, toy.FULL)
    toy.train(tmp_path.parent / f"{file}-whole", toy.FULL)
    toy.assert_same(tmp_path, tmp_path.parent / f"{file}-whole")


def test_a_disk_that_stores_something_else_is_found_before_the_old_checkpoint_goes(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = os.write

    def write(descriptor, data):
        content = bytearray(data)
        content[-1] ^= 1
        return real(descriptor, bytes(content))

    monkeypatch.setattr(checkpoint.os, "write", write)
    with pytest.raises(CheckpointError, match="cannot write the checkpoint of step 2: .*damaged"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert checkpoint.steps(tmp_path) == [1]
    assert_whole(tmp_path, 1)


def limited(root, size_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    try:
        save(root, 2)
    except CheckpointError as error:
        os._exit(20 + ("File too large" in str(error)))
    os._exit(0)


def test_a_write_that_the_system_refuses_is_reported(tmp_path):
    save(tmp_path, 1)
    process = multiprocessing.get_context("fork").Process(target=limited, args=(tmp_path, 900))
    process.start()
    process.join(30)
    assert process.exitcode == 21
    assert checkpoint.newest(tmp_path).name == "step_000001" and sorted(path.name for path in tmp_path.iterdir()) == ["step_000001"]


def save_for_ever(root):
    for step in range(1, 100_000):
        save(root, step)
        checkpoint.prune(root, {step})


def test_fifty_kills_in_the_middle_of_saves_leave_a_whole_checkpoint(tmp_path):
    moments = random.Random(0)
    context = multiprocessing.get_context("fork")
    left_over = 0
    for number in range(50):
        root = tmp_path / str(number)
        process = context.Process(target=save_for_ever, args=(root,))
        process.start()
        while not checkpoint.steps(root):
            time.sleep(0.0005)
        time.sleep(moments.uniform(0, 0.02))
        process.kill()
        process.join()
        left_over += any(path.name.startswith((".part_", ".old_")) for path in root.iterdir())
        newest = checkpoint.newest(root)
        assert newest is not None
        for step in checkpoint.steps(root):
            assert_whole(root, step)
        checkpoint.clean(root)
        assert all(checkpoint.step_of(path) for path in root.iterdir())
    assert left_over >= 5, "the kills hit no save"


FILES = ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
def test_a_hundred_flipped_bits_and_a_hundred_cuts_of_each_file_are_all_found(tmp_path, file):
    folder = save(tmp_path, 1)
    path = folder / file
    good = path.read_bytes()
    places = random.Random(file)
    damaged = []
    for _ in range(100):
        bit = places.randrange(len(good) * 8)
        flipped = bytearray(good)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(flipped))
    damaged += [good[: places.randrange(len(good))] for _ in range(98)] + [b"", good + b"\0"]
    assert len(damaged) == 200
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{file}|{folder}"):
            checkpoint.read(folder)
    path.write_bytes(good)
    assert_whole(tmp_path, 1)


def test_a_manifest_with_a_digest_of_its_own_making_is_not_believed(tmp_path):
    """Equal values written another way, or digests that fit another folder's name."""
    folder = save(tmp_path, 1)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="manifest"):
        checkpoint.read(folder)
    os.rename(save(tmp_path, 3), tmp_path / "step_000004")
    with pytest.raises(CheckpointError, match="step 3, but the folder is step_000004"):
        checkpoint.read(tmp_path / "step_000004")


def folders(*steps, broken=(), others=()):
    return {"steps": steps, "broken": dict(broken), "others": others}


def missing(name):
    return lambda folder: (folder / name).unlink()


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-5])


NEWEST = {
    "none": (folders(), None),
    "one": (folders(5), 5),
    "by number": (folders(9, 10, 100), 100),
    "digits": (folders(999_999, 1_000_000), 1_000_000),
    "half-written": (folders(9, 10, others=[".part_step_000100"]), 10),
    "half-deleted": (folders(10, others=[".old_step_000009"]), 10),
    "foreign": (folders(10, others=["step_final", "best", "step_000200.tmp", "step_0000300", "epoch_400"]), 10),
    "a file": (folders(10, others=["=step_000100"]), 10),
    "empty newest": (folders(10, others=["step_000100"]), 10),
    "no manifest": (folders(9, 10, broken={10: missing("manifest.json")}), 9),
    "cut manifest": (folders(9, 10, broken={10: cut("manifest.json")}), 9),
    "no weights": (folders(9, 10, broken={10: missing("model.safetensors")}), 9),
    "cut weights": (folders(9, 10, broken={10: cut("model.safetensors")}), 9),
    "two broken": (folders(9, 10, 100, broken={10: cut("state.json"), 100: missing("state.json")}), 9),
    "all broken": (folders(9, 10, broken={9: cut("state.json"), 10: cut("state.json")}), CheckpointError),
}


def test_fifteen_folders_are_tried():
    assert len(NEWEST) == 15


@pytest.mark.parametrize("case", NEWEST)
def test_the_newest_whole_checkpoint_is_chosen_by_its_step(tmp_path, case):
    content, expected = NEWEST[case]
    for step in content["steps"]:
        save(tmp_path, step)
    for step, damage in content["broken"].items():
        damage(tmp_path / checkpoint.step_name(step))
    for name in content["others"]:
        if name.startswith("="):
            (tmp_path / name[1:]).write_text("not a folder")
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "model.safetensors").write_bytes(b"half")
    if expected is CheckpointError:
        with pytest.raises(CheckpointError, match="no checkpoint is whole.*--fresh.*step_000010.*step_000009"):
            checkpoint.newest(tmp_path)
    else:
        found = checkpoint.newest(tmp_path)
        assert (found and checkpoint.step_of(found)) == expected


def test_no_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path / "nowhere") is None


KEPT = {
    "last 1": ({"keep_last": 1}, [12]),
    "last 2": ({"keep_last": 2}, [10, 12]),
    "last 3": ({"keep_last": 3}, [8, 10, 12]),
    "all": ({"keep_last": 100}, [2, 4, 6, 8, 10, 12]),
    "end alone": ({"keep_last": 3, "checkpoint_every": 100}, [12]),
    "end beside": ({"keep_last": 2, "checkpoint_every": 5}, [10, 12]),
    "best first": ({"keep_last": 1, "keep_best": "min", "values": [1, 2, 3, 4]}, [3, 12]),
    "best last": ({"keep_last": 1, "keep_best": "min", "values": [4, 3, 2, 1]}, [12]),
    "best middle": ({"keep_last": 1, "keep_best": "max", "values": [1, 5, 2, 3]}, [6, 12]),
    "equal is no better": ({"keep_last": 1, "keep_best": "max", "values": [5, 5, 5, 5]}, [3, 12]),
    "nan is no better": ({"keep_last": 1, "keep_best": "max", "values": [float("nan"), 1, float("inf"), float("nan")]}, [6, 12]),
    "best and three": ({"keep_last": 3, "keep_best": "min", "values": [1, 2, 3, 4]}, [3, 8, 10, 12]),
}


def test_twelve_rules_of_keeping_are_tried():
    assert len(KEPT) == 12


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept_and_nothing_deleted_before_the_new_one_is_whole(toy, tmp_path, monkeypatch, case):
    options, expected = KEPT[case]
    values = options.get("values")
    best = {"keep_best": {"metric": "error", "mode": options["keep_best"]}, "validate_every": 3} if "keep_best" in options else {}
    plain = {key: value for key, value in options.items() if key.startswith(("keep_last", "checkpoint"))}
    config = TrainConfig(**{"steps": 12, "batch_size": 4, "checkpoint_every": 2, **plain, **best})
    real = checkpoint.prune

    def prune(root, keep):
        assert {max(checkpoint.steps(root))} <= keep
        for step in keep & set(checkpoint.steps(root)):
            checkpoint.verify(root / checkpoint.step_name(step))
        real(root, keep)

    monkeypatch.setattr(checkpoint, "prune", prune)
    validate = (lambda model, step: {"error": float(values[step // 3 - 1])}) if values else None
    Trainer(toy.Toy(), toy.ToySamples(), config, tmp_path, validate=validate).fit()
    assert checkpoint.steps(tmp_path / "checkpoints") == expected


def test_the_run_ends_with_the_best_weights_averaged(toy, tmp_path):
    model, result = toy.train(tmp_path, {**toy.FULL, "keep_best": {"metric": "step", "mode": "min"}})
    assert result.best == (6, 6.0)
    folder = tmp_path / "checkpoints" / "step_000006"
    average, weights = read_tensors(folder / "ema.safetensors"), read_tensors(folder / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, average[name]) and not torch.equal(parameter, weights[name])
    assert torch.equal(model.calls, weights["calls"])
    other = toy.Toy(seed=9)
    load_model(other, folder)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_says_nothing_about_the_machine(toy, tmp_path):
    toy.train(tmp_path, toy.FULL)
    for path in (tmp_path / "checkpoints" / "step_000012").iterdir():
        text = path.read_bytes()
        for secret in (str(tmp_path), os.path.expanduser("~") + "/", os.uname().nodename):
            assert secret.encode() not in text
