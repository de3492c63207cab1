"""Text tokens: there and back, and word by word as whole."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlm.base.errors import CheckpointError, DataError
from mmlm.tokenizers.config import TextConfig
from mmlm.tokenizers.text import TextTokenizer

TEXTS = [f"The size is {n * 0.37:.3f}. The colour isn't red{n % 3}.<|end|> It's n{n}" for n in range(200)]


def fitted() -> TextTokenizer:
    tokenizer = TextTokenizer(TextConfig(vocabulary_size=400))
    tokenizer.add_tokens(["<|end|>", "||"])
    return tokenizer.fit(TEXTS)


TOKENIZER = fitted()
ALPHABET = [*"abT30.,'\u00e9\u0645\U0001f600\u200d", "<|end|>", "||", " ", "  ", "\n", "\t", "\u00a0", " The", "'s "]


def whole(tokenizer: TextTokenizer, text: str) -> list[int]:
    return tokenizer.core.encode(text, add_special_tokens=False).ids


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(st.sampled_from(ALPHABET), max_size=12).map("".join), max_size=4))
def test_ids_word_by_word_are_those_of_whole_texts(texts):
    assert TOKENIZER.ids(texts) == [whole(TOKENIZER, text) for text in texts]
    assert [TOKENIZER.decode(ids) for ids in TOKENIZER.ids(texts)] == texts


def test_words_are_encoded_once(monkeypatch):
    tokenizer, seen = fitted(), []
    tokenizer.ids(TEXTS[:1])
    encode = tokenizer._words._encoded
    monkeypatch.setattr(tokenizer._words, "_encoded", lambda texts: seen.append(texts) or encode(texts))
    assert tokenizer.ids(TEXTS) == [whole(tokenizer, text) for text in TEXTS]
    assert sum(map(len, seen)) < 600 < len(" ".join(TEXTS).split(" "))
    seen.clear()
    tokenizer.ids(TEXTS)
    assert sum(map(len, seen)) == 0


def test_a_full_cache_is_emptied(monkeypatch):
    from mmlm.tokenizers import text

    monkeypatch.setattr(text, "MAX_WORDS", 5)
    tokenizer = fitted()
    for _ in range(2):
        assert tokenizer.ids(TEXTS) == [whole(tokenizer, one) for one in TEXTS]


OTHERS = {
    "a normalizer": {"normalizer": {"type": "Lowercase"}},
    "a space in front": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    "no splitting": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
    "a token that takes the space beside it": {"added_tokens": [
        {"id": 0, "content": "red", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": False}]},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_tokenizers_of_another_kind_read_whole_texts(name, tmp_path):
    TOKENIZER.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | OTHERS[name]))
    tokenizer = TextTokenizer(TextConfig(path=str(path)))
    assert tokenizer.ids(TEXTS) == [whole(tokenizer, text) for text in TEXTS] and not tokenizer._words.serves


def test_padding_and_truncation_that_a_file_asks_for_are_not_done(tmp_path):
    TOKENIZER.save(tmp_path)
    core = TOKENIZER.core.from_file(str(tmp_path / "tokenizer.json"))
    core.enable_padding(length=64)
    core.enable_truncation(3)
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer(TextConfig(path=str(tmp_path)))
    assert tokenizer.ids([TEXTS[0], "a"]) == TOKENIZER.ids([TEXTS[0], "a"])


def test_the_tokenizer_of_a_run_is_found_by_the_run_s_folder(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizers" / "text")
    assert TextTokenizer(TextConfig(path=str(tmp_path))).ids(TEXTS) == TOKENIZER.ids(TEXTS)


def test_tokens_added_later_are_one_token_each():
    tokenizer = fitted()
    before = tokenizer.ids(["a @@ b"])[0]
    tokenizer.add_tokens(["@@"])
    assert tokenizer.ids(["a @@ b"])[0].count(tokenizer.token("@@")) == 1 and len(tokenizer.ids(["a @@ b"])[0]) <= len(before)
    with pytest.raises(DataError, match="'##' is not a token"):
        tokenizer.token("##")


def test_a_saved_tokenizer_writes_the_same_and_a_damaged_one_is_told(tmp_path):
    TOKENIZER.save(tmp_path)
    again = TextTokenizer(TextConfig()).load(tmp_path)
    assert again.ids(TEXTS) == TOKENIZER.ids(TEXTS) and again.sizes == TOKENIZER.sizes
    assert torch.equal(again.encode(TEXTS[0]).ids, TOKENIZER.encode(TEXTS[0]).ids)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json: not a tokenizer"):
        TextTokenizer(TextConfig()).load(tmp_path)
    with pytest.raises(DataError, match="no vocabulary yet"):
        TextTokenizer(TextConfig()).ids(["a"])
