"""Configs of the backbone and its parts. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator

from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict

MIXERS = Registry("mixer", "mmlm.mixers")
FEED_FORWARDS = Registry("feed-forward", "mmlm.feed_forwards")


class LinearScaling(Strict):
    """Position interpolation: all frequencies divided by the factor (arXiv:2306.15595)."""

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


@MIXERS.register("mmlm.backbone.attention:Attention", source="arXiv:1706.03762; GQA arXiv:2305.13245")
class AttentionConfig(Component):
    """Softmax attention with grouped key and value heads."""

    type: Literal["attention"] = "attention"
    num_heads: int = Field(4, ge=1, description="query heads")
    num_kv_heads: int | None = Field(None, ge=1, description="key and value heads; default: as many as query heads")
    head_size: int | None = Field(None, ge=1, description="channels of a head; default: width / num_heads")
    rope: RopeConfig | None = Field(RopeConfig(), description="rotary positions; null for none")
    qk_norm: bool = Field(False, description="RMS norm of each query and key head before rotation (Qwen3)")
    qkv_bias: bool = False
    out_bias: bool = False
    window: int | None = Field(None, ge=1, description="tokens a query looks back, itself included; null for all")
    causal: bool | None = Field(None, description="look back only; null: as the data's layout says")
    over: str | None = Field(None, description="attend along this position axis alone, such as row or column of a table")

    @model_validator(mode="after")
    def _heads(self) -> AttentionConfig:
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads})")
        return self


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


@MIXERS.register(
    "mmlm.backbone.delta:DeltaNet",
    source="DeltaNet, arXiv:2406.06484; gated arXiv:2412.06464; eigenvalues arXiv:2411.12537; DeltaProduct arXiv:2502.10297",
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


@FEED_FORWARDS.register("mmlm.backbone.moe:MixtureOfExperts", source="arXiv:1701.06538; balance loss arXiv:2101.03961, eq. 4")
class MoeConfig(Component):
    """Each token goes to its `top_k` best experts; no token is dropped."""

    type: Literal["moe"] = "moe"
    num_experts: int = Field(4, ge=2)
    top_k: int = Field(2, ge=1)
    hidden: int | None = Field(None, ge=1, description="inner width of an expert; default as swiglu")
    renormalize: bool = Field(True, description="weights of the chosen experts sum to one")
    balance_weight: float = Field(0.01, ge=0, description="weight of the loss that evens out the experts' load")
    router_z_weight: float = Field(0.001, ge=0, description="weight of the squared log-partition of the router")

    @model_validator(mode="after")
    def _top(self) -> MoeConfig:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k ({self.top_k}) must be at most num_experts ({self.num_experts})")
        return self


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


class BackboneConfig(Strict):
    """The decoder. pattern is repeated until num_layers is reached; or `pretrained` names weights that say it all."""

    pretrained: str | None = Field(None, description="run, model folder or hub id of a decoder to start from; excludes the keys below")
    width: int = Field(256, ge=8, description="size of a token vector")
    num_layers: int = Field(4, ge=1)
    pattern: list[LayerConfig] = Field([LayerConfig(mixer=AttentionConfig())], min_length=1, description="repeated up to num_layers")
    feed_forward: FEED_FORWARDS.choice | None = Field(SwigluConfig(), description="of every layer that names none of its own")
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = Field(1e-5, gt=0)
    learned_positions: int | None = Field(None, ge=1, description="longest length of a table of learned positions; null for none")
    dropout: float = Field(0.0, ge=0, lt=1, description="of embeddings, mixer and feed-forward outputs while training")
    recompute: bool = Field(False, description="recompute each layer's activations in the backward pass: less memory, more time")

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
