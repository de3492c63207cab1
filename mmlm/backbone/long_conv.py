"""A convolution with a learned kernel as long as one likes, kept sparse by squashing and smooth by averaging (arXiv:2302.06646).

    K = average(sign(K) max(|K| - squash, 0));  y = K * x + D x;  out = GLU(W dropout(gelu(y)))
There is no finite state: the past is the last inputs, as many as the kernel has taps less one. With a learned transform (section 3.2) the
small matrices that the Fourier transform is a product of are parameters, at first those of the transform itself; what they become need not
leave a convolution, nor one that looks back only, so such a layer reads whole documents.

Axes: b rows   t tokens   d width, channels   k taps   n size of a matrix
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlm.backbone.cache import State
from mmlm.backbone.config import LongConvConfig
from mmlm.backbone.gated_output import GatedOutput
from mmlm.backbone.sequences import by_sequence
from mmlm.base.errors import RecipeError
from mmlm.kernels.long_conv.butterfly import SIZES, butterfly_convolution, dft_matrix
from mmlm.kernels.long_conv.fast import long_conv
from mmlm.layout import Layout
from mmlm.parameters import Derived, exact, name_axes

LEAST_SHARE = 0.3  # of taps that must survive the squashing at first; those that do not have no gradient


class LongConv(nn.Module):
    """One long-convolution layer. With a state it continues after the tokens that the state holds."""

    def __init__(self, config: LongConvConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        share = float(torch.erfc(config.squash / (self._scales() * math.sqrt(2)).clamp_min(1e-30)).mean())
        if share < LEAST_SHARE:
            raise RecipeError(
                f"long_conv: squash {config.squash} would leave {share:.0%} of the taps of a kernel with init {config.init!r} and "
                f"init_std {config.init_std}, and the rest could never be learned; at least {LEAST_SHARE:.0%} must be left."
            )
        self.kernel = nn.Parameter(torch.empty(width, config.num_taps))
        self.skip = nn.Parameter(torch.empty(width))
        self.mix = GatedOutput(width, "residual", config.dropout)
        name_axes(self.kernel, "residual", "taps")
        name_axes(self.skip, "residual")
        for parameter in (self.kernel, self.skip):
            parameter.no_weight_decay = True
        self.kernel.lr_scale = config.kernel_lr_scale
        self._kernel = Derived()
        self.transform = nn.ParameterDict()
        for size in SIZES if config.learned_transform else ():
            matrix = nn.Parameter(torch.empty(2, size, size))  # real and imaginary part
            name_axes(matrix, "part", "frequency", "place")
            matrix.no_weight_decay, matrix.lr_scale = True, config.kernel_lr_scale
            self.transform[str(size)] = matrix
        self.reset_parameters_own()

    def _scales(self) -> Tensor:
        """Standard deviation of each tap at first [d, k]: equal, or decaying over the kernel, faster in later channels."""
        config = self.config
        place = torch.arange(config.num_taps, device="cpu") / config.num_taps
        if config.init == "normal":
            return torch.full((self.width, config.num_taps), config.init_std, device="cpu")
        decay = (self.width / 2) ** (torch.arange(self.width, device="cpu") / self.width)
        return config.init_std * torch.exp(-decay[:, None] * place)

    @torch.no_grad()
    def reset_parameters_own(self) -> None:
        """The kernel normal with the scales of the config's init; skip N(0, 1); the transform that of Fourier."""
        self.kernel.normal_().mul_(self._scales().to(self.kernel))
        self.skip.normal_()
        for size, matrix in self.transform.items():
            matrix.copy_(torch.view_as_real(dft_matrix(int(size), torch.complex128)).movedim(-1, 0))

    def init_state(self, batch: int, max_length: int, dtype: torch.dtype, device: torch.device | str) -> State:
        """Zeros for the last inputs; their number does not depend on max_length. Raises RecipeError with a learned transform."""
        if self.config.learned_transform:
            raise RecipeError("long_conv with learned_transform sees later tokens and cannot go token by token.")
        tensors = {"past": torch.zeros(batch, self.width, self.config.num_taps - 1, dtype=dtype, device=device)}
        return State(tensors, {"past": "conv"}, torch.zeros(batch, dtype=torch.long, device=device))

    def forward(self, x_btd: Tensor, layout: Layout, state: State | None = None) -> tuple[Tensor, State | None, dict[str, Tensor]]:
        """y [b, t, d], the continued state if one was given, and no auxiliary losses.

        Raises RecipeError for a layout that a causal convolution cannot express.
        """
        kernel_dk = F.dropout(self._kernel([self.kernel], self._regular), self.config.kernel_dropout, self.training)
        if self.config.learned_transform:
            return self.mix(self._by_learned_transform(x_btd, kernel_dk, layout) + self.skip.to(x_btd.dtype) * x_btd), state, {}
        layout.require_left_to_right("long_conv")
        y_btd, last = long_conv(x_btd, kernel_dk, layout.document, None if state is None else state.tensors["past"])
        if state is not None and last is not None:
            state.tensors = {"past": last.to(state.tensors["past"].dtype)}
            state.length = state.length + (layout.document > 0).sum(1)
        return self.mix(y_btd + self.skip.to(x_btd.dtype) * x_btd), state, {}

    def _by_learned_transform(self, x_btd: Tensor, kernel_dk: Tensor, layout: Layout) -> Tensor:
        layout.require_left_to_right("long_conv", or_whole=True)
        if layout.causal:
            raise RecipeError("long_conv with learned_transform sees later tokens, but the data's layout is causal.")
        dtype = torch.promote_types(x_btd.dtype, torch.float32)
        matrices = {int(size): torch.complex(*matrix.to(dtype)) for size, matrix in self.transform.items()}

        def convolve(x_nld: Tensor) -> Tensor:
            return butterfly_convolution(x_nld.mT, kernel_dk, matrices).mT

        return by_sequence(layout, convolve, x_btd, who="long_conv")

    def _regular(self) -> Tensor:
        """The kernel squashed and smoothed."""
        config = self.config
        kernel_dk = F.softshrink(exact(self.kernel), config.squash)
        if config.smooth == 1:
            return kernel_dk
        if config.smooth_over != "frequency":
            return F.avg_pool1d(kernel_dk[None], config.smooth, stride=1, padding=config.smooth // 2)[0]
        # the average of neighbouring frequencies is a window over the taps, the transform of that average
        turn = torch.arange(config.num_taps, device=kernel_dk.device, dtype=kernel_dk.dtype) * (2 * math.pi / config.num_taps)
        offset = torch.arange(config.smooth, device=kernel_dk.device) - config.smooth // 2
        return kernel_dk * torch.cos(turn * offset[:, None]).mean(0)
