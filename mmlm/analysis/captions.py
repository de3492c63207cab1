"""How near captions come to reference captions: BLEU, ROUGE-L, CIDEr-D.

Texts are compared as words in small letters without punctuation. Values equal those of the package pycocoevalcap on the same words.

Sources: BLEU, Papineni et al. 2002, with the closest reference length; ROUGE-L, Lin 2004, with beta = 1.2; CIDEr-D, arXiv:1411.5726, of
n-grams of 1 to 4, with clipped counts and a penalty of sigma = 6 for another length, times 10. Its document frequencies come from the
references: of fewer than about 50 pictures they mean little.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

NGRAM = 4
SIGMA = 6.0
BETA = 1.2
TINY, SMALL = 1e-15, 1e-9


def words_of(text: str) -> list[str]:
    """Words in small letters, without punctuation."""
    return re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))


def bleu(found: Sequence[str], references: Sequence[Sequence[str]], n: int = NGRAM) -> float:
    """BLEU-n of all captions together."""
    guess, correct = np.zeros(n), np.zeros(n)
    length = wanted = 0
    for text, truths in zip(found, references, strict=True):
        said, true = words_of(text), [words_of(each) for each in truths]
        length += len(said)
        wanted += min((abs(len(each) - len(said)), len(each)) for each in true)[1]
        for k in range(n):
            counts = _ngrams(said, k + 1)
            most: Counter[tuple[str, ...]] = Counter()
            for each in true:
                most |= _ngrams(each, k + 1)
            guess[k] += max(len(said) - k, 0)
            correct[k] += sum((counts & most).values())
    score = float(np.prod((correct + TINY) / (guess + SMALL)) ** (1 / n))
    ratio = (length + TINY) / (wanted + SMALL)
    return score * math.exp(1 - 1 / ratio) if ratio < 1 else score


def rouge_l(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean ROUGE-L: the longest common subsequence with the best of the references."""
    scores = []
    for text, truths in zip(found, references, strict=True):
        said = words_of(text)
        pairs = [(_common(said, true), len(true)) for true in map(words_of, truths)]
        precision = max((common / len(said) for common, _ in pairs), default=0.0) if said else 0.0
        recall = max((common / size for common, size in pairs if size), default=0.0)
        both = recall + BETA**2 * precision
        scores.append((1 + BETA**2) * precision * recall / both if precision and recall else 0.0)
    return float(np.mean(scores)) if scores else 0.0


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for at, theirs in enumerate(other, 1):
            before, row[at] = row[at], before + 1 if word == theirs else max(row[at], row[at - 1])
    return row[-1]


def cider(found: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D."""
    true = [[[_ngrams(words_of(text), n + 1) for n in range(NGRAM)] for text in texts] for texts in references]
    frequency: Counter[tuple[str, ...]] = Counter()
    for texts in true:
        frequency.update({ngram for text in texts for counts in text for ngram in counts})
    log_count = math.log(max(len(true), 1))

    def vectors(counts: Sequence[Counter[tuple[str, ...]]]) -> list[dict[tuple[str, ...], float]]:
        return [{ngram: times * (log_count - math.log(max(1, frequency[ngram]))) for ngram, times in each.items()} for each in counts]

    scores = []
    for text, texts in zip(found, true, strict=True):
        words = words_of(text)
        said = vectors([_ngrams(words, n + 1) for n in range(NGRAM)])
        total = 0.0
        for counts in texts:
            penalty = math.exp(-((_length(words, 2) - max(sum(counts[1].values()), 0)) ** 2) / (2 * SIGMA**2))
            total += penalty * float(np.mean([_clipped_cosine(one, other) for one, other in zip(said, vectors(counts), strict=True)]))
        scores.append(10 * total / max(len(texts), 1))
    return float(np.mean(scores)) if scores else 0.0


def _length(words: Sequence[str], n: int) -> int:
    """The number of n-grams, by which the package compares lengths."""
    return max(len(words) - n + 1, 0)


def _clipped_cosine(said: dict[tuple[str, ...], float], true: dict[tuple[str, ...], float]) -> float:
    dot = sum(min(value, true[ngram]) * true[ngram] for ngram, value in said.items() if ngram in true)
    sizes = math.sqrt(sum(value**2 for value in said.values())) * math.sqrt(sum(value**2 for value in true.values()))
    return dot / sizes if sizes else 0.0
