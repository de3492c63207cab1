"""What a codec keeps of speech after minutes of training: intelligibility, every book counts, the codes decide, a large book in use.

English prompts of Asterisk, one real voice; one in ten is held out. STOI and PESQ are of held-out prompts of at least a second.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.sound import Sound
from mmlm.tokenizers.codec.griffin_lim import mel_griffin_lim
from mmlm.tokenizers.codec.quantizers import perplexity

pytestmark = pytest.mark.quality
pystoi, pesq = pytest.importorskip("pystoi"), pytest.importorskip("pesq")
ENGLISH = ["data.train.0.languages=[en]", "data.train.0.hold_out=0.1", "train.validate_every=0", "train.sample_every=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def trained(folder, name, *overrides):
    """(codec, held-out sounds) of a run of a shipped recipe on English."""
    recipe = Recipe.read(f"codec/{name}", [*ENGLISH, f"output={folder / str(len(list(folder.iterdir())))}", *overrides])
    train(recipe)
    _, task, _ = load_run(recipe.output)
    held_out = recipe.data.train[0].build().held_out_records()
    sounds = [each.sound(16000) for each in held_out.everything() if each.seconds >= 1][:40]
    return task.codec, sounds


@pytest.fixture(scope="module")
def small(folder):
    return trained(folder, "small")


def stoi(sounds, others):
    return float(np.mean([pystoi.stoi(one.wave_n, other.wave_n, 16000) for one, other in zip(sounds, others, strict=True)]))


def pesq_wb(sounds, others):
    return float(np.mean([pesq.pesq(16000, one.wave_n, other.wave_n, "wb") for one, other in zip(sounds, others, strict=True)]))


def test_speech_at_3_2_kbit_is_intelligible_and_every_further_book_helps(small):
    codec, sounds = small
    found = []
    for books in (1, 2, 4, 8):
        decoded = codec.decode_many(codec.encode_many(sounds, books))
        found.append((stoi(sounds, decoded), pesq_wb(sounds, decoded)))
    print("\nbooks 1, 2, 4, 8:", ", ".join(f"STOI {one:.3f} PESQ {other:.2f}" for one, other in found))
    assert [one for one, _ in found] == sorted(one for one, _ in found)
    assert [other for _, other in found] == sorted(other for _, other in found)
    assert found[-1][0] >= 0.92


def test_codes_in_another_order_say_nothing(small):
    codec, sounds = small
    g = torch.Generator().manual_seed(0)
    segments = codec.encode_many(sounds)
    for segment in segments:
        segment.ids = segment.ids[torch.randperm(len(segment), generator=g)]
    assert stoi(sounds, codec.decode_many(segments)) < 0.4


def test_it_is_better_than_mel_frames_and_griffin_lim_at_as_many_frames(small):
    codec, sounds = small
    classical = [mel_griffin_lim(sound, codec.hop) for sound in sounds]
    decoded = codec.decode_many(codec.encode_many(sounds))
    print(f"\nGriffin-Lim STOI {stoi(sounds, classical):.3f} PESQ {pesq_wb(sounds, classical):.2f}")
    assert stoi(sounds, decoded) > stoi(sounds, classical) and pesq_wb(sounds, decoded) > pesq_wb(sounds, classical)


def test_a_reorganized_book_is_in_use_where_one_learned_at_once_is_not(folder):
    """The same steps, losses and size of the book; what differs is stage one. Reconstruction must not be worse."""
    short = ["train.steps=600"]
    joined, sounds = trained(folder, "simcodec", *short)
    direct = "tokenizers.codec={type: single_codec, kept: [32, 32], stage_one: 0.0}"
    weights = "train.loss_weights={mel: 2, complex: 0, codebook: 1, commitment: 0.25}"
    at_once, _ = trained(folder, "simcodec", *short, direct, weights)
    used, far = [], []
    for codec in (joined, at_once):
        segments = codec.encode_many(sounds)
        used.append(perplexity(torch.cat([segment.ids for segment in segments]), 1024))
        far.append(_mel(codec.decode_many(segments), sounds))
    print(f"\nperplexity of 1024: reorganized {used[0]:.0f}, at once {used[1]:.0f}; mel distance {far[0]:.3f}, {far[1]:.3f}")
    assert used[0] >= 2 * used[1] and far[0] <= far[1]


def _mel(decoded: list[Sound], sounds: list[Sound]) -> float:
    from mmlm.objectives.audio import mel_distance

    pairs = zip(decoded, sounds, strict=True)
    return float(np.mean([float(mel_distance(torch.tensor(a.wave_n)[None], torch.tensor(b.wave_n)[None], 16000)) for a, b in pairs]))
