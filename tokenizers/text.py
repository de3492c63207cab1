"""Text as the tokens of a byte-level BPE: one that a pretrained decoder brings along, or one fitted on the texts at hand.

Source: byte-level BPE as in GPT-2; digits stand alone, so that numbers are written the same way everywhere. The work is done by the package
`tokenizers`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from mmlm.base.errors import CheckpointError, DataError
from mmlm.base.files import is_hub_id, parse_json
from mmlm.stream import Segment
from mmlm.tokenizers.config import TextConfig

FILE = "tokenizer.json"
FITTED = "fitted.json"
MAX_WORDS = 1 << 20  # kept between calls


class TextTokenizer:
    """Text to ids of the range `text` and back.

    A tokenizer without a file has to be fitted before use. What a pretrained tokenizer writes before every text is `first`.
    """

    def __init__(self, config: TextConfig) -> None:
        self.config = config
        self.added: list[str] = []
        self.core: Any = _read(_find(config.path)) if config.path else None
        self._words: WordCache | None = None
        self.rows = 0  # of a pretrained decoder whose matrix is larger than its tokenizer

    @property
    def is_fitted(self) -> bool:
        """Whether there is a vocabulary."""
        return self.core is not None

    @property
    def sizes(self) -> dict[str, int]:
        """The vocabulary range and its size."""
        return {"text": max(self._ready().get_vocab_size(), self.rows)}

    @property
    def first(self) -> list[int]:
        """Ids that belong before a text and nowhere else, such as a begin-of-sequence token."""
        core = self._ready()
        plain, dressed = core.encode("a", add_special_tokens=False).ids, core.encode("a").ids
        return dressed[: dressed.index(plain[0])] if plain[0] in dressed else []

    def add_tokens(self, tokens: Sequence[str]) -> None:
        """Make each of these texts one token; call before the first use."""
        self.added += [token for token in tokens if token not in self.added]
        self._words = None
        if self.core is not None:
            _add(self.core, self.added)

    def fit(self, texts: Iterable[str]) -> TextTokenizer:
        """Learn a vocabulary of at most config.vocabulary_size tokens from texts; the same texts give the same tokens."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        self.core = Tokenizer(models.BPE())
        self.core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        self.core.decoder = decoders.ByteLevel()
        size = max(self.config.vocabulary_size - len(self.added), 256)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        marks = re.compile("|".join(map(re.escape, self.added)) or r"(?!)")
        pieces = (piece for text in texts for piece in marks.split(text) if piece)
        self.core.train_from_iterator(pieces, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
        _add(self.core, self.added)
        return self

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        core = self._ready()
        if self._words is None or self._words.core is not core:
            self._words = WordCache(core)
        return self._words.ids(texts)

    def encode(self, text: str) -> Segment:
        """One text as a segment, each token with loss weight 1."""
        return Segment("text", torch.tensor(self.ids([text])[0], dtype=torch.long), weight=1.0)

    def decode(self, segment: Segment | Sequence[int]) -> str:
        """The text of a segment or of ids."""
        ids = segment.ids.tolist() if isinstance(segment, Segment) and segment.ids is not None else list(segment)  # type: ignore[arg-type]
        return str(self._ready().decode(ids, skip_special_tokens=False))

    def token(self, text: str) -> int:
        """The id of a text that is one token. Raises DataError where it is not."""
        found = self._ready().token_to_id(text)
        if found is None:
            raise DataError(f"{text!r} is not a token of this vocabulary; add it through add_tokens.")
        return int(found)

    def save(self, folder: Path | str) -> None:
        """Write tokenizer.json, which the package `tokenizers` and transformers read."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._ready().save(str(Path(folder) / FILE))
        (Path(folder) / FITTED).write_text(json.dumps({"added": self.added, "rows": self.rows}) + "\n")

    def load(self, folder: Path | str) -> TextTokenizer:
        """Take the vocabulary that save wrote. Raises CheckpointError where the folder holds none."""
        self.core = _read(Path(folder) / FILE)
        try:
            about = parse_json((Path(folder) / FITTED).read_text())
            self.added, self.rows = list(about["added"]), int(about["rows"])
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{Path(folder) / FITTED}: missing or damaged.") from None
        return self

    def _ready(self) -> Any:
        if self.core is None:
            raise DataError("this tokenizer has no vocabulary yet: give tokenizers.<name>.path, or fit it on texts.")
        return self.core


class WordCache:
    """Ids word by word, each word given to the tokenizer once: rows of a table repeat their words.

    A byte-level BPE splits a text before every space that stands alone between two words, so the ids of a text are those of its words, each
    with the space before it. Tokenizers of another kind, and texts with other white space, are encoded whole.
    """

    def __init__(self, core: Any) -> None:
        self.core = core
        self.serves = _splits_at_spaces(core)
        self._first: dict[str, list[int]] = {}  # words that begin a text
        self._later: dict[str, list[int]] = {}  # words after a space

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        texts = list(texts)
        plain = [self.serves and text.isprintable() and "  " not in text for text in texts]
        split = [text.split(" ") for text, is_plain in zip(texts, plain, strict=True) if is_plain]
        for known, words, space in (
            (self._first, {parts[0] for parts in split}, ""),
            (self._later, {part for parts in split for part in parts[1:]}, " "),
        ):
            if new := [word for word in words if word not in known]:
                if len(known) + len(new) > MAX_WORDS:
                    known.clear()
                    new = list(words)
                known.update(zip(new, self._encoded([space + word for word in new]), strict=True))
        found = iter([[*self._first[parts[0]], *chain.from_iterable(map(self._later.__getitem__, parts[1:]))] for parts in split])
        whole = iter(self._encoded([text for text, is_plain in zip(texts, plain, strict=True) if not is_plain]))
        return [next(found if is_plain else whole) for is_plain in plain]

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        return [one.ids for one in self.core.encode_batch_fast(texts, add_special_tokens=False)] if texts else []


def _splits_at_spaces(core: Any) -> bool:
    """Whether a tokenizer is a byte-level BPE without a normalizer whose added tokens leave the white space beside them alone."""
    about = parse_json(core.to_str())
    steps = about["pre_tokenizer"] or {"type": "none"}
    steps = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    last = steps[-1]
    if about["normalizer"] is not None or about["model"].get("dropout"):
        return False
    if last["type"] != "ByteLevel" or last["add_prefix_space"] or not last.get("use_regex", True):
        return False
    tokens = about["added_tokens"]
    return all(step["type"] == "Digits" for step in steps[:-1]) and not any(
        token["lstrip"] or token["rstrip"] or token["single_word"] or " " in token["content"] for token in tokens
    )


def _add(core: Any, tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    core.add_tokens([AddedToken(token, normalized=False) for token in tokens if core.token_to_id(token) is None])


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        in_run = list(path.glob(f"tokenizers/*/{FILE}"))
        return in_run[0] if len(in_run) == 1 else path / FILE
    if path.is_file() or not is_hub_id(name):
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(name, FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(f"{name}: no such folder, and the hub could not be read: {type(error).__name__}.") from None


def _read(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    try:
        core = Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain Exception
        raise CheckpointError(f"{path}: not a tokenizer: {str(error)[:200]}") from None
    core.no_padding()  # texts of a batch are never made alike in length, whatever the file says
    core.no_truncation()
    return core
