"""Configs of the tokenizers. Imports no torch and no numpy."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mmlm.base.registry import Component, Registry
from mmlm.base.schema import Strict
from mmlm.encoders.config import ENCODERS, LogMelConfig

TOKENIZERS = Registry("tokenizer", "mmlm.tokenizers")
QUANTIZERS = Registry("quantizer", "mmlm.quantizers")

_HEADER_ONCE = "form csv names the columns once for all rows"


class RowText(Strict):
    """How a row of a table is written as text."""

    form: Literal["template", "list", "json", "markdown", "csv", "structured"] = Field(
        "template", description="sentences | lines | a JSON object | a small table | cells under one header | marked keys and values"
    )
    choices: Literal["front", "back", "both"] = Field("both", description="where the possible answers are listed")
    missing: Literal["omit", "word", "nan"] = Field("omit", description="missing cells: left out, the word missing, or nan")
    shuffle_columns: bool = Field(False, description="another order of columns for each row")
    feature_dropout: float = Field(0.0, ge=0, lt=1, description="chance that a cell is left out while training; one always stays")
    metafeatures: bool = Field(False, description="rank and scale of a number among the example rows, beside its name")
    max_precision: int | None = Field(None, ge=0, le=17, description="digits after the point; null: as many as the number has")
    max_cell_characters: int = Field(64, ge=3, description="longer cells lose their middle")
    expand_dates: bool = Field(False, description="year, month, weekday and days since the first example beside a date")
    dictionary: dict[str, dict[str, str]] = Field({}, description="column: {code as written: what it means}")

    def without_effect(self) -> dict[str, str]:
        """Cells under one header can be neither reordered nor named anew in each row."""
        if self.form != "csv":
            return {}
        return {"shuffle_columns": _HEADER_ONCE, "metafeatures": _HEADER_ONCE}


class CellTokens(Strict):
    """How a cell of a table becomes numbers for the cell encoder."""

    text_hash: int = Field(32, ge=1, le=1024, description="channels of the hashed text of a category")
    name_hash: int = Field(32, ge=1, le=1024, description="channels of the hashed name of the column")
    clip: float = Field(4.0, gt=0, description="standard scores are cut off at this size")
    evidence: list[float] = Field(
        [0.05, 0.2], max_length=4, description="bandwidths (shares of the ranks) at which a column alone is asked for the class; []: none"
    )


@TOKENIZERS.register("mmlm.tokenizers.text:TextTokenizer", source="byte-level BPE, GPT-2; subword units, arXiv:1508.07909")
class TextConfig(Component):
    """Text as tokens of a byte-level BPE."""

    type: Literal["text"] = "text"
    path: str | None = Field(None, description="tokenizer.json, or a folder, run or hub id with one; null: fitted on the training texts")
    vocabulary_size: int = Field(4096, ge=260, le=1 << 20, description="most tokens when it is fitted")


@TOKENIZERS.register("mmlm.tokenizers.molecules:MoleculeTokenizer", source="Schwaller et al. 2018; SELFIES, arXiv:1905.13741")
class MoleculesConfig(Component):
    """Molecules, given as SMILES, as tokens."""

    type: Literal["molecules"] = "molecules"
    notation: Literal["smiles", "selfies"] = Field(
        "smiles", description="letter by letter, lossless | SELFIES, of which any sequence is a molecule: valid ones then prove nothing"
    )
    max_brackets: int = Field(256, ge=0, description="most atoms in brackets, or SELFIES symbols, that are tokens; the commonest are")


@TOKENIZERS.register("mmlm.tokenizers.proteins:ProteinTokenizer", source="one-letter codes of IUPAC-IUB, doi:10.1021/bi00848a001")
class ProteinsConfig(Component):
    """Proteins and peptides as one token for each residue."""

    type: Literal["proteins"] = "proteins"


@TOKENIZERS.register("mmlm.tokenizers.numbers:NumberTokenizer", source="Regression Transformer, arXiv:2202.01338")
class NumbersConfig(Component):
    """Numbers as a token for each digit that knows its power of ten."""

    type: Literal["numbers"] = "numbers"
    whole_digits: int = Field(2, ge=1, le=15, description="digits before the point, with leading zeros; larger numbers are refused")
    decimals: int = Field(2, ge=0, le=15, description="digits after the point, to which numbers are rounded")
    largest: float = Field(10.0, gt=0, description="size of the fixed encoding of a 9 in the first place, the largest there is")


class BinsConfig(Component):
    """What every kind of box has."""

    num_bins: int = Field(100, ge=4, le=4096, description="bins of each number: of a picture from one edge to the other")


@TOKENIZERS.register("mmlm.tokenizers.boxes:BoxTokenizer", source="UniTAB, arXiv:2111.12085; bins as in Pix2Seq, arXiv:2109.10852")
class BoxesConfig(BinsConfig):
    """Boxes as four location bins each, and the marks around the words that they belong to."""

    type: Literal["boxes"] = "boxes"
    rounding: Literal["round", "floor"] = Field("round", description="to the nearest bin | to the one below, as UniTAB's weights have it")


@TOKENIZERS.register("mmlm.tokenizers.box_codecs:AbsoluteBoxes", source="pixels of a fixed canvas")
class AbsoluteBoxesConfig(BinsConfig):
    """Boxes as four bins each, the pixels of a square canvas to which the picture is stretched; whole pixels are exact."""

    type: Literal["absolute_boxes"] = "absolute_boxes"


@TOKENIZERS.register("mmlm.tokenizers.box_codecs:ResidualBoxes", source="GiT, arXiv:2403.09394")
class ResidualBoxesConfig(BinsConfig):
    """Boxes as five bins each: a cell of a grid, how far the middle lies from the cell's, width and height."""

    type: Literal["residual_boxes"] = "residual_boxes"
    grid: int = Field(8, ge=1, le=64, description="cells down and across; their number is at most num_bins")

    @model_validator(mode="after")
    def _cells_are_bins(self) -> ResidualBoxesConfig:
        if self.grid**2 > self.num_bins:
            raise ValueError(f"grid ({self.grid}) has {self.grid**2} cells, each a bin, but num_bins is {self.num_bins}")
        return self


@TOKENIZERS.register("mmlm.tokenizers.boxes3d:Box3dTokenizer", source="LiDAR-LLM, arXiv:2312.14074; bins of a fixed range")
class Boxes3dConfig(BinsConfig):
    """Boxes in space as seven bins each: middle, length, width, height and heading."""

    type: Literal["boxes3d"] = "boxes3d"
    low: list[float] = Field([-51.2, -51.2, -5.0], min_length=3, max_length=3, description="x, y and z in metres where the range begins")
    high: list[float] = Field([51.2, 51.2, 3.0], min_length=3, max_length=3, description="and where it ends")
    largest: list[float] = Field([16.0, 4.0, 5.0], min_length=3, max_length=3, description="length, width and height in metres")
    turn: Literal["full", "half"] = Field("full", description="headings: all the way round | a box that is turned round is the same box")

    @model_validator(mode="after")
    def _rises(self) -> Boxes3dConfig:
        if any(low >= high for low, high in zip(self.low, self.high, strict=True)) or min(self.largest) <= 0:
            raise ValueError(f"low ({self.low}) must lie below high ({self.high}), and largest ({self.largest}) above 0")
        return self


@TOKENIZERS.register("mmlm.tokenizers.sweeps:SweepTokens", source="LiDAR-LLM, arXiv:2312.14074")
class SweepTokensConfig(Component):
    """A sweep of LiDAR as a fixed number of tokens, filled by an encoder of whole sweeps."""

    type: Literal["sweep"] = "sweep"
    num_tokens: int = Field(32, ge=1, le=4096, description="vectors of a sweep: the num_queries of its encoder")


@TOKENIZERS.register("mmlm.tokenizers.image_patches:ImagePatches", source="SOLO, arXiv:2407.06438")
class ImagePatchesConfig(Component):
    """Pictures as rows of patches at their own size and aspect ratio."""

    type: Literal["image_patches"] = "image_patches"
    patch: int = Field(16, ge=1, le=256, description="pixels along a side of a patch")
    margin: int = Field(0, ge=0, le=256, description="pixels around a patch that it carries too, as a stem of convolutions needs")
    max_side: int = Field(1024, ge=1, description="pixels of the longest side; larger pictures are made smaller, none larger")
    max_patches: int = Field(1024, ge=1, description="most patches of a picture; those with more are made smaller")
    row_marks: bool = Field(True, description="a token between rows of patches, without which 2 x 6 and 3 x 4 patches look alike")
    places: bool = Field(False, description="each patch also carries sines of where it lies in the picture")
    mean: list[float] = Field([0.485, 0.456, 0.406], min_length=3, max_length=3, description="taken from pixels of 0 to 1; ImageNet's")
    deviation: list[float] = Field([0.229, 0.224, 0.225], min_length=3, max_length=3, description="by which they are divided; ImageNet's")

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.max_side % self.patch:
            raise ValueError(f"max_side ({self.max_side}) must be a multiple of patch ({self.patch})")
        if min(self.deviation) <= 0:
            raise ValueError("deviation must be above 0")
        return self


@TOKENIZERS.register("mmlm.tokenizers.whole_images:WholeImages", source="LLaVA, arXiv:2304.08485; LLaVA 1.5, arXiv:2310.03744")
class WholeImagesConfig(Component):
    """Pictures for an encoder of whole pictures, such as timm or open_clip, whose patches become tokens."""

    type: Literal["whole_images"] = "whole_images"
    size: list[int] = Field([224, 224], min_length=2, max_length=2, description="pixels down and across that the encoder reads")
    grid: list[int] = Field([14, 14], min_length=2, max_length=2, description="patches down and across that it gives")
    row_marks: bool = Field(True, description="a token between rows of patches")
    mean: list[float] = Field([0.485, 0.456, 0.406], min_length=3, max_length=3, description="taken from pixels of 0 to 1; ImageNet's")
    deviation: list[float] = Field([0.229, 0.224, 0.225], min_length=3, max_length=3, description="by which they are divided; ImageNet's")

    @model_validator(mode="after")
    def _are_there(self) -> Self:
        if min(*self.size, *self.grid) < 1 or min(self.deviation) <= 0:
            raise ValueError(f"size ({self.size}) and grid ({self.grid}) must be at least 1, deviation ({self.deviation}) above 0")
        return self


@TOKENIZERS.register("mmlm.tokenizers.phonemes:PhonemeTokenizer", source="CMU dictionary, ARPABET; joint n-grams, Bisani & Ney 2008")
class PhonemesConfig(Component):
    """Text as the phonemes that a reader would say."""

    type: Literal["phonemes"] = "phonemes"
    engine: Literal["dictionary", "espeak"] = Field(
        "dictionary", description="English by a dictionary and learned letter-to-sound rules | any language by espeak-ng, in IPA"
    )
    language: str = Field("en-us", description="voice of espeak-ng, such as fr-fr, es-419, it or ru")
    dictionary: str | None = Field(None, description="file of lines `word PH ON EMES`; null: the one that pocketsphinx brings along")
    punctuation: bool = Field(True, description="commas, full stops and the like are tokens")
    boundaries: bool = Field(False, description="a token between words")
    stress: bool = Field(False, description="tokens for stress before the vowel")
    unspeakable: Literal["error", "skip", "name"] = Field(
        "error", description="emoji and letters of other scripts: refused | left out | called by their Unicode names"
    )

    def without_effect(self) -> dict[str, str]:
        """What the other engine alone reads."""
        if self.engine == "espeak":
            return {"dictionary": "the engine is espeak"}
        return {"language": "the engine is dictionary, which is English", "stress": "the engine is dictionary, which knows no stress"}


@TOKENIZERS.register("mmlm.tokenizers.units:UnitTokenizer", source="k-means over frames, HuBERT, arXiv:2106.07447; arXiv:2102.01192")
class UnitsConfig(Component):
    """Speech as discrete units, so many a second: the nearest of some centroids, or what a classifier says, of an encoder's frames."""

    type: Literal["units"] = "units"
    path: str | None = Field(None, description="folder or run with fitted units; null: fitted on the training sounds")
    encoder: ENCODERS.choice = Field(LogMelConfig(), description="whose frames become units")
    num_units: int = Field(100, ge=2, le=1024, description="different units")
    standardize: bool = Field(True, description="each channel of a frame gets mean 0 and variance 1 before distances are taken")
    fit_frames: int = Field(100_000, ge=1000, description="frames that the centroids are fitted on; more are drawn down to this number")
    iterations: int = Field(30, ge=1, description="most rounds of k-means; it ends early where nothing changes")
    seed: int = Field(0, ge=0, description="decides the drawn frames and the first centroids")


class CodebookOrder(Strict):
    """In which order the cells (frame, codebook) of a codec are written."""

    order: Literal["flatten", "parallel", "delay", "coarse_fine", "ar_nar"] = Field(
        "delay",
        description="one cell a step | all of a frame in one step | codebook k of a frame k steps later | the first codebooks cell by "
        "cell, then the others | the first codebook step by step, then each further one at once",
    )
    num_coarse: int | None = Field(None, ge=1, description="codebooks of the first part of coarse_fine; default: half of them")

    def without_effect(self) -> dict[str, str]:
        """Only one order has a first part."""
        return {} if self.order == "coarse_fine" else {"num_coarse": "only order coarse_fine has coarse codebooks"}


@TOKENIZERS.register("mmlm.tokenizers.prosody:Prosody", source="YIN, de Cheveigne & Kawahara 2002; buckets as in RALL-E, arXiv:2404.03204")
class ProsodyConfig(Component):
    """Pitch, loudness and duration of speech as numbers of buckets."""

    type: Literal["prosody"] = "prosody"
    rate_hz: float = Field(50.0, ge=1, le=100, description="frames a second, those of the codec or the units beside it")
    pitch: Literal["yin", "pyin"] = Field("yin", description="fast, with voicing by periodicity and loudness | slow and steadier")
    scale: Literal["linear", "log", "quantiles"] = Field(
        "linear", description="buckets of equal width in Hz | in octaves | with equally many frames of the training sounds"
    )
    pitch_buckets: int = Field(256, ge=2, le=4096, description="0 is unvoiced, the others cover lowest_hz to highest_hz")
    lowest_hz: float = Field(65.0, ge=40, description="pitch that counts as the lowest")
    highest_hz: float = Field(500.0, le=1000, description="pitch that counts as the highest")
    is_relative: bool = Field(False, description="pitch as its distance from the speaker's median, in octaves")
    energy_buckets: int = Field(32, ge=2, le=4096, description="0 is silence, the others cover -60 dB to full scale")
    longest_frames: int = Field(32, ge=1, le=4096, description="longest duration of one entry; longer phones become several")

    @model_validator(mode="after")
    def _rising(self) -> ProsodyConfig:
        if self.lowest_hz >= self.highest_hz:
            raise ValueError(f"lowest_hz must lie below highest_hz, but is {self.lowest_hz:g} and {self.highest_hz:g}")
        return self


class BooksConfig(Component):
    """What every quantizer can tell."""

    @property
    def sizes(self) -> list[int]:
        """Entries of each of its books."""
        raise NotImplementedError


@QUANTIZERS.register("mmlm.tokenizers.quantizers:vq", source="VQ-VAE, arXiv:1711.00937; SoundStream, arXiv:2107.03312, section III.C")
class VqConfig(BooksConfig):
    """The nearest entry of a book of vectors, or of several books, each for what those before it left; entries are running means."""

    type: Literal["vq"] = "vq"
    num_books: int = Field(1, ge=1, le=64, description="books, one after the other; any first ones of them decode")
    book_size: int = Field(256, ge=2, le=1 << 16, description="entries of a book")
    memory: float = Field(0.9, ge=0, lt=1, description="memory of the running means that the entries are; longer for longer runs")
    dropout: float = Field(0.0, ge=0, le=1, description="share of the training samples that get a random number of books instead of all")

    @property
    def sizes(self) -> list[int]:
        """Books of one size."""
        return [self.book_size] * self.num_books

    def without_effect(self) -> dict[str, str]:
        """One book cannot be left out."""
        return {"dropout": "there is one book"} if self.num_books == 1 else {}


@QUANTIZERS.register("mmlm.tokenizers.quantizers:fsq", source="finite scalar quantization, arXiv:2309.15505")
class FsqConfig(BooksConfig):
    """A few channels, each rounded to some levels; nothing is looked up and no loss is needed for it."""

    type: Literal["fsq"] = "fsq"
    levels: list[int] = Field([8, 6, 5], min_length=1, description="levels of each channel; their product is the number of codes")

    @model_validator(mode="after")
    def _are_few(self) -> Self:
        if min(self.levels) < 3 or math.prod(self.levels) > 1 << 16:
            raise ValueError(f"levels ({self.levels}) must be at least 3 (lfq has 2), and their product at most 65536")
        return self

    @property
    def sizes(self) -> list[int]:
        """One book."""
        return [math.prod(self.levels)]


@QUANTIZERS.register("mmlm.tokenizers.quantizers:lfq", source="lookup-free quantization of MAGVIT-v2, arXiv:2310.05737, section 3.1")
class LfqConfig(BooksConfig):
    """The signs of a few channels, with a loss of entropy that keeps all codes in use."""

    type: Literal["lfq"] = "lfq"
    bits: int = Field(8, ge=1, le=16, description="channels; there are 2 to the power of it codes")
    temperature: float = Field(1.0, gt=0, description="of the probabilities of codes in the loss of entropy; lower is more like the signs")

    @property
    def sizes(self) -> list[int]:
        """One book."""
        return [1 << self.bits]


class CodecConfig(Component):
    """What every codec has: sound, or a picture, as numbers of one or several books."""

    path: str | None = Field(None, description="a run that trained such a codec, or a folder with codec.json; null: weights to be trained")
    encode_books: int | None = Field(None, ge=1, description="books that encode uses, the first ones; null: all")


def decided_at(config: CodecConfig) -> dict[str, str]:
    """Keys that the codec at `path` decides, each with that reason; none without a path."""
    keep = {"type", "path", "encode_books"}
    return {} if config.path is None else dict.fromkeys(type(config).model_fields.keys() - keep, "the codec at `path` decides it")


@TOKENIZERS.register(
    "mmlm.tokenizers.image_codes:ImageCodes",
    source="VQ-VAE, arXiv:1711.00937; blocks of ConvNeXt, arXiv:2201.03545",
)
class ImageCodesConfig(CodecConfig):
    """Pictures as rows of codes, one for each square of pixels, and pictures from them; a run of the task image_codes trains it."""

    type: Literal["image_codes"] = "image_codes"
    quantizer: QUANTIZERS.choice = Field(VqConfig(), description="how a vector becomes a code")
    patch: int = Field(8, ge=2, le=64, multiple_of=2, description="pixels along a side of the square that a code stands for")
    max_side: int = Field(256, ge=2, description="pixels of the longest side; larger pictures are made smaller, none larger")
    width: int = Field(128, ge=8, multiple_of=2, description="channels of the blocks; half as many in the fine ones")
    encoder_blocks: int = Field(2, ge=0, description="blocks of the encoder, at one place a code")
    decoder_blocks: int = Field(3, ge=0, description="blocks of the decoder, at one place a code")
    fine_blocks: int = Field(1, ge=0, description="further blocks of each of the two, at two by two places a code")
    latent_size: int = Field(16, ge=1, description="channels of the vectors that are quantized")

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        if self.max_side % self.patch:
            raise ValueError(f"max_side ({self.max_side}) must be a multiple of patch ({self.patch})")
        return self

    def without_effect(self) -> dict[str, str]:
        """A trained one brings all but the number of books to use along."""
        return decided_at(self)


class SpectralConfig(CodecConfig):
    """Base of the codecs that compute at the rate of their frames: log-mel frames in, a short-time spectrum out."""

    sample_rate_hz: int = Field(16000, ge=4000, le=96000, description="samples a second that it reads and writes")
    hop: int = Field(320, ge=2, multiple_of=2, description="samples of a token")
    window: int = Field(640, ge=4, description="samples of a window of the short-time spectra; two of them begin in each hop")
    mel_bands: int = Field(80, ge=8, le=512, description="bands of the mel frames that it reads")
    width: int = Field(256, ge=8, description="channels of the blocks")
    encoder_blocks: int = Field(4, ge=0, description="blocks of the encoder")
    decoder_blocks: int = Field(5, ge=0, description="blocks of the decoder, at the rate of the tokens")
    fine_blocks: int = Field(2, ge=0, description="blocks of the decoder at twice that rate")
    latent_size: int = Field(64, ge=1, description="channels of the vectors that are quantized")
    causal: bool = Field(False, description="nothing looks ahead but the last window, so that sound can be coded as it comes")

    @model_validator(mode="after")
    def _windows_fit(self) -> Self:
        if self.window % (self.hop // 2) or self.window < self.hop:
            raise ValueError(f"window ({self.window}) must be a multiple of half the hop ({self.hop // 2}), at least the hop")
        return self

    def without_effect(self) -> dict[str, str]:
        """A trained codec brings all but the number of books to use along."""
        return decided_at(self)


@TOKENIZERS.register(
    "mmlm.tokenizers.codec.small:SmallCodec",
    source="residual quantization of SoundStream, arXiv:2107.03312; blocks and head of Vocos, arXiv:2306.00814",
)
class SmallCodecConfig(SpectralConfig):
    """A codec that learns intelligible speech within minutes: mel frames, ConvNeXt blocks, residual quantizer, spectra written out."""

    type: Literal["small_codec"] = "small_codec"
    num_books: int = Field(8, ge=1, le=64, description="books of the residual quantizer; any first ones of them decode")
    book_size: int = Field(256, ge=2, le=1 << 16, description="entries of a book")
    memory: float = Field(0.9, ge=0, lt=1, description="memory of the running means that the entries are; longer for longer runs")
    dropout: float = Field(1 / 3, ge=0, le=1, description="share of the training sounds that get a random number of books instead of all")
    quantizer: QUANTIZERS.choice | None = Field(None, description="another one; null: residual books, as the keys above say")

    @property
    def books(self) -> Any:
        """The quantizer."""
        if self.quantizer is not None:
            return self.quantizer
        several = {"dropout": self.dropout} if self.num_books > 1 else {}
        return VqConfig(num_books=self.num_books, book_size=self.book_size, memory=self.memory, **several)

    def without_effect(self) -> dict[str, str]:
        """Another quantizer has keys of its own."""
        if self.path is not None or self.quantizer is None:
            return super().without_effect()
        return dict.fromkeys(("num_books", "book_size", "memory", "dropout"), f"the quantizer is {self.quantizer.type}")


@TOKENIZERS.register("mmlm.tokenizers.codec.simcodec:SingleCodec", source="SimCodec of GenSE, arXiv:2502.02942, section 3.2")
class SingleCodecConfig(SpectralConfig):
    """A codec with one book, whose entries are pairs of those that two books were found to use: grouped first, then reorganized."""

    type: Literal["single_codec"] = "single_codec"
    network: Literal["spectral", "waveform"] = Field("spectral", description="frames of spectra, or convolutions on samples as published")
    group_size: int = Field(64, ge=2, le=1 << 16, description="entries of each of the two books of stage one")
    kept: list[int] = Field([32, 32], min_length=2, max_length=2, description="entries kept of each, the most used; the book is all pairs")
    stage_one: float = Field(0.5, ge=0, lt=1, description="share of the training steps with two books; 0: one book from the start")
    channels: int = Field(32, ge=2, description="channels of the first convolution on samples; they double at every stride")
    strides: list[int] = Field([2, 4, 5, 8], min_length=1, description="strides of the convolutions on samples; their product is the hop")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.stage_one and (most := max(self.kept)) > self.group_size:
            raise ValueError(f"kept ({most}) must be at most group_size ({self.group_size})")
        if self.latent_size % 2:
            raise ValueError(f"latent_size ({self.latent_size}) must be even: each of the two books takes half")
        if self.network == "waveform" and math.prod(self.strides) != self.hop:
            raise ValueError(f"strides {self.strides} must multiply to the hop ({self.hop}), but give {math.prod(self.strides)}")
        if self.network == "waveform" and self.causal:
            raise ValueError("causal needs network: spectral; convolutions on samples look ahead")
        return self

    def without_effect(self) -> dict[str, str]:
        """Each of the two networks has keys of its own."""
        if self.path is not None:
            return super().without_effect()
        spectral = ("window", "mel_bands", "width", "encoder_blocks", "decoder_blocks", "fine_blocks")
        other, network = (spectral, "spectral") if self.network == "waveform" else (("channels", "strides"), "waveform")
        found = dict.fromkeys(other, f"network is not {network}")
        return found | ({} if self.stage_one else {"group_size": "stage_one is 0: there are no groups"})


@TOKENIZERS.register("mmlm.tokenizers.codec.encodec:EnCodec", source="EnCodec, arXiv:2210.13438, by the package encodec 0.1.1")
class EnCodecConfig(CodecConfig):
    """EnCodec with weights of your own: 24 kHz mono or 48 kHz stereo."""

    type: Literal["encodec"] = "encodec"
    model: Literal["24khz", "48khz"] = Field("24khz", description="24 kHz mono, 75 tokens a second; 48 kHz, 150 a second, in seconds apart")
    bandwidth: float = Field(6.0, gt=0, description="kbit/s: 1.5, 3, 6, 12 or 24; of the 48 kHz model 3, 6, 12 or 24; decides the books")
    path: str | None = Field(None, description="folder with the published .th file, a transformers EncodecModel, or one saved by a run")
