"""Labels at the tokens of a generated sequence: what tells mixers apart.

Axes: t tokens of a sequence
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmlm.base.files import write_text_whole
from mmlm.data.config import ProbeConfig
from mmlm.data.probes.base import NONE, Labelled
from mmlm.model import MultimodalLM
from mmlm.stream import NO_LABEL, Segment, Stream, pack, unpack
from mmlm.tasks.answers import PREDICTIONS
from mmlm.tasks.base import UsualTask
from mmlm.tasks.config import LabelsConfig

TOKEN = "token"
BINS = 16
SHOWN = 32  # tokens in a line for people


class LabelsTask(UsualTask):
    """Streams of one segment, whose labels are ids of the same range as its tokens."""

    features: Mapping[str, int] = {}
    tokenizers: Mapping[str, Any] = {}
    metrics: Sequence[str] = ("accuracy", "exact")
    over = "tokens back to what decides the answer"
    asks = None

    def __init__(self, config: LabelsConfig, tokenizers: Mapping[str, Any]) -> None:
        self.config = config
        self.vocabulary: Mapping[str, int] = {TOKEN: 1}

    def meet(self, sources: Sequence[ProbeConfig]) -> None:
        """Take the vocabulary from the sources of a recipe: it holds what any of them writes."""
        self.vocabulary = {TOKEN: max(source.vocabulary_size for source in sources)}

    def example(self, record: Labelled, rng: np.random.Generator) -> Stream:
        """The sequence; loss where there is a label."""
        labels = np.where(record.labels == NONE, NO_LABEL, record.labels)
        segment = Segment(TOKEN, torch.from_numpy(record.tokens), weight=1.0, labels=torch.from_numpy(labels))
        return Stream([segment])

    def title(self, record: Labelled) -> str:
        """How long it is and how much is asked."""
        return f"{len(record.tokens)} tokens, {len(record.asked)} of them with a label"

    def shown(self, record: Labelled) -> str:
        """Tokens in lines, the labels beneath."""
        return "\n".join(_lines({"tokens": record.tokens, "labels": record.labels}))

    @torch.no_grad()
    def predict(self, model: MultimodalLM, records: Sequence[Labelled]) -> list[np.ndarray]:
        """The likeliest label [t] at every token that has one, NONE elsewhere."""
        found: list[np.ndarray] = []
        for part in self._parts(records):
            batch = pack([self.example(record, np.random.default_rng(0)) for record in part], model.vocabulary).to(model.device)
            h_btd, _ = model.hidden(batch)
            for record, h_td in zip(part, unpack(h_btd, batch.layout), strict=True):
                said = np.full(len(record.tokens), NONE)
                at = torch.from_numpy(record.asked).to(h_td.device)
                said[record.asked] = model.heads["language_model"].predict(h_td[at], model.vocabulary.span(TOKEN)).argmax(-1).cpu().numpy()
                found.append(said)
        return found

    def _parts(self, records: Sequence[Labelled]) -> Iterator[list[Labelled]]:
        part: list[Labelled] = []
        for record in records:
            if part and sum(len(each.tokens) for each in [*part, record]) > self.config.tokens_at_once:
                yield part
                part = []
            part.append(record)
        if part:
            yield part

    def score(self, outputs: Sequence[np.ndarray], records: Sequence[Labelled]) -> dict[str, float]:
        """accuracy: share of right labels.   exact: share of sequences with all labels right."""
        right = [said[record.asked] == record.labels[record.asked] for said, record in zip(outputs, records, strict=True)]
        return {"accuracy": float(np.concatenate(right).mean()), "exact": float(np.mean([each.all() for each in right]))}

    def baselines(self, records: Sequence[Labelled]) -> dict[str, dict[str, float]]:
        """What the commonest label everywhere would reach."""
        counts = Counter(label for record in records for label in record.labels[record.asked].tolist())
        best = counts.most_common(1)[0][0]
        return {"commonest label": self.score([np.where(record.labels == NONE, NONE, best) for record in records], records)}

    def curves(self, outputs: Sequence[np.ndarray], records: Sequence[Labelled]) -> dict[str, list[tuple[float, float]]]:
        """Accuracy over the reach of a label, in bins of as many labels each."""
        right = np.concatenate([said[record.asked] == record.labels[record.asked] for said, record in zip(outputs, records, strict=True)])
        reach = np.concatenate([record.reach[record.asked] for record in records])
        order = np.argsort(reach, kind="stable")
        bins = [part for part in np.array_split(order, BINS) if len(part)]
        return {"accuracy": [(float(reach[part].mean()), float(right[part].mean())) for part in bins]}

    def write_samples(self, model: MultimodalLM, records: Sequence[Labelled], folder: Path) -> None:
        """predictions.txt: each sequence with its labels and what the model said."""
        parts = []
        for number, (said, record) in enumerate(zip(self.predict(model, records), records, strict=True), 1):
            parts += [f"sample {number}: {self.title(record)}"]
            parts += [*_lines({"tokens": record.tokens, "labels": record.labels, "said": said}), ""]
        write_text_whole(folder / PREDICTIONS, "\n".join(parts))


def _lines(rows: Mapping[str, np.ndarray]) -> list[str]:
    """Numbers under one another, SHOWN in a line, a dot for none."""
    length = len(next(iter(rows.values())))
    wide = max(len(str(value)) for row in rows.values() for value in row[row != NONE].tolist())
    lines = []
    for start in range(0, length, SHOWN):
        for name, row in rows.items():
            cells = [("." if value == NONE else str(value)).rjust(wide) for value in row[start : start + SHOWN].tolist()]
            lines.append(f"{name:<7} {' '.join(cells)}")
    return lines
