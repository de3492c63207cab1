"""GenSE as two runs: what each step reads and writes, where it stands, that lengths hold, files through both, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmlm.base.errors import CheckpointError, RecipeError
from mmlm.data.audio_files import read_sound, write_sound
from mmlm.enhancing import enhance
from mmlm.layout import EVERYTHING
from mmlm.model import MultimodalLM
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, evaluate, load_run, train
from mmlm.sound import Sound
from mmlm.stages import SoFar
from mmlm.stream import pack, positions, unpack
from mmlm.tasks import gense
from mmlm.tasks.gense import MASK, SPECIAL, UNIT, Reading, read_units, units_stream, write_units
from tests.tasks.untrained import save_codec

for package in ("soundfile", "soxr", "rapidfuzz"):
    pytest.importorskip(package)

SIZES = "width: 16, encoder_blocks: 1, decoder_blocks: 1, fine_blocks: 1, latent_size: 8, hop: 160, window: 320, mel_bands: 20"
CODEC = f"{{type: single_codec, group_size: 8, kept: [4, 4], {SIZES}}}"
SHARED = """
schema: 1
name: NAME
output: OUTPUT/NAME
seed: 3
task: TASK
data:
  train: [{type: speech_folder, path: FOLDER, hold_out: 0.2, validate_share: 0.2, split_by: utterance}]
  validate_samples: 3
tokenizers: TOKENIZERS
train: {steps: 4, batch_size: 2, lr: 2e-3, log_every: 2, checkpoint_every: 4, validate_every: 4, sample_every: 4}
"""
DECODER = """
backbone: {width: 16, num_layers: 2, pattern: [{type: attention, num_heads: 2}]}
heads: HEADS
"""
UNITS_HEAD, CODES_HEAD = "{language_model: {type: language_model, ranges: [unit]}}", "{codes: {type: codebooks}}"
NOISY = "degrade: [{type: add_noise, snr_db: [0, 0], noises: [{type: generated, kinds: [white]}]}], seconds: 0.4, reach_seconds: 0.06"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("gense"), np.random.default_rng(0)
    for number in range(12):
        time = np.arange(8000 + 37 * number) / 16000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 40 * number) * time) * (1 + np.sin(30 * time)) / 2 + 0.01 * rng.normal(size=len(time))
        write_sound(path / "sounds" / f"{number:02}.wav", Sound(wave.astype(np.float32), 16000))
    return path


def recipe(place, name, task, tokenizers, *overrides, decoder=""):
    text = SHARED.replace("TASK", task).replace("TOKENIZERS", tokenizers).replace("FOLDER", str(place / "sounds"))
    text = (text + DECODER.replace("HEADS", decoder) if decoder else text).replace("NAME", name).replace("OUTPUT", str(place))
    return Recipe.read(text, overrides)


def units_recipe(place, name="units", *overrides):
    return recipe(place, name, f"{{type: gense_units, {NOISY}}}", "{units: {type: units, num_units: 8}}", *overrides, decoder=UNITS_HEAD)


def codes_recipe(place, name="codes", *overrides):
    units = f"units: {{type: units, path: {place}/units}}"
    codec = f"codec: {{type: single_codec, path: {place}/codec}}"
    task = f"{{type: gense_codes, units_run: {place}/units, base: 64, {NOISY}}}"
    return recipe(place, name, task, f"{{{units}, {codec}}}", *overrides, decoder=CODES_HEAD)


@pytest.fixture(scope="module")
def runs(place):
    """Three runs: codec, units, codes."""
    train(recipe(place, "codec", "{type: codec, seconds: 0.2, windows: [128, 256]}", f"{{codec: {CODEC}}}"))
    train(units_recipe(place))
    train(codes_recipe(place))
    return place


def records(run):
    return load_run(run)[0].data.train[0].build().held_out_records().everything()


def test_the_first_step_puts_clean_units_where_the_noisy_ones_stand_and_writes_as_many(runs):
    _, task, model = load_run(runs / "units")
    stream = task.example(records(runs / "units")[0], np.random.default_rng(0))
    noisy, begin, clean = stream.segments
    assert [segment.modality for segment in stream.segments] == [UNIT, SPECIAL, UNIT]
    assert len(noisy) == len(clean) > 20 and len(begin) == 1
    place = positions(stream)
    assert torch.equal(place[0], place[2]) and place[0][:, 0].tolist() == list(range(len(noisy)))
    assert (noisy.weight, begin.weight, clean.weight) == (0.0, 0.0, 1.0)
    assert noisy.hidden is None
    drawn = [task.example(records(runs / "units")[0], np.random.default_rng(seed)).segments[-1] for seed in range(20)]
    shares = [float(each.hidden.float().mean()) for each in drawn]
    assert min(shares) < 0.3 and max(shares) > 0.8 and 0.3 < np.mean(shares) < 0.7  # each sample draws its own
    prompts = [torch.randint(0, 8, (count,), generator=torch.Generator().manual_seed(count)) for count in (5, 1, 17)]
    assert [len(each) for each in write_units(model, prompts, 1.0)] == [5, 1, 17]


def test_units_that_are_read_in_one_pass_are_those_that_would_be_written_next(runs):
    _, task, model = load_run(runs / "units")
    assert task.reading == Reading(3, both_ways=True)
    noisy_t = torch.randint(0, 8, (12,), generator=torch.Generator().manual_seed(0))
    for reading in (Reading(), Reading(3), Reading(both_ways=True), Reading(3, both_ways=True)):
        written_t = write_units(model, [noisy_t], 0.0, reading)[0]
        assert torch.equal(read_units(model, noisy_t, written_t, reading), written_t)
        other_t = (written_t + 1) % 8
        other_t[:6] = written_t[:6]
        assert torch.equal(read_units(model, noisy_t, other_t, reading)[:7], written_t[:7])


@pytest.mark.parametrize("both_ways", [False, True])
def test_what_was_given_is_read_in_both_directions_where_asked(runs, both_ways):
    _, task, _ = load_run(runs / "units")
    assert task.reading.both_ways  # the default
    recipe = units_recipe(runs, "ways", f"task.both_ways={str(both_ways).lower()}")
    torch.manual_seed(0)
    task, noisy_t = build_task(recipe), torch.arange(8)
    model = build_model(recipe, task).double().eval()

    def hidden(units_t):
        return model.hidden(pack([units_stream(units_t, torch.arange(8), reading=task.reading)], model.vocabulary))[0][0]

    changed_t = (hidden(noisy_t) - hidden(torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]))).abs().amax(1) > 1e-9
    assert bool(changed_t[0]) is both_ways and bool(changed_t[7])


@pytest.mark.parametrize("both_ways", [False, True])
def test_units_and_codes_that_are_given_are_read_in_both_directions_where_asked(runs, both_ways):
    task = build_task(codes_recipe(runs, "ways", f"task.both_ways={str(both_ways).lower()}"))
    stream = task.example(records(runs / "codes")[0], np.random.default_rng(0))
    groups = [each.mutual for each in stream.segments]
    assert groups == ([1, 1, 0, 2, 0] if both_ways else [0, 0, 0, 0, 0])


def test_a_clean_token_is_made_from_what_is_near_its_time_alone(runs):
    """In one layer, as a second one hears of further tokens through nearer ones."""
    _, task, _ = load_run(runs / "units")
    recipe = units_recipe(runs, "near", "backbone.num_layers=1")
    torch.manual_seed(0)
    model = build_model(recipe, task).double().eval()
    g = torch.Generator().manual_seed(0)
    noisy_t, clean_t = (torch.randint(0, 8, (20,), generator=g) for _ in range(2))
    other_t = noisy_t.clone()
    other_t[12] = (other_t[12] + 1) % 8

    def hidden(units_t, reach):
        batch = pack([units_stream(units_t, clean_t, reading=Reading(reach))], model.vocabulary)
        return unpack(model.hidden(batch)[0], batch.layout)[0][20:]  # row k predicts clean unit k

    changed = (hidden(noisy_t, 3) - hidden(other_t, 3)).abs().amax(1)[:20] > 1e-9
    assert changed.nonzero()[:, 0].tolist() == list(range(9, 16))
    assert ((hidden(noisy_t, None) - hidden(other_t, None)).abs().amax(1)[:20] > 1e-9).all()


def test_the_second_step_puts_everything_at_its_time_and_the_clean_behind_the_base(runs):
    _, task, _ = load_run(runs / "codes")
    stream = task.example(records(runs / "codes")[0], np.random.default_rng(0))
    assert [segment.modality for segment in stream.segments] == [UNIT, UNIT, SPECIAL, "codec", "codec"]
    place = [each[:, 0] for each in positions(stream)]
    count = len(place[0])
    assert place[0].tolist() == [2 * at for at in range(count)]  # 50 units, 100 codes a second
    assert torch.equal(place[1], place[0] + 64) and torch.equal(place[4], place[3] + 64)
    assert place[3].tolist() == list(range(len(place[3]))) and abs(len(place[3]) - 2 * count) <= 1
    assert [segment.weight for segment in stream.segments] == [0.0, 0.0, 0.0, 0.0, 1.0]
    assert stream.segments[-1].hidden.shape == stream.segments[-1].ids.shape and all(each.hidden is None for each in stream.segments[:-1])
    without = codes_recipe(runs, "without", "task.reads_codes=false")
    stream = build_task(without).example(records(runs / "codes")[0], np.random.default_rng(0))
    assert [segment.modality for segment in stream.segments] == [UNIT, UNIT, SPECIAL, "codec"]


def test_of_a_codec_with_several_books_each_is_written_a_step_later(runs):
    save_codec(runs / "two")
    made = codes_recipe(runs, "delayed", f"tokenizers.codec={{type: small_codec, path: {runs}/two}}", "task.code_dropout=0.5")
    train(made)
    _, task, model = load_run(runs / "delayed")
    pairs = [task.pair(record) for record in records(runs / "delayed")]
    clean, noisy = ([each.ids for each in task.units.encode_many(sounds)] for sounds in zip(*pairs, strict=True))
    given = [each.ids for each in task.codec.encode_many([sound for _, sound in pairs])]
    written = task.write_codes(model, list(zip(noisy, clean, strict=True)), given)
    for units, true, codes, found in zip(noisy, clean, given, written, strict=True):
        assert found.shape == codes.shape and codes.shape[1] == 2
        stream = task.stream((units, true), codes, task.part.forward(found))
        assert positions(stream)[-1][:, 0].tolist() == list(range(64, 64 + len(codes) + 1))
        batch = pack([stream], model.vocabulary)
        (h_td,) = unpack(model.hidden(batch)[0], batch.layout)
        for book in range(2):  # the query of step s writes step s + 1, in which book k has frame s + 1 - k
            best = model.heads["codes"].predict(h_td, f"codec.{book}").argmax(-1)[-len(codes) - 2 + book :][: len(codes)]
            assert best.tolist() == found[:, book].tolist()
    for seed in range(12):
        clean = task.example(records(runs / "delayed")[0], np.random.default_rng(seed)).segments[-1]
        assert bool(clean.hidden.any()) and bool((clean.ids < 0).any()) and not clean.hidden[clean.ids < 0].any()


def test_what_is_written_sees_what_training_saw(runs, monkeypatch):
    """Stages have the rows of the training stream, each a token later, as a query predicts the token behind it."""
    _, task, model = load_run(runs / "codes")
    stream = task.example(records(runs / "codes")[0], np.random.default_rng(0))
    noisy, clean, _, given, steps = (segment.ids for segment in stream.segments)
    asked = {}

    def catch(model, prompts, stages):
        asked["prompt"], asked["stage"] = prompts[0], stages[0]
        raise InterruptedError

    monkeypatch.setattr(gense, "generate_staged", catch)
    with pytest.raises(InterruptedError):
        task.write_codes(model, [(noisy, clean)], [given])
    rows, before = asked["stage"].reach(SoFar(0, asked["prompt"]), len(steps)), asked["prompt"].segments[-1]
    assert torch.equal(rows, stream.segments[-1].reach) and torch.equal(before.reach, stream.segments[-2].reach)
    assert task.reading == Reading(6, both_ways=True) and before.reach[-1].tolist() == [-6, 6] and rows[0].tolist() == [-5, 7]
    assert before.reach[0].tolist() == list(EVERYTHING) and before.mark.tolist() == list(range(len(given)))
    units = stream.segments[0]
    assert units.mark.tolist() == [2 * at for at in range(len(noisy))] == stream.segments[1].mark.tolist()
    with pytest.raises(InterruptedError):
        write_units(model, [noisy], 0.0, Reading(3))
    rows = asked["stage"].reach(SoFar(0, asked["prompt"]), len(noisy))
    assert torch.equal(rows, units_stream(noisy, clean, reading=Reading(3)).segments[-1].reach) and rows[0].tolist() == [-2, 4]
    assert asked["prompt"].segments[-1].reach.tolist() == [[-3, 3]]


def test_a_share_of_the_samples_reads_units_of_the_first_step(runs, monkeypatch):
    record, told = records(runs / "codes")[0], []
    monkeypatch.setattr(gense, "read_units", lambda model, noisy_t, clean_t, reading: told.append(1) or torch.full_like(clean_t, 7))
    for share, wanted in ((0.0, 0), (1.0, 40), (0.25, 10)):
        task, told[:] = build_task(codes_recipe(runs, "share", f"task.written_units={share}")), []
        streams = [task.example(record, np.random.default_rng(seed)) for seed in range(40)]
        assert abs(len(told) - wanted) <= 5 * (0 < share < 1)
        assert sum(bool((stream.segments[1].ids == 7).all()) for stream in streams) == len(told)


def test_both_steps_are_measured_and_the_second_mends_files(runs, tmp_path):
    found = evaluate(runs / "units")
    assert found["metrics"].keys() == {"unit_edit_distance", "accuracy"} and found["baselines"]["what was given"]["unit_edit_distance"] > 0
    assert "given_t" in (runs / "units" / "samples" / "step_000004" / "units.txt").read_text()
    found = evaluate(runs / "codes", ["evaluate.judges=[si_sdr]"])
    assert found["metrics"].keys() == {"mel_distance", "accuracy", "si_sdr", "real_time_factor"}
    assert found["baselines"].keys() == {"what was given", "spectral gate", "the codec alone", "the true sound"} - {"the true sound"}
    assert found["baselines"]["the codec alone"]["mel_distance"] > 0
    time = np.arange(20_011) / 22_050
    write_sound(tmp_path / "a.wav", Sound((0.2 * np.sin(2000 * time)).astype(np.float32), 22_050))
    (target,), failed = enhance(runs / "codes", tmp_path / "a.wav")
    made = read_sound(target)
    assert not failed and (made.rate_hz, len(made.wave_n)) == (22_050, 20_011)


def test_what_does_not_fit_is_told(runs, place, tmp_path):
    with pytest.raises(RecipeError, match=r"task.base: 20 codes are less than task.seconds \(0.4 s\) hold"):
        build_task(codes_recipe(runs, "x", "task.base=20"))
    with pytest.raises(RecipeError, match="tokenizers.units must be of the type small_codec or single_codec"):
        build_task(codes_recipe(runs, "x", "task.codec=units"))
    record = records(runs / "codes")[0]
    with pytest.raises(CheckpointError, match="holds no finished run with units"):
        task = build_task(codes_recipe(runs, "x", f"task.units_run={tmp_path}", "task.written_units=1.0"))
        task.example(record, np.random.default_rng(0))
    with pytest.raises(CheckpointError, match="was trained on other units"):
        task = build_task(codes_recipe(runs, "x", "tokenizers.units={type: units, num_units: 7}", "task.written_units=1.0"))
        task.example(record, np.random.default_rng(0))


def test_the_first_model_is_not_trained(runs):
    _, task, model = load_run(runs / "codes")
    assert isinstance(task.first, MultimodalLM) and task.first is task.first
    assert model.vocabulary.sizes == {SPECIAL: 1, MASK: 1, UNIT: 8, "codec.0": 16}
    assert len(units_stream(torch.zeros(3, dtype=torch.long))) == 4


def test_in_one_step_codes_are_written_from_codes_alone(runs, tmp_path):
    change = ["task.units_run=null", f"tokenizers={{codec: {{type: single_codec, path: {runs}/codec}}}}"]
    one = codes_recipe(runs, "one", *change)
    train(one)
    _, task, model = load_run(runs / "one")
    stream = task.example(records(runs / "one")[0], np.random.default_rng(0))
    assert [each.modality for each in stream.segments] == [SPECIAL, "codec", "codec"] and model.vocabulary.sizes.keys() == {
        SPECIAL,
        MASK,
        "codec.0",
    }
    assert stream.segments[1].mutual and (stream.segments[2].position[0] == 64).all()
    write_sound(tmp_path / "a.wav", Sound((0.2 * np.sin(np.arange(16_000) / 8)).astype(np.float32), 16_000))
    (target,), failed = enhance(runs / "one", tmp_path / "a.wav")
    assert not failed and len(read_sound(target).wave_n) == 16_000
    with pytest.raises(RecipeError, match="reads_codes: false leaves nothing to read, as units_run is null"):
        codes_recipe(runs, "x", *change, "task.reads_codes=false")
    with pytest.raises(RecipeError, match="written_units: has no effect: units_run is null"):
        codes_recipe(runs, "x", *change, "task.written_units=0.5")
