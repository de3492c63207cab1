"""What can be answered from a question alone: a linear classifier of its words and pairs of words, learned from other questions.

A model of pictures that does no better has learned what is asked, and not to look. Source of the baseline: VQA, arXiv:1505.00468, whose
question-only model is this one with an embedding; answers that were never seen cannot be given.

Axes: n questions   w words and pairs   a answers
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS, RATE, DECAY = 150, 0.05, 1e-4
WORDS = re.compile(r"[a-z0-9]+")


class QuestionPrior:
    """Learned from questions and their answers, as texts, of which there must be some. The same for the same questions."""

    def __init__(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        self.known = {word: place for place, word in enumerate(sorted({word for each in questions for word in _words(each)}))}
        self.answers = sorted(set(answers))
        x_nw = self._features(questions)
        true_n = torch.tensor([self.answers.index(each) for each in answers])
        self.weight_aw = torch.zeros(len(self.answers), len(self.known) + 1, requires_grad=True)
        optimizer = torch.optim.Adam([self.weight_aw], lr=RATE)
        with torch.enable_grad():
            for _ in range(STEPS):
                loss = F.cross_entropy(x_nw @ self.weight_aw.T, true_n) + DECAY * self.weight_aw.square().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.weight_aw = self.weight_aw.detach()

    def __call__(self, questions: Sequence[str]) -> list[str]:
        """The likeliest answer to each."""
        return [self.answers[place] for place in (self._features(questions) @ self.weight_aw.T).argmax(1).tolist()]

    def _features(self, questions: Sequence[str]) -> Tensor:
        """[n, w + 1]: which are in a question, and 1."""
        x_nw = torch.zeros(len(questions), len(self.known) + 1)
        x_nw[:, -1] = 1
        for row, question in enumerate(questions):
            for word in _words(question):
                if word in self.known:
                    x_nw[row, self.known[word]] = 1
        return x_nw


def _words(question: str) -> set[str]:
    said = WORDS.findall(question.lower())
    return {*said, *(f"{one} {other}" for one, other in zip(said, said[1:], strict=False))}
