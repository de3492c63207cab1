"""Configs of the objectives. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmlm.base.registry import Component, Registry

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


@OBJECTIVES.register("mmlm.objectives.masked:Masked", source="BERT, arXiv:1810.04805; spans SpanBERT, arXiv:1907.10529")
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


@OBJECTIVES.register("mmlm.objectives.books:MaskedBooks", source="VALL-E, arXiv:2301.02111, section 4.2.2; SoundStorm, arXiv:2305.09636")
class MaskedBooksConfig(Component):
    """One codebook of a codec is predicted from those below it, for all frames at once."""

    type: Literal["masked_books"] = "masked_books"
    first_book: int = Field(1, ge=0, description="lowest codebook that is predicted; it is drawn evenly from this one on")
    share: Literal["all", "cosine"] = Field("all", description="hide all of the codebook, or cos(pi/2 u) of it, u uniform")
    channel: str | None = Field("book", description="channel of ids that tells the number of the codebook; null: it is not told")


@OBJECTIVES.register("mmlm.objectives.distillation:Distillation", source="arXiv:1503.02531; layer matching of MaTVLM, arXiv:2503.13440")
class DistillationConfig(Component):
    """The model writes what a teacher writes: next-token prediction with the teacher's probabilities for labels."""

    type: Literal["distillation"] = "distillation"
    teacher: str = Field(min_length=1, description="run, model folder or hub id of the teacher, which reads the same tokens")
    direction: Literal["forward", "reverse"] = Field("forward", description="KL(teacher || student), or KL(student || teacher)")
    temperature: float = Field(1.0, gt=0, description="both scores are divided by it, the loss multiplied by its square")
    match_layers: bool = Field(True, description="layers whose mixer differs from the teacher's also copy its output, given its input")
    label_weight: float = Field(0.0, ge=0, description="weight of the ordinary loss on the labels")
