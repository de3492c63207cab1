"""The recipe sections `train` and `adapt`, with the registries of optimizers and schedules. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mmlm.backbone.config import MIXERS
from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict

OPTIMIZERS = Registry("optimizer", "mmlm.optimizers")
SCHEDULES = Registry("schedule", "mmlm.schedules")


@OPTIMIZERS.register("mmlm.training.optimizers:adamw", source="AdamW, arXiv:1711.05101, algorithm 2")
class AdamWConfig(Component):
    """Adam with decoupled weight decay, in torch's fused form."""

    type: Literal["adamw"] = "adamw"
    beta1: float = Field(0.9, ge=0, lt=1, description="memory of the mean gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="memory of the squared gradient")
    eps: float = Field(1e-8, gt=0, description="added to the root of the squared gradient")


@OPTIMIZERS.register("mmlm.training.optimizers:muon", source="Muon, arXiv:2502.16982, equation 4 (match the RMS of AdamW)")
class MuonConfig(Component):
    """Orthogonalized momentum for the matrices inside the network; AdamW for embeddings, outputs and vectors."""

    type: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1, description="memory of the gradient of matrices")
    num_iterations: int = Field(5, ge=1, le=20, description="Newton-Schulz iterations")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: memory of the mean gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: memory of the squared gradient")
    eps: float = Field(1e-8, gt=0, description="AdamW: added to the root of the squared gradient")


@OPTIMIZERS.register("mmlm.training.optimizers:adafactor", source="Adafactor, arXiv:1804.04235, algorithm 4, as torch has it")
class AdafactorConfig(Component):
    """Second moments kept as a row and a column per matrix: almost no memory beside the weights."""

    type: Literal["adafactor"] = "adafactor"
    beta2_decay: float = Field(-0.8, lt=0, description="exponent by which the memory of squared gradients grows with the step")
    clip_update: float = Field(1.0, ge=1, description="largest root mean square of an update")


@OPTIMIZERS.register("mmlm.training.optimizers:lion", source="Lion, arXiv:2302.06675, algorithm 2")
class LionConfig(Component):
    """The sign of a momentum: one state per weight. Wants about a third of AdamW's rate and three times its weight decay."""

    type: Literal["lion"] = "lion"
    beta1: float = Field(0.9, ge=0, lt=1, description="memory in the direction of the update")
    beta2: float = Field(0.99, ge=0, lt=1, description="memory that is kept")


@SCHEDULES.register("mmlm.training.schedules:Constant", source="constant rate")
class ConstantConfig(Component):
    """The full rate after warm-up."""

    type: Literal["constant"] = "constant"


@SCHEDULES.register("mmlm.training.schedules:Linear", source="linear decay")
class LinearConfig(Component):
    """A straight line from the full rate to the least."""

    type: Literal["linear"] = "linear"


@SCHEDULES.register("mmlm.training.schedules:Cosine", source="SGDR, arXiv:1608.03983, equation 5, without restarts")
class CosineConfig(Component):
    """Half a cosine from the full rate to the least."""

    type: Literal["cosine"] = "cosine"


@SCHEDULES.register("mmlm.training.schedules:WarmupStableDecay", source="WSD, MiniCPM, arXiv:2404.06395, section 4.2")
class WarmupStableDecayConfig(Component):
    """The full rate, then decay in the last part of the run."""

    type: Literal["wsd"] = "wsd"
    decay_share: float = Field(0.2, gt=0, le=1, description="share of the steps after warm-up in which the rate falls")
    shape: Literal["linear", "sqrt"] = Field("linear", description="how it falls; sqrt: 1 - sqrt(share), cooldown, arXiv:2405.18392")


@SCHEDULES.register("mmlm.training.schedules:InverseSqrt", source="Attention is all you need, arXiv:1706.03762, equation 3")
class InverseSqrtConfig(Component):
    """Falls with one over the root of the step after warm-up; needs no known end."""

    type: Literal["inverse_sqrt"] = "inverse_sqrt"


class KeepBest(Strict):
    """Which validation metric decides about the best checkpoint."""

    metric: str = Field(min_length=1, description="name among the validation metrics: loss, its parts, or one of the task's")
    mode: Literal["min", "max"] = Field("min", description="whether less or more is better")


class TrainConfig(Strict):
    """How a model is trained."""

    steps: int = Field(1000, ge=1, description="optimizer steps")
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="the run ends after this time at the latest; validation and samples on the way count, those of the last step are "
        "added; the schedule then follows whichever of steps and time is ahead",
    )
    batch_size: int = Field(8, ge=1, description="samples per optimizer step, over all processes")
    micro_batch_size: int | None = Field(None, ge=1, description="samples per forward pass of one process; null: all of the step at once")
    optimizer: OPTIMIZERS.choice = Field(AdamWConfig(), description="what turns gradients into updates")
    lr: float = Field(3e-4, gt=0, description="the full learning rate")
    schedule: SCHEDULES.choice = Field(CosineConfig(), description="course of the learning rate")
    warmup: float = Field(0.02, ge=0, description="rise from zero to the full rate: a share of the run below 1, else a number of steps")
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="least rate after warm-up, as a share of the full one")
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay of matrices; vectors and what a model exempts do not decay")
    clip_norm: float = Field(1.0, ge=0, description="largest norm of the whole gradient; 0: not clipped")
    loss_weights: dict[str, float] = Field({}, description="factor of a loss by its name; others have 1")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="memory of an average of the weights that is evaluated and kept; 0: none")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="bf16: bfloat16 autocast, weights stay float32; auto: bf16 where it is multiplied faster (GPU, AMX, AVX512-BF16)",
    )
    deterministic: bool = Field(False, description="refuse operations whose result may vary from run to run on one machine")
    max_skipped: int = Field(10, ge=0, description="non-finite steps in a row that are skipped; one more stops the run")
    workers: int = Field(0, ge=0, le=256, description="processes that prepare batches; never changes a batch")
    log_every: int = Field(10, ge=1, description="steps between lines of log.jsonl")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints; the end of a run always writes one")
    keep_last: int = Field(2, ge=1, description="newest checkpoints that are kept")
    keep_best: KeepBest | None = Field(None, description="also keep the best checkpoint, and end with its weights")
    validate_every: int = Field(0, ge=0, description="steps between validations on data.validate, the last step included; 0: none")
    sample_every: int = Field(0, ge=0, description="steps between samples of the validation data as files, the last step included; 0: none")
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] = Field([], description="where the log is sent too, through accelerate")

    @field_validator("warmup")
    @classmethod
    def _share_or_steps(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError(f"must be a share below 1 or a whole number of steps, but is {value}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must be at most batch_size ({self.batch_size})")
        if self.keep_best is not None and not self.validate_every:
            raise ValueError("keep_best needs validate_every, which is 0: without validation there is no best")
        return self

    def without_effect(self) -> dict[str, str]:
        """`min_lr_ratio` does nothing under a constant rate."""
        return {"min_lr_ratio": "the schedule is constant"} if self.schedule.type == "constant" else {}


class LoraConfig(Strict):
    """Low-rank adapters on linear layers."""

    rank: int = Field(8, ge=1, description="rank of the change of each layer")
    alpha: float = Field(16.0, gt=0, description="the change is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the change")
    targets: list[str] = Field(["backbone"], min_length=1, description="towers or name patterns whose linear layers are adapted")
    dora: bool = Field(False, description="learn magnitude and direction apart (DoRA, arXiv:2402.09353)")
    per_task: bool = Field(False, description="each task of the recipe has adapters of its own on the shared weights")


class ReplaceConfig(Strict):
    """Mixers of a pretrained decoder replaced before training (MaTVLM, arXiv:2503.13440)."""

    layers: list[int] | None = Field(None, min_length=1, description="numbers from 0; null: a share of the layers, evenly spread")
    share: float = Field(0.25, gt=0, le=1, description="share of the layers that is replaced where none are named")
    mixer: MIXERS.choice | None = Field(None, description="what comes in; null: mamba2 of the attention's size")
    carry: bool = Field(True, description="take over the old mixer's weights where a rule is known: attention to mamba2")
    freeze_others: bool = Field(True, description="train the new mixers alone")

    def without_effect(self) -> dict[str, str]:
        """Named layers are no share."""
        return {"share": "layers names them"} if self.layers is not None else {}


class AdaptConfig(Strict):
    """Which parts of a model are trained, how fast, and through which adapters."""

    replace: ReplaceConfig | None = Field(None, description="mixers of a pretrained decoder that are replaced by others")
    dropout: float | None = Field(None, ge=0, lt=1, description="dropout of a pretrained decoder; null: as it says itself")
    freeze: list[str] = Field([], description="towers (backbone, encoders.image, heads.box) or name patterns that stay as they are")
    lr_scale: dict[str, float] = Field({}, description="factor of the learning rate by tower or name pattern; the last that fits counts")
    lora: LoraConfig | None = Field(None, description="adapters; the other weights of the towers that get them are frozen")

    @field_validator("lr_scale")
    @classmethod
    def _positive(cls, value: dict[str, float]) -> dict[str, float]:
        for name, scale in value.items():
            if not scale > 0:
                raise ValueError(f"{name}: must be greater than 0, but is {scale}; to keep a tower as it is, name it in freeze")
        return value

    def __bool__(self) -> bool:
        return bool(self.freeze or self.lr_scale or self.lora or self.replace or self.dropout is not None)
