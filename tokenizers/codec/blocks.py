"""ConvNeXt blocks: over time, what the small codec and the unit vocoder are built of, and over pictures.

Source: ConvNeXt, arXiv:2201.03545, section 2.6; in one dimension as in Vocos, arXiv:2306.00814.
Axes: b sounds or pictures   t frames   y, x places of a picture   d channels
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.kernels.conv1d.fast import causal_conv1d
from mmlm.parameters import name_axes

TAPS, PICTURE_TAPS, EXPANSION, BEGIN = 7, 5, 3, 0.1


class ConvNeXt(nn.Module):
    """A depthwise convolution over time, then a norm and two linear layers, added to the input through a learned scale."""

    def __init__(self, width: int, *, causal: bool, taps: Sequence[int] = (TAPS,)) -> None:
        super().__init__()
        self.causal = causal
        self.weight = nn.Parameter(torch.empty(width, *taps))
        name_axes(self.weight, "channels", *["taps"] * len(taps))
        self.bias = nn.Parameter(torch.zeros(width))
        most = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -most, most)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, EXPANSION * width), nn.Linear(EXPANSION * width, width)
        self.scale = nn.Parameter(torch.full((width,), BEGIN))

    @property
    def ahead(self) -> int:
        """Frames that come after a frame and are seen at it."""
        return 0 if self.causal else TAPS // 2

    @property
    def past(self) -> int:
        """Frames that come before a frame and are seen at it."""
        return TAPS - 1 - self.ahead

    def forward(self, x_btd: Tensor, mask_bt1: Tensor | None = None) -> Tensor:
        """[b, t, d]. mask: 0 at padding, which then is as if there was nothing."""
        x = x_btd if mask_bt1 is None else x_btd * mask_bt1
        b, t = x.shape[:2]
        whole = torch.ones(b, t + self.ahead, dtype=torch.int32, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            y, _ = causal_conv1d(
                F.pad(x.float(), (0, 0, 0, self.ahead)).to(self.weight.dtype), self.weight, self.bias, whole, activation=None
            )
        return self._added(x, y[:, self.ahead :])

    def _added(self, x: Tensor, y: Tensor) -> Tensor:
        """The input [..., d] and what becomes of the convolved one."""
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y))))


class PictureConvNeXt(ConvNeXt):
    """The same with a convolution down and across; outside a picture there are zeros."""

    def __init__(self, width: int) -> None:
        super().__init__(width, causal=False, taps=(PICTURE_TAPS, PICTURE_TAPS))

    def forward(self, x_byxd: Tensor, mask_bt1: Tensor | None = None) -> Tensor:
        """[b, y, x, d]."""
        assert mask_bt1 is None
        with torch.autocast(x_byxd.device.type, enabled=False):  # torch's depthwise convolution is slower in bfloat16 on a CPU
            kernel = self.weight[:, None].float()
            y = F.conv2d(x_byxd.float().permute(0, 3, 1, 2), kernel, self.bias, padding=PICTURE_TAPS // 2, groups=len(kernel))
        return self._added(x_byxd, y.permute(0, 2, 3, 1))


class Blocks(nn.ModuleList):
    """ConvNeXt blocks one after the other."""

    def __init__(self, count: int, width: int, *, causal: bool) -> None:
        super().__init__([ConvNeXt(width, causal=causal) for _ in range(count)])

    def forward(self, x_btd: Tensor, mask_bt1: Tensor | None = None) -> Tensor:
        """[b, t, d]."""
        for block in self:
            x_btd = block(x_btd, mask_bt1)
        return x_btd if mask_bt1 is None else x_btd * mask_bt1

    @property
    def reach(self) -> tuple[int, int]:
        """Frames before and after a frame that all blocks together see."""
        return _sum(block.past for block in self), _sum(block.ahead for block in self)


def _sum(values: Iterable[int]) -> int:
    return sum(values)
