"""A prefix computed by one model goes on in the other, from transformers to ours and back."""

import inspect
import sys
from pathlib import Path

import pytest
import torch

from mmlm.base.errors import CheckpointError
from mmlm.interop.caches import cache_from_transformers, cache_to_transformers
from mmlm.interop.hugging_face import load_hugging_face

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))
from test_hugging_face import MODELS, theirs  # noqa: E402

pytestmark = pytest.mark.slow
IDS = torch.randint(0, 97, (2, 21), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=[name for name in MODELS if name != "wide"])
def both(request, tmp_path):
    model = theirs(request.param)
    model.save_pretrained(tmp_path)
    return model, load_hugging_face(tmp_path)


def read(model, ids, cache=None):
    """Logits and the cache of a model of transformers, whatever this version calls it."""
    names = inspect.signature(model.forward).parameters
    name = next(name for name in ("cache", "past_key_values", "cache_params") if name in names)
    found = model(ids, use_cache=True, **({name: cache} if cache is not None else {}))
    return found.logits, getattr(found, name)


@torch.no_grad()
def test_a_prefix_goes_on_in_the_other_model(both):
    model, ours = both
    want = model(IDS).logits
    _, prefix = read(model, IDS[:, :12])
    counts = any(hasattr(layer, "keys") for layer in prefix.layers)
    if not counts:
        with pytest.raises(CheckpointError, match="give the length"):
            cache_from_transformers(prefix, ours)
    cache = cache_from_transformers(prefix, ours, length=None if counts else 12)
    assert cache.length.tolist() == [12, 12]
    parts = [ours.logits(part, cache) for part in (IDS[:, 12:13], IDS[:, 13:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), want[:, 12:], rtol=0, atol=1e-4)
    mine = ours.backbone.init_cache(2)
    ours.logits(IDS[:, :12], mine)
    given, logits = cache_to_transformers(mine, model.config), []
    for part in IDS[:, 12:].split(1, dim=1):
        found, given = read(model, part, given)
        logits.append(found)
    torch.testing.assert_close(torch.cat(logits, dim=1), want[:, 12:], rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.logits(IDS[:, 12:], mine), want[:, 12:], rtol=0, atol=1e-4)


@torch.no_grad()
def test_caches_that_do_not_fit_are_refused(both, tmp_path):
    model, ours = both
    mine = ours.backbone.init_cache(2)
    mine.length[0] = 3
    with pytest.raises(CheckpointError, match=r"alike in length, but these hold \[3, 0\]"):
        cache_to_transformers(mine, model.config)
    _, prefix = read(model, IDS[:, :5])
    prefix.layers = prefix.layers[:1]
    with pytest.raises(CheckpointError, match="has 1 layers, but the model 2"):
        cache_from_transformers(prefix, ours)
