"""Configs of the backbone and its parts. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator

from mmlm.base.pattern import allocate, letters
from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict

MIXERS = Registry("mixer", "mmlm.mixers")
FEED_FORWARDS = Registry("feed-forward", "mmlm.feed_forwards")


class LinearScaling(Strict):
    """All frequencies divided by the factor (position interpolation, arXiv:2306.15595)."""

    type: Literal["linear"] = "linear"
    factor: float = Field(gt=1, description="new length over trained length")


class NtkScaling(Strict):
    """Base changed so that the lowest frequency is divided by the factor."""

    type: Literal["ntk"] = "ntk"
    factor: float = Field(gt=1, description="new length over trained length")


class YarnScaling(Strict):
    """Frequencies blended by how often they turn within the trained length (YaRN, arXiv:2309.00071)."""

    type: Literal["yarn"] = "yarn"
    factor: float = Field(gt=1, description="new length over trained length")
    original_length: int = Field(ge=1, description="trained length in tokens")
    fast_turns: float = Field(32.0, gt=0, description="frequencies with more turns than this stay as they are")
    slow_turns: float = Field(1.0, gt=0, description="frequencies with fewer turns are divided by the factor")
    attention_factor: float | None = Field(None, gt=0, description="scale of queries and keys; default 0.1 ln(factor) + 1")
    truncate: bool = Field(True, description="round the borders of the blend to whole channels")


class Llama3Scaling(Strict):
    """Wavelengths longer than the trained length stretched, short ones kept, a blend between (Llama 3.1)."""

    type: Literal["llama3"] = "llama3"
    factor: float = Field(8.0, gt=1, description="new length over trained length")
    low_frequency_factor: float = Field(1.0, gt=0)
    high_frequency_factor: float = Field(4.0, gt=0)
    original_length: int = Field(8192, ge=1, description="trained length in tokens")


RopeScaling = Annotated[LinearScaling | NtkScaling | YarnScaling | Llama3Scaling, Field(discriminator="type")]


class RopeConfig(Strict):
    """Rotary positions (RoFormer, arXiv:2104.09864): channel j turns with channel j + half."""

    base: float = Field(10_000.0, gt=1, description="wavelengths grow up to 2 pi times this")
    fraction: float = Field(1.0, gt=0, le=1, description="share of a head's channels that turn")
    sections: list[int] | None = Field(None, description="pairs of channels for each position axis; default: all for the first axis")
    scaling: RopeScaling | None = None


@MIXERS.register("mmlm.backbone.attention:Attention", source="Attention is all you need, arXiv:1706.03762; GQA arXiv:2305.13245")
class AttentionConfig(Component):
    """Softmax attention with grouped key and value heads."""

    type: Literal["attention"] = "attention"
    num_heads: int = Field(4, ge=1, description="query heads")
    num_kv_heads: int | None = Field(None, ge=1, description="key and value heads; default: as many as query heads")
    head_size: int | None = Field(None, ge=1, description="channels of a head; default: width / num_heads")
    rope: RopeConfig | None = Field(RopeConfig(), description="rotary positions; null for none")
    qk_norm: bool = Field(False, description="RMS norm of each query and key head before rotation (Qwen3)")
    qk_norm_eps: float = Field(1e-6, gt=0)
    qkv_bias: bool = False
    out_bias: bool = False
    window: int | None = Field(None, ge=1, description="tokens a query looks back, itself included; null for all")
    sinks: int = Field(
        0, ge=0, description="first tokens of a document that stay visible beyond the window (StreamingLLM, arXiv:2309.17453)"
    )
    gate: bool = Field(False, description="outputs times sigmoid of a projection of the input, channel by channel (Qwen3-Next)")
    soft_cap: float | None = Field(None, gt=0, description="scores become cap * tanh(score / cap) (Gemma 2); null for none")
    alibi: bool = Field(False, description="scores fall with the distance, by a slope a head (ALiBi, arXiv:2108.12409)")
    score_scale: float | None = Field(None, gt=0, description="factor on the scores; default 1 / sqrt(head_size)")
    causal: bool | None = Field(None, description="look back only; null: as the data's layout says")
    over: str | None = Field(None, description="attend along this position axis alone, such as row or column of a table")

    @model_validator(mode="after")
    def _heads(self) -> AttentionConfig:
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        if self.sinks and (self.window is None or self.sinks >= self.window):
            raise ValueError(f"sinks ({self.sinks}) need a window that is larger")
        return self

    def without_effect(self) -> dict[str, str]:
        """The eps belongs to the norm."""
        return {} if self.qk_norm else {"qk_norm_eps": "qk_norm is false"}


@MIXERS.register("mmlm.backbone.mamba2:Mamba2", source="Mamba-2, arXiv:2405.21060")
class Mamba2Config(Component):
    """State-space mixer with a scalar decay per head, computed in chunks by matrix products."""

    type: Literal["mamba2"] = "mamba2"
    state_size: int = Field(64, ge=1, le=1024, description="channels of the recurrent state per head channel")
    head_size: int = Field(64, ge=1, description="channels of a head")
    expand: float = Field(2.0, gt=0, description="inner width over model width")
    num_groups: int = Field(1, ge=1, description="groups of heads that share B and C")
    conv_size: int = Field(4, ge=1, description="taps of the short convolution")
    conv_bias: bool = True
    bias: bool = Field(False, description="bias of the input and output projections")
    chunk_size: int = Field(64, ge=1, description="tokens per block of the parallel form; speed only")
    min_step: float = Field(0.001, gt=0, description="smallest initial time step")
    max_step: float = Field(0.1, gt=0, description="largest initial time step")
    step_limit: list[float] = Field([0.0, 1e30], min_length=2, max_length=2, description="bounds of the time step")
    norm_eps: float = Field(1e-5, gt=0)
    norm_groups: int = Field(1, ge=1, description="groups of inner channels normed on their own")


@MIXERS.register("mmlm.backbone.mamba1:Mamba1", source="Mamba, arXiv:2312.00752; negative eigenvalues arXiv:2411.12537")
class Mamba1Config(Component):
    """State-space mixer in which every channel has its own time step and every state its own decay."""

    type: Literal["mamba1"] = "mamba1"
    state_size: int = Field(16, ge=1, le=1024, description="states of each inner channel")
    expand: float = Field(2.0, gt=0, description="inner width over model width")
    conv_size: int = Field(4, ge=1, description="taps of the short convolution")
    conv_bias: bool = True
    bias: bool = Field(False, description="bias of the input and output projections")
    step_rank: int | None = Field(None, ge=1, description="inner size of the time step's projection; default: width / 16, rounded up")
    min_step: float = Field(0.001, gt=0, description="smallest initial time step")
    max_step: float = Field(0.1, gt=0, description="largest initial time step")
    negative_eigenvalues: bool = Field(False, description="decays within -1 and 1 instead of 0 and 1, which parity and the like need")
    select_norm: bool = Field(False, description="RMS norms of what steps, keys and queries are made of (Jamba, arXiv:2403.19887)")
    norm_eps: float = Field(1e-5, gt=0, description="of these norms")

    def without_effect(self) -> dict[str, str]:
        """The eps belongs to the norms."""
        return {} if self.select_norm else {"norm_eps": "select_norm is false"}


@MIXERS.register("mmlm.backbone.s4:S4", source="S4, arXiv:2111.00396; S4D, arXiv:2206.11893")
class S4Config(Component):
    """A fixed linear system a channel: a long convolution in training, a recurrence in generation."""

    type: Literal["s4"] = "s4"
    form: Literal["dplr", "diagonal"] = Field("dplr", description="system matrix: diagonal plus low rank (S4), or diagonal (S4D)")
    state_size: int = Field(64, ge=2, le=1024, multiple_of=2, description="state channels of a channel")
    init: Literal["legs", "lin", "inv"] = Field("legs", description="rates at first: HiPPO-LegS, or S4D-Lin or S4D-Inv")
    discretization: Literal["zoh", "bilinear"] | None = Field(None, description="of the diagonal form; default: zoh. dplr is bilinear")
    min_step: float = Field(0.001, gt=0, description="smallest initial time step")
    max_step: float = Field(0.1, gt=0, description="largest initial time step")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the gated output, while training")
    system_lr_scale: float = Field(0.1, gt=0, description="learning rate of rates, inputs and steps over that of the rest")

    @model_validator(mode="after")
    def _form(self) -> S4Config:
        if self.form == "dplr" and self.init != "legs":
            raise ValueError(f"init {self.init!r} is diagonal; form dplr must have init 'legs'")
        if self.form == "dplr" and self.discretization == "zoh":
            raise ValueError("form dplr must have discretization 'bilinear'")
        if self.min_step > self.max_step:
            raise ValueError(f"min_step ({self.min_step}) must be at most max_step ({self.max_step})")
        return self


@MIXERS.register("mmlm.backbone.h3:H3", source="H3, arXiv:2212.14052")
class H3Config(Component):
    """A shift system and a diagonal system with multiplications between: recalls and compares tokens."""

    type: Literal["h3"] = "h3"
    head_size: int = Field(8, ge=1, description="channels of a head, whose products of keys and values are its memory")
    shift_size: int = Field(64, ge=1, le=1024, description="tokens that the shift system remembers, the current one included")
    state_size: int = Field(64, ge=2, le=1024, multiple_of=2, description="state channels of the diagonal system")
    init: Literal["legs", "lin", "inv"] = Field("lin", description="rates of the diagonal system at first, as for s4")
    min_step: float = Field(0.001, gt=0, description="smallest initial time step")
    max_step: float = Field(0.1, gt=0, description="largest initial time step")
    bias: bool = Field(True, description="bias of the input and output projections")
    system_lr_scale: float = Field(1.0, gt=0, description="learning rate of both systems over that of the rest")

    @model_validator(mode="after")
    def _steps(self) -> H3Config:
        if self.min_step > self.max_step:
            raise ValueError(f"min_step ({self.min_step}) must be at most max_step ({self.max_step})")
        return self


@MIXERS.register("mmlm.backbone.long_conv:LongConv", source="FlashButterfly, arXiv:2302.06646")
class LongConvConfig(Component):
    """Convolution with a free kernel, squashed towards zero and smoothed."""

    type: Literal["long_conv"] = "long_conv"
    num_taps: int = Field(1024, ge=2, description="tokens that an output sees, the current one included")
    init: Literal["normal", "decay"] = Field("decay", description="kernel at first: the same scale for all taps, or decaying with the lag")
    init_std: float = Field(0.02, gt=0, description="scale of the kernel's first tap at first (the paper: normal 0.002, decay 0.02)")
    squash: float = Field(0.001, ge=0, description="taken off the size of every tap, down to zero")
    smooth: int = Field(1, ge=1, description="taps or frequencies of a moving average over the kernel, odd; 1 for none (the paper: 7)")
    smooth_over: Literal["time", "frequency"] | None = Field(None, description="what the moving average runs over; default: time")
    kernel_dropout: float = Field(0.0, ge=0, lt=1, description="of taps, while training")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the gated output, while training")
    kernel_lr_scale: float = Field(0.1, gt=0, description="learning rate of the kernel, and of the transform, over that of the rest")
    learned_transform: bool = Field(
        False, description="the Fourier transform's matrices are learned; every output then sees the whole document"
    )

    @model_validator(mode="after")
    def _smooth(self) -> LongConvConfig:
        if self.smooth % 2 == 0:
            raise ValueError(f"smooth ({self.smooth}) must be odd")
        if self.smooth == 1 and self.smooth_over is not None:
            raise ValueError("smooth_over has no effect with smooth 1")
        return self


@MIXERS.register(
    "mmlm.backbone.delta:DeltaNet",
    source="DeltaNet, arXiv:2406.06484; Gated DeltaNet, arXiv:2412.06464; negative eigenvalues, arXiv:2411.12537; "
    "DeltaProduct, arXiv:2502.10297",
)
class DeltaNetConfig(Component):
    """Delta rule: each head's matrix replaces what it holds for a key by a new value, with a decay if gated."""

    type: Literal["deltanet"] = "deltanet"
    num_heads: int = Field(4, ge=1, description="value heads, each with a state of key_size x value_size")
    num_key_heads: int | None = Field(None, ge=1, description="query and key heads; default: as many as value heads")
    key_size: int = Field(64, ge=1, description="channels of a query or key")
    value_size: int | None = Field(None, ge=1, description="channels of a value; default: key_size")
    gated: bool = Field(False, description="the state decays by a factor that each token chooses (gated DeltaNet)")
    negative_eigenvalues: bool = Field(False, description="beta up to 2, so that a token can turn the sign of what is held")
    num_micro_steps: int = Field(1, ge=1, le=8, description="keys and values of a token, taken in one after the other (DeltaProduct)")
    conv_size: int = Field(4, ge=1, description="taps of the short convolution")
    conv_bias: bool = False
    bias: bool = Field(False, description="bias of the input and output projections")
    output_norm: bool = Field(True, description="RMS norm of each head's output")
    output_gate: Literal["silu", "sigmoid"] | None = Field("silu", description="what the output is multiplied with, of its own projection")
    norm_eps: float = Field(1e-5, gt=0)
    min_step: float = Field(0.001, gt=0, description="smallest initial time step of the decay")
    max_step: float = Field(0.1, gt=0, description="largest initial time step of the decay")
    chunk_size: int = Field(64, ge=1, description="tokens per block of the chunked form; speed only")

    @model_validator(mode="after")
    def _heads(self) -> DeltaNetConfig:
        if self.num_key_heads and self.num_heads % self.num_key_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_key_heads ({self.num_key_heads})")
        if self.min_step > self.max_step:
            raise ValueError(f"min_step ({self.min_step:g}) must be at most max_step ({self.max_step:g})")
        return self

    def without_effect(self) -> dict[str, str]:
        """Time steps belong to the decay, the eps to the norm."""
        idle = {} if self.gated else dict.fromkeys(("min_step", "max_step"), "nothing decays without gated: true")
        return idle if self.output_norm else idle | {"norm_eps": "output_norm is false"}


class LrpeConfig(Strict):
    """Relative positions of linear attention (LRPE, arXiv:2307.09270): x becomes [x cos, x sin] of learned angles, twice as long."""

    base: float = Field(10_000.0, gt=1, description="wavelengths at first grow up to 2 pi times this")
    num_axes: int = Field(1, ge=1, le=3, description="position axes that share a head's channels, the first ones of the data")


@MIXERS.register("mmlm.backbone.transnormer:TransNormer", source="TransNormer, arXiv:2210.10340; gate of TransNormerLLM, arXiv:2307.14995")
class TransNormerConfig(Component):
    """Linear attention with a norm in place of the denominator, for late layers; attention inside blocks, for early ones."""

    type: Literal["transnormer"] = "transnormer"
    form: Literal["linear", "blocks"] = Field("linear", description="NormAttention over all tokens, or DiagAttention inside blocks")
    num_heads: int = Field(4, ge=1)
    head_size: int | None = Field(None, ge=1, description="channels of a head; default: width / num_heads")
    feature: Literal["1+elu", "elu", "none"] = Field("1+elu", description="of queries and keys of the linear form (T2: 1+elu, T1: elu)")
    block_size: int = Field(64, ge=1, description="tokens of a block, counted from the document's first token")
    scores: Literal["softmax", "relu"] = Field("softmax", description="of the blocks form; relu gets the norm too (T2: softmax, T1: relu)")
    norm_heads: bool = Field(False, description="norm each head's output by itself; else all heads as one vector, as in the paper")
    norm_eps: float = Field(1e-5, gt=0)
    gate: bool = Field(False, description="values through SiLU, and outputs times SiLU of a projection (TransNormerLLM)")
    lrpe: LrpeConfig | None = Field(LrpeConfig(), description="relative positions of the linear form; null for none")
    rope: RopeConfig | None = Field(None, description="rotary positions, in the linear form instead of lrpe")
    causal: bool | None = Field(None, description="look back only; null: as the data's layout says")
    bias: bool = Field(False, description="bias of the input and output projections")

    @model_validator(mode="after")
    def _positions(self) -> TransNormerConfig:
        if self.lrpe and self.rope and self.form == "linear":
            raise ValueError("rope needs lrpe: null")
        return self

    def without_effect(self) -> dict[str, str]:
        """Each form has keys of its own; softmax has no norm."""
        if self.form == "linear":
            return dict.fromkeys(("block_size", "scores"), "form is linear")
        idle = dict.fromkeys(("feature", "lrpe"), "form is blocks")
        return idle if self.scores == "relu" else idle | dict.fromkeys(("norm_heads", "norm_eps"), "scores are softmax, which has no norm")


@MIXERS.register("mmlm.backbone.lightnet:LightNet", source="LightNet, arXiv:2405.21022")
class LightNetConfig(Component):
    """Linear attention whose keys are a softmax over the tokens so far, or over the whole document in one pass without an order."""

    type: Literal["lightnet"] = "lightnet"
    num_heads: int = Field(4, ge=1)
    head_size: int | None = Field(None, ge=1, description="channels of a head; default: width / num_heads (the paper: 128)")
    lrpe: LrpeConfig | None = Field(LrpeConfig(), description="relative positions of queries and keys; null for none")
    rope: RopeConfig | None = Field(None, description="rotary positions instead of lrpe")
    output_gate: Literal["sigmoid", "silu"] | None = Field("sigmoid", description="what the output is multiplied with, of two projections")
    gate_rank: int | None = Field(None, ge=1, description="size between the gate's projections; default: num_heads")
    norm_eps: float = Field(1e-5, gt=0, description="of the RMS norm of each head's output")
    causal: bool | None = Field(None, description="look back only; null: as the data's layout says")
    bias: bool = Field(False, description="bias of the input and output projections")

    @model_validator(mode="after")
    def _positions(self) -> LightNetConfig:
        if self.lrpe and self.rope:
            raise ValueError("rope needs lrpe: null")
        return self

    def without_effect(self) -> dict[str, str]:
        """The rank belongs to the gate."""
        return {} if self.output_gate else {"gate_rank": "output_gate is null"}


@MIXERS.register("mmlm.backbone.tpe:Tpe", source="MD-TPE of LightNet, arXiv:2405.21022")
class TpeConfig(Component):
    """Positions for mixers that have none: sums of the tokens before, decaying along each axis. Once, after the input."""

    type: Literal["tpe"] = "tpe"
    num_heads: int = Field(4, ge=1, description="groups of channels, each with its own decay")
    over: list[str] = Field([], description="position axes to go along, such as row and column; none: the tokens in their order")
    norm_eps: float = Field(1e-5, gt=0)
    causal: bool | None = Field(None, description="look back only, else in both directions; null: as the data's layout says")


@FEED_FORWARDS.register("mmlm.backbone.feed_forward:FeedForward", source="GLU variants, arXiv:2002.05202")
class SwigluConfig(Component):
    """down(silu(gate x) * up x)."""

    type: Literal["swiglu"] = "swiglu"
    hidden: int | None = Field(None, ge=1, description="inner width; default 8/3 of the width, rounded up to a multiple of 64")
    bias: bool = False


@FEED_FORWARDS.register("mmlm.backbone.feed_forward:FeedForward", source="GELU, arXiv:1606.08415")
class GeluConfig(Component):
    """down(gelu(up x))."""

    type: Literal["gelu"] = "gelu"
    hidden: int | None = Field(None, ge=1, description="inner width; default 4 times the width")
    bias: bool = True
    approximate: bool = Field(True, description="the tanh form")


@FEED_FORWARDS.register("mmlm.backbone.feed_forward:FeedForward", source="GLU variants, arXiv:2002.05202")
class GegluConfig(Component):
    """down(gelu(gate x) * up x)."""

    type: Literal["geglu"] = "geglu"
    hidden: int | None = Field(None, ge=1, description="inner width; default as swiglu")
    bias: bool = False
    approximate: bool = Field(True, description="the tanh form")


@FEED_FORWARDS.register("mmlm.backbone.feed_forward:FeedForward", source="squared ReLU, arXiv:2109.08668")
class Relu2Config(Component):
    """down(relu(up x)^2)."""

    type: Literal["relu2"] = "relu2"
    hidden: int | None = Field(None, ge=1, description="inner width; default 4 times the width")
    bias: bool = False


@FEED_FORWARDS.register(
    "mmlm.backbone.moe:MixtureOfExperts", source="sparsely gated experts, arXiv:1701.06538; balance loss of Switch, arXiv:2101.03961, eq. 4"
)
class MoeConfig(Component):
    """Each token goes to its `top_k` best experts. Without a capacity no token is dropped."""

    type: Literal["moe"] = "moe"
    num_experts: int = Field(4, ge=2)
    top_k: int = Field(2, ge=1)
    hidden: int | None = Field(None, ge=1, description="inner width of an expert; default as swiglu")
    renormalize: bool = Field(True, description="weights of the chosen experts sum to one")
    balance_weight: float = Field(0.01, ge=0, description="weight of the loss that evens out the experts' load")
    router_z_weight: float = Field(0.001, ge=0, description="weight of the squared log-partition of the router")
    num_shared: int = Field(0, ge=0, description="further experts that every token goes to (DeepSeekMoE, arXiv:2401.06066)")
    shared_hidden: int | None = Field(None, ge=1, description="inner width of a shared expert; default as the others")
    shared_gate: bool = Field(False, description="what the shared experts add is times sigmoid of a linear score (Qwen2-MoE)")
    capacity_factor: float | None = Field(
        None, gt=0, description="in training an expert takes this times its even share of tokens, the rest keep the residual; null: all"
    )
    priority: Literal["order", "probability"] = Field("order", description="who is taken first when the capacity is full")

    @model_validator(mode="after")
    def _top(self) -> MoeConfig:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k ({self.top_k}) must be at most num_experts ({self.num_experts})")
        return self

    def without_effect(self) -> dict[str, str]:
        """`priority` does nothing where every token is taken, nor do the keys of shared experts where there are none."""
        idle = {"priority": "capacity_factor is null, so every token is taken"} if self.capacity_factor is None else {}
        return idle if self.num_shared else idle | dict.fromkeys(("shared_hidden", "shared_gate"), "num_shared is 0")


class LayerConfig(Strict):
    """One layer: x + mixer(norm(x)), then x + feed_forward(norm(x)). A mixer written alone stands for a layer with it."""

    mixer: MIXERS.choice | None = None
    feed_forward: FEED_FORWARDS.choice | Literal["default"] | None = Field("default", description="default: that of the backbone")
    parallel: bool = Field(False, description="mixer and feed-forward read the same normed input (PaLM, arXiv:2204.02311)")

    @model_validator(mode="before")
    @classmethod
    def _mixer_alone(cls, value: Any) -> Any:
        return {"mixer": value} if isinstance(value, str) or (isinstance(value, dict) and "type" in value) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """A layer, or a mixer alone."""
        return {"anyOf": [handler(core), {"x-registry": MIXERS.plural}]}

    @model_validator(mode="after")
    def _something(self) -> LayerConfig:
        if self.mixer is None and self.feed_forward is None:
            raise ValueError("needs a mixer or a feed_forward")
        if self.parallel and (self.mixer is None or self.feed_forward is None):
            raise ValueError("parallel needs a mixer and a feed_forward")
        return self


class _Forms:
    """Tells a JSON schema that a pattern may be a text or shares of kinds too."""

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        shares = {name: {"type": "number"} for name in ("num_layers", "attention_share", "feed_forward_share")}
        shape = {"type": "object", "properties": shares, "required": list(shares), "additionalProperties": False}
        return {"anyOf": [handler(core), {"type": "string"}, shape]}


SYMBOLS: dict[str, dict[str, Any]] = {
    "M": {"mixer": {"type": "mamba2"}, "feed_forward": None},
    "*": {"mixer": {"type": "attention"}, "feed_forward": None},
    "-": {"feed_forward": "default"},
    "E": {"feed_forward": {"type": "moe"}},
}


class BackboneConfig(Strict):
    """The decoder. `pretrained` names weights that say it all; else `pattern` says what each layer is.

    As a list, the pattern is repeated until num_layers, if given, is reached. As a text, each letter is a sublayer x + f(norm(x)): M
    mamba2, * attention, - the feed_forward, E moe, and the letters of `symbols`; (MM*-)x6 repeats a group. As a mapping of num_layers,
    attention_share and feed_forward_share, such a text is made with the kinds spread evenly.
    """

    pretrained: str | None = Field(None, description="run, model folder or hub id of a decoder to start from; excludes the keys below")
    width: int = Field(256, ge=8, description="size of a token vector")
    num_layers: int = Field(4, ge=1, description="number of layers; default: those of the pattern; a pattern written as a text has its own")
    pattern: Annotated[list[LayerConfig], _Forms()] = Field(
        [LayerConfig(mixer=AttentionConfig())], min_length=1, description="layers as a list, a text of letters, or shares of kinds"
    )
    symbols: dict[str, Any] = Field({}, description="further letters of a pattern written as a text: a mixer, or a layer")
    overrides: dict[str, dict[str, Any]] = Field({}, description="keys to change in layers: by letter, number from 0, or range such as 0:4")
    feed_forward: FEED_FORWARDS.choice | None = Field(SwigluConfig(), description="of every layer that names none of its own")
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = Field(1e-5, gt=0)
    norm_place: Literal["before", "around"] = Field(
        "before", description="around: what a mixer or feed-forward adds is normed too (Gemma 2)"
    )
    embedding_scale: float = Field(1.0, gt=0, description="factor on token embeddings; Gemma has the root of the width")
    learned_positions: int | None = Field(None, ge=1, description="longest length of a table of learned positions; null for none")
    dropout: float = Field(0.0, ge=0, lt=1, description="of embeddings, mixer and feed-forward outputs while training")
    recompute: bool = Field(False, description="recompute each layer's activations in the backward pass: less memory, more time")

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        if isinstance(raw.get("pattern"), list) and raw["pattern"] and "num_layers" not in raw:
            raw = {**raw, "num_layers": len(raw["pattern"])}
        if not ({"symbols", "overrides"} & raw.keys() or isinstance(raw.get("pattern"), str | dict)):
            return raw
        raw = dict(raw)
        pattern, symbols, overrides = raw.get("pattern", ["attention"]), raw.pop("symbols", {}), raw.pop("overrides", {})
        if isinstance(pattern, dict):
            pattern = _allocated(pattern)
        names: list[str] = []
        if isinstance(pattern, str):
            if pattern in MIXERS.entries:
                raise ValueError(f"pattern: a mixer by name belongs into a list: [{pattern}]")
            names = letters(pattern)
            if raw.setdefault("num_layers", len(names)) != len(names):
                raise ValueError(f"num_layers is {raw['num_layers']}, but the pattern has {len(names)} letters; leave num_layers out")
            pattern = _from_letters(names, symbols)
        elif symbols:
            raise ValueError("symbols have no effect: the pattern is not written as a text")
        raw["pattern"] = _changed(pattern, names, raw.get("num_layers", cls.model_fields["num_layers"].default), overrides)
        return raw

    def without_effect(self) -> dict[str, str]:
        """A pretrained decoder decides its own shape."""
        if self.pretrained is None:
            return {}
        return {name: "pretrained decides it" for name in type(self).model_fields if name not in ("pretrained", "recompute", "dropout")}

    @property
    def layers(self) -> list[LayerConfig]:
        """The layers in order, each with its own feed-forward filled in."""
        chosen = [self.pattern[index % len(self.pattern)] for index in range(self.num_layers)]
        return [
            layer.model_copy(update={"feed_forward": self.feed_forward}) if layer.feed_forward == "default" else layer for layer in chosen
        ]


def _allocated(shares: dict[str, Any]) -> str:
    wanted = ("attention_share", "feed_forward_share", "num_layers")
    if sorted(map(str, shares)) != list(wanted) or not all(isinstance(value, int | float) for value in shares.values()):
        raise ValueError(f"a pattern of shares has the numbers {', '.join(wanted)}, but holds {', '.join(sorted(map(str, shares)))}")
    return allocate(int(shares["num_layers"]), float(shares["attention_share"]), float(shares["feed_forward_share"]))


def _from_letters(names: list[str], symbols: Any) -> list[Any]:
    """Layers as recipe data, one a letter."""
    known = dict(SYMBOLS)
    for name, value in (symbols if isinstance(symbols, dict) else {}).items():
        if len(name) != 1 or name in "()x" or name.isspace():
            raise ValueError(f"symbols: {name!r} must be one letter, and none of ( ) x")
        is_layer = isinstance(value, dict) and "type" not in value
        known[name] = {"feed_forward": None, **value} if is_layer else {"mixer": value, "feed_forward": None}
    for name in names:
        if name not in known:
            raise ValueError(f"pattern: unknown letter {name!r}; known are {' '.join(known)}. Say in symbols what it is")
    if unused := sorted((symbols or {}).keys() - set(names)):
        raise ValueError(f"symbols: {unused[0]!r} does not occur in the pattern")
    return [known[name] for name in names]


def _changed(pattern: Any, names: list[str], num_layers: Any, overrides: Any) -> Any:
    """The pattern with overrides applied, written out layer by layer if there are any."""
    if not overrides or not isinstance(pattern, list) or not isinstance(num_layers, int) or not isinstance(overrides, dict):
        return pattern
    layers = [pattern[at % len(pattern)] for at in range(num_layers)] if pattern else []
    for key, change in overrides.items():
        if not isinstance(change, dict):
            raise ValueError(f"overrides.{key}: must be keys to change, but is {change!r}")
        for at in _places(str(key), names, len(layers)):
            layers[at] = _merged(layers[at], change)
    return layers


def _places(key: str, names: list[str], count: int) -> list[int]:
    """The layers that an override means."""
    first, colon, last = key.partition(":")
    if key in names:
        return [at for at, name in enumerate(names) if name == key]
    if key.isdigit() and int(key) < count:
        return [int(key)]
    if colon and all(part.isdigit() or not part for part in (first, last)):
        places = list(range(count))[int(first or 0) : int(last or count)]
        if places:
            return places
    raise ValueError(f"overrides: {key!r} is no letter of the pattern, number below {count} or range of these such as 0:{count}")


def _merged(layer: Any, change: dict[str, Any]) -> dict[str, Any]:
    """A layer as recipe data with keys changed: those of a layer, or else of its mixer (of its feed-forward where it has no mixer)."""
    layer = {"mixer": layer} if isinstance(layer, str) or (isinstance(layer, dict) and "type" in layer) else dict(layer)
    for part in ("mixer", "feed_forward"):
        if isinstance(layer.get(part), str) and layer[part] != "default":
            layer[part] = {"type": layer[part]}
    own = {name: value for name, value in change.items() if name in LayerConfig.model_fields}
    inner = {name: value for name, value in change.items() if name not in own}
    part = "mixer" if layer.get("mixer") is not None else "feed_forward"
    if inner and not isinstance(layer.get(part), dict):
        raise ValueError(f"overrides: {sorted(inner)[0]!r} means a layer whose {part} is that of the backbone; change it there")
    if inner:
        layer[part] = {**layer[part], **inner}
    return {**layer, **own}
