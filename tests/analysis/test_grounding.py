"""Measures of boxes and captions against values that were worked out on paper, and against the package that others report by."""

from __future__ import annotations

import numpy as np
import pytest

from mmlm.analysis.captions import bleu, cider, rouge_l
from mmlm.analysis.grounding import accuracy_at, around, grounded_f1, iou, last_word, lemma, recall_at
from mmlm.data.config import ScenesConfig
from mmlm.tokenizers.boxes import Grounded, Phrase

HERE, THERE, NEAR = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0), (0.0, 0.0, 0.4, 0.3)


def said(text: str, **boxes) -> Grounded:
    """A text whose words have boxes."""
    return Grounded(text, tuple(Phrase(text.index(word), text.index(word) + len(word), (box,)) for word, box in boxes.items()))


def test_iou_by_hand() -> None:
    assert iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7) and iou(HERE, NEAR) == pytest.approx(0.75)
    assert iou(HERE, THERE) == 0 and iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0 and iou((3, 3, 1, 1), (0, 0, 4, 4)) == 0


def test_accuracy_and_recall_by_hand() -> None:
    assert accuracy_at([HERE, None, NEAR, THERE], [HERE, HERE, HERE, HERE]) == 0.5
    assert accuracy_at([NEAR], [HERE], 0.75) == 0 and accuracy_at([], []) == 0
    assert recall_at([[THERE, HERE]], [[HERE]]) == 0 and recall_at([[THERE, HERE]], [[HERE]], 2) == 1
    both = [[HERE, THERE]]
    assert recall_at([[HERE]], both) == 1 and recall_at([[HERE]], both, is_merged=True) == 0
    assert recall_at([[(0, 0, 1, 0.9)]], both, is_merged=True) == 1 and around([HERE, THERE]) == (0, 0, 1, 1)


def test_f1_of_six_captions_worked_out_on_paper() -> None:
    """Right box; wrong box; a hallucinated word; a missed word; a word the reference says without a box; a class said twice."""
    pairs = [
        (said("a dog", dog=HERE), said("a dog", dog=NEAR)),
        (said("a dog", dog=THERE), said("a dog", dog=HERE)),
        (said("a cat and a dog", cat=HERE, dog=HERE), said("a dog", dog=HERE)),
        (said("a dog", dog=HERE), said("a dog and a bird", dog=HERE, bird=THERE)),
        (said("a dog on grass", dog=HERE, grass=THERE), said("a dog on grass", dog=HERE)),
        (Grounded("dog, dog", (Phrase(0, 3, (THERE,)), Phrase(5, 8, (HERE,)))), said("a dog", dog=HERE)),
    ]
    found = grounded_f1([one for one, _ in pairs], [other for _, other in pairs])
    # precision: dog 1 0 1 1 1 and 0 1 of the last = 5/7; cat is no class of the references; classes are dog and bird
    # recall: dog 1 0 1 1 1 and 0 (the first one said counts) = 4/6; bird 0 in all, left out in loc
    assert found.precision_all == pytest.approx(5 / 7 / 2) and found.recall_all == pytest.approx(4 / 6 / 2)
    assert found.precision_loc == pytest.approx(5 / 7 / 2) and found.recall_loc == pytest.approx(4 / 6 / 2)
    cats = grounded_f1([said("a cat and a dog", cat=HERE, dog=HERE)] * 2, [said("a dog", dog=HERE), said("a cat", cat=HERE)])
    assert cats.precision_all == pytest.approx(0.5) and cats.precision_loc == 1.0 and cats.recall_all == 1.0


def test_classes_are_the_last_words_in_the_singular() -> None:
    assert [last_word(each) for each in ("two large Circles", "crosses.", "a red bus", "")] == ["circle", "cross", "bus", ""]
    assert [lemma(each) for each in ("boxes", "ponies", "glass", "dishes")] == ["box", "pony", "glass", "dish"]


def test_captions_by_hand() -> None:
    assert bleu(["the cat sat"], [["the cat sat"]], 2) == pytest.approx(1, abs=1e-6)
    assert bleu(["the the"], [["the cat"]], 1) == pytest.approx(0.5, abs=1e-6)
    assert bleu(["the"], [["the cat"]], 1) == pytest.approx(np.exp(-1), rel=1e-5)
    assert rouge_l(["a b c d"], [["a c d"]]) == pytest.approx(2.44 * 0.75 * 1 / (1 + 1.44 * 0.75))
    assert cider(["a b"], [["a b"]]) == 0  # of one picture there is no frequency to go by
    assert cider(["a dog runs", "x y"], [["a dog runs"], ["a cat sleeps"]]) == pytest.approx(10 * 3 / 4 / 2)  # no words of four in a row


def test_captions_as_the_package_measures_them() -> None:
    ciders = pytest.importorskip("pycocoevalcap.cider.cider_scorer")
    bleus = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    from mmlm.analysis.captions import words_of

    rng, scenes = np.random.default_rng(0), ScenesConfig(max_things=5, radii=[0.05, 0.08, 0.1]).build()

    def caption() -> str:
        return scenes.record(int(rng.integers(10**6))).captions[0].text

    for _ in range(50):
        references = [[caption() for _ in range(int(rng.integers(1, 4)))] for _ in range(12)]
        found = [caption() if rng.random() < 0.5 else each[0][: int(rng.integers(1, 60))] for each in references]
        plain = [(" ".join(words_of(one)), [" ".join(words_of(each)) for each in others]) for one, others in zip(found, references)]
        cider_of, bleu_of = ciders.CiderScorer(n=4, sigma=6.0), bleus.BleuScorer(n=4)
        for pair in plain:
            cider_of += pair
            bleu_of += pair
        assert cider(found, references) == pytest.approx(cider_of.compute_score()[0], abs=1e-6)
        theirs = bleu_of.compute_score(option="closest", verbose=0)[0]
        assert [bleu(found, references, n) for n in (1, 2, 3, 4)] == pytest.approx(theirs, abs=1e-6)
        assert rouge_l(found, references) == pytest.approx(np.mean([rouge.Rouge().calc_score([a], b) for a, b in plain]), abs=1e-6)
