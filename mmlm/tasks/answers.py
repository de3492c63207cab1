"""What validation asks of a task that predicts classes of rows, however it reads them."""

# q rows to predict   c classes

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmlm.base.files import write_text_whole
from mmlm.data.episodes import Episode
from mmlm.model import MultimodalLM
from mmlm.tasks.base import UsualTask

PREDICTIONS = "predictions.txt"


class ClassAnswers(UsualTask):
    """Base of the tabular tasks. Subclasses give `predict_proba` and `shown`."""

    metrics: Sequence[str] = ("accuracy",)

    def predict_proba(self, model: MultimodalLM, problem: Episode) -> np.ndarray:
        """Probabilities [q, c] of the rows after the examples."""
        raise NotImplementedError

    def title(self, problem: Episode) -> str:
        """The column to predict, and from what."""
        return f"predict {problem.target!r}, {problem.num_shots} examples, classes {', '.join(problem.classes)}"

    def shown(self, problem: Episode) -> str:
        """A problem as the model reads it: the examples and the first row to predict."""
        raise NotImplementedError

    def predict(self, model: MultimodalLM, records: Sequence[Episode]) -> list[np.ndarray]:
        """Probabilities [q, c] for each task."""
        return [self.predict_proba(model, record) for record in records]

    def score(self, outputs: Sequence[np.ndarray], records: Sequence[Episode]) -> dict[str, float]:
        """accuracy: share of all rows to predict, over all tasks, whose most probable class is the true one."""
        right = [chance_qc.argmax(1) == record.labels[record.num_shots :] for chance_qc, record in zip(outputs, records, strict=True)]
        return {"accuracy": float(np.concatenate(right).mean())}

    def write_samples(self, model: MultimodalLM, records: Sequence[Episode], folder: Path) -> None:
        """predictions.txt: each task as the model reads it, then class, probability and truth of every row to predict."""
        parts = []
        for number, (chance_qc, record) in enumerate(zip(self.predict(model, records), records, strict=True), 1):
            classes, truth_q = [*record.classes, "another class"], record.labels[record.num_shots :]
            width = max(len("predicted"), *(len(name) for name in classes)) + 2
            parts += [f"sample {number}: {self.title(record)}", self.shown(record), "", f"row  {'predicted':{width}}probability  truth"]
            for row, (chance_c, label) in enumerate(zip(chance_qc, truth_q, strict=True), 1):
                best = int(chance_c.argmax())
                verdict = "" if best == label else "  (wrong)"
                parts.append(f"{row:<5}{classes[best]:{width}}{chance_c[best]:<13.3f}{classes[label]}{verdict}")
            parts.append("")
        write_text_whole(folder / PREDICTIONS, "\n".join(parts))
