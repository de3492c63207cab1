"""Text as phonemes, each traceable to the word that it belongs to.

English by a pronunciation dictionary with learned rules for other words (ARPABET); other languages by espeak-ng (IPA). A pronunciation is
not turned back into spelling: `decode` gives the phonemes as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmlm.base.errors import CheckpointError, DataError, unknown_name
from mmlm.base.files import parse_json
from mmlm.stream import Segment
from mmlm.tokenizers.config import PhonemesConfig
from mmlm.tokenizers.english_phones import EnglishPhones
from mmlm.tokenizers.espeak import EspeakPhones
from mmlm.tokenizers.spoken_text import PAUSES, Spoken

RANGE = "phone"
SILENCE, BOUNDARY = "SIL", "|"
STRESS = ("\u02c8", "\u02cc")
FILE, DICTIONARY = "phonemes.json", "dictionary.txt"


@dataclass(frozen=True)
class Transcript:
    """What is said of a text. symbols: the phonemes, pauses and boundaries in order.   words: what was said, with the characters it stands
    for.   word_of: for each symbol the place of its word in `words`, -1 for pauses and boundaries."""

    symbols: list[str]
    words: list[Spoken]
    word_of: list[int]


class PhonemeTokenizer:
    """Text to ids of the range `phone`. It has to be fitted: English learns its letter-to-sound rules, espeak-ng lists its phonemes."""

    def __init__(self, config: PhonemesConfig) -> None:
        self.config = config
        self.engine: EnglishPhones | EspeakPhones
        if config.engine == "espeak":
            self.engine = EspeakPhones(config.language, stress=config.stress)
        else:
            self.engine = EnglishPhones(Path(config.dictionary) if config.dictionary else None)
        self.symbols: list[str] = []
        self._ids: dict[str, int] = {}

    @property
    def is_fitted(self) -> bool:
        """Whether the phonemes are known."""
        return bool(self.symbols)

    @property
    def sizes(self) -> dict[str, int]:
        """The vocabulary range and its size."""
        self._ready()
        return {RANGE: len(self.symbols)}

    def fit(self, texts: Iterable[str]) -> PhonemeTokenizer:
        """Learn what is needed to read any text. texts: read by espeak-ng for its phonemes; English needs the dictionary alone.

        Raises DataError naming the text that cannot be spoken.
        """
        if isinstance(self.engine, EnglishPhones):
            self.engine.fit()
            phones = self.engine.phones
        else:
            said = (phone for number, text in enumerate(texts, 1) for phone in self._phones_of(text, f"text {number}"))
            phones = sorted(set(said) - set(STRESS))
            if not phones:
                raise DataError("phonemes need texts to be fitted on, but there are none.")
        self._know([SILENCE, BOUNDARY, *PAUSES, *(STRESS if self.config.stress else ()), *phones])
        return self

    def transcribe(self, text: str) -> Transcript:
        """The phonemes of a text with the words they belong to. Raises DataError for a text that cannot be spoken or is empty."""
        found = Transcript([], [], [])
        for word in self.engine.words(text, self.config.unspeakable):
            if word.is_pause:
                if self.config.punctuation and found.words:
                    found.symbols.append(word.text)
                    found.word_of.append(-1)
                continue
            phones = self.engine.pronounce(word)
            if self.config.boundaries and found.word_of and found.word_of[-1] >= 0:
                found.symbols.append(BOUNDARY)
                found.word_of.append(-1)
            found.words.append(word)
            found.symbols.extend(phones)
            found.word_of.extend([len(found.words) - 1] * len(phones))
        if not any(place >= 0 for place in found.word_of):
            raise DataError(f"{text[:60]!r} holds nothing that can be spoken.")
        return found

    def encode(self, text: str) -> Segment:
        """One text as a segment to be read (loss weight 0). Raises DataError as `transcribe` does."""
        return self.encode_phones(self.transcribe(text).symbols)

    def encode_phones(self, symbols: Sequence[str]) -> Segment:
        """Phonemes as a segment, such as those that an aligner found."""
        return Segment(RANGE, torch.tensor(self.ids(symbols), dtype=torch.long))

    def ids(self, symbols: Sequence[str]) -> list[int]:
        """Ids of phonemes. Raises DataError with the nearest known one."""
        self._ready()
        if (unknown := next((symbol for symbol in symbols if symbol not in self._ids), None)) is not None:
            raise DataError(unknown_name("phoneme", unknown, self.symbols, shown=100))
        return [self._ids[symbol] for symbol in symbols]

    def decode(self, segment: Segment | Sequence[int]) -> str:
        """The phonemes of a segment or of ids, with spaces between."""
        self._ready()
        ids = segment.ids.tolist() if isinstance(segment, Segment) and segment.ids is not None else list(segment)  # type: ignore[arg-type]
        return " ".join(self.symbols[number] for number in ids)

    def save(self, folder: Path | str) -> None:
        """Write the phonemes, and for English the dictionary and the rules, so that no other package is needed to read them."""
        self._ready()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps({"symbols": self.symbols}, ensure_ascii=False) + "\n", encoding="utf-8")
        if isinstance(self.engine, EnglishPhones):
            lines = [f"{word} {' '.join(phones)}\n" for word, each in self.engine.dictionary.items() for phones in each]
            (folder / DICTIONARY).write_text("".join(lines), encoding="utf-8")
            self.engine.rules.save(folder)

    def load(self, folder: Path | str) -> PhonemeTokenizer:
        """Take what save wrote. Raises CheckpointError where it is missing or damaged."""
        folder = Path(folder)
        try:
            symbols = [str(symbol) for symbol in parse_json((folder / FILE).read_text(encoding="utf-8"))["symbols"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{folder / FILE}: missing or damaged.") from None
        if isinstance(self.engine, EnglishPhones):
            self.engine = EnglishPhones(folder / DICTIONARY)
            self.engine.rules.load(folder)
        self._know(symbols)
        return self

    def _know(self, symbols: list[str]) -> None:
        self.symbols, self._ids = symbols, {symbol: number for number, symbol in enumerate(symbols)}

    def _phones_of(self, text: str, where: str) -> list[str]:
        try:
            return [phone for word in self.engine.words(text, self.config.unspeakable) for phone in self.engine.pronounce(word)]
        except DataError as error:
            raise DataError(f"{where}: {error}") from None

    def _ready(self) -> None:
        if not self.is_fitted:
            raise DataError("the phoneme tokenizer is not fitted yet: fit it, or load what a run has saved.")
