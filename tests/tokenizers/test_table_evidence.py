"""What one column says about the class: measured on the other example rows alone."""

import numpy as np

from mmlm.data.tables import Column
from mmlm.tokenizers.table_evidence import evidence, num_evidence

BANDWIDTHS = [0.05, 0.2]


def columns(rng, rows):
    numbers = rng.normal(size=rows)
    numbers[3] = np.nan
    return [Column("n", "number", numbers), Column("c", "category", rng.integers(0, 3, rows).astype(float), ["x", "y", "z"])]


def test_it_equals_the_formula_written_out():
    rng = np.random.default_rng(0)
    made, labels = columns(rng, 9), np.array([0, 1, 2, 0, 1, 2])
    found = evidence(made, labels, 3, 5, BANDWIDTHS)
    assert found.shape == (9, 2, num_evidence(BANDWIDTHS, 5))
    values = made[0].values
    known = np.sort(values[:6][~np.isnan(values[:6])])
    rank = np.array([np.nan if np.isnan(v) else ((known < v).mean() + (known <= v).mean()) / 2 for v in values])
    for row in range(9):
        others = [j for j in range(6) if j != row]
        prior = np.array([sum(labels[j] == k for j in others) + 0.5 for k in range(3)])
        prior /= prior.sum()
        for column in range(2):
            for place, bandwidth in enumerate(BANDWIDTHS):
                if column:
                    weight = {j: float(made[1].values[j] == made[1].values[row]) for j in others}
                elif np.isnan(rank[row]):
                    weight = {j: float(np.isnan(rank[j])) for j in others}
                else:
                    weight = {j: 0.0 if np.isnan(rank[j]) else np.exp(-0.5 * ((rank[row] - rank[j]) / bandwidth) ** 2) for j in others}
                mass = sum(weight.values())
                share = np.array([sum(w for j, w in weight.items() if labels[j] == k) + prior[k] for k in range(3)]) / (mass + 1)
                mine = found[row, column, place * 8 : place * 8 + 8]
                np.testing.assert_allclose(mine[:3], np.log(share / prior), atol=1e-5)
                assert (mine[3:5] == 0).all()
                np.testing.assert_allclose(mine[5], np.log(share / prior)[labels[row]] if row < 6 else 0, atol=1e-5)
                np.testing.assert_allclose(mine[7], np.log1p(mass) / 3, atol=1e-5)


def test_no_query_row_and_no_own_label_enters_and_classes_may_be_renumbered():
    rng = np.random.default_rng(1)
    made, labels = columns(rng, 12), np.array([0, 1, 1, 0, 2, 2, 1, 0])
    found = evidence(made, labels, 3, 3, BANDWIDTHS)
    cut = [Column(c.name, c.kind, c.values[:9], c.words) for c in made]
    np.testing.assert_array_equal(evidence(cut, labels, 3, 3, BANDWIDTHS), found[:9])
    other = labels.copy()
    other[0] = 2
    changed = evidence(made, other, 3, 3, BANDWIDTHS)
    np.testing.assert_array_equal(changed[0, :, [0, 1, 2, 5, 6, 7]][:, :], found[0, :, [0, 1, 2, 5, 6, 7]] * 1.0)
    assert np.abs(changed[1:] - found[1:]).max() > 0.01
    turn = np.array([2, 0, 1])
    np.testing.assert_allclose(evidence(made, turn[labels], 3, 3, BANDWIDTHS)[:, :, turn], found[:, :, :3], atol=1e-6)


def test_many_columns_in_pieces_give_what_each_gives_alone(monkeypatch):
    rng = np.random.default_rng(2)
    made, labels = columns(rng, 10) * 3, np.array([0, 1, 0, 1])
    whole = evidence(made, labels, 2, 2, BANDWIDTHS)
    monkeypatch.setattr("mmlm.tokenizers.table_evidence.MAX_WEIGHTS", 50)
    np.testing.assert_array_equal(evidence(made, labels, 2, 2, BANDWIDTHS), whole)
