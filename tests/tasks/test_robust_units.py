"""Robust units: whose units are learned from what, when the rounds change, and a run from recordings to units that load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.data.audio_files import write_sound
from mmlm.data.speech import Utterance
from mmlm.encoders.config import LogMelConfig
from mmlm.recipe import Recipe
from mmlm.run import evaluate, load_run, train
from mmlm.sound import Sound
from mmlm.tasks.config import RobustUnitsConfig
from mmlm.tasks.robust_units import FramePairs, RobustUnitsTask, Steady
from mmlm.tokenizers.config import UnitsConfig
from mmlm.tokenizers.units import UnitTokenizer

for package in ("torchaudio", "soundfile", "rapidfuzz", "librosa"):
    pytest.importorskip(package)


def tones(seed: int, seconds: float = 0.8) -> Sound:
    """Notes of 0.1 s from a scale of six, a little noisy."""
    rng = np.random.default_rng(seed)
    hertz_n = np.repeat(300 * 1.4 ** rng.integers(6, size=round(seconds * 10)), 1600)
    wave_n = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz_n) / 16_000) + 0.003 * rng.normal(size=len(hertz_n))
    return Sound(wave_n.astype(np.float32), 16_000)


@pytest.fixture(scope="module")
def task() -> RobustUnitsTask:
    units = UnitTokenizer(UnitsConfig(num_units=6, fit_frames=1000, encoder=LogMelConfig(num_bands=12, context=0)))
    units.fit([tones(seed) for seed in range(20)])
    return RobustUnitsTask(RobustUnitsConfig(hidden=16, context=1, keep=0.5), {"units": units})


def test_a_sound_is_told_as_units(task: RobustUnitsTask) -> None:
    sound = tones(5)
    (found,) = task.answer(task.learner(0).model, {"audio": sound.at(8000)})
    units = task.units.encode(sound.at(8000).at(16_000)).ids
    assert found["frames"]["units"] == units.tolist() and len(units) / sound.seconds == pytest.approx(
        found["frames"]["frames_a_second"], 0.1
    )
    assert found["units"] == " ".join(str(int(each)) for each in torch.unique_consecutive(units))


def pairs(task: RobustUnitsTask) -> tuple[list[torch.Tensor], list[torch.Tensor], FramePairs]:
    clean = list(task.units.encoder.frames([tones(1), tones(2, 0.5)]))
    changed = list(task.units.encoder.frames([tones(3, 1.0), tones(4, 0.6)]))
    batch = FramePairs(torch.cat(clean), list(map(len, clean)), torch.cat(changed), list(map(len, changed)))
    return clean, changed, batch


def test_the_string_of_the_clean_sound_is_asked_of_the_changed_one(task: RobustUnitsTask) -> None:
    learner = task.learner(seed=0)
    learner.begin_step(0, 10)
    clean, changed, batch = pairs(task)
    losses, model = learner(batch), learner.model
    ctc, keep = 0.0, 0.0
    for before, after in zip(clean, changed, strict=True):
        units = task.units.units(before)  # those of k-means
        wanted = torch.unique_consecutive(units)
        log_p = model.classifiers[0]([task.units.normalized(after)]).log_softmax(-1)
        ctc += float(torch.nn.functional.ctc_loss(log_p, wanted, (len(after),), (len(wanted),), blank=6, reduction="sum"))
        keep += float(torch.nn.functional.cross_entropy(model.classifiers[0]([task.units.normalized(before)]), units, reduction="sum"))
    assert ctc > 0 and float(losses["ctc"][0]) == pytest.approx(ctc, rel=1e-4)
    assert float(losses["keep"][0]) == pytest.approx(0.5 * keep, rel=1e-4)
    assert {name: float(weight) for name, (_, weight) in losses.items()} == learner.loss_weights(batch)
    assert learner.loss_weights(batch) == {"ctc": 80.0, "keep": 65.0} and batch.num_tokens == 80


def test_each_round_learns_from_the_one_before_with_a_fresh_classifier(task: RobustUnitsTask) -> None:
    learner = task.learner(seed=0)
    _, _, batch = pairs(task)
    seen = []
    for step in range(4):
        learner.begin_step(step, 4)
        learner.zero_grad()
        losses = learner(batch)
        (losses["ctc"][0] + losses["keep"][0]).backward()
        seen.append([each.layers[0].weight.grad is not None for each in learner.model.classifiers])
    assert seen == [[True, False], [True, False], [False, True], [False, True]]
    learner.begin_step(2, 4)
    told = learner.model.units(batch.clean_tf[:40], 1)
    assert torch.equal(told, learner.model.classifiers[0].units(learner.model.normalized(batch.clean_tf[:40])))
    assert not torch.equal(learner.model.classifiers[0].layers[0].weight, learner.model.classifiers[1].layers[0].weight)
    assert torch.equal(learner.model.classifiers[0].layers[0].weight, task.learner(seed=0).model.classifiers[0].layers[0].weight)


def test_units_that_collapse_do_not_win(task: RobustUnitsTask) -> None:
    records = [Utterance(str(seed), "here", held=tones(seed)) for seed in range(3)]
    same = [Steady(np.zeros(40, dtype=int), dict.fromkeys(task.singles, np.zeros(30, dtype=int)))] * 3
    found = task.score(same, records)
    assert found["unit_edit_distance"] == 0 and found["perplexity"] == 1 and found["guarded_distance"] == 100
    honest = task.baselines(records)["k-means"]
    assert honest["perplexity"] > 3 and honest["unit_edit_distance"] > 0
    assert set(found) == set(task.metrics)


def test_how_a_record_is_changed_depends_on_it_alone(task: RobustUnitsTask) -> None:
    learner = task.learner(seed=0)
    records = [Utterance(str(seed), "here", held=tones(seed)) for seed in range(2)]
    one, other = task.predict(learner.model, records), task.predict(learner.model, records[::-1])[::-1]
    for first, second in zip(one, other, strict=True):
        assert np.array_equal(first.clean_t, second.clean_t)
        assert all(np.array_equal(first.changed[name], second.changed[name]) for name in task.singles)
    assert set(one[0].changed) == {"time_stretch", "pitch_shift", "room", "add_noise"}


@pytest.mark.slow
def test_from_recordings_to_units_that_load(tmp_path: Path) -> None:
    import mmlm

    lines = []
    for seed in range(12):
        write_sound(tmp_path / f"{seed}.wav", tones(seed))
        lines.append(json.dumps({"audio": f"{seed}.wav", "text": f"number {seed}"}))
    (tmp_path / "list.jsonl").write_text("\n".join(lines) + "\n")
    recipe = Recipe.read(
        {
            "schema": 1,
            "name": "tiny",
            "output": str(tmp_path / "run"),
            "task": {"type": "robust_units", "seconds": 0.5, "hidden": 16},
            "data": {
                "train": [{"type": "speech_manifest", "path": str(tmp_path / "list.jsonl"), "hold_out": 0.3, "validate_share": 0.2}],
                "validate_samples": 2,
            },
            "tokenizers": {"units": {"type": "units", "num_units": 6, "encoder": {"type": "log_mel", "num_bands": 12, "context": 0}}},
            "train": {
                "steps": 4,
                "batch_size": 2,
                "validate_every": 2,
                "sample_every": 4,
                "keep_best": {"metric": "guarded_distance", "mode": "min"},
            },
        }
    )
    result = train(recipe)
    assert result.step == 4 and result.best is not None
    _, task, model = load_run(tmp_path / "run")
    units = UnitsConfig(path=str(tmp_path / "run")).build()
    assert units.classifier is not None and units.fingerprint == task.units.fingerprint
    frames = next(iter(units.encoder.frames([tones(5)])))
    assert torch.equal(units.encode(tones(5)).ids, model.units(frames))
    assert mmlm.encoder(tmp_path / "run").encode([tmp_path / "1.wav"]).shape == (1, 12)
    assert "by k-means" in (tmp_path / "run" / "samples" / "step_000004" / "units.txt").read_text()
    metrics = evaluate(tmp_path / "run")
    assert metrics["metrics"]["unit_edit_distance"] >= 0 and metrics["baselines"]["k-means"]["perplexity"] > 1


def test_what_the_task_cannot_train_is_told() -> None:
    with pytest.raises(RecipeError, match="unknown tokenizer 'units'"):
        RobustUnitsTask(RobustUnitsConfig(), {})
    with pytest.raises(RecipeError, match=r"tokenizers\.units: the task robust_units trains units"):
        RobustUnitsTask(RobustUnitsConfig(), {"units": object()})
