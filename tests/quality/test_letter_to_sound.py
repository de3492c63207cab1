"""Letter-to-sound rules of the whole dictionary on words that they have not seen."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import pytest

from mmlm.tokenizers.english_phones import entries, read_dictionary
from mmlm.tokenizers.letter_to_sound import LetterToSound

pytestmark = pytest.mark.quality


def test_seven_of_ten_unknown_words_are_pronounced_right() -> None:
    import pocketsphinx
    from rapidfuzz.distance import Levenshtein as distance

    words = read_dictionary(Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")))
    held_out = {word for word in words if zlib.crc32(word.encode()) % 20 == 0}
    began = time.process_time()
    model = LetterToSound().fit(entries({word: words[word] for word in words if word not in held_out}))
    learned = time.process_time() - began
    asked = [word for word, _ in entries({word: words[word] for word in sorted(held_out)})][::3]
    errors = phones = right = 0
    for word in asked:
        found = model.pronounce(word)
        wrong, size = min((distance.distance(found, each), len(each)) for each in words[word])
        errors, phones, right = errors + wrong, phones + size, right + (wrong == 0)
    print(
        f"{len(asked)} words: {right / len(asked):.3f} right, {errors / phones:.4f} of the phones wrong; learned in {learned:.1f} s of CPU"
    )
    assert right / len(asked) > 0.70 and errors / phones < 0.075
