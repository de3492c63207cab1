"""Enhancement of real speech after an hour of training: a mask beats the classical gate, and GenSE's two steps do what each is for.

English and Italian prompts of Asterisk, one voice each; a tenth, by text, is held out, and the English ones of it are measured. Training
hears white, pink and brown noise and French babble; tests add recorded noises (../shared beside the checkout; without it hum and Russian
babble) at 0 to 10 dB. The codec is trained here too, so its own loss is in all figures of GenSE: the baseline "the codec alone" tells it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train
from mmlm.tasks import gense

pytestmark = pytest.mark.quality
NOISES = Path(__file__).resolve().parents[3] / "shared" / "data" / "noise_rir"
RECORDED = f"{{type: noise_folder, path: {NOISES}}}"
OTHERS = "{type: generated, kinds: [hum]}, {type: babble, speech: {type: asterisk, languages: [ru]}}"
DATA = ["data.train.0.languages=[en, it]", "data.train.0.hold_out=0.1", "data.train.0.validate_share=0.03", "data.test=[]"]
QUICK = ["train.validate_every=0", "train.sample_every=0"]
BABBLE = "task.degrade.1.noises.1.speech.languages=[fr]"
MEASURED = ["data.train.0.languages=[en]", "data.test_samples=32"]  # of what is held out of English


def under(low_db: float, high_db: float) -> str:
    """What a finished run is measured under."""
    noises = RECORDED if NOISES.is_dir() else OTHERS
    return f"task.degrade_test=[{{type: add_noise, snr_db: [{low_db}, {high_db}], noises: [{noises}]}}]"


def mask_run(folder: Path) -> Path:
    train(Recipe.read("enhancement/mask", [*DATA, *QUICK, BABBLE, f"output={folder / 'mask'}"]))
    return folder / "mask"


def codec_run(folder: Path) -> Path:
    train(Recipe.read("codec/small", [*DATA, *QUICK, "train.steps=1500", f"output={folder / 'codec'}"]))
    return folder / "codec"


def units_run(folder: Path) -> Path:
    train(Recipe.read("enhancement/gense_units", [*DATA, *QUICK, BABBLE, f"output={folder / 'units'}"]))
    return folder / "units"


def codes_run(folder: Path, name: str = "codes", *overrides: str) -> Path:
    units, codec = units_run(folder), codec_run(folder)
    parts = [f"task.units_run={units}", f"tokenizers.units.path={units}", f"tokenizers.codec.path={codec}"]
    train(Recipe.read("enhancement/gense", [*DATA, *QUICK, BABBLE, *parts, *overrides, f"output={folder / name}"]))
    return folder / name


def measured(run: Path, *overrides: str, low_db: float = 0, high_db: float = 10) -> dict[str, dict[str, float]]:
    """{who: {metric: value}} on held-out English, printed."""
    found = evaluate(run, [under(low_db, high_db), *MEASURED, *overrides])
    rows = {"model": found["metrics"], **found["baselines"]}
    for who, row in rows.items():
        print(f"{run.name:<8} {who:<18}", ", ".join(f"{name} {value:.3f}" for name, value in row.items()))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("enhancement")


@pytest.fixture(scope="module")
def mask(folder):
    return measured(mask_run(folder))


@pytest.fixture(scope="module")
def codes(folder):
    return measured(codes_run(folder))


def test_the_mask_is_better_than_what_was_given_and_than_the_classical_gate(mask):
    model, given, gate = mask["model"], mask["what was given"], mask["spectral gate"]
    assert model["si_sdr_gain"] > max(gate["si_sdr_gain"], 0) and model["dnsmos_ovrl"] > given["dnsmos_ovrl"]
    assert model["stoi"] >= given["stoi"] - 0.01 and model["real_time_factor"] < 0.3


def test_the_first_step_brings_units_nearer_to_the_clean_ones(folder):
    rows = measured(units_run(folder))
    assert rows["model"]["unit_edit_distance"] <= 0.7 * rows["what was given"]["unit_edit_distance"]


def test_what_is_written_anew_sounds_better_than_what_was_given_and_than_mask_and_gate(codes, mask):
    model, given, gate = codes["model"], codes["what was given"], codes["spectral gate"]
    assert model["dnsmos_ovrl"] > given["dnsmos_ovrl"] + 0.3
    assert model["dnsmos_bak"] > gate["dnsmos_bak"]
    assert model["dnsmos_ovrl"] > mask["model"]["dnsmos_ovrl"]
    assert model["real_time_factor"] < 0.3


def test_what_is_said_is_not_lost_at_0_db(folder):
    rows = measured(codes_run(folder), "evaluate.judges=[words]", high_db=0)
    assert rows["model"]["wer"] <= rows["what was given"]["wer"]


def test_without_the_codes_of_what_was_given_the_voice_is_lost(folder):
    """Both for a quarter of the steps."""
    heard = {}
    for name, reads in (("short", "true"), ("voiceless", "false")):
        run = codes_run(folder, name, "train.steps=500", f"task.reads_codes={reads}")
        heard[name] = measured(run, "evaluate.judges=[voice]")["model"]["speaker_similarity"]
    assert heard["voiceless"] <= heard["short"] - 0.05


def test_without_the_first_step_more_words_are_lost(folder, codes, monkeypatch):
    """The same model, which is given noisy units in place of clean ones."""
    monkeypatch.setattr(gense, "write_units", lambda model, noisy, temperature, reading: list(noisy))
    assert measured(codes_run(folder), "evaluate.judges=[words]")["model"]["wer"] > codes["model"]["wer"]
