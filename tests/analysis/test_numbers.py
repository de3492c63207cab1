"""How near predicted numbers come to true ones."""

from mmlm.analysis.numbers import r2


def test_of_constant_truth_either_everything_or_nothing_is_explained():
    """The mean of three times 0.1 is not 0.1 in floating point."""
    assert r2([0.1, 0.1, 0.1], [0.1, 0.1, 0.1]) == 1 and r2([0.1, 0.1, 0.2], [0.1, 0.1, 0.1]) == 0
    assert r2([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]) == 0.5
