"""The contract of every mixer in the registry: widths, causality, steps and chunks, document borders, gradients, states."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from mmlm.backbone.attention import Attention
from mmlm.backbone.cache import Cache
from mmlm.backbone.config import MIXERS
from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.layout import Layout

SIZES = {
    "attention": {
        "plain": {"num_heads": 2},
        "grouped": {"num_heads": 4, "num_kv_heads": 2, "qk_norm": True, "qkv_bias": True, "out_bias": True},
        "one key head, window": {"num_heads": 4, "num_kv_heads": 1, "window": 3, "head_size": 6, "rope": {"fraction": 0.7}},
        "no positions": {"num_heads": 2, "rope": None, "causal": True},
        "gate, soft cap": {"num_heads": 4, "num_kv_heads": 2, "gate": True, "soft_cap": 2.0, "score_scale": 0.7},
        "alibi": {"num_heads": 3, "head_size": 4, "rope": None, "alibi": True},
        "alibi, soft cap": {"num_heads": 2, "alibi": True, "soft_cap": 1.5, "qk_norm": True},
        "sinks": {"num_heads": 2, "window": 3, "sinks": 2},
    },
    "transnormer": {
        "plain": {"num_heads": 2},
        "T1": {"num_heads": 4, "feature": "elu", "norm_heads": True, "lrpe": {"base": 100.0}, "bias": True},
        "gate, rope": {"num_heads": 2, "gate": True, "lrpe": None, "rope": {}, "feature": "none", "head_size": 6},
        "blocks": {"num_heads": 2, "form": "blocks", "block_size": 4},
        "blocks T1": {"num_heads": 2, "form": "blocks", "block_size": 3, "scores": "relu", "rope": {}},
        "blocks, gate": {"num_heads": 1, "form": "blocks", "block_size": 64, "gate": True},
    },
    "lightnet": {
        "plain": {"num_heads": 2},
        "no positions, silu": {"num_heads": 4, "lrpe": None, "output_gate": "silu", "gate_rank": 3, "bias": True},
        "rope, no gate": {"num_heads": 2, "lrpe": None, "rope": {"fraction": 0.5}, "output_gate": None, "head_size": 5},
    },
    "tpe": {"plain": {"num_heads": 2}},
    "mamba1": {
        "plain": {"state_size": 4},
        "biases, rank": {"state_size": 3, "bias": True, "step_rank": 5, "expand": 1.5},
        "negative eigenvalues": {"state_size": 4, "negative_eigenvalues": True, "min_step": 0.5, "max_step": 2.0},
        "inner norms": {"state_size": 4, "select_norm": True, "norm_eps": 0.1},
        "one tap": {"state_size": 1, "conv_size": 1, "conv_bias": False, "expand": 1.0},
    },
    "deltanet": {
        "plain": {"num_heads": 2, "key_size": 6, "chunk_size": 4},
        "gated": {"num_heads": 4, "num_key_heads": 2, "key_size": 4, "value_size": 3, "gated": True, "chunk_size": 3},
        "turning": {"num_heads": 2, "key_size": 5, "negative_eigenvalues": True, "output_gate": "sigmoid", "conv_bias": True, "bias": True},
        "product": {"num_heads": 2, "key_size": 4, "num_micro_steps": 3, "gated": True, "negative_eigenvalues": True, "chunk_size": 4},
        "bare": {"num_heads": 1, "key_size": 8, "output_norm": False, "output_gate": None, "conv_size": 1},
    },
    "mamba2": {
        "plain": {"head_size": 8, "state_size": 4, "chunk_size": 4},
        "groups": {"head_size": 4, "state_size": 3, "num_groups": 2, "norm_groups": 4, "bias": True, "chunk_size": 3},
        "bounded steps": {"head_size": 8, "state_size": 4, "step_limit": [0.01, 0.2]},
        "one tap": {"head_size": 8, "state_size": 4, "conv_size": 1, "conv_bias": False, "expand": 1.5, "chunk_size": 64},
    },
    "s4": {
        "low rank": {"state_size": 8},
        "diagonal": {"form": "diagonal", "state_size": 6, "init": "lin"},
        "bilinear": {"form": "diagonal", "state_size": 4, "init": "inv", "discretization": "bilinear"},
    },
    "h3": {
        "plain": {"head_size": 4, "shift_size": 5, "state_size": 4},
        "one channel a head": {"head_size": 1, "shift_size": 1, "state_size": 2, "bias": False, "init": "legs"},
    },
    "long_conv": {
        "plain": {"num_taps": 6, "init": "normal"},
        "longer than the text": {"num_taps": 40, "smooth": 3, "squash": 0.0},
        "smooth spectrum": {"num_taps": 9, "smooth": 5, "smooth_over": "frequency"},
        "two taps": {"num_taps": 2},
    },
}
WHOLE = {"transnormer", "lightnet", "tpe"}  # can read whole documents in no order
BY_TRANSFORMS = {"s4", "h3", "long_conv"}  # round-off of a later token reaches earlier ones, in outputs and gradients
CASES = [(name, option) for name in sorted(MIXERS.entries) for option in SIZES.get(name, {"plain": {}})]
WIDTH = 16


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}: {case[1]}")
def mixer(request):
    name, option = request.param
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = MIXERS.parse({"type": name, **SIZES.get(name, {"plain": {}})[option]}).build(WIDTH).double()
    built.leak, built.whole = 1e-12 if name in BY_TRANSFORMS else 0, name in WHOLE
    return built


def vectors(batch, length, seed=0):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def is_recurrent(state):
    return all(role != "kv" for role in state.roles.values())


def run(mixer, x, cuts, state, start=0):
    parts = []
    for part in x.split(cuts, dim=1):
        y, state, _ = mixer(part, Layout.plain(len(x), part.shape[1], start=start), state)
        parts.append(y)
        start += part.shape[1]
    return torch.cat(parts, dim=1), state


def new_state(mixer, batch, room=0):
    return mixer.init_state(batch, room, torch.float64, "cpu")


def test_all_mixers_are_here():
    assert set(SIZES) <= set(MIXERS.entries) and len(CASES) >= 12


def test_output_has_the_width_of_the_input_and_every_parameter_a_gradient(mixer):
    x = vectors(2, 11).requires_grad_()
    y, state, aux = mixer(x, Layout.plain(2, 11))
    assert y.shape == x.shape and y.dtype == x.dtype and state is None and aux == {}
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in mixer.parameters())
    assert (x.grad.abs().amax(-1) > 0).all()
    for p in mixer.parameters():
        assert len(p.axes) == p.ndim


def test_a_later_token_changes_nothing_before_it(mixer):
    x = vectors(2, 11).requires_grad_()
    y = mixer(x, Layout.plain(2, 11))[0]
    gradient = torch.autograd.grad(y[:, :5].square().sum(), x, retain_graph=True)[0]
    assert gradient[:, 5:].abs().max() <= mixer.leak and gradient[:, :5].abs().max() > 0
    other = torch.cat([x[:, :5], vectors(2, 6, 9) * 100], dim=1)
    torch.testing.assert_close(mixer(other, Layout.plain(2, 11))[0][:, :5], y[:, :5], rtol=0, atol=1e-12)
    assert torch.autograd.grad(y[0].sum(), x)[0][1].abs().max() == 0


@torch.no_grad()
def test_steps_and_chunks_are_the_whole(mixer):
    x = vectors(2, 13)
    whole = mixer(x, Layout.plain(2, 13))[0]
    g = torch.Generator().manual_seed(4)
    for trial in range(6):
        cuts = [1] * 13 if trial == 0 else [13] if trial == 1 else []
        while sum(cuts) < 13:
            cuts.append(min(int(torch.randint(1, 6, (), generator=g)), 13 - sum(cuts)))
        y, state = run(mixer, x, cuts, new_state(mixer, 2, room=(0, 13, 5)[trial % 3]))
        torch.testing.assert_close(y, whole, rtol=0, atol=1e-10)
        assert state.length.tolist() == [13, 13]


@torch.no_grad()
def test_documents_of_a_row_and_padding_do_not_touch_one_another(mixer):
    sizes = [5, 1, 4, 3]
    document = torch.tensor([1] * 5 + [2] + [0] * 2 + [3] * 4 + [7] * 3 + [0])
    x = vectors(1, len(document))
    position = torch.zeros(len(document), dtype=torch.long)
    for number in (1, 2, 3, 7):
        position[document == number] = torch.arange(int((document == number).sum()))
    y = mixer(x, Layout(document[None].int(), position[None, :, None]))[0][0]
    for number, size in zip((1, 2, 3, 7), sizes, strict=True):
        alone = mixer(x[:, document == number], Layout.plain(1, size))[0][0]
        torch.testing.assert_close(y[document == number], alone, rtol=0, atol=1e-10)


@torch.no_grad()
def test_rows_of_different_lengths_go_on_as_each_would_alone(mixer):
    x, lengths = vectors(3, 12), [7, 2, 4]
    document = (torch.arange(7) < torch.tensor(lengths)[:, None]).int()
    spoiled = torch.where(document[..., None] > 0, x[:, :7], 1e3)
    state = new_state(mixer, 3)
    y, state, _ = mixer(spoiled, Layout(document, torch.arange(7).expand(3, 7)[..., None]), state)
    assert state.length.tolist() == lengths
    rest = torch.stack([x[row, size : size + 5] for row, size in enumerate(lengths)])
    for step in range(5):
        one, state, _ = mixer(rest[:, step : step + 1], Layout.plain(3, 1, start=state.length.clone()), state)
        for row, size in enumerate(lengths):
            whole = mixer(x[row : row + 1, : size + 5], Layout.plain(1, size + 5))[0][0]
            torch.testing.assert_close(y[row, :size], whole[:size], rtol=0, atol=1e-10)
            torch.testing.assert_close(one[row, 0], whole[size + step], rtol=0, atol=1e-10)


@torch.no_grad()
def test_padding_comes_out_finite_from_a_continued_pass(mixer):
    document = torch.tensor([[1, 1, 1], [1, 0, 0]]).int()
    y = mixer(vectors(2, 3), Layout(document, torch.zeros(2, 3, 1, dtype=torch.long)), new_state(mixer, 2))[0]
    assert bool(y.isfinite().all()), "what follows in the stack would spread it"


def test_padding_alone_is_taken(mixer):
    for causal in (True, False) if mixer.whole or isinstance(mixer, Attention) else (True,):
        x = vectors(2, 3).requires_grad_()
        nothing = torch.zeros(2, 3, 1, dtype=torch.long)
        y = mixer(x, Layout(nothing[..., 0].int(), nothing, causal=causal))[0]
        assert y.shape == x.shape and bool(y.isfinite().all())
        y.sum().backward()
        assert bool(x.grad.isfinite().all())


@torch.no_grad()
def test_states_are_selected_merged_split_saved_and_reset(mixer, tmp_path):
    x, more = vectors(3, 6), vectors(3, 4, seed=5)
    whole = mixer(torch.cat([x, more], dim=1), Layout.plain(3, 10))[0][:, 6:]

    def cache(state):
        return Cache([state, None], state.length.clone())

    def go_on(cache, rows):
        y, _ = run(mixer, more[rows], [2, 1, 1], cache.layers[0], start=6)
        torch.testing.assert_close(y, whole[rows], rtol=0, atol=1e-10)

    def read(rows, room=0):
        return cache(run(mixer, x[rows], [4, 2], new_state(mixer, len(rows), room))[1])

    kept = read([0, 1, 2])
    before = kept.snapshot()
    go_on(kept.select(torch.tensor([2, 0, 0])), [2, 0, 0])
    go_on(read([0]).merge(read([2, 1], room=40)), [0, 2, 1])
    for part, rows in zip(kept.split([1, 2]), ([0], [1, 2]), strict=True):
        go_on(part, rows)
    kept.save(tmp_path / "prefix.safetensors")
    loaded = Cache.load(tmp_path / "prefix.safetensors")
    assert loaded.layers[1] is None and loaded.length.tolist() == [6, 6, 6] and loaded.num_bytes() == kept.num_bytes() > 0
    go_on(loaded, [0, 1, 2])
    for name, tensor in before.layers[0].tensors.items():
        assert torch.equal(kept.layers[0].tensors[name], tensor), "an operation changed the cache it was called on"
    for tensor in kept.layers[0].tensors.values():
        tensor[1] = torch.nan
    fresh = kept.reset(torch.tensor([False, True, False]))
    assert fresh.length.tolist() == [6, 0, 6]
    again = torch.stack([more[0, :2], x[1, :2], more[2, :2]])
    start = torch.tensor([6, 0, 6])
    y = mixer(again, Layout.plain(3, 2, start=start), fresh.layers[0])[0]
    alone = mixer(x[1:2, :2], Layout.plain(1, 2))[0][0]
    torch.testing.assert_close(y, torch.stack([whole[0, :2], alone, whole[2, :2]]), rtol=0, atol=1e-10)


@torch.no_grad()
def test_a_cropped_state_goes_on_from_there_or_says_that_it_cannot(mixer):
    x = vectors(2, 9)
    state = run(mixer, x, [9], new_state(mixer, 2))[1]
    cache, lengths = Cache([state], state.length), torch.tensor([6, 3])
    if is_recurrent(state):
        with pytest.raises(CheckpointError, match="recurrent state cannot be cropped; keep a snapshot"):
            cache.crop(lengths)
        return
    with pytest.raises(CheckpointError, match="holds 9 and 9 tokens, so it cannot be cropped to 6 and 10"):
        cache.crop(torch.tensor([6, 10]))
    cropped = cache.crop(lengths)
    assert cropped.length.tolist() == [6, 3] and cache.length.tolist() == [9, 9]
    other = vectors(2, 2, seed=8)
    y = mixer(other, Layout.plain(2, 2, start=lengths), cropped.layers[0])[0]
    for row, size in enumerate([6, 3]):
        whole = mixer(torch.cat([x[row : row + 1, :size], other[row : row + 1]], dim=1), Layout.plain(1, size + 2))[0][0]
        torch.testing.assert_close(y[row], whole[size:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_rows_that_go_on_from_one_prefix_share_it(mixer, tmp_path):
    x, more = vectors(1, 5, seed=3), vectors(4, 6, seed=4)
    state = run(mixer, x, [5], new_state(mixer, 1))[1]
    cache = Cache([state], state.length).fan_out(4)
    start = torch.full((4,), 5)
    ends = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.int32)
    layout = dataclasses.replace(Layout.plain(4, 3, start=start), document=ends)
    first = mixer(more[:, :3], layout, cache.layers[0])[0]
    sizes = ends.sum(1).long()
    cache = Cache(cache.layers, start + sizes)
    assert cache.layers[0].length.tolist() == [8, 8, 7, 6]
    chosen = torch.tensor([3, 0, 2, 2])
    branched = cache.select(chosen)
    apart = [cache.select(chosen).whole(), cache.select(chosen).merge(cache).split([4, 4])[0]]
    cache.select(chosen).save(tmp_path / "cache.safetensors")
    apart.append(Cache.load(tmp_path / "cache.safetensors"))
    wanted = []
    for row in range(4):
        source, size = int(chosen[row]), int(sizes[chosen[row]])
        whole = torch.cat([x, more[source : source + 1, :size], more[row : row + 1, 3:]], dim=1)
        y = mixer(whole, Layout.plain(1, whole.shape[1]))[0][0]
        torch.testing.assert_close(first[source, :size], y[5 : 5 + size], rtol=0, atol=1e-10)
        wanted.append(y[-3:])
    for kept in (branched, *apart):
        y = mixer(more[:, 3:], Layout.plain(4, 3, start=kept.length), kept.layers[0])[0]
        torch.testing.assert_close(y, torch.stack(wanted), rtol=0, atol=1e-10)
    if getattr(mixer, "shares_trunks", False):
        assert state.tensors["key"].data_ptr() == branched.layers[0].trunk["key"].data_ptr(), "the prefix was copied"


@torch.no_grad()
def test_memory_of_a_recurrent_state_does_not_grow_and_roles_are_known(mixer):
    small, large = (Cache([new_state(mixer, 2, room)], torch.zeros(2)).num_bytes() for room in (1, 1000))
    state = new_state(mixer, 2, 4)
    assert set(state.roles) == set(state.tensors) and set(state.roles.values()) <= {"kv", "recurrent", "conv"}
    assert all(len(tensor) == 2 and not tensor.any() for tensor in state.tensors.values())
    assert (small == large) == is_recurrent(state)
    end = run(mixer, vectors(2, 30), [10] * 3, state)[1]
    assert is_recurrent(end) is False or Cache([end], end.length).num_bytes() <= 2 * small


def test_layouts_that_a_recurrence_cannot_express_are_refused(mixer):
    if not is_recurrent(new_state(mixer, 1)):
        return
    plain = {"document": torch.ones(1, 4, dtype=torch.int32), "position": torch.arange(4)[None, :, None]}
    ones = torch.ones(1, 4, dtype=torch.long)
    for extra in ({"causal": False}, {"mutual": ones}, {"branch": ones}, {"allowed": torch.ones(1, 4, 4, dtype=torch.bool)}):
        if mixer.whole and extra == {"causal": False}:
            with pytest.raises(RecipeError, match="sees later tokens cannot go token by token"):
                mixer(vectors(1, 4), Layout(**plain, **extra), new_state(mixer, 1))
            continue
        order = " or whole documents" if mixer.whole else ""
        with pytest.raises(RecipeError, match=f"reads from left to right{order}: it cannot serve a layout with"):
            mixer(vectors(1, 4), Layout(**plain, **extra))


@pytest.mark.parametrize("name", sorted({"attention"} | WHOLE))
def test_what_sees_later_tokens_cannot_go_token_by_token(name):
    with pytest.raises(RecipeError, match=f"{name} with causal: false sees later tokens"):
        new_state(MIXERS.parse({"type": name, "num_heads": 2, "causal": False}).build(WIDTH), 1)


def test_whole_documents_are_read_apart_and_in_no_order(mixer):
    if not mixer.whole:
        return
    x, document = vectors(1, 11).requires_grad_(), torch.tensor([[1, 1, 1, 1, 0, 2, 2, 2, 2, 2, 0]]).int()
    position = torch.tensor([[[0], [1], [2], [3], [0], [0], [1], [2], [3], [4], [0]]])
    y = mixer(x, Layout(document, position, causal=False))[0]
    torch.testing.assert_close(y[:, :4], mixer(x[:, :4], Layout.plain(1, 4, causal=False))[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(y[:, 5:10], mixer(x[:, 5:10], Layout.plain(1, 5, causal=False))[0], rtol=0, atol=1e-10)
    pulled = torch.autograd.grad(y[0, 5].square().sum(), x)[0][0].abs().amax(-1)
    assert not pulled[:5].any() and not pulled[10] and pulled[[5, 6, 7]].all(), "the first token sees the next of its document, no others"


@pytest.mark.parametrize(("name", "over", "told"), [("attention", "row", "'row'"), ("tpe", ["row", "column"], "row, column")])
def test_what_goes_along_an_axis_cannot_go_token_by_token(name, over, told):
    with pytest.raises(RecipeError, match=f"{name} over {told} works on whole grids"):
        new_state(MIXERS.parse({"type": name, "num_heads": 2, "over": over}).build(WIDTH), 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "attention", "num_heads": 3}, "width 16 is not a multiple of num_heads 3; give head_size"),
        ({"type": "tpe", "num_heads": 3}, "tpe: width 16 is not a multiple of num_heads 3"),
        ({"type": "lightnet", "num_heads": 3}, "lightnet: width 16 is not a multiple of num_heads 3; give head_size"),
        ({"type": "transnormer", "num_heads": 3}, "width 16 is not a multiple of num_heads 3; give head_size"),
        ({"type": "mamba1", "expand": 0.05}, "expand 0.05 leaves nothing of width 16"),
        ({"type": "mamba2", "head_size": 7}, "inner width 32 .* is not a multiple of head_size 7"),
        ({"type": "mamba2", "head_size": 8, "num_groups": 3}, "num_groups 3 must divide the 4 heads"),
        ({"type": "mamba2", "head_size": 8, "norm_groups": 5}, "norm_groups 5 the inner width 32"),
    ],
)
def test_sizes_that_do_not_fit_are_told(config, message):
    with pytest.raises(RecipeError, match=message):
        MIXERS.parse(config).build(WIDTH)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deltanet", {"num_heads": 3, "num_key_heads": 2}, r"num_heads \(3\) must be a multiple of num_key_heads \(2\)"),
        ("deltanet", {"gated": True, "min_step": 0.5}, r"min_step \(0.5\) must be at most max_step \(0.1\)"),
        ("deltanet", {"min_step": 0.01}, "nothing decays without gated: true"),
        ("deltanet", {"output_norm": False, "norm_eps": 0.1}, "output_norm is false"),
        ("transnormer", {"rope": {}}, "rope needs lrpe: null"),
        ("lightnet", {"rope": {}}, "rope needs lrpe: null"),
        ("lightnet", {"output_gate": None, "gate_rank": 3}, "output_gate is null"),
        ("transnormer", {"block_size": 8}, "form is linear"),
        ("transnormer", {"form": "blocks", "feature": "elu"}, "form is blocks"),
        ("transnormer", {"form": "blocks", "norm_heads": True}, "scores are softmax, which has no norm"),
    ],
)
def test_options_that_do_not_fit_are_told(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS.parse({"type": name, **options})


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 3])
def test_a_prefix_read_in_both_directions_and_its_continuation_through_a_cache_are_the_whole(window):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mixer = MIXERS.parse({"type": "attention", "num_heads": 2, "window": window}).build(WIDTH).double()
    x, mutual = vectors(2, 9), torch.tensor([[1] * 4 + [0] * 5, [0, 2, 2, 0, 0, 0, 0, 0, 0]])
    whole = mixer(x, Layout(torch.ones(2, 9).int(), torch.arange(9).expand(2, 9)[..., None], mutual=mutual))[0]
    state = new_state(mixer, 2)
    first = Layout(torch.ones(2, 4).int(), torch.arange(4).expand(2, 4)[..., None], mutual=mutual[:, :4])
    parts = [mixer(x[:, :4], first, state)[0], run(mixer, x[:, 4:], [2, 3], state, start=4)[0]]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-10)


def test_an_expand_that_was_written_as_a_ratio_is_not_cut_short():
    assert 30 / 44 * 44 < 30
    assert MIXERS.parse({"type": "mamba2", "expand": 30 / 44, "head_size": 6}).build(44).inner == 30
    assert MIXERS.parse({"type": "mamba1", "expand": 30 / 44}).build(44).inner == 30
    assert MIXERS.parse({"type": "mamba1", "expand": 1.5}).build(5).inner == 7
