"""The opened towers of open_clip give what the model gives, word by word and patch by patch, and own sizes make a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.encoders.config import OpenClipConfig, PictureTowerConfig, TextTowerConfig, TowersConfig
from mmlm.encoders.towers import Towers

open_clip = pytest.importorskip("open_clip")
SIZES = TowersConfig(
    size=12,
    picture=PictureTowerConfig(image_size=32, width=24, layers=2, heads=2),
    text=TextTowerConfig(context=12, width=16, layers=2, heads=2),
)
TIMM = SIZES.model_copy(update={"picture": PictureTowerConfig(image_size=64, timm="test_resnet")})


@pytest.fixture(scope="module", params=[SIZES, TIMM], ids=["transformer", "timm"])
def opened(request):
    torch.manual_seed(0)
    encoder = OpenClipConfig(type="open_clip", sizes=request.param).build()
    begin, end = encoder.tokenizer([""])[0][:2].tolist()
    return encoder, Towers(encoder.model, begin, end).eval()


def test_vectors_are_those_of_the_model(opened):
    encoder, towers = opened
    pictures = torch.randn(3, 3, *encoder.input.size)
    ids = encoder.tokenizer(["a dog", "two small cats in a tree", ""])
    with torch.no_grad():
        seen, read = towers.see(pictures), towers.read(ids)
        torch.testing.assert_close(seen.pooled_bd, encoder.model.encode_image(pictures), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(read.pooled_bd, encoder.model.encode_text(ids), atol=1e-5, rtol=1e-5)
        shorter = towers.read(ids[:, :8])
    torch.testing.assert_close(shorter.pooled_bd, read.pooled_bd, atol=1e-5, rtol=1e-5)
    assert seen.patches_bgd.shape[::2] == (3, 12) and read.tokens_btd.shape == (3, 12, 12) and len(seen.stages) >= 2
    assert towers.is_word(ids).sum(1).tolist() == [2, 6, 0]
    texts = encoder.encode_texts(["a dog", "two small cats in a tree"], normalize=True)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    whole = torch.nn.functional.normalize(read.pooled_bd[:2], dim=-1).numpy()
    np.testing.assert_allclose(texts, whole, atol=1e-5)


@pytest.mark.parametrize("is_causal", [True, False])
def test_texts_are_cut_only_where_what_fills_them_is_not_seen(is_causal):
    torch.manual_seed(0)
    about = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, "no_causal_mask": not is_causal}
    picture = {"image_size": 32, "patch_size": 16, "width": 24, "layers": 1, "head_width": 12}
    model = open_clip.CLIP(embed_dim=12, vision_cfg=picture, text_cfg=about).eval()
    ids = open_clip.get_tokenizer("", context_length=12)(["a dog", "a small cat"])
    towers = Towers(model, *open_clip.get_tokenizer("")([""])[0][:2].tolist())
    assert towers.cut(ids).shape == (2, 5 if is_causal else 12)
    ids[:, 2] = 0  # the id of an exclamation mark within a word, which is no filling
    assert towers.cut(ids).shape == (2, 5 if is_causal else 12)
    with torch.no_grad():
        torch.testing.assert_close(towers.read(towers.cut(ids)).pooled_bd, model.encode_text(ids), atol=1e-5, rtol=1e-5)
    with pytest.raises(RecipeError, match="at their end token"):
        Towers(open_clip.CLIP(embed_dim=12, vision_cfg=picture, text_cfg={**about, "pool_type": "last"}), 0, 1)


def test_hidden_words_are_shown_as_the_mask_and_a_look_between_layers_counts(opened):
    encoder, towers = opened
    ids = encoder.tokenizer(["a dog", "a cat"])
    hidden, mask = torch.zeros(ids.shape, dtype=torch.bool), torch.randn(16)
    hidden[:, 2] = True  # the words that differ
    with torch.no_grad():
        one, other = towers.states(ids, hidden, mask)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(*towers.states(ids))
        told = []
        moved = towers.states(ids, between=lambda layer, x_btw: told.append(layer) or x_btw + 1.0 * layer)
        assert told == [0, 1] and not torch.allclose(moved, towers.states(ids))
    assert towers.word_scores(one).shape == (12, 49408) and towers.num_layers == 2 and towers.text_width == 16


def test_models_of_other_kinds_are_refused_and_gains_and_biases_do_not_decay(opened):
    _, towers = opened
    free = {name for name, parameter in towers.model.named_parameters() if getattr(parameter, "no_weight_decay", False)}
    assert "positional_embedding" in free or "text.positional_embedding" in free or not free - {"logit_scale"}
    with pytest.raises(RecipeError, match="sizes.picture.timm: 'test_resnett' is no model of timm. Did you mean"):
        OpenClipConfig(type="open_clip", sizes=SIZES.model_copy(update={"picture": PictureTowerConfig(timm="test_resnett")})).build()
    with pytest.raises(RecipeError, match="only towers of open_clip's own transformer"):
        Towers(torch.nn.Sequential(), 0, 1)
    with pytest.raises(ValueError, match=r"image_size \(60\) must be a multiple of patch_size \(8\)"):
        PictureTowerConfig(image_size=60)
    with pytest.raises(ValueError, match=r"width \(10\) must be a multiple of heads \(3\)"):
        TextTowerConfig(width=10)
