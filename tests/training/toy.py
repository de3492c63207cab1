"""A model and samples that cost nothing, for tests of the trainer."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmlm.training import checkpoint
from mmlm.training.config import TrainConfig
from mmlm.training.log import read_log
from mmlm.training.trainer import Result, Trainer

WIDTH = 6


@dataclass
class ToyBatch:
    x: Tensor  # [rows, WIDTH]
    y: Tensor  # [rows]
    weight: Tensor  # [rows]

    @property
    def num_tokens(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> ToyBatch:
        return ToyBatch(self.x.to(device), self.y.to(device), self.weight.to(device))


class ToySamples:
    """Samples of one to four rows with ragged weights and noise of their own."""

    def __init__(self, size: int = 11, bad: tuple[int, ...] = (), seconds: float = 0.0) -> None:
        self.size, self.bad, self.seconds = size, bad, seconds
        self.fingerprint = f"toy-{size}"
        self.seen: list[int] = []

    def __len__(self) -> int:
        return self.size

    def sample(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.seconds:
            time.sleep(self.seconds)
        self.seen.append(index)
        rows = 1 + index % 4
        x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
        y = x.sum(1) + index
        return (x * np.nan if index in self.bad else x), y.astype(np.float32), rng.uniform(0, 2, rows).astype(np.float32)

    def collate(self, items: list) -> ToyBatch:
        x, y, weight = (torch.from_numpy(np.concatenate(part)) for part in zip(*items, strict=True))
        return ToyBatch(x, y, weight)


class Toy(nn.Module):
    """Two layers, two losses of different weight, dropout, a buffer that training moves, a parameter that is seldom used."""

    def __init__(self, seed: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Linear(WIDTH, 8)
        self.outer = nn.Linear(8, 1)
        self.rare = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros(()))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, batch: ToyBatch) -> dict[str, tuple[Tensor, Tensor]]:
        self.calls += batch.x.sum() * 1e-3
        hidden = torch.tanh(self.inner(self.dropout(batch.x)))
        error = self.outer(hidden)[:, 0].float() - batch.y
        if bool((batch.y > 11).any()):  # a parameter that many batches do not use at all
            error = error + self.rare * (batch.y > 11)
        rows = torch.tensor(float(len(batch.x)))
        return {"fit": ((error.square() * batch.weight).sum(), batch.weight.sum()), "size": (hidden.float().square().sum(), rows)}

    def loss_weights(self, batch: ToyBatch) -> dict[str, float]:
        return {"fit": float(batch.weight.sum()), "size": float(len(batch.x))}


def validate(model: nn.Module, step: int) -> dict[str, float]:
    """Also draws from the global generators, which must not disturb training."""
    torch.rand(3), np.random.rand(3)
    assert not model.training
    return {"error": float(sum(p.detach().square().sum() for p in model.parameters())), "step": float(step)}


def draw(model: nn.Module, step: int, folder: Path) -> None:
    (folder / "sample.txt").write_text(f"{step} {float(torch.rand(1)):.3f}")


def hooks(config: TrainConfig) -> dict[str, Any]:
    return {"validate": validate if config.validate_every else None, "draw": draw if config.sample_every else None}


def train(
    folder: Path, options: dict[str, Any], seconds: float = 0.0, seed: int = 5, dropout: float = 0.1, until: int | None = None, **more: Any
) -> tuple[Toy, Result]:
    """One run with the hooks that its config asks for. seconds: of sleep a sample."""
    config = TrainConfig(**options)
    model = Toy(dropout=dropout)
    return model, Trainer(model, ToySamples(seconds=seconds), config, folder, seed=seed, **hooks(config), **more).fit(until=until)


def child(folder: Path, options: dict[str, Any], seconds: float) -> None:
    """A run in a process and process group of its own, which ends with the exit code of the run."""
    os.setsid()
    os.dup2(os.open(folder.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for the workers, as in a process that was not forked from a server
    sys.exit(train(folder, options, seconds)[1].exit_code)


def ranked(rank: int, world: int, port: int, folder: Path, options: dict[str, Any], stop: int = 0) -> None:
    """One of several processes of a run without dropout. stop: the step after which the first of them gets SIGTERM."""

    def tell(step: int, record: dict[str, Any]) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    model, result = train(folder, options, dropout=0.0, progress=tell)
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, str(folder / f"rank{rank}.safetensors"))
    torch.distributed.destroy_process_group()
    sys.exit(result.exit_code)


FULL = {
    "steps": 12, "batch_size": 4, "micro_batch_size": 3, "lr": 1e-2, "log_every": 5, "checkpoint_every": 4, "keep_last": 100,
    "validate_every": 6, "sample_every": 6, "ema_decay": 0.9, "keep_best": {"metric": "error", "mode": "min"},
}  # fmt: skip
TIMES = ("tokens_per_second", "data_wait", "peak_gib", "seconds", "validation_seconds")


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log of a run but for times."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in read_log(folder / "log.jsonl")]


def assert_same(one: Path, other: Path, step: int = 12, ignore: tuple[str, ...] = ()) -> None:
    """Both runs have the same checkpoint of a step: every tensor of every file bit for bit, and every counter but times."""
    found = [checkpoint.read(folder / "checkpoints" / checkpoint.step_name(step)) for folder in (one, other)]
    states = [{key: value for key, value in state.items() if key not in {"seconds", "log_bytes", "config", *ignore}} for _, state in found]
    assert states[0] == states[1]
    assert [file.keys() for file in found[0][0].values()] == [file.keys() for file in found[1][0].values()]
    assert found[0][0].keys() == found[1][0].keys() >= {"model", "optimizer"}
    for file, tensors in found[0][0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, found[1][0][file][name]), f"{file} {name}"
