"""Pronunciations of unknown words, learned from a dictionary: a joint n-gram model over chunks of letters with their phones.

Each word of the dictionary is cut into pairs of a letter with up to two phones, or two letters with one. Expectation maximisation over all
cuts finds how likely each pair is, and the best cut of each word becomes a line of a text whose words are the pairs. An n-gram model of
that text with interpolated Kneser-Ney smoothing then gives the most likely pairs for the letters of a new word (beam search).
On held-out words of the CMU dictionary: tests/quality/test_letter_to_sound.py.
Sources: Bisani & Ney 2008 (joint-sequence models); Jiampojamarn et al. 2007 (many-to-many alignment); Chen & Goodman 1999, section 4.1.7
(Kneser-Ney). The n-grams lie in one table of nodes, so that a model is five arrays and loads at once.

Axes: i n-grams (node i + 1; node 0 is the empty one)   w words of one length   l letters   p phones   j hypotheses   g pairs
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from mmlm.base.errors import CheckpointError, DataError
from mmlm.base.files import parse_json
from mmlm.weights import read_tensors, write_tensors

FILE, PAIRS = "letter_to_sound.safetensors", "letter_to_sound.json"
ORDER = 7  # pairs that an n-gram spans
RARE_FROM, RARE = 5, 2  # n-grams of this order and longer need so many occurrences to be kept
ROUNDS = 6  # of expectation maximisation
BEAM = 16
SHAPES = ((1, 0), (1, 1), (1, 2), (2, 1))  # letters and phones of a pair
LONGEST = 40  # letters; longer words are cut

Pair = tuple[str, tuple[str, ...]]
BEGIN: Pair = ("<", ())
END: Pair = (">", ())


class LetterToSound:
    """Letters to phones. `fit` learns from (word, phones) pairs; `pronounce` is then defined for every word of known letters."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.keys_i = np.zeros(0, np.int64)  # node of the n-gram without its last pair, times the number of pairs, plus that pair; sorted
        self.shorter_i = np.zeros(0, np.int32)  # node of the n-gram without its first pair
        self.log_p_i = np.zeros(0, np.float32)
        self.log_backoff_i = np.zeros(0, np.float32)
        self._by_letters: dict[str, np.ndarray] = {}

    @property
    def is_fitted(self) -> bool:
        """Whether there is anything to go by."""
        return bool(self.pairs)

    @property
    def letters(self) -> set[str]:
        """The letters that it can read."""
        return {letter for letters, _ in self.pairs[2:] for letter in letters}

    def fit(self, entries: Iterable[tuple[str, Sequence[str]]]) -> LetterToSound:
        """Learn from words and their phones. Entries that no cut fits (more than two phones a letter) are left out."""
        lines = best_cuts(sorted({(word, tuple(phones)) for word, phones in entries}))
        if not lines:
            raise DataError("a letter-to-sound model needs words with their phones, but no entry can be cut into pairs of them.")
        alone = {letters for line in lines for letters, _ in line}
        lines += [[(letter, ())] for letter in sorted({letter for line in lines for letters, _ in line for letter in letters} - alone)]
        counts: dict[Pair, int] = {}
        for line in lines:
            for pair in line:
                counts[pair] = counts.get(pair, 0) + 1
        self.pairs = [BEGIN, END, *sorted(counts, key=lambda pair: (-counts[pair], pair))]
        number = {pair: at for at, pair in enumerate(self.pairs)}
        tokens = np.array([at for line in lines for at in (0, *(number[pair] for pair in line), 1)], np.int64)
        self._count(tokens)
        self._index()
        return self

    def pronounce(self, word: str) -> tuple[str, ...]:
        """The most likely phones of a word. Raises DataError naming a letter that the dictionary did not have."""
        if not self.is_fitted:
            raise DataError("the letter-to-sound model has not been fitted yet.")
        if unknown := sorted(set(word) - self.letters):
            raise DataError(
                f"{word!r} holds {unknown[0]!r}, which no word of the dictionary does; its letters: {''.join(sorted(self.letters))}."
            )
        word = word[:LONGEST]
        # hypotheses that have read the same number of letters: (log probability, node, pairs so far)
        open_at: list[list[tuple[float, int, tuple[int, ...]]]] = [[] for _ in range(len(word) + 1)]
        open_at[0] = [(0.0, int(self._child(np.zeros(1, np.int64), np.zeros(1, np.int64))[0]) + 1, ())]
        for at in range(len(word)):
            kept = _best(open_at[at])
            nodes_j = np.array([node for _, node, _ in kept], np.int64)
            for size in (1, 2):
                pairs_g = self._by_letters.get(word[at : at + size]) if at + size <= len(word) else None
                if pairs_g is None or not kept:
                    continue
                log_p_jg, next_jg = self._step(nodes_j, pairs_g)
                for (so_far, _, before), row_p, row_next in zip(kept, log_p_jg.tolist(), next_jg.tolist(), strict=True):
                    open_at[at + size] += [
                        (so_far + p, node, (*before, pair)) for p, node, pair in zip(row_p, row_next, pairs_g.tolist(), strict=True)
                    ]
        last = _best(open_at[-1])
        ends_j = self._step(np.array([node for _, node, _ in last], np.int64), np.array([1]))[0][:, 0]
        _, found = max((so_far + float(end), pairs) for (so_far, _, pairs), end in zip(last, ends_j, strict=True))
        return tuple(phone for pair in found for phone in self.pairs[pair][1])

    def save(self, folder: Path | str) -> None:
        """Write the pairs as JSON and the n-grams as safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PAIRS).write_text(json.dumps([[letters, list(phones)] for letters, phones in self.pairs]) + "\n")
        arrays = {"keys": self.keys_i, "shorter": self.shorter_i, "log_p": self.log_p_i, "log_backoff": self.log_backoff_i}
        write_tensors(folder / FILE, {name: torch.from_numpy(array) for name, array in arrays.items()})

    def load(self, folder: Path | str) -> LetterToSound:
        """Take what save wrote. Raises CheckpointError where it is missing or damaged."""
        folder = Path(folder)
        found = {name: tensor.numpy() for name, tensor in read_tensors(folder / FILE).items()}
        try:
            self.pairs = [(str(letters), tuple(map(str, phones))) for letters, phones in parse_json((folder / PAIRS).read_text())]
            self.keys_i, self.shorter_i = found["keys"], found["shorter"]
            self.log_p_i, self.log_backoff_i = found["log_p"], found["log_backoff"]
        except (OSError, ValueError, KeyError, TypeError):
            raise CheckpointError(f"{folder / PAIRS}: missing or damaged.") from None
        self._index()
        return self

    def _index(self) -> None:
        by_letters: dict[str, list[int]] = {}
        for at, (letters, _) in enumerate(self.pairs[2:], 2):
            by_letters.setdefault(letters, []).append(at)
        self._by_letters = {letters: np.array(numbers, np.int64) for letters, numbers in by_letters.items()}

    def _child(self, nodes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Index of the n-gram that continues a node by a pair, or -1."""
        keys = nodes * len(self.pairs) + pairs
        at = np.minimum(np.searchsorted(self.keys_i, keys), len(self.keys_i) - 1)
        return np.where(self.keys_i[at] == keys, at, -1)

    def _step(self, nodes_j: np.ndarray, pairs_g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log p of each pair after each node [j, g], and the nodes [j, g] that are then reached."""
        context = np.repeat(nodes_j, len(pairs_g))
        pairs = np.tile(pairs_g, len(nodes_j))
        log_p = np.zeros(len(context))
        reached = np.full(len(context), -1)
        todo = np.arange(len(context))
        while len(todo):
            found = self._child(context[todo], pairs[todo])
            hit = found >= 0
            done, missed = todo[hit], todo[~hit]
            log_p[done] += self.log_p_i[found[hit]]
            reached[done] = found[hit] + 1
            log_p[missed] += self.log_backoff_i[context[missed] - 1]
            context[missed] = self.shorter_i[context[missed] - 1]
            todo = missed
        shape = (len(nodes_j), len(pairs_g))
        return log_p.reshape(shape), reached.reshape(shape)

    def _count(self, tokens: np.ndarray) -> None:
        """All n-grams of the lines with their Kneser-Ney probabilities. tokens: pairs of all lines, each from BEGIN to END."""
        num_pairs, line = len(self.pairs), np.cumsum(tokens == 0)
        keys, counts, shorter, level_of = [], [], [], []
        nodes_at = [np.zeros(len(tokens), np.int64)]  # by order: node of the n-gram that begins at each token, -1 for none
        first = 1
        for order in range(1, ORDER + 1):
            before = nodes_at[-1]
            start = np.flatnonzero(before >= 0)
            start = start[start + order <= len(tokens)]
            start = start[line[start] == line[start + order - 1]]
            key, place, count = np.unique(before[start] * num_pairs + tokens[start + order - 1], return_inverse=True, return_counts=True)
            kept = count >= (RARE if order >= RARE_FROM else 1)
            new = np.where(kept, first + np.cumsum(kept) - 1, -1)
            nodes = np.full(len(tokens), -1)
            nodes[start] = new[place]
            tail = np.zeros(len(key), np.int64)
            if order > 1:
                tail[place] = before[start + 1]  # a part of a kept n-gram occurs at least as often, so it was kept too
            keys.append(key[kept])
            counts.append(count)
            shorter.append(tail[kept])
            level_of.append((key // num_pairs, kept))
            nodes_at.append(nodes)
            first += int(kept.sum())
        self.keys_i, self.shorter_i = np.concatenate(keys), np.concatenate(shorter).astype(np.int32)
        self._smooth(counts, level_of, [len(key) for key in keys])

    def _smooth(self, counts: list[np.ndarray], level_of: list[tuple[np.ndarray, np.ndarray]], sizes: list[int]) -> None:
        """Interpolated Kneser-Ney.

        counts: occurrences of the n-grams of each order, rare ones included.   level_of: their contexts, and which of them are kept.
        sizes: how many of each order are kept.
        """
        total = len(self.keys_i)
        p_i, backoff_i = np.zeros(total + 1), np.ones(total + 1)
        starts = np.cumsum([1, *sizes])
        for order, (count, (context, kept)) in enumerate(zip(counts, level_of, strict=True), 1):
            low, high = starts[order - 1], starts[order]
            weight = count.astype(np.float64)
            if order < len(counts):  # by how many different pairs it is preceded, but for what begins a line
                longer = slice(starts[order] - 1, starts[order + 1] - 1)
                preceded = np.bincount(self.shorter_i[longer], minlength=total + 1)[low:high]
                of_kept = np.where(preceded > 0, preceded, weight[kept])
                weight[kept] = of_kept
                weight[~kept] = 1
            once, twice = (weight == 1).sum(), (weight == 2).sum()
            discount = once / (once + 2 * twice) if once and twice else 0.5
            mass = np.bincount(context, weight, minlength=total + 1)
            share = np.where(kept, np.maximum(weight - discount, 0) / mass[context], 0.0)
            left = 1 - np.bincount(context, share, minlength=total + 1)
            has_children = mass > 0
            backoff_i[has_children] = np.maximum(left[has_children], 1e-9)
            below = p_i[self.shorter_i[low - 1 : high - 1]] if order > 1 else 1 / len(self.pairs)
            p_i[low:high] = share[kept] + backoff_i[context[kept]] * below
        self.log_p_i = np.log(p_i[1:]).astype(np.float32)
        self.log_backoff_i = np.log(backoff_i[1:]).astype(np.float32)


def _best(hypotheses: list[tuple[float, int, tuple[int, ...]]]) -> list[tuple[float, int, tuple[int, ...]]]:
    """The most likely ones, at most BEAM; of those with one node and the same phones to come, only the likeliest."""
    seen: dict[int, tuple[float, int, tuple[int, ...]]] = {}
    for each in sorted(hypotheses, reverse=True):
        seen.setdefault(each[1], each)
        if len(seen) == BEAM:
            break
    return list(seen.values())


def best_cuts(entries: Sequence[tuple[str, tuple[str, ...]]]) -> list[list[Pair]]:
    """The most likely cut of each entry into pairs of letters and phones; entries that cannot be cut are left out."""
    letters = {letter: at for at, letter in enumerate(sorted({letter for word, _ in entries for letter in word}), 1)}
    sounds = {phone: at for at, phone in enumerate(sorted({phone for _, phones in entries for phone in phones}), 1)}
    groups: dict[tuple[int, int], list[tuple[str, tuple[str, ...]]]] = {}
    for word, phones in entries:
        if 0 < len(word) <= LONGEST and 0 < len(phones) <= 2 * len(word):
            groups.setdefault((len(word), len(phones)), []).append((word, phones))
    base = (len(letters) + 1, len(sounds) + 1)
    lattices = []
    for size, group in sorted(groups.items()):
        letters_wl = np.array([[letters[letter] for letter in word] for word, _ in group])
        phones_wp = np.array([[sounds[phone] for phone in phones] for _, phones in group])
        lattices.append((size, _lattice(letters_wl, phones_wp, base)))
    occurs = np.zeros(base[0] ** 2 * base[1] ** 2, bool)
    for _, arcs in lattices:
        for code_w in arcs.values():
            occurs[code_w] = True
    number = np.cumsum(occurs, dtype=np.int32) - 1
    for _, arcs in lattices:
        arcs.update({place: number[code_w] for place, code_w in arcs.items()})
    p_g = np.full(int(occurs.sum()), 1 / max(int(occurs.sum()), 1))
    for _ in range(ROUNDS):
        count_g = np.zeros(len(p_g))
        for size, arcs in lattices:
            count_g += _expected(size, arcs, p_g)
        p_g = count_g / count_g.sum()
    lines = []
    for (size, arcs), (_, group) in zip(lattices, sorted(groups.items()), strict=True):
        lines += _viterbi(size, arcs, p_g, group)
    return lines


Arcs = dict[tuple[int, int, int], np.ndarray]  # (letters, phones before it, which of SHAPES): numbers of pairs [w]


def _lattice(letters_wl: np.ndarray, phones_wp: np.ndarray, base: tuple[int, int]) -> Arcs:
    """Every pair that could stand at every place of words with equal numbers of letters and phones. base: how many of both there are, with
    the one that stands for none."""
    arcs = {}
    none_w = np.zeros(len(letters_wl), np.int64)
    for letter in range(letters_wl.shape[1]):
        for phone in range(phones_wp.shape[1] + 1):
            for shape, (more, sounds) in enumerate(SHAPES):
                if letter + more <= letters_wl.shape[1] and phone + sounds <= phones_wp.shape[1]:
                    second_w = letters_wl[:, letter + 1] if more > 1 else none_w
                    code_w = letters_wl[:, letter] * base[0] + second_w
                    for at in range(2):
                        code_w = code_w * base[1] + (phones_wp[:, phone + at] if at < sounds else none_w)
                    arcs[letter, phone, shape] = code_w.astype(np.int32)
    return arcs


def _expected(size: tuple[int, int], arcs: Arcs, p_g: np.ndarray) -> np.ndarray:
    """How often each pair is used in a group of words, expected over all cuts (forward-backward)."""
    num_words = len(next(iter(arcs.values())))
    forward = np.zeros((size[0] + 1, size[1] + 1, num_words))
    backward = np.zeros_like(forward)
    forward[0, 0], backward[size] = 1, 1
    p_w = {place: p_g[pair_w] for place, pair_w in arcs.items()}
    for (letter, phone, shape), p in p_w.items():  # in order of letters, and no pair is without letters
        more, sounds = SHAPES[shape]
        forward[letter + more, phone + sounds] += forward[letter, phone] * p
    for (letter, phone, shape), p in reversed(p_w.items()):
        more, sounds = SHAPES[shape]
        backward[letter, phone] += backward[letter + more, phone + sounds] * p
    whole_w = np.maximum(forward[size], 1e-300)
    shares = [
        forward[letter, phone] * p * backward[letter + SHAPES[shape][0], phone + SHAPES[shape][1]] / whole_w
        for (letter, phone, shape), p in p_w.items()
    ]
    return np.bincount(np.concatenate(list(arcs.values())), np.concatenate(shares), len(p_g))


def _viterbi(size: tuple[int, int], arcs: Arcs, p_g: np.ndarray, group: Sequence[tuple[str, tuple[str, ...]]]) -> list[list[Pair]]:
    """The likeliest cut of each word of a group."""
    best = np.full((size[0] + 1, size[1] + 1, len(group)), -np.inf)
    came = np.full(best.shape, -1, np.int8)
    best[0, 0] = 0
    log_p_g = np.log(np.maximum(p_g, 1e-300))
    for (letter, phone, shape), pair_w in arcs.items():
        more, sounds = SHAPES[shape]
        there = (letter + more, phone + sounds)
        score_w = best[letter, phone] + log_p_g[pair_w]
        better_w = score_w > best[there]
        best[there][better_w], came[there][better_w] = score_w[better_w], shape
    lines = []
    for at, (word, phones) in enumerate(group):
        letter, phone, line = *size, []
        while letter and (shape := int(came[letter, phone, at])) >= 0:
            more, sounds = SHAPES[shape]
            line.append((word[letter - more : letter], phones[phone - sounds : phone]))
            letter, phone = letter - more, phone - sounds
        if letter == 0 and phone == 0:
            lines.append(line[::-1])
    return lines
