"""A training step of the default recipe of grounded captioning beside transformers: same weights, same samples, one thread, CPU time.

The other model is a LlamaForCausalLM over the same vectors: convolutions over whole pictures, rows padded to the longest, the same masks as
additive numbers [b, 1, t, t], and labels with which it computes its own loss. A step is forward, backward and fused AdamW, for both. Goals,
asserted with a margin of 1.3: at least 1.3 times as fast in bfloat16 autocast; pictures of mixed sizes cost no more a token than pictures
of one size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmlm.interop.hugging_face import save_hugging_face
from mmlm.model import MultimodalLM
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task
from mmlm.stream import NO_LABEL, pack, pad
from mmlm.tokenizers.image_patches import VISION
from tests.bench.measure import MARGIN, compare

pytestmark = [pytest.mark.bench, pytest.mark.slow]


class Theirs(nn.Module):
    """The model of the recipe in transformers' parts, with the weights of ours."""

    def __init__(self, ours: MultimodalLM, folder) -> None:
        from transformers import LlamaForCausalLM

        super().__init__()
        plain = MultimodalLM(ours.config.model_copy(update={"encoders": {}, "features": {}, "projectors": {}, "heads": {
            "language_model": ours.config.heads["language_model"].model_copy(update={"ranges": None})
        }}))  # fmt: skip
        plain.load_state_dict({name: value for name, value in ours.state_dict().items() if name in plain.state_dict()})
        save_hugging_face(plain, folder)
        self.decoder = LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa").train()
        self.stem, self.project = ours.encoders[VISION], ours.projectors[VISION]
        span = ours.vocabulary.span(VISION)
        self.register_buffer("unused", torch.zeros(len(ours.vocabulary)).index_fill_(0, torch.arange(span.start, span.stop), -1e9))

    def forward(self, pixels_bchw, places_bnf, at, ids_bt, labels_bt, mask_b1tt, position_bt):
        x = pixels_bchw
        for layer in self.stem.layers:
            x = F.gelu(layer(x), approximate="tanh")
        y_bnf = x.flatten(2).transpose(1, 2) + self.stem.place(places_bnf)
        vectors = self.project(y_bnf + F.gelu(self.stem.inner(y_bnf), approximate="tanh")).flatten(0, 1)
        embedded = self.decoder.get_input_embeddings()(ids_bt)
        embedded = embedded.flatten(0, 1).index_copy(0, at, vectors.to(embedded.dtype)).view_as(embedded)
        found = self.decoder(inputs_embeds=embedded, attention_mask=mask_b1tt, position_ids=position_bt, use_cache=False)
        return F.cross_entropy((found.logits.float() + self.unused).flatten(0, 1), labels_bt.flatten(), ignore_index=NO_LABEL)


def inputs_of(streams, ours):
    """What the other model reads of the same samples."""
    batch = pad(streams, ours.vocabulary)
    features_nf = batch.features[VISION]
    side, stride = ours.encoders[VISION].side, 8
    margin = (side - stride) // 2
    squares = features_nf[:, : 3 * side * side].view(len(streams), 8, 8, 3, side, side)
    inner = squares[..., margin : margin + stride, margin : margin + stride]
    pixels = inner.permute(0, 3, 1, 4, 2, 5).reshape(len(streams), 3, 64, 64)
    mask = batch.layout.dense()
    bias = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None]
    places = features_nf[:, 3 * side * side :].view(len(streams), 64, -1)
    position_bt = batch.layout.position[..., 0]
    return F.pad(pixels, [margin] * 4), places, batch.feature_at[VISION], batch.ids, batch.labels, bias, position_bt


def made(options=()):
    recipe = Recipe.read("grounded_captioning/quickstart", ["data.test=[]", *options])
    task = build_task(recipe)
    torch.manual_seed(0)
    return recipe, task, build_model(recipe, task).train()


def samples(recipe, task, count, seed=0):
    source, rng = recipe.data.train[0].build(), np.random.default_rng(seed)
    return [task.example(source.draw(rng, None), rng) for _ in range(count)]


def test_a_step_of_the_quickstart_beside_transformers(tmp_path):
    torch.set_num_threads(1)
    recipe, task, ours = made()
    streams = samples(recipe, task, recipe.train.batch_size)
    theirs = Theirs(ours, tmp_path)
    given = inputs_of(streams, ours)
    optimizers = {id(model): torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True) for model in (ours, theirs)}

    def loss_of(model, half):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            if model is theirs:
                return theirs(*given)
            total, weight = ours(pack(streams, ours.vocabulary))["language_model"]
            return total / weight

    def step(model, half):
        loss_of(model, half).backward()
        optimizers[id(model)].step()
        optimizers[id(model)].zero_grad()

    with torch.no_grad():
        for half, tolerance in ((False, 1e-4), (True, 2e-2)):
            torch.testing.assert_close(loss_of(ours, half), loss_of(theirs, half), rtol=0, atol=tolerance)
    sides = {"transformers": theirs, "mmlm": ours}
    steps = {
        (side, kind): lambda model=model, kind=kind: step(model, kind == "bf16")
        for kind in ("fp32", "bf16")
        for side, model in sides.items()
    }
    found = compare(steps, rounds=5, seconds=0)
    tokens, rows = sum(map(len, streams)), given[3].numel()
    print(f"\n{len(streams)} samples, {tokens} tokens ({tokens / rows:.0%} of the padded batch); forward, backward, fused AdamW")
    for kind in ("fp32", "bf16"):
        mine, peer = found["mmlm", kind], found["transformers", kind]
        print(f"  {kind}: mmlm {mine:.0f} ms, transformers {peer:.0f} ms, {peer / mine:.2f} times as fast")
    assert found["transformers", "bf16"] / found["mmlm", "bf16"] > 1.3 / MARGIN


def test_mixed_sizes_cost_no_more_a_token_than_one_size():
    torch.set_num_threads(1)
    sides = {"64 x 64": "[{type: scenes}]", "mixed": "[{type: scenes, sides: [32, 96]}]"}
    steps, tokens = {}, {}
    for name, train in sides.items():
        recipe, task, model = made([f"data.train={train}", "tokenizers.patches.max_side=96"])
        streams = samples(recipe, task, 20)
        tokens[name] = sum(map(len, streams))

        def step(model=model, streams=streams):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                total, weight = model(pack(streams, model.vocabulary))["language_model"]
            (total / weight).backward()
            model.zero_grad()

        steps[name] = step
    found = compare(steps, rounds=5, seconds=0)
    each = {name: 1e3 * ms / tokens[name] for name, ms in found.items()}
    print("\nmicroseconds a token, forward and backward in bf16: " + ", ".join(f"{name} {us:.1f}" for name, us in each.items()))
    assert each["mixed"] < each["64 x 64"] * MARGIN
