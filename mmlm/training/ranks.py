"""What the processes of a run do together, over accelerate.

Gradients are summed once per step, after the last micro-batch: any process may use any subset of the parameters in any of its
micro-batches, and call the model as often as it likes, which a wrapper that reduces during the backward pass would not allow.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

_BUCKET_BYTES = 32 << 20


class Ranks:
    """The processes of a run. rank: which of them this is; world: how many there are."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def sums(self, values: list[float]) -> list[float]:
        """Sums over the processes."""
        if self.world == 1:
            return values
        device = self._accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return self._sum(torch.tensor(values, dtype=dtype, device=device)).tolist()

    def from_main(self, value: int) -> int:
        """A whole number below 2**53 that the main process knows."""
        return int(self.sums([float(value) if self.is_main else 0.0])[0])

    def equalize(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the tensors of the main one."""
        if self.world > 1:
            from accelerate.utils import broadcast

            for tensor in tensors:
                tensor.copy_(broadcast(tensor.contiguous()))

    def sum_gradients(self, parameters: list[nn.Parameter], losses: Tensor) -> Tensor:
        """Sum gradients over the processes in place, and return the summed losses [n]. A gradient that no process has stays None."""
        if self.world == 1:
            return losses
        has = [float(parameter.grad is not None) for parameter in parameters]
        summed = self._sum(torch.cat([losses, torch.tensor(has).to(losses)]))
        used = [parameter for parameter, count in zip(parameters, summed[len(losses) :].tolist(), strict=True) if count]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for _, same in itertools.groupby(used, key=lambda parameter: (parameter.dtype, parameter.device)):
            for bucket in _buckets([parameter.grad for parameter in same if parameter.grad is not None]):
                flat = self._sum(torch.cat([gradient.flatten() for gradient in bucket]))
                for gradient, part in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
                    gradient.copy_(part.view_as(gradient))
        return summed[: len(losses)]

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()

    def _sum(self, tensor: Tensor) -> Tensor:
        return self._accelerator.reduce(tensor, reduction="sum")  # type: ignore[no-any-return]


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
        if size >= _BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
