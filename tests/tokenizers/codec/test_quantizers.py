"""Quantizers: any first books decode, entries follow what they stand for, nothing is left unused, gradients pass."""

from __future__ import annotations

import math

import pytest
import torch

from mmlm.tokenizers.codec.quantizers import Book, GroupedVQ, ResidualVQ, perplexity
from mmlm.tokenizers.codec.simcodec import ReorganizedVQ


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
