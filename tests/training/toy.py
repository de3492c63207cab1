"""A model and samples that cost nothing, for tests of the trainer; also a program that trains them."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmlm.training.config import TrainConfig
from mmlm.training.trainer import Trainer

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
    """Two layers, two losses of different weight, dropout, a buffer that training moves."""

    def __init__(self, seed: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Linear(WIDTH, 8)
        self.outer = nn.Linear(8, 1)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.zeros(()))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, batch: ToyBatch) -> dict[str, tuple[Tensor, Tensor]]:
        self.calls += batch.x.sum() * 1e-3
        hidden = torch.tanh(self.inner(self.dropout(batch.x)))
        error = self.outer(hidden)[:, 0].float() - batch.y
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


def main() -> None:
    """python toy.py FOLDER CONFIG [SECONDS]: train with every hook; SECONDS of sleep a sample. Ends with the trainer's exit code."""
    torch.set_num_threads(1)
    config = TrainConfig(**json.loads(sys.argv[2]))
    samples = ToySamples(seconds=float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    hooks = {"validate": validate if config.validate_every else None, "draw": draw if config.sample_every else None}

    def tell(step: int, record: dict) -> None:
        sys.stdout.write(f"{step}\n")
        sys.stdout.flush()

    result = Trainer(Toy(), samples, config, Path(sys.argv[1]), seed=5, progress=tell, **hooks).fit()
    sys.exit(result.exit_code)


if __name__ == "__main__":
    main()
