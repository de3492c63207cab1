"""What the one-call decoder can be: its layers, sizes, options, and the names and shapes of its weights.

A layer is a mixer, a feed-forward or both. Each kind of these is a class here, a header of the C++ decoder, which reads the numbers in the
same order, and a function in reference.py. Imports torch for annotations only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from mmlm.base.errors import MmlmError

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared"]
ACTIVATIONS: tuple[str, ...] = ("silu", "gelu", "gelu_tanh", "relu", "relu_squared")
GATES: tuple[str | None, ...] = (None, "silu", "sigmoid")
Shapes: TypeAlias = dict[str, tuple[int, ...]]


class Unsupported(MmlmError):
    """The decoder was not made for this; `reason` says what. The caller takes another path."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the one-call decoder cannot serve this: {reason}.")
        self.reason = reason


class Part:
    """What all mixers and feed-forwards tell of themselves."""

    def fault(self) -> str:
        """What cannot be in these sizes, or nothing."""
        return ""

    def matrices(self, width: int) -> Shapes:
        """Matrices [out, in] in the order of the C++ decoder; each may have a bias."""
        raise NotImplementedError

    def vectors(self, width: int) -> Shapes:
        """Further weights in the order of the C++ decoder, of any shape."""
        return {}

    def optional(self) -> set[str]:
        """Vectors that may be absent."""
        return set()

    def states(self) -> Shapes:
        """What is kept of a sequence, in the order of the C++ decoder; an axis of tokens is 0 here."""
        return {}

    def numbers(self) -> tuple[list[int], list[float]]:
        """Whole and real numbers in the order in which the C++ decoder reads them."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AttentionPart(Part):
    """Softmax attention with grouped key heads.

    rope: float [pairs], radians per position of the channel pairs (j, j + pairs) of a head, any scaling already in it; None: no rotation.
    rope_scale: factor on cosine and sine (YaRN). window: tokens a query looks back, itself included. scale: of the scores, default
    head_size ** -0.5. qk_norm: RMS norm of each query and key head before rotation. gated: outputs times the sigmoid of further rows of
    qkv.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    rope: Tensor | None = None
    rope_scale: float = 1.0
    window: int | None = None
    scale: float | None = None
    qk_norm: bool = False
    qk_norm_eps: float = 1e-6
    gated: bool = False

    @property
    def score_scale(self) -> float:
        """The factor on the scores."""
        return self.head_size**-0.5 if self.scale is None else self.scale

    @property
    def sizes(self) -> list[int]:
        """Rows of qkv: queries, keys, values, gates."""
        q, kv = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return [q, kv, kv, q if self.gated else 0]

    def fault(self) -> str:
        """Heads, angles, window."""
        if found := _too_small(self, "num_heads", "num_kv_heads", "head_size"):
            return found
        if self.num_heads % self.num_kv_heads:
            return f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads})"
        if self.rope is not None and (self.rope.dim() != 1 or 2 * len(self.rope) > self.head_size):
            return f"rope of shape {list(self.rope.shape)} for heads of {self.head_size} channels"
        return f"a window of {self.window} tokens" if self.window is not None and self.window < 1 else ""

    def matrices(self, width: int) -> Shapes:
        """qkv and out."""
        return {"qkv": (sum(self.sizes), width), "out": (width, self.sizes[0])}

    def vectors(self, width: int) -> Shapes:
        """Norms of heads."""
        return {"q_norm.weight": (self.head_size,), "k_norm.weight": (self.head_size,)} if self.qk_norm else {}

    def states(self) -> Shapes:
        """Keys, normed and turned, and values."""
        return dict.fromkeys(("key", "value"), (self.num_kv_heads, 0, self.head_size))

    def numbers(self) -> tuple[list[int], list[float]]:
        """As Attention in attention.h."""
        angles = [] if self.rope is None else self.rope.detach().float().tolist()
        sizes = [self.num_heads, self.num_kv_heads, self.head_size, self.window or 0, self.qk_norm, self.gated, len(angles)]
        return sizes, [self.score_scale, self.qk_norm_eps, self.rope_scale, *angles]


@dataclass(frozen=True, kw_only=True)
class Mamba1Part(Part):
    """Mamba-1. decay: [inner, states], negative; the rest as in mmlm/backbone/mamba1.py."""

    inner: int
    state_size: int
    step_rank: int
    conv_size: int
    negative_eigenvalues: bool = False

    def fault(self) -> str:
        """Sizes."""
        return _too_small(self, "inner", "state_size", "step_rank", "conv_size")

    def matrices(self, width: int) -> Shapes:
        """[x, z]; [r, B, C] of x; step of r; out."""
        return {
            "input": (2 * self.inner, width),
            "select": (self.step_rank + 2 * self.state_size, self.inner),
            "step": (self.inner, self.step_rank),
            "out": (width, self.inner),
        }

    def vectors(self, width: int) -> Shapes:
        """Convolution, bias of the step, decay, skip."""
        i = self.inner
        return {"conv.weight": (i, self.conv_size), "conv.bias": (i,), "step_bias": (i,), "decay": (i, self.state_size), "skip": (i,)}

    def optional(self) -> set[str]:
        """The convolution may have no bias."""
        return {"conv.bias"}

    def states(self) -> Shapes:
        """Last inputs of the convolution and the recurrent state."""
        return {"conv": (self.inner, self.conv_size - 1), "state": (self.inner, self.state_size)}

    def numbers(self) -> tuple[list[int], list[float]]:
        """As Shape in mamba1.h."""
        return [self.inner, self.state_size, self.step_rank, self.conv_size, self.negative_eigenvalues], []


@dataclass(frozen=True, kw_only=True)
class Mamba2Part(Part):
    """Mamba-2. decay: [heads], negative; the rest as in mmlm/backbone/mamba2.py."""

    num_heads: int
    head_size: int
    state_size: int
    num_groups: int = 1
    conv_size: int = 4
    norm_groups: int = 1
    norm_eps: float = 1e-5
    step_limit: tuple[float, float] = (0.0, 1e30)

    @property
    def sizes(self) -> list[int]:
        """Rows of the input projection: gate, convolved channels, steps."""
        inner = self.num_heads * self.head_size
        return [inner, inner + 2 * self.num_groups * self.state_size, self.num_heads]

    def fault(self) -> str:
        """Sizes and groups."""
        if found := _too_small(self, "num_heads", "head_size", "state_size", "num_groups", "conv_size", "norm_groups"):
            return found
        if self.num_heads % self.num_groups or self.sizes[0] % self.norm_groups:
            return f"{self.num_groups} groups of {self.num_heads} heads, {self.norm_groups} groups of {self.sizes[0]} normed channels"
        return ""

    def matrices(self, width: int) -> Shapes:
        """[z, x, B, C, step]; out."""
        return {"input": (sum(self.sizes), width), "out": (width, self.sizes[0])}

    def vectors(self, width: int) -> Shapes:
        """Convolution, bias of the step, decay, skip, norm."""
        heads, convolved = (self.num_heads,), self.sizes[1]
        found: Shapes = {"conv.weight": (convolved, self.conv_size), "conv.bias": (convolved,)}
        return found | {"step_bias": heads, "decay": heads, "skip": heads, "inner_norm.weight": (self.sizes[0],)}

    def optional(self) -> set[str]:
        """The convolution may have no bias."""
        return {"conv.bias"}

    def states(self) -> Shapes:
        """Last inputs of the convolution and the recurrent state."""
        return {"conv": (self.sizes[1], self.conv_size - 1), "state": (self.num_heads, self.head_size, self.state_size)}

    def numbers(self) -> tuple[list[int], list[float]]:
        """As Shape in mamba2.h."""
        sizes = [self.num_heads, self.head_size, self.state_size, self.num_groups, self.conv_size, self.norm_groups]
        return sizes, [*self.step_limit, self.norm_eps]


@dataclass(frozen=True, kw_only=True)
class DeltaNetPart(Part):
    """The delta rule. decay: [heads], negative; the rest as in mmlm/backbone/delta.py."""

    num_heads: int
    num_key_heads: int
    key_size: int
    value_size: int
    micro_steps: int = 1
    conv_size: int = 4
    gated: bool = False
    negative_eigenvalues: bool = False
    output_norm: bool = True
    output_gate: Literal["silu", "sigmoid"] | None = "silu"
    norm_eps: float = 1e-5

    @property
    def convolved(self) -> list[int]:
        """Convolved channels: queries, keys, values of all micro-steps."""
        keys, values = self.num_key_heads * self.key_size, self.num_heads * self.value_size
        return [keys, keys * self.micro_steps, values * self.micro_steps]

    @property
    def sizes(self) -> list[int]:
        """Rows of the input projection: convolved channels, gate, betas, steps of the decay."""
        gate = self.num_heads * self.value_size if self.output_gate else 0
        return [sum(self.convolved), gate, self.num_heads * self.micro_steps, self.num_heads if self.gated else 0]

    def fault(self) -> str:
        """Sizes, heads, gate."""
        if found := _too_small(self, "num_heads", "num_key_heads", "key_size", "value_size", "micro_steps", "conv_size"):
            return found
        if self.num_heads % self.num_key_heads:
            return f"num_heads ({self.num_heads}) is not a multiple of num_key_heads ({self.num_key_heads})"
        return "" if self.output_gate in GATES else f"an output gate {self.output_gate!r}"

    def matrices(self, width: int) -> Shapes:
        """[q, k, v, gate, beta, step]; out."""
        return {"input": (sum(self.sizes), width), "out": (width, self.num_heads * self.value_size)}

    def vectors(self, width: int) -> Shapes:
        """Convolution, decay, norm."""
        heads, convolved = (self.num_heads if self.gated else 0,), self.sizes[0]
        found: Shapes = {"conv.weight": (convolved, self.conv_size), "conv.bias": (convolved,), "step_bias": heads, "decay": heads}
        return found | {"inner_norm.weight": (self.value_size if self.output_norm else 0,)}

    def optional(self) -> set[str]:
        """The convolution may have no bias; what is empty may be absent."""
        return {"conv.bias"} | {name for name, shape in self.vectors(0).items() if 0 in shape}

    def states(self) -> Shapes:
        """Last inputs of the convolution and the recurrent state."""
        return {"conv": (self.sizes[0], self.conv_size - 1), "state": (self.num_heads, self.key_size, self.value_size)}

    def numbers(self) -> tuple[list[int], list[float]]:
        """As Shape in delta.h."""
        sizes = [self.num_heads, self.num_key_heads, self.key_size, self.value_size, self.micro_steps, self.conv_size]
        return [*sizes, self.gated, self.negative_eigenvalues, GATES.index(self.output_gate)], [self.norm_eps]


@dataclass(frozen=True, kw_only=True)
class FeedForwardPart(Part):
    """gated: down(act(gate x) * up x) with [gate, up] in one matrix, else down(act(up x))."""

    hidden: int
    gated: bool = True
    activation: Activation = "silu"

    def fault(self) -> str:
        """Inner width and activation."""
        unknown = f"activation {self.activation!r}; known are {', '.join(ACTIVATIONS)}"
        return _too_small(self, "hidden") or ("" if self.activation in ACTIVATIONS else unknown)

    def matrices(self, width: int) -> Shapes:
        """up and down."""
        return {"up": (self.hidden * (2 if self.gated else 1), width), "down": (width, self.hidden)}

    def numbers(self) -> tuple[list[int], list[float]]:
        """As FeedForward in feed_forward.h."""
        return [self.hidden, self.gated, ACTIVATIONS.index(self.activation)], []


@dataclass(frozen=True, kw_only=True)
class ExpertsPart(Part):
    """Each token to its top_k best of num_experts SwiGLU experts, and to num_shared further ones; see mmlm/backbone/moe.py."""

    num_experts: int
    top_k: int
    hidden: int
    num_shared: int = 0
    renormalize: bool = True

    def fault(self) -> str:
        """Sizes."""
        if found := _too_small(self, "num_experts", "top_k", "hidden"):
            return found
        return f"top_k {self.top_k} of {self.num_experts} experts" if self.top_k > self.num_experts else ""

    def matrices(self, width: int) -> Shapes:
        """up (gate and up in one) and down of every expert, the shared ones last."""
        names = [f"experts.{index}" for index in range(self.num_experts)] + [f"shared.{index}" for index in range(self.num_shared)]
        each = FeedForwardPart(hidden=self.hidden).matrices(width)
        return {f"{name}.{matrix}": shape for name in names for matrix, shape in each.items()}

    def vectors(self, width: int) -> Shapes:
        """The router, which stays in float32."""
        return {"router.weight": (self.num_experts, width)}

    def numbers(self) -> tuple[list[int], list[float]]:
        """As Experts in experts.h."""
        return [self.num_experts, self.top_k, self.num_shared, self.hidden, self.renormalize], []


# In the order of decoder.h, from 1.
KINDS: tuple[type[Part], ...] = (AttentionPart, Mamba1Part, Mamba2Part, DeltaNetPart, FeedForwardPart, ExpertsPart)


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """x + mixer(norm(x)), then x + feed_forward(norm(x)). parallel: both read the layer's input and are added at once."""

    mixer: Part | None = None
    feed_forward: Part | None = None
    parallel: bool = False

    def parts(self) -> list[tuple[str, Part]]:
        """The parts that are there, with their names."""
        both = (("mixer", self.mixer), ("feed_forward", self.feed_forward))
        return [(name, part) for name, part in both if part is not None]


@dataclass(frozen=True, kw_only=True)
class DecoderSpec:
    """A pre-norm decoder. Weights of the parts are called layers.<number>.<mixer or feed_forward>.<name>.

    positions: rows of a table of learned positions, 0 for none. tied: the embedding's rows are those of the head.
    """

    vocabulary: int
    width: int
    layers: tuple[LayerSpec, ...]
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    tied: bool = False
    positions: int = 0
    embedding_scale: float = 1.0
    logit_scale: float = 1.0

    def parts(self) -> Iterator[tuple[int, str, Part]]:
        """Number of the layer, name of the part, part."""
        for index, layer in enumerate(self.layers):
            for name, part in layer.parts():
                yield index, name, part

    @property
    def has_recurrence(self) -> bool:
        """Whether a layer keeps a state instead of its tokens."""
        return any("state" in layer.mixer.states() for layer in self.layers if layer.mixer is not None)

    def check(self) -> None:
        """Raises Unsupported for sizes and options that cannot be."""
        if found := _too_small(self, "vocabulary", "width"):
            raise Unsupported(found)
        if self.norm not in ("rms", "layer"):
            raise Unsupported(f"norm {self.norm!r}; known are rms, layer")
        for index, _, part in self.parts():
            if type(part) not in KINDS or (found := part.fault()):
                raise Unsupported(f"layer {index}: {found if type(part) in KINDS else type(part).__name__}")
        if not any(layer.mixer for layer in self.layers):
            raise Unsupported("no layer has a mixer")
        if any(layer.parallel and len(layer.parts()) < 2 for layer in self.layers):
            raise Unsupported("a parallel layer without mixer or feed-forward")

    def numbers(self, threads: int) -> tuple[list[int], list[float]]:
        """All whole and real numbers in the order in which the C++ decoder reads them."""
        whole = [self.vocabulary, self.width, len(self.layers), self.norm == "layer", self.positions, self.tied, threads]
        real = [self.norm_eps, self.embedding_scale, self.logit_scale]
        for layer in self.layers:
            whole.append(layer.parallel)
            for part in (layer.mixer, layer.feed_forward):
                whole.append(0 if part is None else 1 + KINDS.index(type(part)))
                if part is not None:
                    more = part.numbers()
                    whole += more[0]
                    real += more[1]
        return [int(number) for number in whole], real

    def shapes(self) -> Shapes:
        """Name and shape of every weight that must be there."""
        norm = ("weight",) if self.norm == "rms" else ("weight", "bias")
        found: Shapes = {"embedding.weight": (self.vocabulary, self.width)}
        if not self.tied:
            found["head.weight"] = (self.vocabulary, self.width)
        if self.positions:
            found["positions.weight"] = (self.positions, self.width)
        found |= {f"norm.{part}": (self.width,) for part in norm}
        for index, name, part in self.parts():
            at = f"layers.{index}.{name}."
            if name == "mixer" or not self.layers[index].parallel:
                found |= {f"{at}norm.{part}": (self.width,) for part in norm}
            found |= {f"{at}{matrix}.weight": shape for matrix, shape in part.matrices(self.width).items()}
            found |= {f"{at}{vector}": shape for vector, shape in part.vectors(self.width).items() if vector not in part.optional()}
        return found

    def optional(self) -> Shapes:
        """Name and shape of what may be there: biases, and the second norm of a parallel layer, which else shares the first."""
        norm = ("weight",) if self.norm == "rms" else ("weight", "bias")
        found: Shapes = {"head.bias": (self.vocabulary,)}
        for index, name, part in self.parts():
            at = f"layers.{index}.{name}."
            if name == "feed_forward" and self.layers[index].parallel:
                found |= {f"{at}norm.{part}": (self.width,) for part in norm}
            found |= {f"{at}{matrix}.bias": shape[:1] for matrix, shape in part.matrices(self.width).items()}
            found |= {f"{at}{vector}": part.vectors(self.width)[vector] for vector in part.optional()}
        return {name: shape for name, shape in found.items() if 0 not in shape}

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
        for name in [name for name in may if name.endswith("feed_forward.norm.weight")]:
            bias = name.removesuffix("weight") + "bias"
            if self.norm == "layer" and (name in weights) != (bias in weights):
                faults.append(f"one of {name} and {bias} alone")
        if faults:
            raise Unsupported(f"{len(faults)} weights do not fit: {'; '.join(sorted(faults)[:10])}")


def _too_small(spec: object, *names: str) -> str:
    return next((f"{name} must be at least 1, but is {getattr(spec, name)}" for name in names if getattr(spec, name) < 1), "")
