"""Configs of the tasks. Imports no torch.

Each says what records it `reads`: tables (where it says nothing), labels or texts; the sources of data say what they give. `headline` names
the metrics by which runs are compared, the first one alone, and whether more (max) or less (min) of them is better. `makes_sound`: what
it makes can be heard, and is judged so (`MakesSound` in mmlm/tasks/base.py); `mends_sound`: its run mends files (`Enhances` there).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict
from mmlm.data.config import EpisodeConfig
from mmlm.data.config.augment import (
    AUGMENTATIONS,
    AddNoiseConfig,
    ClipConfig,
    GeneratedNoiseConfig,
    PitchShiftConfig,
    RoomConfig,
    TimeStretchConfig,
)
from mmlm.encoders.config import ENCODERS, ImageEncoderConfig, OpenClipConfig, TimmConfig, TowersConfig
from mmlm.objectives.config import OBJECTIVES, CaptionMlmConfig, SoftClipConfig, TokenMatchingConfig
from mmlm.tokenizers.config import CellTokens, RowText

TASKS = Registry("task", "mmlm.tasks")


class TaskConfig(Component):
    """What every task has, for recipes with several `tasks`. limits: what its models cannot do, for their cards.   never_asked: why nobody
    asks a finished run of it by hand, so that it has no demo; empty where people do (`mmlm.tasks.forms`).   learns_by: the only objective
    whose models it can ask; empty where any will do."""

    limits: ClassVar[str] = ""
    never_asked: ClassVar[str] = ""
    learns_by: ClassVar[str] = ""
    name: str | None = Field(None, pattern=r"^[a-z][a-z0-9_]{0,31}$", description="by which it is told from others; null: its type")
    weight: float = Field(1.0, gt=0, description="its losses count so many times, before train.loss_weights")
    batch_size: int | None = Field(None, ge=1, description="its samples of an optimizer step; null: train.batch_size")
    objective: OBJECTIVES.choice | None = Field(None, description="what of its samples is hidden or shifted; null: the recipe's objective")

    @property
    def called(self) -> str:
        """Its name."""
        return self.name or self.type  # type: ignore[attr-defined]

    def without_effect(self) -> dict[str, str]:
        """What trains no decoder has losses of its own."""
        return {"objective": "the task trains a network of its own"} if getattr(self, "has_own_network", False) else {}


@TASKS.register("mmlm.tasks.tabular:TabularTask", source="prior-data fitted networks, arXiv:2207.01848; cells as tokens, arXiv:2106.11959")
class TabularConfig(TaskConfig):
    """Predict a column of a table from a few example rows, in context."""

    limits: ClassVar[str] = (
        "At most ten classes a column. Numbers are predicted through bins. Probabilities may be off on unfamiliar tables."
    )
    type: Literal["tabular"] = "tabular"
    cells: CellTokens = Field(CellTokens(), description="how a cell becomes numbers")
    episode: EpisodeConfig = Field(EpisodeConfig(), description="how training tasks are drawn")
    num_orders: int = Field(4, ge=1, le=64, description="numberings of the classes that a prediction averages over")
    max_columns: int = Field(64, ge=1, description="most feature columns in a prediction; further ones are left out")


class CellReading(Strict):
    """Which of the recipe's tokenizers read the cells of a table that are no texts; null: they are read as texts."""

    pictures: str | None = Field(None, description="reads pictures: image_patches or whole_images, with an encoder named vision")
    sounds: str | None = Field(None, description="reads sounds: units")
    molecules: str | None = Field(None, description="reads molecules: molecules")
    numbers: str | None = Field(None, description="reads numbers: numbers, rounded to its places")


@TASKS.register("mmlm.tasks.tabular_text:TabularTextTask", source="TabuLa-8B, arXiv:2406.12031")
class TabularTextConfig(TaskConfig):
    """Predict a column of a table whose rows are written as text, from none to many example rows."""

    limits: ClassVar[str] = (
        "Numbers are predicted through bins. Rows that do not fit into the context are left out. "
        "Probabilities may be off on unfamiliar tables."
    )
    type: Literal["tabular_text"] = "tabular_text"
    tokenizer: str = Field("text", description="which of the recipe's tokenizers reads the rows")
    rows: RowText = Field(RowText(), description="how a row is written")
    cells: CellReading = Field(CellReading(), description="how pictures, sounds, molecules and numbers in it are read")
    packing: Literal["table", "row", "plain"] = Field(
        "table", description="what a token may look back at: the rows of its table | its row alone | whatever lies before it in the batch"
    )
    context: int = Field(2048, ge=32, description="most tokens of a table or prompt; further rows are left out, the oldest examples first")
    episode: EpisodeConfig = Field(EpisodeConfig(), description="how training tasks are drawn")
    max_choices: int = Field(8, ge=2, le=10, description="most answers listed with a training row; the true one is among them")
    score: Literal["sum", "mean", "first"] = Field("sum", description="log-probability of an answer: all its tokens, per token, the first")
    calibration: Literal["none", "contextual", "temperature", "prior"] = Field(
        "none", description="mend probabilities by content-free rows, or by examples that are each left out of their own prompt"
    )
    rows_at_once: int = Field(32, ge=1, description="rows to predict that are read together")

    @model_validator(mode="after")
    def _numbers_are_written_once(self) -> Self:
        if self.cells.numbers is not None and self.rows.metafeatures:
            raise ValueError("rows.metafeatures tell of numbers that are written as texts: leave out cells.numbers")
        if self.cells.numbers is not None and self.calibration == "contextual":
            raise ValueError("calibration: contextual asks with texts in place of numbers, which cells.numbers reads otherwise")
        return self


@TASKS.register("mmlm.tasks.labels:LabelsTask", source="synthetic tasks that tell mixers apart, such as those of arXiv:2312.04927")
class LabelsConfig(TaskConfig):
    """Say the label of every token that has one, in generated sequences."""

    limits: ClassVar[str] = "Made sequences alone, of the lengths and sizes that were trained and measured."
    never_asked: ClassVar[str] = "its sequences are made to tell mixers apart: nobody has any to ask about"
    reads: ClassVar[str] = "labels"
    headline: ClassVar[dict[str, str]] = {"accuracy": "max"}
    type: Literal["labels"] = "labels"
    tokens_at_once: int = Field(16384, ge=1, description="tokens of the sequences that are read together in a prediction; speed only")


@TASKS.register("mmlm.tasks.text:TextTask", source="next-token prediction over packed documents, as in GPT-2")
class TextTaskConfig(TaskConfig):
    """Write text: documents are trained on token by token, and measured by perplexity and bits per byte."""

    limits: ClassVar[str] = "What it writes need not be true, and may repeat what stood in the training texts."
    reads: ClassVar[str] = "texts"
    headline: ClassVar[dict[str, str]] = {"bits_per_byte": "min", "bits_within": "min", "bits_beyond": "min"}
    type: Literal["text"] = "text"
    tokenizer: str = Field("text", description="which of the recipe's tokenizers reads the texts")
    context: int = Field(512, ge=2, description="tokens of a sample: a part of a document, or several short ones")
    test_context: int | None = Field(None, ge=2, description="evaluate also reads parts of so many tokens, to see beyond the context")
    end: str | None = Field(
        "<|endoftext|>", description="token after a document, and before it where the tokenizer has none for that; null for none"
    )
    packing: Literal["document", "joined"] = Field("document", description="what a token may look back at: its document | its sample")


Kind = Literal["grounded_caption", "expression", "phrases", "caption", "question", "detection", "name"]
KINDS: tuple[Kind, ...] = ("grounded_caption", "expression", "phrases", "caption", "question", "detection", "name")  # order of their marks


class AskingConfig(TaskConfig):
    """What tasks have that are shown something and asked about it."""

    kinds: Any  # shares by kind, which each task names itself
    text: str = Field("text", description="which of the recipe's tokenizers reads and writes the words")
    boxes: str = Field("boxes", description="which of them writes the boxes")
    max_tokens: int = Field(128, ge=8, description="most tokens of an answer; longer ones are left out of training")
    mask: Literal["prefix", "causal"] = Field("prefix", description="what is seen and the question see one another | causal")
    requests: int = Field(
        1,
        ge=1,
        le=16,
        description="most requests that a training sample answers, each by itself: several cost little more than one where "
        "reading is dear; what is seen then sees no question, and mixers that only read from left to right cannot be used",
    )
    constrained: bool = Field(False, description="what is written is held to the grammar, so that no box is malformed")

    @model_validator(mode="after")
    def _has_shares(self) -> Self:
        if min(self.kinds.values()) < 0 or not sum(self.kinds.values()):
            raise ValueError("kinds: shares must be at least 0, and one of them above 0")
        return self


@TASKS.register("mmlm.tasks.grounded:GroundedTask", source="UniTAB, arXiv:2111.12085; SOLO, arXiv:2407.06438; LLaVA, arXiv:2304.08485")
class GroundedConfig(AskingConfig):
    """Say what is in a picture and point at it: captions, phrases and expressions with boxes, questions, lists and names of things."""

    limits: ClassVar[str] = (
        "Words and things that training did not show are neither named nor found; a box or a word may be wrong without looking so."
    )
    reads: ClassVar[str] = "pictures"
    headline: ClassVar[dict[str, str]] = {
        "f1_all": "max", "acc_50": "max", "r_1": "max", "cider": "max", "answers": "max", "ap_50": "max",
        "names": "max",
    }  # fmt: skip
    type: Literal["grounded"] = "grounded"
    kinds: dict[Kind, float] = Field(
        {"grounded_caption": 1.0, "expression": 1.0}, min_length=1, description="what is asked for, and its share of the samples"
    )
    patches: str = Field("patches", description="which of the recipe's tokenizers reads the pictures")
    flip: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the training samples that are mirrored, boxes and the words left and right with them; those whose words "
        "cannot be mirrored for sure stay as they are",
    )
    least_area: float = Field(
        1.0,
        gt=0,
        le=1,
        description="a training sample that lists things shows a random part of its picture, of at least this share of the area, and the "
        "things of which half is seen; 1: all",
    )

    @model_validator(mode="after")
    def _lists_what_is_cut(self) -> Self:
        if self.least_area < 1 and not self.kinds.get("detection"):
            raise ValueError("least_area: has no effect: kinds holds no detection, and only lists of things are cut. Leave it out.")
        return self


SweepKind = Literal["grounded_caption", "caption", "expression", "class", "question"]
SWEEP_KINDS: tuple[SweepKind, ...] = ("grounded_caption", "caption", "expression", "class", "question")  # in the order of their marks


@TASKS.register("mmlm.tasks.sweeps:SweepsTask", source="LiDAR-LLM, arXiv:2312.14074")
class SweepsConfig(AskingConfig):
    """Say what is in a sweep of LiDAR and where: captions, classes of boxes, boxes of expressions and questions by one model."""

    limits: ClassVar[str] = "Things, ranges and sensors that training did not show are not known; nothing that moves should rely on it."
    reads: ClassVar[str] = "sweeps"
    headline: ClassVar[dict[str, str]] = {"bev_iou": "max", "class_accuracy": "max", "answers": "max", "cider": "max"}
    type: Literal["sweeps"] = "sweeps"
    kinds: dict[SweepKind, float] = Field(
        {"caption": 1.0, "expression": 1.0, "class": 1.0, "question": 1.0},
        min_length=1,
        description="what is asked for, and its share of the samples",
    )
    sweep: str = Field("sweep", description="which of the recipe's tokenizers reads the sweeps")


@TASKS.register("mmlm.tasks.image_text:ImageTextTask", source="CLIP, arXiv:2103.00020; LightCLIP, arXiv:2312.00674")
class ImageTextConfig(TaskConfig):
    """Vectors of pictures and texts in one space, so that either finds the other; two towers of open_clip are trained."""

    limits: ClassVar[str] = "Pictures and words of other kinds than were trained lie at no sensible place."
    reads: ClassVar[str] = "pictures"
    has_own_network: ClassVar[bool] = True
    headline: ClassVar[dict[str, str]] = {"mean_r1": "max"}
    type: Literal["image_text"] = "image_text"
    towers: OpenClipConfig = Field(
        OpenClipConfig(type="open_clip", sizes=TowersConfig()), description="the towers: of sizes of your own, or a model of open_clip"
    )
    least_area: float = Field(
        1.0, gt=0, le=1, description="a training sample shows a random part of its picture, of at least this share of the area; 1: all"
    )
    templates: list[str] = Field(
        [], description="sentences with {} for a class, by which pictures whose class is known are named after training; none: they are not"
    )
    soft_clip: SoftClipConfig = Field(SoftClipConfig(), description="pairs against all others of the batch")
    token_matching: TokenMatchingConfig | None = Field(None, description="words against patches; null: left out")
    caption_mlm: CaptionMlmConfig | None = Field(None, description="hidden words of captions beside their pictures; null: left out")

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if wrong := [each for each in self.templates if each.count("{}") != 1]:
            raise ValueError(f"templates: {wrong[0]!r} must hold {{}} once, for the name of a class")
        return self


@TASKS.register("mmlm.tasks.regression_transformer:RegressionTransformerTask", source="Regression Transformer, arXiv:2202.01338")
class RegressionTransformerConfig(TaskConfig):
    """Predict numbers of molecules or proteins, and write molecules or proteins to wanted numbers; with the objective `permutation`."""

    limits: ClassVar[str] = (
        "Numbers of molecules unlike those of training are guesses; what is designed may be no molecule, or one that nobody can make."
    )
    learns_by: ClassVar[str] = "permutation"
    reads: ClassVar[str] = "molecules"
    headline: ClassVar[dict[str, str]] = {"rmse": "min", "steering": "max"}
    type: Literal["regression_transformer"] = "regression_transformer"
    properties: list[str] = Field(["logp"], min_length=1, description="numbers of the records that are read and wanted, in this order")
    sequence: str = Field("sequence", description="which of the recipe's tokenizers reads molecules, or proteins")
    numbers: str = Field("numbers", description="which of them reads numbers")
    max_tokens: int = Field(128, ge=1, description="training sequences with more tokens are left out")
    respell: float = Field(0.0, ge=0, le=1, description="share of the training molecules that are spelled from another atom on")
    mask_fraction: float = Field(0.4, gt=0, le=1, description="share of a seed that is written anew in a design")
    max_span: int = Field(12, ge=1, description="longest part of it that is written anew at once")
    temperature: float = Field(1.0, ge=0, description="of what is written in a design; 0: always the likeliest token")
    primers: int = Field(10, ge=3, description="evenly spaced wanted values of the first property that each seed is written to in tests")
    seed_share: float = Field(0.25, ge=0, le=1, description="share of the test records that are seeds of designs; 0: nothing is designed")


class AdversaryConfig(Strict):
    """Discriminators of spectra at several scales, which learn to tell what is decoded from what was said."""

    after: float = Field(0.5, ge=0, lt=1, description="share of the steps before they begin")
    filters: int = Field(32, ge=4, description="channels of their convolutions; the published size is 32")


@TASKS.register("mmlm.tasks.codec:CodecTask", source="SoundStream, arXiv:2107.03312; EnCodec, arXiv:2210.13438")
class CodecTaskConfig(TaskConfig):
    """Train a codec: sound as a few numbers a second, and the same sound from them."""

    limits: ClassVar[str] = (
        "Voices, languages and sounds unlike those of training are kept less well; what lies above half the rate is lost."
    )
    reads: ClassVar[str] = "speech"
    has_own_network: ClassVar[bool] = True
    makes_sound: ClassVar[bool] = True
    headline: ClassVar[dict[str, str]] = {"mel_distance": "min"}
    type: Literal["codec"] = "codec"
    tokenizer: str = Field("codec", description="which of the recipe's tokenizers is trained")
    seconds: float = Field(1.0, gt=0, le=60, description="length of a training sample")
    gain_db: float = Field(6.0, ge=0, le=40, description="training samples are made louder or softer by up to so much")
    windows: list[int] = Field(
        [256, 512, 1024, 2048], min_length=1, description="samples of the windows under which the spectra are compared, short to long"
    )
    adversary: AdversaryConfig | None = Field(None, description="discriminators that join in; null: none. They cost several times the rest")


@TASKS.register("mmlm.tasks.image_codes:ImageCodesTask", source="VQ-VAE, arXiv:1711.00937")
class ImageCodesTaskConfig(TaskConfig):
    """Train codes of pictures: a picture as a number for each of its squares, and the same picture from them."""

    limits: ClassVar[str] = "Details smaller than a code's square are lost; pictures unlike those of training are kept less well."
    reads: ClassVar[str] = "pictures"
    has_own_network: ClassVar[bool] = True
    headline: ClassVar[dict[str, str]] = {"psnr": "max", "ssim": "max"}
    type: Literal["image_codes"] = "image_codes"
    tokenizer: str = Field("codes", description="which of the recipe's tokenizers is trained")
    side: int = Field(
        64, ge=2, description="pixels along a side of a training sample, a square part of a picture; whole squares of the codes"
    )
    flip: float = Field(0.5, ge=0, le=1, description="share of the training samples that are mirrored")


def _changes() -> list[Component]:
    """Each of the four in half of the samples, as in the paper."""
    noise = AddNoiseConfig(chance=0.5, snr_db=[5.0, 15.0], noises=[GeneratedNoiseConfig(kinds=["white", "pink"])])
    return [TimeStretchConfig(chance=0.5), PitchShiftConfig(chance=0.5), RoomConfig(chance=0.5), noise]


@TASKS.register("mmlm.tasks.robust_units:RobustUnitsTask", source="augmentation-invariant discrete representation, arXiv:2209.15483")
class RobustUnitsConfig(TaskConfig):
    """Train units to stay the same when a sound is stretched, pitched, reverberated or noisy."""

    limits: ClassVar[str] = "Units tell little of the voice, and are those of the encoder and the languages that were trained."
    reads: ClassVar[str] = "speech"
    has_own_network: ClassVar[bool] = True
    headline: ClassVar[dict[str, str]] = {"unit_edit_distance": "min"}
    type: Literal["robust_units"] = "robust_units"
    tokenizer: str = Field("units", description="which of the recipe's tokenizers is trained; its k-means is fitted first")
    seconds: float = Field(2.0, ge=0.5, le=30, description="longest part of a recording that is a sample")
    rounds: int = Field(2, ge=1, le=8, description="how often a fresh classifier learns from the one before; they share the steps evenly")
    hidden: int = Field(256, ge=8, description="channels of the classifier's hidden layers")
    context: int = Field(2, ge=0, le=16, description="frames on each side that the classifier reads with a frame")
    keep: float = Field(0.3, ge=0, description="weight of the loss that asks the frames of the clean sound for the teacher's units")
    min_perplexity: float = Field(0.8, ge=0, le=1, description="guarded_distance is 100 higher below this share of k-means' perplexity")
    augment: list[AUGMENTATIONS.choice] = Field(default_factory=_changes, min_length=1, description="what is done to the sounds")


class GuidanceConfig(Strict):
    """How far scores move away from those without something, scores <- without + weight (scores - without); 1: not at all."""

    units_over_text: float = Field(1.0, ge=0, le=20, description="while units are written: from those without the text")
    speech_over_text: float = Field(1.0, ge=0, le=20, description="while the first codebook is written: from those without the text")
    speech_over_units: float = Field(1.0, ge=0, le=20, description="after that: from those without the units")


@TASKS.register(
    "mmlm.tasks.tts:TextToSpeechTask",
    source="VALL-E, arXiv:2301.02111; prosody before speech: RALL-E, arXiv:2404.03204; instructions: VoxInstruct, arXiv:2408.15676",
)
class TextToSpeechConfig(TaskConfig):
    """Speak texts: phonemes or an instruction are read, then a codec's tokens are written, with pitch and duration of each phoneme or
    with units before them if wished."""

    limits: ClassVar[str] = (
        "It speaks the languages and voices of its training; words may be lost. A voice should be taken with "
        "the consent of its owner alone."
    )
    reads: ClassVar[str] = "speech"
    makes_sound: ClassVar[bool] = True
    headline: ClassVar[dict[str, str]] = {"wer": "min", "length_error": "min"}
    type: Literal["tts"] = "tts"
    phonemes: str = Field("phonemes", description="which of the recipe's tokenizers reads the texts")
    instruction: str | None = Field(
        None, description="which of them reads instructions, that quote what is to be said, in place of phonemes; null: phonemes are read"
    )
    codec: str = Field("codec", description="which of them turns sound into tokens and back")
    prosody: str | None = Field(
        None, description="which of them gives pitch and duration, written before the speech, which they steer; null: speech alone"
    )
    units: str | None = Field(None, description="which of them gives units, written before the speech without repetitions; null: none are")
    window: int | None = Field(
        1, ge=0, description="phonemes to each side of the one being said that a frame of speech looks at, with prosody; null: all"
    )
    join: list[int] = Field([1, 1], min_length=2, max_length=2, description="least and most recordings of a speaker that are read as one")
    max_seconds: float = Field(15.0, gt=0, description="longer samples are left out, and speech of open length ends there")
    order: Literal["ar_nar", "delay"] = Field(
        "ar_nar",
        description="codebooks after the first one: ar_nar, each for all frames at once behind the one before | delay, with the first one, "
        "each a step later, so that speech is heard while it is written",
    )
    further_share: float = Field(
        0.5, gt=0, lt=1, description="share of the samples that teach the codebooks after the first one, with order ar_nar"
    )
    hide_text: float = Field(0.0, ge=0, lt=1, description="share of the samples whose text is hidden, which guidance needs")
    hide_units: float = Field(0.0, ge=0, lt=1, description="share of the samples whose units are hidden, which guidance needs")
    bare_text: float = Field(0.0, ge=0, lt=1, description="share of the samples whose instruction is the quoted text alone")
    passes: int = Field(1, ge=1, le=64, description="passes in which each of these is written; above 1 the most certain cells come first")
    code_dropout: float = Field(
        0.0,
        ge=0,
        le=1,
        description="most of the codes that a training sample hides where they are read, so that text decides, not memory; each draws its "
        "share up to this",
    )
    temperature: float = Field(1.0, ge=0, description="of the draws of prosody, units and the first codebook; 0: the likeliest")
    top_p: float = Field(0.9, gt=0, le=1, description="these are drawn among the fewest choices that hold this probability")
    top_k: int | None = Field(None, ge=1, description="and among the best so many; null: all")
    units_top_k: int | None = Field(None, ge=1, description="units among the best so many; null: all")
    guidance: GuidanceConfig = Field(
        GuidanceConfig(), description="how strongly the first codebook and the units follow what is before them"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> TextToSpeechConfig:
        if not 1 <= self.join[0] <= self.join[1]:
            raise ValueError(f"join must be two rising numbers from 1 on, but is {self.join}")
        if self.prosody is not None and (self.instruction is not None or self.units is not None):
            raise ValueError(f"prosody is of phonemes alone: leave out {'instruction' if self.instruction is not None else 'units'}")
        for share, keys in (("hide_text", ("units_over_text", "speech_over_text")), ("hide_units", ("speech_over_units",))):
            for key in keys:
                if getattr(self.guidance, key) != 1 and not getattr(self, share):
                    raise ValueError(f"guidance.{key} needs {share} above 0: nothing else teaches what is said without it")
        return self

    def without_effect(self) -> dict[str, str]:
        """Without prosody there is no alignment to look along; what is about units or instructions needs them."""
        found = {} if self.prosody is not None else {"window": "prosody is null: there are no durations"}
        if self.order == "delay":
            found |= dict.fromkeys(("further_share", "passes"), "order is delay: no codebook is written for all frames at once")
        if self.units is None:
            found |= dict.fromkeys(
                ("hide_units", "units_top_k", "guidance.units_over_text", "guidance.speech_over_units"), "units is null: none are written"
            )
        return found | ({"bare_text": "instruction is null"} if self.instruction is None else {"phonemes": "instruction is read instead"})


class MaskNetworkConfig(Strict):
    """A network that predicts a mask of the short-time spectrum."""

    mask: Literal["complex", "magnitude"] = Field("complex", description="complex within a circle of radius 1 | real from 0 to 1")
    window: int = Field(480, ge=16, description="samples of a frame, a multiple of hop")
    hop: int = Field(160, ge=4, description="samples from one frame to the next")
    width: int = Field(128, ge=8, description="channels")
    num_blocks: int = Field(5, ge=0, description="ConvNeXt blocks, each of which sees 3 frames to both sides")

    @model_validator(mode="after")
    def _frames_overlap(self) -> MaskNetworkConfig:
        if self.window % self.hop or self.window < 2 * self.hop:
            raise ValueError(f"window ({self.window}) must be a multiple of hop ({self.hop}), at least twice as large")
        return self


def _degradations() -> list[Component]:
    """A room in half of the samples, noise in nearly all, sometimes peaks that are cut."""
    return [RoomConfig(chance=0.5), AddNoiseConfig(chance=0.95, snr_db=[-5.0, 20.0]), ClipConfig(chance=0.1, level=[0.3, 0.9])]


@TASKS.register("mmlm.tasks.enhancement:EnhancementTask", source="complex ratio mask, Williamson et al. 2016; DCCRN, arXiv:2008.00264")
class EnhancementTaskConfig(TaskConfig):
    """Clean speech: a mask takes noise and rooms out of degraded sound. Degradations are made on the fly from clean speech."""

    limits: ClassVar[str] = (
        "Noises unlike those of training may stay; speech may lose words that a listener would have "
        "understood; what lies above half the rate is lost."
    )
    reads: ClassVar[str] = "speech"
    has_own_network: ClassVar[bool] = True
    makes_sound: ClassVar[bool] = True
    mends_sound: ClassVar[bool] = True
    headline: ClassVar[dict[str, str]] = {"si_sdr": "max"}
    type: Literal["enhancement"] = "enhancement"
    sample_rate_hz: int = Field(16_000, ge=4000, le=96_000, description="rate that the network works at; other sound is brought to it")
    seconds: float = Field(2.0, gt=0, le=60, description="length of a training sample")
    degrade: list[AUGMENTATIONS.choice] = Field(
        default_factory=_degradations, min_length=1, description="what is done to clean speech, in this order; nothing may change its time"
    )
    degrade_test: list[AUGMENTATIONS.choice] | None = Field(
        None, min_length=1, description="what is done to the speech that a finished run is measured on; default: as in training"
    )
    network: MaskNetworkConfig = Field(MaskNetworkConfig(), description="the network")


class GenseConfig(TaskConfig):
    """What both steps of GenSE have."""

    limits: ClassVar[str] = "It writes speech anew: words, and the voice, may come out as others; what lies above half the rate is lost."
    reads: ClassVar[str] = "speech"
    units: str = Field("units", description="which of the recipe's tokenizers gives the units")
    seconds: float = Field(
        4.0, gt=0.1, le=30, description="longest part of a recording that is a sample; files are mended in windows of it"
    )
    temperature: float = Field(0.0, ge=0, description="of what is written; 0: always the likeliest token")
    reach_seconds: float | None = Field(
        0.4, gt=0, description="what is written sees what it is made from up to so far from its own time; null: all of it, as published"
    )
    both_ways: bool = Field(
        True, description="what was given is read in both directions, as by an encoder; false: in order alone, as published"
    )
    code_dropout: float = Field(
        1.0,
        ge=0,
        le=1,
        description="most of the clean tokens that a training sample hides where they are read, so that it looks at the noisy; each draws "
        "its share up to this",
    )
    degrade: list[AUGMENTATIONS.choice] = Field(
        default_factory=_degradations, min_length=1, description="what is done to clean speech, in this order; nothing may change its time"
    )
    degrade_test: list[AUGMENTATIONS.choice] | None = Field(
        None, min_length=1, description="what is done to the speech that a finished run is measured on; default: as in training"
    )


@TASKS.register("mmlm.tasks.gense:GenseUnitsTask", source="noise to semantic tokens, GenSE, arXiv:2502.02942")
class GenseUnitsConfig(GenseConfig):
    """Write the units of clean speech behind those of the same speech degraded: the first step of GenSE."""

    never_asked: ClassVar[str] = "what it writes is heard through the run of gense_codes that names it as its units_run"
    headline: ClassVar[dict[str, str]] = {"unit_edit_distance": "min"}
    type: Literal["gense_units"] = "gense_units"


@TASKS.register("mmlm.tasks.gense:GenseCodesTask", source="semantic to speech tokens, GenSE, arXiv:2502.02942")
class GenseCodesConfig(GenseConfig):
    """Write the codes of clean speech from units and codes of the same speech degraded: the second step of GenSE, which mends files."""

    makes_sound: ClassVar[bool] = True
    mends_sound: ClassVar[bool] = True
    headline: ClassVar[dict[str, str]] = {"mel_distance": "min"}
    type: Literal["gense_codes"] = "gense_codes"
    codec: str = Field("codec", description="which of the recipe's tokenizers gives the codes")
    units_run: str | None = Field(
        None, description="the finished run of the first step, whose units these are; null: codes are written from codes alone, in one step"
    )
    written_units: float = Field(0.1, ge=0, le=1, description="share of the training samples that read units which the first step wrote")
    base: int = Field(1000, ge=1, description="position at which everything clean begins; noisy tokens begin at 0")
    reads_codes: bool = Field(True, description="the codes of what was given are read too; without them the voice is lost")

    @model_validator(mode="after")
    def _reads_something(self) -> Self:
        if self.units_run is None and not self.reads_codes:
            raise ValueError("reads_codes: false leaves nothing to read, as units_run is null")
        return self

    def without_effect(self) -> dict[str, str]:
        """Units are those of the first step."""
        return {} if self.units_run is not None else dict.fromkeys(("units", "written_units"), "units_run is null")


@TASKS.register("mmlm.tasks.picture_classes:PictureClassesTask", source="one vector a picture and a linear layer")
class PictureClassesConfig(TaskConfig):
    """Say what a picture shows: an encoder of pictures with a linear layer for the classes, trained together or the layer alone."""

    limits: ClassVar[str] = "A picture of none of the classes is given one of them all the same."
    reads: ClassVar[str] = "pictures"
    has_own_network: ClassVar[bool] = True
    headline: ClassVar[dict[str, str]] = {"top1": "max"}
    type: Literal["picture_classes"] = "picture_classes"
    encoder: ENCODERS.choice = Field(TimmConfig(), description="any encoder of whole pictures")  # type: ignore[name-defined]
    learns: Literal["all", "head"] = Field("all", description="all | head: the layer alone, so that the encoder stays as it is")
    classes: list[str] | None = Field(
        None, min_length=2, description="what there is to choose from; null: what the pictures of all sources show"
    )
    mirror: bool = Field(False, description="half of the training pictures are mirrored; not where left and right matter, as in digits")
    smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that is spread over all classes")

    @field_validator("encoder")
    @classmethod
    def _reads_pictures(cls, value: Component) -> Component:
        if not isinstance(value, ImageEncoderConfig):
            raise ValueError(f"{value.type!r} reads no whole pictures")  # type: ignore[attr-defined]
        return value

    @field_validator("classes")
    @classmethod
    def _are_apart(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and (repeated := [each for each in value if value.count(each) > 1]):
            raise ValueError(f"{repeated[0]!r} is named twice")
        return value
