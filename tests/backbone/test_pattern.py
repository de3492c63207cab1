"""Patterns as text: letters, groups, shares of kinds, and keys changed in some layers."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlm.backbone.backbone import Backbone
from mmlm.base.errors import RecipeError
from mmlm.base.pattern import allocate, letters
from mmlm.base.yaml import parse
from mmlm.layout import Layout
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.recipe import Recipe

PUBLISHED = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"


def backbone(**given):
    return Recipe.read({"schema": 1, "name": "a", "backbone": given}).backbone


def kinds(config) -> str:
    return "".join({"mamba2": "M", "attention": "*"}[layer.mixer.type] if layer.mixer else "-" for layer in config.layers)


def test_the_allocator_gives_the_published_hybrid():
    assert allocate(56, 0.08, 0.5) == PUBLISHED
    config = backbone(pattern={"num_layers": 56, "attention_share": 0.08, "feed_forward_share": 0.5})
    assert config.num_layers == 56 and kinds(config) == PUBLISHED


@given(st.integers(1, 80), st.floats(0, 1), st.floats(0, 1))
def test_the_allocator_gives_as_many_of_each_kind_as_asked(count, attention, feed):
    feed *= 1 - attention
    found = allocate(count, attention, feed)
    assert len(found) == count and found.count("*") == round(count * attention)
    assert found.count("-") == min(round(count * feed), count - found.count("*"))


def test_groups_are_repeated_and_nest():
    assert "".join(letters("(MM*-)x2 (M(-M)x2)x1")) == "MM*-MM*-M-M-M"
    assert kinds(backbone(pattern="(M-)x2*-")) == "M-M-*-"
    for wrong, told in (("(M", "place 1"), ("M)", "place 2"), ("(M)", "xN"), ("()x3", "xN"), ("(M)x0", "xN"), ("", "at least one letter")):
        with pytest.raises(ValueError, match=told):
            letters(wrong)
    with pytest.raises(ValueError, match="more than 4096 layers"):
        letters("((((M)x99)x99)x99)x99")


def test_letters_are_sublayers_with_one_residual_each():
    config = backbone(width=32, pattern="M-*E", symbols={})
    assert [(bool(layer.mixer), bool(layer.feed_forward)) for layer in config.layers] == [(True, False), (False, True)] * 2
    model = MultimodalLM(ModelConfig(schema=1, vocabulary={"text": 7}, backbone=config.model_copy(update={"width": 64})))
    assert [layer.mixer_norm is None for layer in model.backbone.layers] == [False, True, False, True]
    assert type(model.backbone.layers[3].feed_forward).__name__ == "MixtureOfExperts"


def test_further_letters_and_changes_by_letter_number_and_range():
    config = backbone(
        pattern="(WW-)x2",
        symbols={"W": {"type": "attention", "window": 8}},
        overrides={"W": {"rope": None}, "0": {"window": 4}, "3:5": {"qk_norm": True}, "2": {"feed_forward": {"type": "gelu"}}},
    )
    mixers = [layer.mixer for layer in config.layers if layer.mixer]
    assert [mixer.window for mixer in mixers] == [4, 8, 8, 8] and all(mixer.rope is None for mixer in mixers)
    assert [mixer.qk_norm for mixer in mixers] == [False, False, True, True]
    assert [layer.feed_forward.type for layer in config.layers if not layer.mixer] == ["gelu", "swiglu"]
    repeated = backbone(num_layers=3, pattern=["attention"], overrides={"1": {"window": 2, "parallel": True}})
    assert [(layer.mixer.window, layer.parallel) for layer in repeated.layers] == [(None, False), (2, True), (None, False)]
    unsaid = backbone(num_layers=3, overrides={"1": {"window": 2}})
    assert [layer.mixer.window for layer in unsaid.layers] == [None, 2, None]
    assert backbone(overrides={}) == backbone()


def test_a_written_out_recipe_reads_as_the_same(tmp_path):
    config = {"pattern": "(M-)x2*-", "overrides": {"*": {"num_heads": 2}}}
    recipe = Recipe.read({"schema": 1, "name": "a", "backbone": config})
    (tmp_path / "r.yaml").write_text(recipe.dump())
    again = Recipe.read(tmp_path / "r.yaml")
    assert again == recipe and again.backbone.layers[4].mixer.num_heads == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"pattern": "MX"}, "unknown letter 'X'; known are M * - E"),
        ({"pattern": "M", "num_layers": 3}, "num_layers is 3, but the pattern has 1 letters"),
        ({"pattern": "M", "symbols": {"D": "attention"}}, "'D' does not occur in the pattern"),
        ({"pattern": "M", "symbols": {"DD": "attention"}}, "must be one letter"),
        ({"pattern": ["attention"], "symbols": {"D": "attention"}}, "not written as a text"),
        ({"pattern": "M-", "overrides": {"9": {}}}, "'9' is no letter of the pattern, number below 2"),
        ({"pattern": "M-", "overrides": {"-": {"hidden": 5}}}, "whose feed_forward is that of the backbone"),
        ({"pattern": "M-", "overrides": {"M": {"state_sise": 5}}}, "state_sise: unknown key. Did you mean 'state_size'"),
        ({"pattern": "M-", "overrides": {"M": 3}}, "overrides.M"),
        ({"pattern": {"num_layers": 3}}, "a pattern of shares has the numbers"),
        ({"pattern": {"num_layers": 3, "attention_share": 0.9, "feed_forward_share": 0.5}}, "sum to at most 1"),
        ({"pattern": 5}, "must be a list, but is 5"),
        ({"pattern": "W", "symbols": {"W": {"type": "atention"}}}, "Did you mean 'attention'"),
    ],
)
def test_a_pattern_that_cannot_be_is_told(given, told):
    with pytest.raises(RecipeError) as error:
        backbone(**given)
    assert told in str(error.value)


def page():
    """The sections of docs/patterns.md by their names."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "patterns.md").read_text(encoding="utf-8")
    found = {}
    for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL):
        found |= {name: backbone(**section) for name, section in parse(block, "patterns.md").items()}
    return found


def billions(config):
    with torch.device("meta"):
        return sum(p.numel() for p in Backbone(config).parameters()) / 1e9


def test_every_published_backbone_of_the_page_builds_at_its_size():
    found = page()
    assert len(found) == 8
    sizes = {name: billions(config) for name, config in found.items()}
    d, hidden = 4096, 16384
    assert sizes["transformer"] == pytest.approx((32 * (4 * d * d + 2 * d * hidden + 2 * d) + d) / 1e9, rel=1e-9)
    assert sizes["palm"] == pytest.approx((32 * (2 * d * d + 2 * d * 256 + 3 * d * hidden + d) + d) / 1e9, rel=1e-9)
    m = d * (2 * 2 * d + 2 * 8 * 128 + 128) + 2 * d * d + (2 * d + 2 * 8 * 128) * 5 + 3 * 128 + 2 * d + d
    assert sizes["mamba2"] == pytest.approx((56 * m + d) / 1e9, rel=1e-9)
    assert sizes["hybrid"] == pytest.approx((24 * m + 4 * (2 * d * d + 2 * d * d // 4 + d) + 28 * (2 * d * hidden + d) + d) / 1e9, rel=1e-9)
    assert kinds(found["hybrid"]) == PUBLISHED
    forms = [layer.mixer.form for layer in found["transnormer"].layers if layer.mixer]
    assert forms == ["blocks"] * 6 + ["linear"] * 6


def test_full_attention_in_the_bottom_layers_costs_what_is_told_and_reaches_where_windows_do_not():
    masformer = page()["masformer"]
    windows = [layer.mixer.window for layer in masformer.layers if layer.mixer]
    assert windows == [None] * 8 + [1024] * 16
    layout, window = Layout.plain(1, 96), 12
    seen = {w: int(layout.dense(window=w).sum()) for w in (None, window)}
    share = sum(seen[None if w is None else window] for w in windows) / (24 * seen[None])
    assert share == pytest.approx(8 / 24 + 16 / 24 * 2 * window / 96, rel=0.05)  # the causal half of the scores on both sides
    x = torch.randn(1, 40, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for pattern, first in (("(W-)x3", 40 - 1 - 3 * 4), ("*-(W-)x2", 0)):
        model = Backbone(backbone(width=8, pattern=pattern, symbols={"W": {"type": "attention", "window": 5, "num_heads": 2}})).double()
        given = x.clone().requires_grad_()
        reached = torch.autograd.grad(model(given, Layout.plain(1, 40))[0][0, -1].sum(), given)[0][0].abs().amax(-1) > 0
        assert int(reached.nonzero()[0]) == first and bool(reached[first:].all())
