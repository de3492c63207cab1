"""Configs of the objectives. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict

OBJECTIVES = Registry("objective", "mmlm.objectives")


@OBJECTIVES.register("mmlm.objectives.causal:Causal", source="standard next-token prediction")
class CausalConfig(Component):
    """Each token with weight is predicted from those before it; segments that bring labels keep them."""

    type: Literal["causal"] = "causal"


@OBJECTIVES.register("mmlm.objectives.prefix:Prefix", source="prefix language model, arXiv:1910.10683, section 3.2.2")
class PrefixConfig(Component):
    """A part at the start is read in both directions, the rest is predicted from left to right."""

    type: Literal["prefix"] = "prefix"
    split: Literal["read_only", "random"] = Field(
        "read_only", description="the prefix ends before the first token with weight, or anywhere"
    )


@OBJECTIVES.register("mmlm.objectives.masked:Masked", source="BERT, arXiv:1810.04805; spans as in SpanBERT, arXiv:1907.10529")
class MaskedConfig(Component):
    """Some tokens are hidden and predicted at their own place, all tokens being visible in both directions."""

    type: Literal["masked"] = "masked"
    rate: Annotated[float, Field(gt=0, le=1)] | Literal["cosine"] = Field(
        0.15, description="share of the tokens with weight that is hidden; cosine: cos(pi/2 u), u uniform, anew for each sample"
    )
    policy: Literal["token", "span", "segment"] = Field("token", description="hide single tokens, spans, or whole segments")
    mean_span: float = Field(3.0, ge=1, description="mean length of a hidden span (geometric)")
    random_share: float = Field(0.1, ge=0, le=1, description="share of hidden tokens shown as a random token")
    keep_share: float = Field(0.1, ge=0, le=1, description="share of hidden tokens shown as they are")

    @model_validator(mode="after")
    def _shares(self) -> MaskedConfig:
        if self.random_share + self.keep_share > 1 + 1e-9:
            raise ValueError(f"random_share ({self.random_share}) and keep_share ({self.keep_share}) must be at most 1 together")
        return self


@OBJECTIVES.register("mmlm.objectives.books:MaskedBooks", source="VALL-E, arXiv:2301.02111, section 4.2.2; SoundStorm, arXiv:2305.09636")
class MaskedBooksConfig(Component):
    """One codebook of a codec is predicted from those below it, for all frames at once."""

    type: Literal["masked_books"] = "masked_books"
    first_book: int = Field(1, ge=0, description="lowest codebook that is predicted; it is drawn evenly from this one on")
    share: Literal["all", "cosine"] = Field("all", description="hide all of the codebook, or cos(pi/2 u) of it, u uniform")
    channel: str | None = Field("book", description="channel of ids that tells the number of the codebook; null: it is not told")


@OBJECTIVES.register(
    "mmlm.objectives.distillation:Distillation",
    source="knowledge distillation, arXiv:1503.02531; layer matching of MaTVLM, arXiv:2503.13440",
)
class DistillationConfig(Component):
    """The model writes what a teacher writes: next-token prediction with the teacher's probabilities for labels."""

    type: Literal["distillation"] = "distillation"
    teacher: str = Field(min_length=1, description="run, model folder or hub id of the teacher, which reads the same tokens")
    direction: Literal["forward", "reverse"] = Field("forward", description="KL(teacher || student), or KL(student || teacher)")
    temperature: float = Field(1.0, gt=0, description="both scores are divided by it, the loss multiplied by its square")
    match_layers: bool = Field(True, description="layers whose mixer differs from the teacher's also copy its output, given its input")
    label_weight: float = Field(0.0, ge=0, description="weight of the ordinary loss on the labels")


class SoftClipConfig(Strict):
    """Vectors of pictures and texts: those of a pair score above others. With alpha 0 it is CLIP's loss."""

    weight: float = Field(1.0, ge=0, description="of this loss beside the others")
    alpha: float = Field(0.0, ge=0, lt=1, description="share of the targets that other pairs of the batch get at the end; it grows from 0")
    spread: Literal["similarity", "uniform"] = Field("similarity", description="how they share it: by how alike they are now | evenly")
    temperature: float = Field(0.1, gt=0, description="of the softmax of cosines by which they share it")

    def without_effect(self) -> dict[str, str]:
        """Nothing is spread, or evenly."""
        if not self.alpha:
            return dict.fromkeys(("spread", "temperature"), "alpha is 0: nothing is spread")
        return {"temperature": "spread is uniform"} if self.spread == "uniform" else {}


class TokenMatchingConfig(Strict):
    """Words and patches: texts score by how well their words match patches of a picture."""

    weight: float = Field(1.0, gt=0, description="of this loss beside the others")
    plan: Literal["relaxed", "hungarian", "max"] = Field(
        "relaxed", description="many words to many patches within their capacity | one to one, exact and slow | each to its best patch"
    )
    capacity: float = Field(2.0, gt=1, description="of all patches together, in masses of all words; each patch has the same share of it")
    iterations: int = Field(10, ge=1, le=1000, description="proximal steps in which the plan is found")
    inner: int = Field(1, ge=1, le=100, description="updates of the masses in each of them")
    sharpness: float = Field(2.0, gt=0, description="of a step: the larger, the sooner each word keeps to its best patches")

    def without_effect(self) -> dict[str, str]:
        """The other plans are found at once."""
        keys = ("capacity", "iterations", "inner", "sharpness")
        return {} if self.plan == "relaxed" else dict.fromkeys(keys, f"plan is {self.plan}")


class CaptionMlmConfig(Strict):
    """Hidden words of a caption, read beside its picture, are to be said. What reads the picture is left out of the finished model."""

    weight: float = Field(0.5, gt=0, description="of this loss beside the others")
    rate: float = Field(0.15, gt=0, le=1, description="share of the words that is hidden; at least one of each caption")
    stages: int | None = Field(None, ge=1, description="last layers of the text tower that see the picture; null: all")
    num_heads: int = Field(4, ge=1, description="of the attention to the picture")


@OBJECTIVES.register("mmlm.objectives.permutation:Permutation", source="Regression Transformer, arXiv:2202.01338; XLNet, arXiv:1906.08237")
class PermutationConfig(Component):
    """Numbers are predicted from a sequence in some steps, parts of the sequence from the numbers in others; hidden tokens come in any
    order, each seeing those before it."""

    type: Literal["permutation"] = "permutation"
    targets: list[str] = Field(["number"], min_length=1, description="vocabulary ranges that are hidden whole, as the property")
    alternate_every: int = Field(50, ge=1, description="steps of the property, then as many of the sequence, and so on")
    span_share: float = Field(0.4, gt=0, le=1, description="share of the sequence that is hidden in steps of the sequence")
    max_span: int = Field(12, ge=1, description="longest hidden span of it")
    self_consistency: float = Field(0.1, ge=0, description="weight of reading the property off the sequence as the model filled it; 0: not")
    plain_share: float = Field(0.0, ge=0, le=1, description="share of the steps, the first ones, that hide spans of everything")
    plain_rate: float = Field(1 / 6, gt=0, le=1, description="share of the tokens that these hide")
    plain_span: int = Field(5, ge=1, description="longest span of theirs")
    multiple: int = Field(8, ge=1, description="samples are filled up to a multiple of so many tokens, so that many are alike; speed only")

    def without_effect(self) -> dict[str, str]:
        """Without plain steps nothing hides spans of everything."""
        return {} if self.plain_share else dict.fromkeys(("plain_rate", "plain_span"), "plain_share is 0")
