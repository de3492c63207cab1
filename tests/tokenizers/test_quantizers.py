"""Quantizers: any first books decode, entries follow what they stand for, nothing is left unused, gradients pass."""

from __future__ import annotations

import math

import pytest
import torch

from mmlm.tokenizers.codec.simcodec import ReorganizedVQ
from mmlm.tokenizers.config import FsqConfig, LfqConfig, VqConfig
from mmlm.tokenizers.quantizers import FSQ, LFQ, Book, GroupedVQ, ResidualVQ, perplexity


def clouds(count=512, dim=8, places=16, seed=0):
    """Vectors around a few places."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(places, dim, generator=g) * 3
    return centres[torch.randint(places, (count,), generator=g)] + 0.1 * torch.randn(count, dim, generator=g), centres


def trained(quantizer, x_btd, steps=60):
    torch.manual_seed(1)
    quantizer.train()
    for _ in range(steps):
        quantizer(x_btd)
    return quantizer.eval()


def residual(num_books=4, size=16, dim=8, learned="ema", dropout=0.0):
    torch.manual_seed(0)
    return ResidualVQ(num_books, size, dim, learned=learned, decay=0.9, dropout=dropout)


def test_each_further_book_comes_nearer_and_codes_of_a_prefix_are_a_prefix_of_the_codes():
    x_btd = clouds(dim=8, places=200)[0].view(4, 128, 8)
    quantizer = trained(residual(), x_btd)
    codes = quantizer.encode(x_btd, 4)
    errors = [float((quantizer.decode(codes[..., :books]) - x_btd).square().mean()) for books in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.5 * errors[0]
    assert torch.equal(quantizer.encode(x_btd, 2), codes[..., :2])


def test_what_training_gives_is_what_encode_and_decode_give():
    x_btd = clouds()[0].view(4, 128, 8)
    quantizer = trained(residual(), x_btd)
    given, codes, parts = quantizer(x_btd)
    assert torch.equal(codes, quantizer.encode(x_btd, 4))
    torch.testing.assert_close(given, quantizer.decode(codes))
    assert parts.keys() == {"commitment"} and float(parts["commitment"][1]) == 4


def test_entries_find_the_places_where_vectors_lie_and_unused_ones_are_begun_anew():
    x_nd, centres = clouds(places=16)
    torch.manual_seed(0)
    book = Book(24, 8, decay=0.9)
    book(x_nd)
    book.vectors_sd[:12] = 100.0  # far from every vector
    book.sum_sd[:12] = 100.0 * book.count_s[:12, None]
    for _ in range(25):
        book(x_nd)
    assert int((book.vectors_sd.abs() > 50).any(1).sum()) == 0
    for _ in range(55):
        book(x_nd)
    found = torch.cdist(centres, book.vectors_sd).min(1).values
    assert float((found < 0.2).double().mean()) > 0.7
    book.eval()
    before = book.vectors_sd.clone()
    book(x_nd + 5)
    assert torch.equal(book.vectors_sd, before), "a book in use must not learn"


def test_the_running_mean_is_that_of_its_vectors():
    x_nd = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    book = Book(2, 1, decay=0.5)
    book(x_nd)  # begins
    book.vectors_sd.copy_(torch.tensor([[0.0], [10.0]]))
    book.count_s.fill_(2.0)
    book.sum_sd.copy_(book.vectors_sd * 2)
    book(x_nd)
    torch.testing.assert_close(book.vectors_sd, torch.tensor([[0.25], [10.5]]))  # (0 * 2 + 1) / 2 / 2, (20 + 22) / 2 / 2


def test_gradients_pass_straight_through_and_commitment_pulls_to_the_entry():
    x_btd = clouds()[0].view(4, 128, 8).requires_grad_()
    quantizer = residual(num_books=1)
    given, _, parts = quantizer.train()(x_btd)
    (through,) = torch.autograd.grad(given.sum(), x_btd, retain_graph=True)
    torch.testing.assert_close(through, torch.ones_like(x_btd))
    total, weight = parts["commitment"]
    (pull,) = torch.autograd.grad(total / weight, x_btd)
    torch.testing.assert_close(pull, 2 * (x_btd - given).detach() / x_btd.numel(), atol=1e-6, rtol=1e-4)


def test_with_dropout_some_sounds_are_quantized_by_the_first_books_alone():
    x_btd = clouds(count=64 * 8)[0].view(64, 8, 8)
    quantizer = trained(residual(dropout=0.5), x_btd).train()
    torch.manual_seed(0)
    given, codes, _ = quantizer(x_btd)
    prefixes = torch.stack([quantizer.decode(codes[..., :books]) for books in (1, 2, 3, 4)])
    # the books move a little after they were read, so the nearest prefix is asked for
    used = (prefixes - given).square().mean((2, 3)).argmin(0)
    assert 0.4 < float((used == 3).double().mean()) < 0.85 and set(used.tolist()) == {0, 1, 2, 3}


def test_a_book_learned_by_gradients_gets_them_from_the_codebook_loss_alone():
    x_btd = clouds()[0].view(4, 128, 8).requires_grad_()
    quantizer = residual(num_books=2, learned="gradient")
    _, _, parts = quantizer.train()(x_btd)
    assert parts.keys() == {"commitment", "codebook"}
    grads = torch.autograd.grad(parts["codebook"][0], [*quantizer.parameters(), x_btd], allow_unused=True, retain_graph=True)
    assert all(float(grad.abs().max()) > 0 for grad in grads[:2]) and grads[2] is None
    assert torch.autograd.grad(parts["commitment"][0], list(quantizer.parameters()), allow_unused=True) == (None, None)


def test_entries_of_groups_begin_as_vectors_and_those_of_a_book_learned_at_once_as_small_ones():
    z_btd = clouds()[0].view(4, 128, 8)
    groups, at_once = GroupedVQ(2, 16, 8).train(), residual(num_books=1, learned="gradient").train()
    groups(z_btd)
    at_once(z_btd)
    for book, part in zip(groups.books, z_btd.flatten(0, 1).chunk(2, -1), strict=True):
        assert float(torch.cdist(book.vectors_sd.detach(), part).min(1).values.max()) < 0.01
        assert book.vectors_sd.lr_scale == 10
    assert float(at_once.books[0].vectors_sd.detach().abs().max()) <= 1 / at_once.books[0].size


def test_groups_are_independent():
    x_btd = clouds()[0].view(4, 128, 8)
    torch.manual_seed(0)
    groups = GroupedVQ(2, 16, 8)
    other = x_btd.clone()
    other[..., :4] += torch.randn(4, 128, 4)
    codes, changed = groups.encode(x_btd, 2), groups.encode(other, 2)
    assert torch.equal(codes[..., 1], changed[..., 1]) and not torch.equal(codes[..., 0], changed[..., 0])
    assert torch.equal(groups.decode(codes)[..., 4:], groups.decode(changed)[..., 4:])
    assert groups(x_btd)[2].keys() == {"commitment", "codebook", "diversity"}


def test_diversity_falls_as_entries_part():
    book = Book(8, 8, learned="gradient")
    alike = float(book.diversity().detach())
    assert alike == pytest.approx(math.log(8), abs=0.2)
    with torch.no_grad():
        book.vectors_sd.copy_(2 * torch.eye(8))
    assert float(book.diversity().detach()) < 0.01


def test_the_reorganized_book_is_all_pairs_of_the_most_used_entries():
    torch.manual_seed(0)
    quantizer = ReorganizedVQ(8, (3, 2), 6, has_groups=True)
    first, second = quantizer.groups.books
    first.count_s.copy_(torch.tensor([0.0, 9, 1, 8, 0, 7, 2, 3]))
    second.count_s.copy_(torch.tensor([5.0, 0, 0, 0, 6, 0, 0, 1]))
    assert quantizer.sizes == [8, 8]
    quantizer.reorganize()
    book = quantizer.single.books[0].vectors_sd
    assert quantizer.sizes == [6]
    for i, one in enumerate((1, 3, 5)):
        for j, other in enumerate((4, 0)):
            assert torch.equal(book[2 * i + j], torch.cat([first.vectors_sd[one], second.vectors_sd[other]]))
    with torch.no_grad():
        first.vectors_sd.zero_()
    quantizer.reorganize()
    assert torch.equal(quantizer.single.books[0].vectors_sd, book), "the second stage begins once"


def test_where_all_entries_are_kept_reorganizing_changes_nothing_that_is_decoded():
    x_btd = torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)
    quantizer = ReorganizedVQ(4, (4, 4), 6, has_groups=True)
    with torch.no_grad():
        for book in quantizer.groups.books:
            book.vectors_sd.normal_()
    before = quantizer.decode(quantizer.encode(x_btd, 2))
    quantizer.reorganize()
    torch.testing.assert_close(quantizer.decode(quantizer.encode(x_btd, 1)), before)


def test_perplexity_of_known_shares():
    assert perplexity(torch.arange(8).repeat(3), 8) == pytest.approx(8)
    assert perplexity(torch.zeros(5, dtype=torch.long), 8) == pytest.approx(1)
    assert perplexity(torch.tensor([0, 0, 1, 2]), 4) == pytest.approx(math.exp(0.5 * math.log(2) + 0.5 * math.log(4)))


def test_entries_that_a_first_batch_does_not_use_stay_where_they_began() -> None:
    """Running means begin as if each entry had stood for its share of the batch; 64 vectors that are alike leave most entries unused."""
    vector = torch.tensor([1.0, -2.0, 3.0])
    book = Book(8, 3).train()
    book(vector.expand(64, 3))
    assert torch.allclose(book.vectors_sd, vector.expand(8, 3), atol=1e-5)


QUANTIZERS = {
    "one book": VqConfig(book_size=24),
    "three books": VqConfig(num_books=3, book_size=8),
    "fsq": FsqConfig(levels=[4, 3, 3]),
    "lfq": LfqConfig(bits=4),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_quantizer_says_its_sizes_decodes_what_it_trains_on_and_uses_its_codes(name) -> None:
    config, z_btd = QUANTIZERS[name], clouds(places=200)[0].view(4, 128, 8).requires_grad_()
    torch.manual_seed(0)
    quantizer = config.build(8).train()
    quantizer(z_btd)
    given_btd, codes_btu, parts = quantizer(z_btd)
    assert quantizer.sizes == config.sizes and list(parts) == list(quantizer.names)
    assert all(float(weight) == 4 for _, weight in parts.values())
    assert codes_btu.shape == (4, 128, len(config.sizes)) and codes_btu.dtype == torch.long
    assert all(
        int(codes_btu[..., number].min()) >= 0 and int(codes_btu[..., number].max()) < size for number, size in enumerate(config.sizes)
    )
    (grad,) = torch.autograd.grad(given_btd.square().sum(), z_btd)
    assert float(grad.abs().sum()) > 0
    with torch.no_grad():
        given_btd, codes_btu, _ = quantizer.eval()(z_btd)
        assert torch.equal(quantizer.encode(z_btd, len(config.sizes)), codes_btu)
        torch.testing.assert_close(quantizer.decode(codes_btu), given_btd)
    assert perplexity(codes_btu[..., 0], config.sizes[0]) > config.sizes[0] / 3


def plain(quantizer):
    """The same with nothing around it: what goes in is what is quantized."""
    width = quantizer.inner.out_features
    for layer in (quantizer.inner, quantizer.outer):
        layer.weight.data.copy_(torch.eye(width))
        layer.bias.data.zero_()
    return quantizer


def test_levels_and_their_numbers_are_those_worked_out_by_hand() -> None:
    quantizer = FSQ([5, 4], 2)
    levels = torch.tensor([[-2.0, -2.0], [2.0, -2.0], [-2.0, -1.0], [0.0, 0.0], [2.0, 1.0]])
    assert quantizer.numbers(levels).tolist() == [0, 4, 5, 12, 19]  # (first + 2) + 5 (second + 2)
    assert torch.equal(quantizer.values(torch.tensor([0, 4, 5, 12, 19])), levels)


@pytest.mark.parametrize("levels", [[3], [4], [8, 6, 5], [7, 5, 5, 5], [3, 3, 3, 3, 3, 3]])
def test_codes_and_levels_are_one_to_one(levels) -> None:
    quantizer = FSQ(levels, len(levels))
    every = torch.arange(math.prod(levels))
    values = quantizer.values(every)
    assert torch.equal(quantizer.numbers(values), every) and len(values.unique(dim=0)) == len(every)
    for column, size in zip(values.T, levels, strict=True):
        assert column.unique().tolist() == list(range(-(size // 2), size - size // 2))


@pytest.mark.parametrize("size", [3, 4, 5, 8, 16])
def test_a_channel_reaches_each_of_its_levels_and_none_beside_them(size) -> None:
    quantizer = FSQ([size], 1)
    found = quantizer.rounded(torch.linspace(-20, 20, 4001)[:, None]).round()
    assert found.unique().tolist() == list(range(-(size // 2), size - size // 2))
    assert float(quantizer.bounded(torch.zeros(1))) == pytest.approx(0, abs=1e-6)
    assert bool((found[1:] >= found[:-1]).all())


def test_gradients_pass_through_the_rounding_as_if_it_were_not_there() -> None:
    x_nk = torch.randn(64, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    quantizer = FSQ([8, 6, 5], 3)
    (through,) = torch.autograd.grad(quantizer.rounded(x_nk).sum(), x_nk)
    (smooth,) = torch.autograd.grad(quantizer.bounded(x_nk).sum(), x_nk)
    assert torch.equal(through, smooth) and float(smooth.min()) > 0
    signs = plain(LFQ(3, 3, temperature=1.0))(x_nk[None])[0]
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    (through,) = torch.autograd.grad(signs.sum(), x_nk)
    assert torch.equal(through, torch.ones_like(x_nk))


def test_bits_are_signs_the_first_channel_the_lowest() -> None:
    quantizer = LFQ(4, 4, temperature=1.0)
    x = torch.tensor([[-1.0, -2, -3, -4], [0.1, -1, -1, -1], [-1, 0.1, -1, -1], [5, -0.1, 0.1, -3], [1, 1, 1, 1]])
    assert quantizer.numbers(x).tolist() == [0, 1, 2, 5, 15]
    assert quantizer.signs(torch.tensor([5])).tolist() == [[1, -1, 1, -1]]
    every = torch.arange(1 << 12)
    quantizer = LFQ(12, 12, temperature=1.0)
    assert torch.equal(quantizer.numbers(quantizer.signs(every)), every)


def test_the_entropy_of_codes_is_that_of_a_softmax_over_their_distances() -> None:
    x_nk = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    quantizer = LFQ(4, 4, temperature=0.7)
    every_sk = quantizer.signs(torch.arange(16))
    p_ns = (-torch.cdist(x_nk, every_sk).square() / 0.7).softmax(-1)
    mean_s = p_ns.mean(0)
    expected = -(p_ns * p_ns.log()).sum(-1).mean() + (mean_s * mean_s.log()).sum()
    torch.testing.assert_close(quantizer.entropy(x_nk), expected)


def test_the_entropy_of_codes_is_lowest_where_each_is_sure_and_all_are_in_use() -> None:
    quantizer = LFQ(3, 3, temperature=1.0)
    spread, one = 10 * quantizer.signs(torch.arange(8)), 10 * quantizer.signs(torch.full((8,), 5))
    assert float(quantizer.entropy(spread)) == pytest.approx(-math.log(8), abs=1e-4)
    assert float(quantizer.entropy(one)) == pytest.approx(0, abs=1e-4)
    assert float(quantizer.entropy(torch.zeros(8, 3))) == pytest.approx(0, abs=1e-4)  # unsure, but of all alike
    wide = LFQ(11, 11, temperature=1.0)  # in groups of 8 and 3
    alone = quantizer.entropy(torch.randn(40, 3, generator=torch.Generator().manual_seed(1)))
    x_nk = torch.cat([torch.full((40, 8), 10.0), torch.randn(40, 3, generator=torch.Generator().manual_seed(1))], dim=1)
    torch.testing.assert_close(wide.entropy(x_nk), alone, atol=1e-4, rtol=1e-4)


def test_the_loss_of_entropy_brings_codes_into_use() -> None:
    z_btd = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(0)) + 4  # all on one side
    used = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        quantizer = LFQ(4, 8, temperature=1.0)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.03)
        for _ in range(150):
            parts = quantizer(z_btd)[2]
            loss = parts["commitment"][0] + weight * parts["entropy"][0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        used[weight] = perplexity(quantizer.encode(z_btd, 1), 16)
    assert used[0.0] < 4 and used[1.0] > 12, used


def test_without_entries_begun_anew_a_book_that_lies_far_away_collapses(monkeypatch) -> None:
    x_nd, _ = clouds(count=512, places=200)
    used = {}
    for dead in (0.0, 0.2):
        monkeypatch.setattr("mmlm.tokenizers.quantizers.DEAD", dead)
        torch.manual_seed(0)
        book = Book(64, 8, decay=0.9)
        book(x_nd)
        book.vectors_sd.copy_(50 + torch.randn(64, 8))  # far from every vector
        book.sum_sd.copy_(book.vectors_sd * book.count_s[:, None])
        for _ in range(80):
            book(x_nd)
        used[dead] = perplexity(book.nearest(x_nd), 64)
    assert used[0.0] < 5 and used[0.2] > 30, used
