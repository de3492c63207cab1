"""Phonemes: English by dictionary and rules, other languages by espeak-ng, and the way back to the words."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, DataError, MissingExtra, RecipeError
from mmlm.base.schema import check
from mmlm.tokenizers import espeak
from mmlm.tokenizers.config import PhonemesConfig
from mmlm.tokenizers.english_phones import EnglishPhones, entries, read_dictionary
from mmlm.tokenizers.letter_to_sound import LetterToSound, best_cuts

LINES = """
;;; a comment
hello HH AH0 L OW1
hello(2) HH EH L OW
hell HH EH L
low L OW
world W ER L D
box B AA K S
cat K AE T
dog D AO G
a AH
a(2) EY
b B IY
is IH Z
x EH K S
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dictionary") / "own.dict"
    path.write_text(LINES)
    return path


@pytest.fixture(scope="module")
def english(small):
    return PhonemesConfig(dictionary=str(small)).build().fit([])


@pytest.fixture(scope="module")
def cmu():
    pocketsphinx = pytest.importorskip("pocketsphinx")
    return read_dictionary(Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict")))


def test_words_come_from_the_dictionary_their_stems_or_the_rules(english) -> None:
    found = english.transcribe("Hello, world's box's cat's a B. catdog")
    assert " ".join(found.symbols) == "HH AH L OW , W ER L D Z B AA K S IH Z K AE T S AH B IY . K AE T D AO G"
    assert [found.words[place].text if place >= 0 else "-" for place in found.word_of[3:9]] == ["hello", "-"] + ["world's"] * 4
    assert english.sizes == {"phone": len(english.symbols)} and english.symbols[0] == "SIL"


def test_ids_and_phonemes_are_one_to_one(english) -> None:
    segment = english.encode("hello world")
    assert segment.modality == "phone" and segment.ids.dtype == torch.long and segment.weight == 0
    assert english.decode(segment) == "HH AH L OW W ER L D" == english.decode(segment.ids.tolist())
    assert torch.equal(english.encode_phones(english.decode(segment).split()).ids, segment.ids)
    with pytest.raises(DataError, match="unknown phoneme 'HHH'. Did you mean 'HH'"):
        english.ids(["HHH"])


def test_pauses_and_boundaries_are_tokens_where_asked(small) -> None:
    said = {}
    for punctuation in (False, True):
        for boundaries in (False, True):
            config = PhonemesConfig(dictionary=str(small), punctuation=punctuation, boundaries=boundaries)
            said[punctuation, boundaries] = " ".join(config.build().fit([]).transcribe("?! Hell low, cat").symbols)
    assert said == {
        (False, False): "HH EH L L OW K AE T",
        (False, True): "HH EH L | L OW | K AE T",
        (True, False): "HH EH L L OW , K AE T",
        (True, True): "HH EH L | L OW , K AE T",
    }


@pytest.mark.parametrize("text", ["", "  \n", "?!...", "\u200b"])
def test_a_text_with_nothing_to_say_is_refused(english, text: str) -> None:
    with pytest.raises(DataError, match="nothing that can be spoken"):
        english.encode(text)


def test_emoji_are_refused_left_out_or_named(small) -> None:
    with pytest.raises(DataError, match="U\\+1F408, cat.*unspeakable: skip"):
        PhonemesConfig(dictionary=str(small)).build().fit([]).encode("low \U0001f408")
    found = {how: PhonemesConfig(dictionary=str(small), unspeakable=how).build().fit([]) for how in ("skip", "name")}
    assert found["skip"].decode(found["skip"].encode("low \U0001f408")) == "L OW"
    assert found["name"].decode(found["name"].encode("low \U0001f408")) == "L OW K AE T"


def test_a_saved_tokenizer_needs_no_dictionary_and_says_the_same(english, tmp_path) -> None:
    english.save(tmp_path)
    again = PhonemesConfig(dictionary="/nowhere").build().load(tmp_path)
    for text in ("hello world", "catdog", "dog's"):
        assert torch.equal(again.encode(text).ids, english.encode(text).ids)
    assert again.sizes == english.sizes and again.is_fitted
    (tmp_path / "letter_to_sound.json").write_text("[")
    with pytest.raises(CheckpointError, match="letter_to_sound.json: missing or damaged"):
        PhonemesConfig().build().load(tmp_path)
    with pytest.raises(CheckpointError, match="phonemes.json: missing or damaged"):
        PhonemesConfig().build().load(tmp_path / "empty")


def test_what_is_not_fitted_says_so() -> None:
    tokenizer = PhonemesConfig().build()
    assert not tokenizer.is_fitted
    with pytest.raises(DataError, match="not fitted yet"):
        tokenizer.ids(["AA"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"hello\n", "line 1: must be a word and its phones, but is 'hello'"),
        (b";;; no\n", "holds no word"),
        (b"\xff A\n", "is not UTF-8 text"),
    ],
)
def test_a_bad_dictionary_is_told_with_its_line(tmp_path, content: bytes, told: str) -> None:
    path = tmp_path / "bad.dict"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.dict.*{told}"):
        PhonemesConfig(dictionary=str(path)).build().fit([])
    with pytest.raises(DataError, match="cannot be read"):
        PhonemesConfig(dictionary=str(tmp_path / "none")).build().fit([])


def test_a_letter_that_the_dictionary_never_had_is_told(english) -> None:
    with pytest.raises(DataError, match="'quiz' holds 'q', which no word of the dictionary does"):
        english.encode("quiz")


def test_keys_of_the_other_engine_have_no_effect() -> None:
    with pytest.raises(RecipeError, match="dictionary: has no effect: the engine is espeak"):
        check(PhonemesConfig, {"engine": "espeak", "dictionary": "x"}, "recipe")
    with pytest.raises(RecipeError, match="language: has no effect"):
        check(PhonemesConfig, {"language": "fr-fr"}, "recipe")


def test_cuts_put_letters_beside_their_phones() -> None:
    words = [
        ("phone", "F OW N"),
        ("graph", "G R AE F"),
        ("fan", "F AE N"),
        ("ran", "R AE N"),
        ("gap", "G AE P"),
        ("no", "N OW"),
        ("pan", "P AE N"),
    ]
    cuts = best_cuts([(word, tuple(phones.split())) for word, phones in words])
    assert sorted("".join(letters for letters, _ in line) for line in cuts) == sorted(word for word, _ in words)
    assert ("ph", ("F",)) in next(line for line in cuts if line[0][0] == "ph")
    assert best_cuts([("a", ("B", "C", "D"))]) == []


@pytest.fixture(scope="module")
def learned(cmu):
    """Rules learned from a part of the dictionary, and words that are held out from it with their pronunciations."""
    words = {word: phones for word, phones in cmu.items() if zlib.crc32(word.encode()) % 30 == 0}
    held_out = {word for word, _ in entries(words) if zlib.crc32(word.encode()) % 210 == 0}
    model = LetterToSound().fit(entries({word: words[word] for word in words if word not in held_out}))
    return model, {word: words[word] for word in sorted(held_out)}


def test_the_n_grams_of_a_model_are_a_distribution(learned) -> None:
    model, _ = learned
    contexts = np.random.default_rng(0).integers(1, len(model.keys_i) // 4, 40)
    contexts = np.array([0, *(node for node in contexts if model.keys_i[node - 1] % len(model.pairs) != 1)])  # nothing follows the end
    p_jg = np.exp(model._step(contexts, np.arange(len(model.pairs)))[0])
    assert len(contexts) > 20 and np.allclose(p_jg.sum(1), 1, atol=1e-4)


def test_rules_learned_from_a_part_of_the_dictionary_pronounce_the_rest(learned) -> None:
    model, held_out = learned
    right = sum(model.pronounce(word) in phones for word, phones in held_out.items()) / len(held_out)
    assert len(held_out) > 300 and right > 0.35, f"{right:.3f} of {len(held_out)} words right"


def test_rules_are_learned_once_for_each_dictionary(small, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    learned, whole = [], LetterToSound.fit

    def fit(self, found):
        learned.append(len(found := list(found)))
        return whole(self, found)

    monkeypatch.setattr(LetterToSound, "fit", fit)
    said = [EnglishPhones(small) for _ in range(2)]
    for each in said:
        each.fit()
    assert len(learned) == 1 and said[0].rules.pronounce("catbox") == said[1].rules.pronounce("catbox")
    assert np.array_equal(said[0].rules.log_p_i, said[1].rules.log_p_i)
    (kept,) = tmp_path.rglob("letter_to_sound.json")
    kept.write_text(kept.read_text()[:30])  # damaged: learned and kept again
    EnglishPhones(small).fit()
    other = tmp_path / "other.dict"
    other.write_text(LINES + "fog F AO G\n")
    EnglishPhones(other).fit()
    EnglishPhones(small).fit()
    assert len(learned) == 3


espeak_ng = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="the program espeak-ng is not installed")


@espeak_ng
def test_other_languages_are_spoken_by_espeak(tmp_path) -> None:
    text = "Bonjour, les amis arrivent en 1984\u00a0!"
    tokenizer = PhonemesConfig(engine="espeak", language="fr-fr").build().fit([text])
    found = tokenizer.transcribe(text)
    assert " ".join(found.symbols[:6]) == "b \u0254\u0303 \u0292 u \u0281 ,"
    assert [text[word.start : word.end] for word in found.words] == ["Bonjour", "les", "amis", "arrivent", "en", "1984"]
    assert sorted(set(found.word_of)) == [-1, 0, 1, 2, 3, 4, 5] and not {"\u02c8", "\u02cc"} & set(tokenizer.symbols)
    tokenizer.save(tmp_path)
    again = PhonemesConfig(engine="espeak", language="fr-fr").build().load(tmp_path)
    assert torch.equal(again.encode(text).ids, tokenizer.encode(text).ids)
    with pytest.raises(DataError, match="unknown phoneme"):
        again.encode("gnou p\u00e8re chat cinq zoo bleu")


@espeak_ng
def test_words_run_together_are_asked_for_one_by_one(monkeypatch) -> None:
    asked: list[str] = []
    answers = {"un po": "u_n_p_o", "un": "u_n", "po": "p_o"}
    monkeypatch.setattr(espeak, "said", lambda language, text: asked.append(text) or answers[text])
    found = PhonemesConfig(engine="espeak", language="it").build().fit(["un po"]).transcribe("un po")
    assert found.symbols == ["u", "n", "p", "o"] and found.word_of == [0, 0, 1, 1] and asked[:3] == ["un po", "un", "po"]


@espeak_ng
def test_stress_is_a_token_where_asked() -> None:
    found = PhonemesConfig(engine="espeak", language="es", stress=True).build().fit(["se\u00f1or"]).transcribe("se\u00f1or")
    assert found.symbols[3] == "\u02c8" and len(found.symbols) == 6


@espeak_ng
def test_scripts_that_a_language_does_not_use_are_refused() -> None:
    for language, text in (
        ("fr-fr", "\u4e2d bon"),
        ("it", "\u043f\u0440\u0438\u0432\u0435\u0442"),
        ("ru", "\u05d0"),
        ("es", "hola \U0001f600"),
    ):
        with pytest.raises(DataError, match="text 1: character .* cannot be spoken"):
            PhonemesConfig(engine="espeak", language=language).build().fit([text])
    assert PhonemesConfig(engine="espeak", language="ru").build().fit(["\u043f\u0440\u0438\u0432\u0435\u0442 ok"]).is_fitted
    with pytest.raises(DataError, match="espeak-ng cannot speak 'zz'"):
        PhonemesConfig(engine="espeak", language="zz").build().fit(["hello"])
    with pytest.raises(DataError, match="there are none"):
        PhonemesConfig(engine="espeak", language="it").build().fit([])


def test_without_espeak_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(espeak.shutil, "which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "phonemizer.backend", None)
    espeak.said.cache_clear()
    with pytest.raises(MissingExtra, match=r"apt-get install espeak-ng.*mmlm\[phonemes\]|apt-get install espeak-ng.*phonemizer"):
        PhonemesConfig(engine="espeak", language="it").build().fit(["ciao"])
