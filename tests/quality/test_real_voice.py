"""Speech of one real voice from 24 minutes of it and three hours of a synthesizer: sentences that nothing was trained on are understood.

Prompts of Asterisk in English beside sentences of books that flite speaks; a codec that hears both, then `tts/made`, as a person would
train them. Its words are judged by a Whisper beside those of the codec alone, better than which no speech of it can be.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mmlm.data import token_shards
from mmlm.recipe import Recipe
from mmlm.run import evaluate, train
from mmlm.tasks.base import RESYNTHESIS

pytestmark = pytest.mark.quality
BOOKS = Path(__file__).resolve().parents[3] / "shared" / "data" / "text" / "lj_sentences.tsv.gz"
SENTENCES, LONGEST, HEARD = 2400, 16, 300  # sentences; words of one; those that the codec hears
OFF = ["train.validate_every=0", "train.sample_every=0"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with sentences to speak, and a codec that has heard both voices."""
    if not BOOKS.is_file():
        pytest.skip("needs the sentences of books")
    folder = tmp_path_factory.mktemp("voice")
    lines = [line.split("\t")[1] for line in gzip.decompress(BOOKS.read_bytes()).decode().splitlines()]
    short = [line for line in lines if 4 <= len(line.split()) <= LONGEST]
    chosen = [short[at * len(short) // SENTENCES] for at in range(SENTENCES)]
    (folder / "sentences.txt").write_text("\n".join(chosen) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "user_cache_folder", lambda: folder / "cache")
        real = "{type: asterisk, languages: [en], keep_hz: 16000, hold_out: 0.05, validate_share: 0.02}"
        spoken = f"path: {folder / 'sentences.txt'}, voices: ['flite:slt'], max_sentences: {HEARD}"
        data = f"data.train=[{real}, {{type: synthesized, {spoken}, keep_hz: 16000, hold_out: 0}}]"
        train(Recipe.read("codec/small", [data, f"output={folder / 'codec'}", *OFF]))
        yield folder


def test_the_words_of_unseen_sentences_are_understood(home) -> None:
    given = [f"data.train.1.path={home / 'sentences.txt'}", f"tokenizers.codec.path={home / 'codec'}", f"output={home / 'voice'}"]
    train(Recipe.read("tts/made", [*given, *OFF]))
    found = evaluate(home / "voice")
    print(json.dumps({name: found[name] for name in ("metrics", "baselines", "data")}, indent=1))
    assert found["metrics"]["wer"] <= found["baselines"][RESYNTHESIS]["wer"] + 0.15
