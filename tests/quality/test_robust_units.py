"""Robust units: half as many edits under stretching, pitch, rooms and noise, and no less of the phones than k-means tells.

The recipe units/robust on the English prompts of Asterisk, measured on the twelfth that was held out, with phones by forced alignment. Each
held-out prompt is changed twice by each augmentation alone. Purity is of the clean prompts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data.alignment import Alignment, PhoneAligner
from mmlm.data.speech import Utterance
from mmlm.evaluation.units import frame_phones, unit_edit_distance, unit_quality
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.tokenizers.config import PhonemesConfig

pytestmark = pytest.mark.quality
TIMES = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    """By k-means and after training: edit distances by augmentation, their mean, purity, information and perplexity."""
    folder = tmp_path_factory.mktemp("robust")
    train(Recipe.read("units/robust", [f"output={folder}"]))
    return measured(folder)


def with_alignments(utterances: Sequence[Utterance]) -> list[tuple[Utterance, Alignment]]:
    aligner, found = PhoneAligner(PhonemesConfig().build().fit([])), []  # which has rules for names such as Digium
    for utterance in utterances:
        with contextlib.suppress(DataError):
            found.append((utterance, aligner.align(utterance.sound(), utterance.text)))
    return found


def measured(folder: Path) -> dict[str, dict[str, float]]:
    recipe, task, model = load_run(folder)
    utterances = recipe.data.train[0].build().held_out_records().everything()
    aligned = with_alignments(utterances)
    assert len(aligned) > 0.9 * len(utterances) > 25
    rate, encoder = float(task.units.encoder.rate_hz), task.units.encoder
    kinds: dict[str, list[list[np.ndarray]]] = {"k-means": [], "robust": []}
    for place, (utterance, _) in enumerate(aligned):
        clean = utterance.sound(16_000)
        changes = [(name, number) for name in task.singles for number in range(TIMES)]
        rngs = [np.random.default_rng([place, number, at]) for at, (_, number) in enumerate(changes)]
        sounds = [clean, *(task.singles[name](clean, rng)[0] for (name, _), rng in zip(changes, rngs, strict=True))]
        frames = list(encoder.frames(sounds, batch_size=len(sounds)))
        for kind, rounds in (("k-means", 0), ("robust", None)):
            kinds[kind].append([model.units(each, rounds).numpy() for each in frames])
    found = {}
    for kind, units in kinds.items():
        clean = [each[0] for each in units]
        spans = [[(phone.symbol, start, phone.end_seconds - start) for phone, start in timed(alignment.phones)] for _, alignment in aligned]
        quality = unit_quality(clean, [frame_phones(phones, len(unit_t), rate) for phones, unit_t in zip(spans, clean, strict=True)])
        distances = {}
        for at, name in enumerate(task.singles):
            pairs = [(each[0], each[1 + TIMES * at + number]) for each in units for number in range(TIMES)]
            distances[name] = unit_edit_distance(*zip(*pairs, strict=True))
        mean = float(np.mean(list(distances.values())))
        found[kind] = {**distances, "mean": mean, **vars(quality)}
        print(kind, {name: round(value, 4) for name, value in found[kind].items()})
    return found


def timed(phones: list) -> list:
    """Each phone with its start."""
    return list(zip(phones, [0.0, *(phone.end_seconds for phone in phones)], strict=False))


def test_units_are_steadier_and_tell_no_less(found: dict[str, dict[str, float]]) -> None:
    kmeans, robust = found["k-means"], found["robust"]
    assert robust["mean"] <= 0.6 * kmeans["mean"]
    assert all(robust[name] < kmeans[name] for name in ("time_stretch", "pitch_shift", "room", "add_noise"))
    assert robust["phone_purity"] >= kmeans["phone_purity"]
    assert robust["pnmi"] >= 0.95 * kmeans["pnmi"]
    assert robust["perplexity"] >= 0.8 * kmeans["perplexity"]
