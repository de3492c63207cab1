"""Stamps and emoji as pictures with names: white squares, parts that no other part shares, what is missing."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data import cutouts, tuxpaint
from mmlm.data.config.cutouts import EmojiConfig, StampsConfig
from mmlm.data.cutouts import FONT, on_white
from mmlm.data.tuxpaint import STAMPS

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def names(tmp_path):
    """A list of three emoji."""
    signs = [("\N{DOG FACE}", "dog face", "animals"), ("\N{RED APPLE}", "red apple", "food"), ("\N{AIRPLANE}", "airplane", "travel")]
    lines = [
        {
            "emoji": sign,
            "group": group,
            "label": {"en": name, "de": f"{name} auf Deutsch"},
            "tags": {"en": [name.split()[0], "seen", "drawn"]},
        }
        for sign, name, group in signs
    ]
    path = tmp_path / "names.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path


@pytest.mark.skipif(not FONT.is_file(), reason="needs: apt-get install fonts-noto-color-emoji")
def test_emoji_are_drawn_on_white_with_their_names(names):
    source = EmojiConfig(path=str(names), side=32, hold_out=0).build()
    dog, apple, plane = source.everything()
    assert [each.captions[0].text for each in (dog, apple, plane)] == ["dog face", "red apple", "airplane"]
    assert apple.labels["class"] == "food" and apple.where.endswith("line 2")
    seen = apple.read()
    assert seen.shape == (32, 32, 3) and seen.dtype == np.uint8 and (seen[0] == 255).all()
    inside = seen[8:24, 8:24].reshape(-1, 3).astype(int)
    assert (inside[:, 0] > inside[:, 2] + 60).mean() > 0.3  # it is red
    assert apple.read() is seen and not np.array_equal(seen, dog.read())
    german = EmojiConfig(path=str(names), language="de", tags=2, kinds=["animals"], hold_out=0).build().everything()
    assert [each.captions[0].text for each in german] == ["dog face auf Deutsch"]
    (tagged,) = EmojiConfig(path=str(names), tags=2, kinds=["animals"], hold_out=0).build().everything()
    assert tagged.captions[0].text == "dog face: seen, drawn"


def test_a_line_that_is_no_emoji_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cutouts, "FONT", tmp_path)
    with pytest.raises(DataError, match="is not installed. Install it with: apt-get install fonts-noto-color-emoji"):
        EmojiConfig(path="x").build()
    (tmp_path / "font.ttf").write_bytes(b"")
    monkeypatch.setattr(cutouts, "FONT", tmp_path / "font.ttf")
    (tmp_path / "bad.jsonl").write_text('{"emoji": "x", "group": "a", "label": {"en": "letter"}}\n{"emoji": "y"}\n')
    with pytest.raises(DataError, match="bad.jsonl, line 2: is no object with emoji, group and label.en: KeyError: 'label'"):
        EmojiConfig(path=str(tmp_path / "bad.jsonl"), hold_out=0).build()
    monkeypatch.setattr(tuxpaint, "STAMPS", tmp_path / "none")
    with pytest.raises(DataError, match="Install them with: apt-get install tuxpaint-stamps-default"):
        StampsConfig().build()


@pytest.mark.skipif(not STAMPS.is_dir(), reason="needs: apt-get install tuxpaint-stamps-default")
def test_stamps_have_their_captions_and_held_out_ones_are_never_trained_on():
    source = StampsConfig(side=24, hold_out=0.2, validate_share=0.1).build()
    parts = [source.everything(), source.kept_back().everything(), source.held_out_records().everything()]
    texts = [{each.captions[0].text for each in part} for part in parts]
    assert not texts[0] & texts[2] and not texts[0] & texts[1] and not texts[1] & texts[2]  # nor is another stamp of the same name
    names = [{each.id for each in part} for part in parts]
    assert len(names[0] | names[1] | names[2]) == sum(map(len, names)) > 600 and 0.12 < len(names[2]) / sum(map(len, names)) < 0.28
    first = parts[0][0]
    assert first.captions[0].text and first.labels["class"] == first.id.split("/")[0] and first.read().shape == (24, 24, 3)
    animals = StampsConfig(kinds=["animals"], side=24, hold_out=0).build().everything()
    assert {each.labels["class"] for each in animals} == {"animals"} and len(animals) < sum(map(len, names))


def test_what_is_seen_through_is_white_and_what_is_seen_fills_the_square():
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    image.paste((200, 0, 0, 255), (10, 5, 30, 15))
    seen = on_white(image, 50)
    red = (seen[..., 1] < 100).nonzero()
    assert seen.shape == (50, 50, 3) and (red[1].min(), red[1].max()) == (2, 47) and 11 <= red[0].min() <= 14 and 35 <= red[0].max() <= 38
    assert (on_white(Image.new("RGBA", (5, 5), (0, 0, 0, 0)), 8) == 255).all()
