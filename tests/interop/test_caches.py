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


# a single step of transformers does not bound the time step, as its whole form does
BOUNDED = {"bamba-bounded", "nemotron_h-bounded"}


def both(name, folder):
    model = theirs(name)
    model.save_pretrained(folder)
    return model, load_hugging_face(folder)


def read(model, ids, cache=None, start=0):
    """Logits and the cache of a model of transformers, whatever this version calls it. Not all of its models count places themselves."""
    names = inspect.signature(model.forward).parameters
    name = next(name for name in ("cache", "past_key_values", "cache_params") if name in names)
    given = {name: cache} if cache is not None else {}
    if "position_ids" in names:
        given["position_ids"] = torch.arange(start, start + ids.shape[1])[None]
    found = model(ids, use_cache=True, **given)
    return found.logits, getattr(found, name)


@pytest.mark.parametrize("name", sorted(MODELS.keys() - BOUNDED))
@torch.no_grad()
def test_a_prefix_goes_on_in_the_other_model(name, tmp_path):
    model, ours = both(name, tmp_path)
    want = model(IDS).logits
    _, prefix = read(model, IDS[:, :12])
    counts = any(getattr(layer, "keys", None) is not None for layer in prefix.layers)
    if not counts:
        with pytest.raises(CheckpointError, match="give the length"):
            cache_from_transformers(prefix, ours)
    cache = cache_from_transformers(prefix, ours, length=None if counts else 12)
    assert cache.length.tolist() == [12, 12]
    parts = [ours.logits(part, cache) for part in (IDS[:, 12:13], IDS[:, 13:])]
    torch.testing.assert_close(torch.cat(parts, dim=1), want[:, 12:], rtol=0, atol=2e-5)
    mine = ours.backbone.init_cache(2)
    ours.logits(IDS[:, :12], mine)
    given, logits = cache_to_transformers(mine, model.config), []
    for start in range(12, IDS.shape[1]):
        found, given = read(model, IDS[:, start : start + 1], given, start)
        logits.append(found)
    torch.testing.assert_close(torch.cat(logits, dim=1), want[:, 12:], rtol=0, atol=2e-5)
    torch.testing.assert_close(ours.logits(IDS[:, 12:], mine), want[:, 12:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["llama", "mamba"])
@torch.no_grad()
def test_caches_that_do_not_fit_are_refused(name, tmp_path):
    model, ours = both(name, tmp_path)
    mine = ours.backbone.init_cache(2)
    mine.length[0] = 3
    with pytest.raises(CheckpointError, match=r"alike in length, but these hold \[3, 0\]"):
        cache_to_transformers(mine, model.config)
    _, prefix = read(model, IDS[:, :5])
    prefix.layers = prefix.layers[:1]
    with pytest.raises(CheckpointError, match="has 1 layers, but the model 2"):
        cache_from_transformers(prefix, ours)
