"""What the one-call decoder can be: sizes, options and the names and shapes of its weights. Imports torch for annotations only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmlm.base.errors import MmlmError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared"]
ACTIVATIONS: tuple[str, ...] = ("silu", "gelu", "gelu_tanh", "relu", "relu_squared")


class Unsupported(MmlmError):
    """The decoder was not made for this; `reason` says what. The caller takes another path."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the one-call decoder cannot serve this: {reason}.")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A pre-norm decoder of the Llama, Qwen or GPT-2 kind.

    rope: float [pairs], radians per position of the channel pairs (j, j + pairs) of a head, any scaling already in it; None: no rotation.
    rope_scale: factor on cosine and sine (YaRN). window: tokens a query looks back, itself included; one for all layers, or one a layer.
    gated: down(act(gate x) * up x), else down(act(up x)). parallel: the feed-forward reads the layer's input, not the attention's output.
    qk_norm: RMS norm of each query and key head before rotation. positions: rows of a table of learned positions, 0 for none.
    attention_scale: factor on the scores, default head_size ** -0.5. tied: the embedding's rows are those of the head.
    """

    vocabulary: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    hidden: int
    gated: bool = True
    activation: Activation = "silu"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    qk_norm_eps: float = 1e-6
    parallel: bool = False
    tied: bool = False
    positions: int = 0
    rope: Tensor | None = None
    rope_scale: float = 1.0
    window: int | None | tuple[int | None, ...] = None
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    logit_scale: float = 1.0

    @property
    def windows(self) -> list[int]:
        """The window of each layer, 0 for none."""
        each = self.window if isinstance(self.window, tuple) else (self.window,) * self.num_layers
        return [window or 0 for window in each]

    @property
    def score_scale(self) -> float:
        """The factor on the scores."""
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale

    def check(self) -> None:
        """Raises Unsupported for sizes and options that cannot be."""
        sizes = ("vocabulary", "width", "num_layers", "num_heads", "num_kv_heads", "head_size", "hidden")
        for name in sizes:
            if getattr(self, name) < 1:
                raise Unsupported(f"{name} must be at least 1, but is {getattr(self, name)}")
        if self.num_heads % self.num_kv_heads:
            raise Unsupported(f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.activation not in ACTIVATIONS:
            raise Unsupported(f"activation {self.activation!r}; known are {', '.join(ACTIVATIONS)}")
        if self.norm not in ("rms", "layer"):
            raise Unsupported(f"norm {self.norm!r}; known are rms, layer")
        if self.rope is not None and (self.rope.dim() != 1 or 2 * len(self.rope) > self.head_size):
            raise Unsupported(f"rope of shape {list(self.rope.shape)} for heads of {self.head_size} channels")
        if isinstance(self.window, tuple) and len(self.window) != self.num_layers:
            raise Unsupported(f"{len(self.window)} windows for {self.num_layers} layers")
        if any(window < 0 for window in self.windows) or 0 in (self.window if isinstance(self.window, tuple) else (self.window,)):
            raise Unsupported(f"a window of {self.window} tokens")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight that must be there; matrices are [out, in] as in nn.Linear."""
        d, q, kv = self.width, self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        norm = ("weight",) if self.norm == "rms" else ("weight", "bias")
        found: dict[str, tuple[int, ...]] = {"embedding.weight": (self.vocabulary, d)}
        if not self.tied:
            found["head.weight"] = (self.vocabulary, d)
        if self.positions:
            found["positions.weight"] = (self.positions, d)
        for part in norm:
            found[f"norm.{part}"] = (d,)
        for index in range(self.num_layers):
            at = f"layers.{index}."
            found |= {f"{at}{name}.{part}": (d,) for name in (("norm1",) if self.parallel else ("norm1", "norm2")) for part in norm}
            found |= {
                f"{at}qkv.weight": (q + 2 * kv, d),
                f"{at}out.weight": (d, q),
                f"{at}up.weight": (self.hidden * (2 if self.gated else 1), d),
                f"{at}down.weight": (d, self.hidden),
            }
            if self.qk_norm:
                found |= {f"{at}q_norm.weight": (self.head_size,), f"{at}k_norm.weight": (self.head_size,)}
        return found

    def optional(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of what may be there: biases, and the second norm of a parallel layer, which else shares the first."""
        found: dict[str, tuple[int, ...]] = {"head.bias": (self.vocabulary,)}
        shapes = self.shapes()
        for name, shape in shapes.items():
            if name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight")):
                found[name.removesuffix("weight") + "bias"] = shape[:1]
        if self.parallel:
            parts = ("weight",) if self.norm == "rms" else ("weight", "bias")
            found |= {f"layers.{index}.norm2.{part}": (self.width,) for index in range(self.num_layers) for part in parts}
        return found

    def check_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Raises Unsupported naming up to ten weights that are missing, unknown, of another shape or not of floats."""
        must, may = self.shapes(), self.optional()
        faults = [f"missing {name}" for name in must.keys() - weights.keys()]
        for name, tensor in weights.items():
            shape = must.get(name, may.get(name))
            if shape is None:
                faults.append(f"unknown {name}")
            elif tuple(tensor.shape) != shape:
                faults.append(f"{name} is {list(tensor.shape)}, not {list(shape)}")
            elif not tensor.is_floating_point() or tensor.device.type != "cpu":
                faults.append(f"{name} is {tensor.dtype} on {tensor.device}")
        for name in [name for name in may if name.endswith("norm2.weight")]:
            bias = name.removesuffix("weight") + "bias"
            if self.norm == "layer" and (name in weights) != (bias in weights):
                faults.append(f"one of {name} and {bias} alone")
        if faults:
            raise Unsupported(f"{len(faults)} weights do not fit: {'; '.join(sorted(faults)[:10])}")
