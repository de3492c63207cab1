"""Encoders and decoders as ONNX or torch.export, and whether what was written computes the same.

What is exported is what has a network of plain tensors: pictures to vectors, texts of open_clip to vectors, sounds to the frames and
vectors of a wav2vec 2.0 and its like, ids of a text decoder to scores and vectors. The batch and the lengths of sounds and texts are free.
Everything is computed by plain PyTorch while it is recorded, none of it by kernels of our own. Files are written beside their place and
moved there once they agree with the encoder itself.

Axes: b items   c, y, x colours and pixels   n samples   t tokens or frames   v vocabulary rows   d numbers of a vector
"""

from __future__ import annotations

import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from mmlm.base.errors import CheckpointError, DataError, MmlmError, NumericsError, RecipeError, require
from mmlm.base.files import write_text_whole
from mmlm.data.audio_files import read_sound
from mmlm.data.picture_files import read_picture
from mmlm.embedding import Embedder, PictureEmbedder
from mmlm.embedding import encoder as open_encoder
from mmlm.encoders.image_models import OpenClipEncoder
from mmlm.encoders.images import FINER, ImageEncoder
from mmlm.encoders.speech import SAMPLE_RATE_HZ
from mmlm.encoders.vectors import Vectors
from mmlm.encoders.wav2vec2 import RECEPTIVE, Wav2Vec2Encoder
from mmlm.kernels.dispatch import forced
from mmlm.layout import Layout
from mmlm.sound import Sound
from mmlm.stream import pack, text_stream
from mmlm.text_vectors import TextEmbedder

Format = Literal["onnx", "torch_export"]
Check = tuple[Tensor, Mapping[str, np.ndarray]]
ENDINGS: Mapping[str, str] = {"onnx": ".onnx", "torch_export": ".pt2"}
ABOUT = "export.json"
LEAST_COSINE, MOST_DIFFERENCE = 0.9999, 1e-3  # the second as a share of the largest number
OPSET = 18
SENTENCES = ("a dog lies on the grass", "Two cats.", "How far is it from here to the end of the street?")
MOST_TOKENS, MOST_SECONDS = 32, 5  # of a text and a sound that are compared


class Free(NamedTuple):
    """An axis of an input that is free. least, most: of its sizes."""

    name: str
    least: int = 1
    most: int = 1 << 16


BATCH = Free("batch")


@dataclass(frozen=True)
class Part:
    """A network to export. free: for its input the axes that are free.   checks: inputs, and what the encoder makes of them by the
    names of outputs; the first inputs are recorded, and have two items at least.   facts: what who uses it has to know."""

    name: str
    network: nn.Module
    input: str
    outputs: tuple[str, ...]
    free: Mapping[int, Free]
    checks: Sequence[Check]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Parity:
    """How near the exported network comes. cosine: the least of a vector's.   difference: the largest, as a share of the largest number."""

    cosine: float
    difference: float

    @property
    def is_good(self) -> bool:
        """Whether it is near enough; what is not a number is not."""
        return self.cosine >= LEAST_COSINE and self.difference <= MOST_DIFFERENCE


def export(name: str | Path, form: Format, output: Path | str, items: Sequence[str] = ()) -> dict[str, Parity]:
    """Write an encoder or decoder into a folder, with export.json about it; returns how near each file comes to what it was made from.

    name: as `mmlm.encoder` takes it. items: pictures (files) or texts to compare on; default some that are made here.
    Raises RecipeError for what has no network to export, CheckpointError where torch or ONNX cannot express it, or the folder holds
    something, and NumericsError where the exported network differs; then nothing is written.
    """
    folder = Path(output)
    if form not in get_args(Format):
        raise RecipeError(f"format must be one of {', '.join(get_args(Format))}, but is {form!r}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists already; name a new folder.")
    encoder = open_encoder(name)
    parts = parts_of(encoder, items, str(name))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as made:
        found = {}
        for part in parts:
            path = Path(made) / f"{part.name}{ENDINGS[form]}"
            _write(part, form, path)
            found[part.name] = _parity(part, _runner(form, path, part))
            if not found[part.name].is_good:
                told = f"least cosine {found[part.name].cosine:.6f}, largest difference {found[part.name].difference:.2e}"
                raise NumericsError(f"{name}: {part.name} as {form} computes something else: {told}; nothing was written.")
        write_text_whole(Path(made) / ABOUT, json.dumps(_about(encoder, str(name), form, parts, found), indent=2) + "\n")
        folder.mkdir(exist_ok=True)
        for path in Path(made).iterdir():
            shutil.move(str(path), folder / path.name)
    return found


def parts_of(encoder: Vectors, items: Sequence[str] = (), name: str = "") -> list[Part]:
    """The networks of an encoder. Raises RecipeError where it has none that can be exported."""
    if isinstance(encoder, PictureEmbedder):
        parts = [_pictures(encoder.encoder, items)]
        return [*parts, _texts(encoder.encoder)] if isinstance(encoder.encoder, OpenClipEncoder) else parts
    if isinstance(encoder, TextEmbedder):
        return [_decoder(encoder, items or SENTENCES)]
    if isinstance(encoder, Embedder) and isinstance(encoder.encoder, Wav2Vec2Encoder):
        return [_sounds(encoder.encoder, items)]
    raise RecipeError(
        f"{name or type(encoder).__name__}: cannot be exported: it works by code that is no network of plain tensors. Encoders of "
        "pictures, those of open_clip with their texts, wav2vec2, and text decoders can be."
    )


class _PictureVectors(nn.Module):
    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pictures: Tensor) -> Tensor:
        """[b, d] of [b, c, y, x]."""
        return self.encoder.pooled(self.encoder.network, pictures)


def _pictures(encoder: ImageEncoder, items: Sequence[str]) -> Part:
    pictures = [read_picture(item, shortest=FINER * encoder.needed) for item in items] or _made_pictures()
    wanted = encoder.encode(pictures, precision="fp32")
    x_bcyx = torch.stack([encoder.prepare(each) for each in pictures])
    checks = [_doubled((x_bcyx, {"vectors": wanted})), (x_bcyx[:1], {"vectors": wanted[:1]})]
    shown = encoder.input
    facts = {"size": list(x_bcyx.shape[1:]), "mean": list(shown.mean), "deviation": list(shown.deviation), "is_whole": encoder.is_whole}
    return Part("pictures", _PictureVectors(encoder.eval()), "pictures", ("vectors",), {0: BATCH}, checks, facts)


def _made_pictures() -> list[np.ndarray]:
    """Three of smooth colours."""
    from PIL import Image

    rng, sizes = np.random.default_rng(0), ((320, 240), (200, 300), (256, 256))
    coarse = [Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)) for _ in sizes]
    return [np.asarray(each.resize(size, Image.Resampling.BICUBIC)) for each, size in zip(coarse, sizes, strict=True)]


class _TextVectors(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """[b, d] of [b, t]."""
        model: Any = self.model
        return model.encode_text(ids)


def _texts(encoder: OpenClipEncoder) -> Part:
    ids_bt, wanted = encoder.tokenizer(list(SENTENCES)), encoder.encode_texts(SENTENCES)
    checks = [(ids_bt, {"vectors": wanted}), (ids_bt[:1], {"vectors": wanted[:1]})]
    facts = {"context": encoder.context, "tokenizer": "open_clip"}
    return Part("texts", _TextVectors(encoder.model.eval()), "ids", ("vectors",), {0: BATCH}, checks, facts)


class _SoundVectors(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, waves: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [b, t, d] and vectors [b, d] of sounds [b, n] of one length."""
        model: Any = self.model
        frames_btd = model.extract_features(waves)[0][-1]
        return frames_btd, frames_btd.mean(1)


def _sounds(encoder: Wav2Vec2Encoder, items: Sequence[str]) -> Part:
    """By torchaudio's own network, which our faster one is compared with here."""
    sounds = [read_sound(item, rate_hz=SAMPLE_RATE_HZ) for item in items] or _made_sounds()
    checks, more = [], RECEPTIVE - encoder.hop
    for each in sounds:
        part = Sound(each.wave_n[: MOST_SECONDS * SAMPLE_RATE_HZ], SAMPLE_RATE_HZ)
        (frames_td,), wave_n = encoder.frames([part], precision="fp32"), encoder.prepare(part)
        waves_1n = functional.pad(wave_n, (0, -len(wave_n) % encoder.hop + more))[None]
        checks.append((waves_1n, {"frames": frames_td[None].numpy(), "vectors": frames_td.mean(0)[None].numpy()}))
    facts = {
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "is_normalized": encoder.is_normalized,
        "filled_up": f"with zeros to whole frames of {encoder.hop} samples, and {more} more",
        "least": "two frames",  # an exporter takes a size that may be one for another network
    }
    free = {0: BATCH, 1: Free("samples", RECEPTIVE + encoder.hop, 1 << 20)}
    return Part("sounds", _SoundVectors(encoder.model), "waves", ("frames", "vectors"), free, [_doubled(checks[0]), *checks], facts)


def _made_sounds() -> list[Sound]:
    """Noises of two lengths."""
    rng = np.random.default_rng(0)
    return [Sound(0.1 * rng.normal(size=size).astype(np.float32), SAMPLE_RATE_HZ) for size in (8000, 11_111)]


def _doubled(check: Check) -> Check:
    """A batch of two that are alike: some exporters take a size of one for a constant."""
    x, wanted = check
    return torch.cat([x, x]), {name: np.concatenate([values, values]) for name, values in wanted.items()}


class _Decoder(nn.Module):
    def __init__(self, encoder: TextEmbedder) -> None:
        super().__init__()
        self.model, self.skipped = encoder.model, len(encoder.text.first or [])
        self.start = encoder.model.vocabulary.span("text").start

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [b, t, v] and vectors [b, d] of texts [b, t] of one length, with what begins every text."""
        layout = Layout.plain(*ids.shape, device=ids.device)
        h_btd, _ = self.model.backbone(self.model.embedding(ids + self.start), layout)
        return self.model.heads["language_model"].predict(h_btd), h_btd[:, self.skipped :].mean(1)


@torch.no_grad()
def _decoder(encoder: TextEmbedder, texts: Sequence[str]) -> Part:
    model, first = encoder.model, list(encoder.text.first or [])
    if "language_model" not in model.heads:
        raise RecipeError(f"this decoder has the heads {', '.join(model.heads)}, but one named language_model is exported.")
    start, checks = model.vocabulary.span("text").start, []
    for number, ids in enumerate(encoder.text.ids([*texts, SENTENCES[0]])):  # the last is recorded: a length of one is taken for a constant
        if not ids:
            raise DataError(f"text {number}: holds no token.")
        ids_1t = torch.tensor([[*first, *ids[:MOST_TOKENS]]])
        h_btd, _ = model.hidden(_packed(ids_1t[0], model))
        vector = h_btd[0, len(first) :].mean(0).numpy()
        checks.append((ids_1t, {"scores": model.logits(ids_1t + start).numpy(), "vectors": vector[None]}))
    facts = {"tokenizer": "that of the run", "first": first, "vocabulary": model.vocabulary.sizes}
    return Part(
        "decoder", _Decoder(encoder), "ids", ("scores", "vectors"), {0: BATCH, 1: Free("tokens")}, [_doubled(checks[-1]), *checks], facts
    )


def _packed(ids_t: Tensor, model: Any) -> Any:
    return pack([text_stream(ids_t)], model.vocabulary, shift=False).to(model.device)


@contextmanager
def _plain() -> Iterator[None]:
    """Kernels in plain PyTorch, and nothing of what exporters say on their way; their errors tell enough."""
    disabled, unheard = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with forced("torch"), torch.no_grad(), redirect_stdout(unheard), redirect_stderr(unheard):
            yield
    finally:
        logging.disable(disabled)


def _write(part: Part, form: Format, path: Path) -> None:
    """Record the network. Raises CheckpointError with the exporter's reason where it cannot."""
    example = part.checks[0][0]
    axes = {place: torch.export.Dim(axis.name, min=axis.least, max=axis.most) for place, axis in part.free.items()}
    if form == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            require(module, "export")
    try:
        with _plain():
            recorded = torch.export.export(part.network.eval(), (example,), dynamic_shapes=(axes,))
            if form == "torch_export":
                torch.export.save(recorded, path)
                return
            names = {"input_names": [part.input], "output_names": list(part.outputs)}
            torch.onnx.export(
                recorded, (example,), str(path), **names, dynamo=True, opset_version=OPSET, external_data=False, verbose=False
            )
    except MmlmError:
        raise
    except Exception as error:  # the exporters have many kinds of their own
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        reason = " ".join(str(first).strip().splitlines()[:2])[:400]
        raise CheckpointError(f"{part.name} cannot be exported as {form}: {type(first).__name__}: {reason}") from error


def _runner(form: Format, path: Path, part: Part) -> Callable[[Tensor], list[np.ndarray]]:
    """What computes the file that was written."""
    if form == "torch_export":
        network = torch.export.load(path).module()

        def by_torch(x: Tensor) -> list[np.ndarray]:
            with torch.no_grad():
                found = network(x)
            return [each.numpy() for each in (found if isinstance(found, tuple | list) else [found])]

        return by_torch
    session = require("onnxruntime", "export").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda x: session.run(list(part.outputs), {part.input: x.numpy()})


def _parity(part: Part, run: Callable[[Tensor], list[np.ndarray]]) -> Parity:
    cosines, differences = list[float](), list[float]()
    for x, wanted in part.checks:
        for name, found in zip(part.outputs, run(x), strict=True):
            mine, theirs = (np.asarray(each, dtype=np.float64).reshape(-1, wanted[name].shape[-1]) for each in (wanted[name], found))
            never = np.isneginf(mine) & np.isneginf(theirs)  # scores of ids that are never written
            mine[never] = theirs[never] = 0.0
            lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
            cosines.append(float(((mine * theirs).sum(1) / np.maximum(lengths, 1e-12)).min()))
            differences.append(float(np.abs(mine - theirs).max() / max(np.abs(mine).max(), 1e-12)))
    return Parity(float(np.min(cosines)), float(np.max(differences)))


def _about(encoder: Vectors, name: str, form: Format, parts: Sequence[Part], found: Mapping[str, Parity]) -> dict[str, Any]:
    """What the files are and how they are used."""
    told = {
        part.name: {
            "file": f"{part.name}{ENDINGS[form]}", "input": part.input, "outputs": list(part.outputs),
            "free": [axis.name for axis in part.free.values()], **part.facts, "parity": vars(found[part.name]),
        }
        for part in parts
    }  # fmt: skip
    return {"format": form, "made_of": Path(name).name, "fingerprint": encoder.fingerprint, "size": encoder.size, "parts": told}
