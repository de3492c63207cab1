"""Speech from instructions as a run: tokenizers fitted on texts and sounds, samples, speaking, the command line, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from mmlm.base.errors import DataError, RecipeError
from mmlm.cli import main
from mmlm.data import token_shards
from mmlm.data.audio_files import read_sound
from mmlm.data.speech import Utterance
from mmlm.recipe import Recipe
from mmlm.run import Part, _fit, build_task, evaluate, load_run, preview, train
from mmlm.speaking import Speaker
from mmlm.tokenizers.config import UnitsConfig
from tests.tasks.untrained import save_codec

for package in ("soundfile", "soxr", "librosa"):
    pytest.importorskip(package)
pytestmark = pytest.mark.skipif(shutil.which("flite") is None, reason="needs: apt-get install flite")
SENTENCES = ["please leave a message", "the number is busy", "two people are waiting", "thank you for calling", "enter the number, please"]
RECIPE = """
schema: 1
name: instructed
output: FOLDER/run
task:
  {type: tts, instruction: text, units: units, max_seconds: 8, join: [1, 2], hide_text: 0.2, hide_units: 0.2, bare_text: 0.2, passes: 2,
   guidance: {units_over_text: 1.5, speech_over_text: 3.0, speech_over_units: 1.5}}
data:
  train:
    - type: styled_speech
      copies: 2
      speech: {type: synthesized, sentences: SENTENCES, voices: ["flite:slt"], hold_out: 0.2, validate_share: 0.2, split_by: utterance}
  validate_samples: 1
tokenizers:
  text: {type: text, vocabulary_size: 300}
  units: {type: units, num_units: 8, encoder: {type: log_mel, num_bands: 10}}
  codec: {type: small_codec, path: FOLDER/codec}
heads: {codes: {type: codebooks}}
backbone: {width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}
train: {steps: 2, batch_size: 2, log_every: 1, validate_every: 2, sample_every: 2}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a codec that has been saved, untrained."""
    folder = tmp_path_factory.mktemp("instructed")
    save_codec(folder / "codec")
    return folder


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setattr(token_shards, "user_cache_folder", lambda: home / "cache")


def recipe(home, *overrides) -> Recipe:
    return Recipe.read(RECIPE.replace("FOLDER", str(home)).replace("SENTENCES", str(SENTENCES)), overrides)


@pytest.fixture(scope="module")
def finished(home):
    """A run that has ended."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "user_cache_folder", lambda: home / "cache")
        assert train(recipe(home)).step == 2
    return home / "run"


def test_a_run_does_what_an_instruction_asks_for(finished, tmp_path, capsys) -> None:
    speaker = Speaker(finished)
    one, two = speaker.say(["say slowly: «two people»", '"two people", said slowly'], seed=3)
    (again,) = speaker.say("say slowly: «two people»", seed=3)
    assert np.array_equal(one.wave_n, again.wave_n) and not np.array_equal(one.wave_n, two.wave_n) and one.seconds <= 8
    out = tmp_path / "out"
    assert main(["generate", str(finished), "--text", "in a high voice, say «thank you»", "--output", str(out)]) == 0
    assert read_sound(out / "spoken.wav").rate_hz == 16000
    assert main(["generate", str(finished), "--text", "thank you", "--output", str(tmp_path / "no.wav")]) == 2
    assert "stands in quotation marks" in capsys.readouterr().err and not (tmp_path / "no.wav").exists()
    with pytest.raises(RecipeError, match="pace needs durations"):
        speaker.say("«two people»", pace=2)


def test_a_voice_comes_first_in_all_parts_and_its_text_is_quoted(finished) -> None:
    _, task, model = load_run(finished)
    sound = recipe(finished.parent).data.train[0].build().everything()[0]
    read = task.reader.text.decode(task.reader.ids("say slowly: “busy”", sound.text).tolist())
    assert read == f"say slowly: «{sound.text} busy»"
    (said,) = task.speak(model, ["«busy»"], voice=sound, seed=1)
    (other,) = task.speak(model, ["«busy»"], seed=1)
    assert 0 < said.sound.seconds <= 8 and not torch.equal(said.said.codes, other.said.codes)


def test_samples_measures_and_preview(finished, home) -> None:
    texts = [path.read_text() for path in (finished / "samples").rglob("1_text.txt")]
    assert len(texts) == 1 and "«" in texts[0]
    metrics = evaluate(finished, ["evaluate.judges=[style]", "evaluate.num_players=1"])
    assert metrics["metrics"]["length_error"] >= 0 and 0 <= metrics["metrics"]["style"] <= 1 and metrics["baselines"]
    shown = preview(recipe(home, f"tokenizers.units.path={finished}"), count=1)
    assert "«" in shown and " units: " in shown and "unit.0 9" in shown


def test_texts_and_units_are_fitted_on_what_samples_hold(finished, home) -> None:
    _, task, _ = load_run(finished)
    assert task.units.is_fitted and task.reader.size <= 300
    text = "say slowly: «two people are waiting»"
    assert len(task.reader.text.ids([text])[0]) < 0.85 * len(text.encode())
    texts = Recipe.read("schema: 1\nname: t\ntask: {type: text}\ndata: {train: [{type: python_docs}]}\n")
    with pytest.raises(RecipeError, match="tokenizers.units: is fitted on sounds, but the task 'text' has none"):
        _fit("units", UnitsConfig(type="units").build(), [Part(texts, object())])


def test_joined_recordings_share_voice_and_style_and_one_instruction_asks_for_all(finished, home) -> None:
    _, task, _ = load_run(finished, ["task.join=[2, 2]", "task.bare_text=0"])
    records = recipe(home).data.train[0].build().everything()
    task.read_ahead(records)
    rng = np.random.default_rng(0)
    for record in records:
        others = task.beside[record.where, record.id]
        assert all(each.labels["style"] == record.labels["style"] for each in others)
        said = task._said([record, others[-1]], rng)
        assert f"«{record.text} {others[-1].text}»" in task.reader.text.decode(said.text.tolist())
        assert len(said.units) == len(torch.unique_consecutive(said.units)) < len(said.codes)


def test_a_record_without_instructions_is_asked_for_by_its_quoted_text(finished, home) -> None:
    _, task, _ = load_run(finished)
    plain = Utterance("a", "list, line 1", text="hello", held=recipe(home).data.train[0].build().everything()[0].sound())
    assert task.texts(plain, np.random.default_rng(0)) == ["«hello»"] and task.reader.asked(plain) == "«hello»"
    styled = recipe(home).data.train[0].build().everything()[0]
    texts = [task.texts(styled, np.random.default_rng(seed))[0] for seed in range(200)]
    assert 20 < sum(text == f"«{styled.text}»" for text in texts) < 65  # a fifth


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ({"instructions": "say «hello»"}, "list, line 1: 'instructions' must be a list"),
        ({"instructions": ["say «bye»"]}, "list, line 1: the instruction 'say «bye»' does not quote the text 'hello'"),
        ({"instructions": ["say hello"]}, "list, line 1: what is to be said stands in quotation marks"),
    ],
)
def test_records_whose_instructions_ask_for_something_else_are_told(finished, home, labels, told) -> None:
    _, task, _ = load_run(finished)
    sound = recipe(home).data.train[0].build().everything()[0].sound()
    with pytest.raises(DataError, match=told):
        task.read_ahead([Utterance("a", "list, line 1", text="hello", held=sound, labels=labels)])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("task.prosody=prosody", "prosody is of phonemes alone: leave out instruction"),
        ("task.hide_text=0", "guidance.units_over_text needs hide_text above 0"),
        ("task.hide_units=0", "guidance.speech_over_units needs hide_units above 0"),
        ("task.units=null", "units is null: none are written"),
        ("task.instruction=null", "instruction is null"),
        ("task.phonemes=text", "instruction is read instead"),
        ("task.window=2", "prosody is null"),
    ],
)
def test_options_that_exclude_each_other_are_told(home, override, told) -> None:
    with pytest.raises(RecipeError, match=told):
        recipe(home, override)


def test_tokenizers_of_other_kinds_are_refused(home) -> None:
    with pytest.raises(RecipeError, match="must be of the type units"):
        build_task(recipe(home, "task.units=text"))
    with pytest.raises(RecipeError, match="unknown tokenizer 'txt'"):
        build_task(recipe(home, "task.instruction=txt"))
