"""Sounds, pictures, molecules, texts and rows as vectors, for applications: encoders by name, or those of runs, that read files too.

Axes: n items   k labels   d numbers of a vector
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from mmlm.analysis.retrieval import class_vectors, sentences, similarity
from mmlm.base import yaml
from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.base.schema import Strict, problems, told_at_once
from mmlm.data.audio_files import read_sound
from mmlm.data.picture_files import read_picture
from mmlm.designing import Designer
from mmlm.encoders.config import ENCODERS, FingerprintsConfig, ImageEncoderConfig, SequenceModelConfig, SpeechEncoderConfig
from mmlm.encoders.image_models import OpenClipEncoder
from mmlm.encoders.images import FINER, ImageEncoder, Patches
from mmlm.encoders.molecules import Fingerprints
from mmlm.encoders.sequence_models import SequenceModel
from mmlm.encoders.speech import Progress, SpeechEncoder
from mmlm.encoders.vectors import Vectors
from mmlm.model import CONFIG
from mmlm.recipe import Recipe
from mmlm.run import load_run
from mmlm.sound import Sound
from mmlm.tasks.config import ImageTextConfig, PictureClassesConfig, RegressionTransformerConfig, TabularTextConfig, TextTaskConfig
from mmlm.tasks.image_text import finished_towers
from mmlm.text_vectors import TextEmbedder
from mmlm.tokenizers.text import TextTokenizer

RECIPE = "recipe.yaml"
EMBEDS = (ImageTextConfig, PictureClassesConfig, RegressionTransformerConfig, TextTaskConfig, TabularTextConfig)  # tasks that are encoders
Item = Sound | str | Path


class _Choice(Strict):
    encoder: ENCODERS.choice  # type: ignore[name-defined]


class Embedder(Vectors):
    """An encoder that also takes the paths of files. size: channels of a vector.   rate_hz: frames a second, as a Fraction."""

    at_once = 8

    def __init__(self, encoder: SpeechEncoder) -> None:
        self.encoder = encoder
        self.size, self.rate_hz = encoder.size, encoder.rate_hz

    def encode(
        self,
        items: Sequence[Item],
        *,
        batch_size: int = 8,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """A vector float32 [items, size] of each sound or file, in their order; of length 1 if normalize.

        batch_size: items that are held and read together; it changes no vector. precision: fp32, bf16, or auto: what the encoder's config
        says. progress(done, in all) is called after each item. Raises DataError for a file that cannot be read.
        """
        return self.encoder.encode(_Read(items), batch_size=batch_size, normalize=normalize, precision=precision, progress=progress)

    def frames(self, items: Sequence[Item], *, batch_size: int = 8, precision: str = "auto") -> Iterator[Tensor]:
        """The frames [t, size] of each item, rate_hz of them a second."""
        return self.encoder.frames(_Read(items), batch_size=batch_size, precision=precision)

    def made_of(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """Those of the encoder."""
        return self.encoder.config.model_dump(mode="json"), self.encoder.state_dict()


class _Read(Sequence[Sound]):
    """Items as sounds, each read when it is its turn."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: Any) -> Any:
        item = self.items[place]
        return item if isinstance(item, Sound) else read_sound(item)


class PictureEmbedder(Vectors):
    """An encoder of pictures that also takes the paths of files. size: numbers of a vector.   patch_size: of a patch's vector."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.encoder = encoder
        self.size, self.patch_size = encoder.size, encoder.patch_size

    def encode(
        self,
        items: Sequence[np.ndarray | str | Path],
        *,
        batch_size: int = 32,
        normalize: bool = False,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """A vector float32 [items, size] of each picture (uint8 [y, x, 3]) or file, in their order; of length 1 if normalize.

        Files are read by threads while the model is at work, JPEGs no larger than twice what it looks at. batch_size: pictures that go
        through the model together. precision: fp32, bf16, or auto: what the encoder's config says. progress(done, in all) is called after
        each batch. Raises DataError for a file that cannot be read, naming it.
        """
        items = _ReadPictures(items, self.encoder.needed)
        return self.encoder.encode(items, batch_size=batch_size, normalize=normalize, precision=precision, progress=progress)

    def patches(self, items: Sequence[np.ndarray | str | Path], *, batch_size: int = 32, precision: str = "auto") -> Iterator[Patches]:
        """Vectors of the patches of each picture, and where they lie."""
        return self.encoder.encode_patches(_ReadPictures(items, self.encoder.needed), batch_size=batch_size, precision=precision)

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256, normalize: bool = False) -> np.ndarray:
        """Vectors float32 [texts, size] in the space of the pictures' vectors. Raises RecipeError for an encoder that reads no texts."""
        return self._towers.encode_texts(texts, batch_size=batch_size, normalize=normalize)

    def zero_shot(
        self,
        items: Sequence[np.ndarray | str | Path],
        labels: Sequence[str],
        templates: Sequence[str] = ("{}",),
        *,
        batch_size: int = 32,
        precision: str = "auto",
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Probabilities float32 [items, labels], each row sums to 1: how well each label names each picture, which none was trained on.

        templates: sentences, each with braces in the place of the label, whose directions are averaged. Raises RecipeError for an encoder
        that reads no texts, labels that are none or repeated, and a template without braces. Source: CLIP, arXiv:2103.00020, section 3.1.
        """
        towers = self._towers
        if len(set(labels)) < max(1, len(labels)):
            raise RecipeError(f"labels must be one at least, each once, but are {', '.join(map(repr, labels))[:200] or 'none'}.")
        if wrong := [each for each in templates if "{}" not in each] or ([] if templates else ["none"]):
            raise RecipeError(f"a template holds {{}} where the label is put, but {wrong[0]!r} does not.")
        texts = [text for label in labels for text in sentences(label, templates)]
        vectors_tkd = self.encode_texts(texts).reshape(len(labels), len(templates), self.size).swapaxes(0, 1)
        vectors_nd = self.encode(items, batch_size=batch_size, precision=precision, progress=progress)
        scores_nk = similarity(vectors_nd, class_vectors(vectors_tkd)) * float(towers.model.logit_scale.detach().exp())
        shares_nk = np.exp(scores_nk - scores_nk.max(axis=1, keepdims=True))
        found: np.ndarray = shares_nk / shares_nk.sum(axis=1, keepdims=True)
        return found

    @property
    def _towers(self) -> OpenClipEncoder:
        if not isinstance(self.encoder, OpenClipEncoder):
            raise RecipeError(f"encoder {self.encoder.config.type!r} reads no texts; one of open_clip does.")
        return self.encoder

    def made_of(self) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
        """Those of the encoder; a frozen block is among its weights."""
        settings = self.encoder.without_weights().model_dump(mode="json", exclude={"frozen_lm"})
        return {**settings, "whole": self.encoder.is_whole}, self.encoder.network.state_dict()


class _ReadPictures(Sequence[np.ndarray]):
    """Items as pictures, each read when it is its turn."""

    def __init__(self, items: Sequence[np.ndarray | str | Path], needed: int) -> None:
        self.items, self.needed = items, needed

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: Any) -> Any:
        item = self.items[place]
        return item if isinstance(item, np.ndarray) else read_picture(item, shortest=FINER * self.needed)


def encoder(name_or_run: str | Path, **options: Any) -> Embedder | PictureEmbedder | Fingerprints | SequenceModel | Designer | TextEmbedder:
    """An encoder of sound, pictures or molecules by name, such as encoder("timm", model="vit_tiny_patch16_224"), or the one that a run
    uses; a run that reads molecules, proteins, texts or rows as text is one itself, and so is the folder of a text decoder.

    A text in braces is read as in a recipe: "{type: whisper, layer: 3}". A run that names classes of pictures gives its trained encoder.
    A run of several tasks gives the first that is an encoder; where that is not its first task, an encoder of speech comes before it.
    Raises RecipeError for an unknown name or option and a run that is no encoder, CheckpointError for a folder without a run or model.
    """
    name = str(name_or_run)
    if options and (Path(name) / CONFIG).is_file() and not (Path(name) / RECIPE).is_file():
        raise RecipeError(f"{name}: the folder decides what is encoded; leave out {', '.join(options)}.")
    if (Path(name) / RECIPE).is_file():
        if options:
            raise RecipeError(f"{name}: the run decides the options of its encoder; leave out {', '.join(options)}.")
        return encoder_of_run(name)
    if (Path(name) / CONFIG).is_file():
        return TextEmbedder(name)
    if ("/" in name or Path(name).is_dir()) and not name.lstrip().startswith("{"):
        raise CheckpointError(f"{name}: no finished run, as {RECIPE} is missing, no folder of a text decoder, and no name of an encoder.")
    raw = yaml.parse(name, "encoder") if name.lstrip().startswith("{") else {"type": name}
    if isinstance(raw, dict):
        raw = {**raw, **options}
    given = {"encoder": raw}
    try:
        config = _Choice.model_validate(given).encoder
    except ValidationError as error:
        raise told_at_once("encoder", problems(error, _Choice, given)) from None
    if isinstance(config, ImageEncoderConfig):
        return PictureEmbedder(config.build())
    if isinstance(config, FingerprintsConfig | SequenceModelConfig):
        return config.build()
    if not isinstance(config, SpeechEncoderConfig):
        raise RecipeError(f"encoder {config.type!r} is a part of a model and reads no files.")
    return Embedder(config.build())


def check_again(name: str | Path, opened: Vectors) -> None:
    """Raises RecipeError where an encoder is another one when it is opened again by this name, as one of first weights is, so that nothing
    that is kept of it could ever be compared."""
    if not Path(name).is_dir() and encoder(name).fingerprint != opened.fingerprint:
        raise RecipeError(f"{name}: has first weights, which are others whenever it is opened; name a file of weights by `path`.")


def encoder_of_run(
    folder: str | Path, opened: Mapping[str, tuple[Any, Any]] | None = None
) -> Embedder | PictureEmbedder | Designer | TextEmbedder:
    """What a run embeds with. opened: by their names (task, model) of its tasks that are loaded already, of which nothing is loaded again.

    Raises RecipeError where there is nothing, or several encoders of speech.
    """
    recipe = Recipe.read(Path(folder) / RECIPE)
    configs = [*recipe.encoders.values(), *(getattr(each, "encoder", None) for each in recipe.tokenizers.values())]
    speech = list({repr(config): config for config in configs if isinstance(config, SpeechEncoderConfig)}.values())
    own = next((task for task in recipe.tasks if isinstance(task, EMBEDS)), None)
    if own is None or own is not recipe.tasks[0]:
        if len(speech) == 1:
            return Embedder(speech[0].build())
    if own is None:
        kinds, count = ", ".join(task.type for task in recipe.tasks) or "none", len(speech) or "no"
        raise RecipeError(
            f"{folder}: this run is no encoder: its tasks are {kinds}, and it uses {count} encoders of speech; name one itself."
        )
    task, model = (opened or {}).get(own.called, (None, None))
    if isinstance(own, ImageTextConfig):
        return PictureEmbedder(finished_towers(own, Path(folder)) if task is None else task.encoder)
    if isinstance(own, PictureClassesConfig):
        return PictureEmbedder((load_run(folder)[2] if model is None else model).encoder)
    if isinstance(own, RegressionTransformerConfig):
        return Designer(folder) if task is None else Designer.of(task, model)
    text = getattr(task, "text", None)
    return TextEmbedder.of(model, text) if isinstance(text, TextTokenizer) else TextEmbedder(folder)
