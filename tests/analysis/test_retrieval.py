"""Retrieval and zero-shot naming against worked examples: perfect, by chance, ties, texts that several pictures share."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from mmlm.analysis.retrieval import Ranking, class_vectors, retrieval, zero_shot
from mmlm.base.errors import DataError


def test_perfect_scores_find_everything_and_equal_ones_what_chance_finds():
    texts = [f"text {number}" for number in range(20)]
    held = [[text] for text in texts]
    found = retrieval(np.eye(20), held, texts)
    assert all(found[f"{way}_r{most}"] == 100 for way in ("i2t", "t2i") for most in (1, 5, 10)) and found["i2t_median"] == 1
    found = retrieval(np.zeros((20, 20)), held, texts)
    assert found["i2t_r1"] == pytest.approx(5) and found["t2i_r5"] == pytest.approx(25) and found["mean_r1"] == pytest.approx(5)
    assert found["t2i_median"] == pytest.approx(10.5)


def test_a_score_that_is_no_number_finds_nothing_and_is_told():
    scores = np.array([[1.0, 0.0], [np.nan, np.nan]])
    with pytest.raises(DataError, match="query 1: has a score that is no number"):
        retrieval(scores, [["a"], ["b"]], ["a", "b"])


def test_random_scores_find_k_of_n():
    rng, texts = np.random.default_rng(0), [str(number) for number in range(400)]
    found = retrieval(rng.normal(size=(400, 400)), [[text] for text in texts], texts)
    for most in (1, 5, 10):
        share = most / 400
        error = 100 * np.sqrt(share * (1 - share) / 400)
        assert abs(found[f"i2t_r{most}"] - 100 * share) < 3 * error and abs(found[f"t2i_r{most}"] - 100 * share) < 3 * error


def test_a_text_belongs_to_every_picture_that_has_the_same():
    held, texts = [["a dog", "a pet"], ["a dog"], ["a cat"]], ["a dog", "a pet", "a cat"]
    scores = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.2], [0.0, 0.3, 0.7]])
    found = retrieval(scores, held, texts)
    assert found["i2t_r1"] == pytest.approx(200 / 3)  # the second picture finds "a pet" first, which is not its own
    assert found["t2i_r1"] == pytest.approx(200 / 3)  # "a pet" finds the second picture; "a dog" may find either of two


def test_a_share_of_hits_among_ties_is_the_mean_over_their_orders():
    scores, belongs = np.array([[3.0, 2.0, 2.0, 2.0, 1.0]]), np.array([[False, True, False, True, False]])
    ranking = Ranking(scores, belongs)
    for most in (1, 2, 3, 4):
        hits = []
        for order in permutations([1, 2, 3]):
            first = [0, *order, 4][:most]
            hits.append(bool(belongs[0][first].any()))
        assert ranking.recall(most) == pytest.approx(100 * np.mean(hits))
    best = [min([0, *order, 4].index(place) for place in (1, 3)) + 1 for order in permutations([1, 2, 3])]
    assert ranking.median_rank == pytest.approx(np.mean(best))
    with pytest.raises(DataError, match="query 1: nothing belongs to it"):
        Ranking(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_classes_are_named_by_the_mean_direction_of_their_sentences():
    vectors = class_vectors(np.array([[[2.0, 0.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 1.0]]]))
    np.testing.assert_allclose(vectors, [[0.5**0.5, 0.5**0.5], [0.0, 1.0]], atol=1e-12)
    scores = np.array([[1.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = zero_shot(scores, [0, 1, 1, 2])
    assert found["zero_shot_1"] == 75 and found["zero_shot_5"] == 100 and found["zero_shot_class"] == pytest.approx(250 / 3)


def test_texts_of_a_large_collection_are_matched_without_comparing_each_with_each():
    class Counted(str):
        asked = 0

        def __hash__(self):
            Counted.asked += 1
            return str.__hash__(self)

        def __eq__(self, other):
            return str.__eq__(self, other)

    texts = [Counted(number) for number in range(300)]
    retrieval(np.eye(300), [[text] for text in texts], texts)
    assert Counted.asked < 10 * 300
