"""Text as a task: what carries loss, that measuring cuts nothing, and a run from files to a text that is written."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

import mmlm
from mmlm.base.errors import RecipeError
from mmlm.cli import main
from mmlm.data.texts import Part, Passage
from mmlm.recipe import Recipe
from mmlm.run import build_model, build_task, evaluate, load_run, train
from mmlm.stream import NO_LABEL, pack
from mmlm.tokenizers.text import TextTokenizer

RECIPE = """
schema: 1
name: tiny
task: {type: text, context: 24}
data: {train: [{type: text_files, path: FOLDER, hold_out: 0.25, validate_share: 0.25}], validate_samples: 3}
tokenizers: {text: {type: text, vocabulary_size: 280}}
backbone: {width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}
train: {steps: 3, batch_size: 2, log_every: 1, validate_every: 3, sample_every: 3, keep_best: {metric: bits_per_byte}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    lines = [json.dumps({"text": f"The {number}. line says how many lines came before it: {number}. Ünd so on."}) for number in range(24)]
    (root / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def parts(folder):
    recipe = Recipe.read(RECIPE.replace("FOLDER", str(folder)))
    task = build_task(recipe)
    return recipe, task, build_model(recipe, task).eval()


def test_a_document_begins_and_ends_with_its_token_and_all_but_the_first_is_predicted(parts):
    _, task, model = parts
    end = task.text.token("<|endoftext|>")
    whole = Passage([Part("ab cd")])
    (segment,) = task.example(whole, np.random.default_rng(0)).segments
    inner = task.text.ids(["ab cd"])[0]
    assert segment.ids.tolist() == [end, *inner, end] and segment.weight.tolist() == [0.0] + [1.0] * (len(inner) + 1)
    middle = Passage([Part("ab cd", begins=False, ends=False)])
    (segment,) = task.example(middle, np.random.default_rng(0)).segments
    assert segment.ids.tolist() == inner and segment.weight.tolist() == [0.0] + [1.0] * (len(inner) - 1)
    batch = pack(task.arrange([task.example(whole, np.random.default_rng(0))]), model.vocabulary)
    assert batch.labels[0].tolist() == [*inner, end, NO_LABEL]


def test_short_documents_fill_a_sample_and_see_one_another_only_if_asked(parts):
    recipe, task, _ = parts
    passage = Passage([Part("one two"), Part("three"), Part("four " * 40), Part("never read")])
    stream = task.example(passage, np.random.default_rng(0))
    assert len(stream) == 24 and len(stream.segments) == 3
    assert len(task.arrange([stream])) == 3
    task.config = task.config.model_copy(update={"packing": "joined"})
    assert task.arrange([stream]) == [stream]
    task.config = recipe.tasks[0]
    assert task.example(Passage([Part("")]), np.random.default_rng(0)) is not None  # its end is predicted
    assert task.example(Passage([Part("", begins=False, ends=False)]), np.random.default_rng(0)) is None


def test_bits_and_perplexity_are_those_of_a_slow_reading(parts):
    """Windows of 24 tokens, each with the last token of the one before: every token of a long text is predicted exactly once."""
    _, task, model = parts
    text = "A longer text, of more than two windows; it says that 1 and 2 are 3. " * 3 + "Ü."
    record = Passage([Part(text)], is_whole=True)
    (scored,) = task.predict(model, [record])
    end = task.text.token("<|endoftext|>")
    ids = [end, *task.text.ids([text])[0], end]
    nats, place = [], []
    for at in range(1, len(ids)):
        start = (at - 1) // 23 * 23
        scores = model.logits(torch.tensor([ids[start:at]]))[0, -1]
        nats.append(float(-scores.log_softmax(-1)[ids[at]].detach()))
        place.append(at - start)
    np.testing.assert_allclose(scored.nats, nats, rtol=1e-4)
    assert scored.place.tolist() == place and scored.size_bytes == len(text.encode())
    score = task.score([scored, scored], [record, record])
    assert score["bits_per_byte"] == pytest.approx(sum(nats) / math.log(2) / len(text.encode()), rel=1e-4)
    assert score["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)


def test_a_passage_that_is_not_whole_is_measured_as_it_is_trained_on(parts):
    _, task, model = parts
    passage = Passage([Part("one two three"), Part("four " * 40)])
    (scored,) = task.predict(model, [passage])
    stream = task.example(passage, np.random.default_rng(0))
    batch = pack(task.arrange([stream]), model.vocabulary)
    total, weight = model.losses(batch)["language_model"]
    assert len(scored.nats) == int(weight) and scored.nats.sum() == pytest.approx(float(total.detach()), rel=1e-5)


def test_longer_windows_tell_tokens_within_and_beyond_the_trained_length_apart(parts):
    recipe, task, model = parts
    record = Passage([Part("word " * 60)], is_whole=True)
    task.config = task.config.model_copy(update={"test_context": 48})
    (both,) = task.predict(model, [record])
    found, curve = task.score([both], [record]), task.curves([both], [record])["bits a token"]
    task.config = recipe.tasks[0]
    (plain,) = task.predict(model, [record])
    assert (
        plain.far is None
        and plain.nats.tolist() == both.nats.tolist()
        and task.score([plain], [record])["bits_per_byte"] == (found["bits_per_byte"])
    )
    scored = both.far
    assert scored.place.max() == 47
    assert found["bits_within"] == pytest.approx(scored.nats[scored.place < 24].mean() / math.log(2))
    assert found["bits_beyond"] == pytest.approx(scored.nats[scored.place >= 24].mean() / math.log(2))
    x, y = curve[0]
    near = scored.place <= 47 / 16
    assert x == pytest.approx(scored.place[near].mean()) and y == pytest.approx(scored.nats[near].mean() / math.log(2))


def test_a_run_from_files_to_a_text_that_is_written(folder, tmp_path, capsys):
    run = tmp_path / "run"
    result = train(Recipe.read(RECIPE.replace("FOLDER", str(folder)), [f"output={run}"]))
    assert result.metrics["bits_per_byte"] > 0
    samples = (run / "samples" / "step_000003" / "texts.txt").read_text()
    assert samples.count("--- the model goes on") == 3 and "line says how many" in samples
    metrics = evaluate(run)
    assert set(metrics["metrics"]) == {"perplexity", "bits_per_byte"} and metrics["data"]["records"] == {"held out of text_files": 6}
    assert metrics["baselines"]["xz"]["bits_per_byte"] < 8
    page, card = (run / "report.html").read_text(), (run / "README.md").read_text()
    assert f"{metrics['metrics']['bits_per_byte']:.4g}" in page and f"{metrics['metrics']['bits_per_byte']:.4g}" in card
    assert "A text that begins" in card and "TabularPredictor" not in card
    assert main(["evaluate", str(run), "task.test_context=48"]) == 0
    assert "perplexity" in capsys.readouterr().out
    assert main(["generate", str(run), "--text", "The ", "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.startswith("The ")
    model = mmlm.load(str(run))
    assert model.stop == (model.text.token("<|endoftext|>"),)
    assert isinstance(model.generate("The ", max_new_tokens=2)[0].text, str)
    (tmp_path / "t.csv").write_text("a,b\n1,x\n2,y\n3,x\n")
    table = str(tmp_path / "t.csv")
    assert main(["generate", str(run), "--table", table, "--shots", table, "--target", "b", "--output", str(tmp_path / "x.csv")]) == 2
    assert "its task 'text' predicts no column" in capsys.readouterr().err
    tuned = [f"output={tmp_path / 'tuned'}", f"tokenizers.text={{type: text, path: {run / 'tokenizers' / 'text'}}}"]
    tuned += [f"backbone={{pretrained: {run}}}", "adapt.lora={rank: 2}"]
    train(Recipe.read(RECIPE.replace("FOLDER", str(folder)), tuned))
    assert evaluate(tmp_path / "tuned")["metrics"]["bits_per_byte"] != metrics["metrics"]["bits_per_byte"]
    _, task, model = load_run(run)
    assert task.predict(model, [Passage([Part("x")], is_whole=True)])[0].size_bytes == 1


def test_a_tokenizer_that_no_task_names_is_told_and_not_fitted(folder, monkeypatch, caplog):
    fitted = []
    monkeypatch.setattr(TextTokenizer, "fit", lambda self, texts: fitted.append(self) or self)
    recipe = Recipe.read(RECIPE.replace("FOLDER", str(folder)), ["tokenizers.spare={type: text, vocabulary_size: 300}"])
    task = build_task(recipe)
    assert fitted == [task.text] and list(task.tokenizers) == ["text"]
    assert "tokenizers.spare is not used: no task names it." in caplog.text


def test_a_task_without_its_tokenizer_or_with_no_data_is_told():
    head = {"schema": 1, "name": "x", "task": "text"}
    with pytest.raises(RecipeError, match="data.train.0: 'real_tables' gives tables, but the task reads texts: python_docs, text_files"):
        Recipe.read(head)
    with pytest.raises(RecipeError, match="tokenizers: unknown tokenizer 'text'"):
        build_task(Recipe.read({**head, "data": {"train": ["python_docs"]}}))


def test_the_recipe_of_the_small_corpus_runs_with_another_mixer_by_one_override(tmp_path):
    small = ["train.steps=1", "train.validate_every=0", "train.sample_every=0", "data.validate=[]", "data.test_samples=1"]
    small += ["train.batch_size=1", "tokenizers.text.vocabulary_size=300", "backbone.width=32", "task.context=64"]
    small += [f"output={tmp_path / 'run'}"]
    recipe = Recipe.read("probes/text", [*small, "backbone.pattern=M-"])
    assert [layer.mixer and layer.mixer.type for layer in recipe.backbone.layers] == ["mamba2", None]
    train(recipe)
    assert evaluate(tmp_path / "run")["metrics"].keys() == {"perplexity", "bits_per_byte", "bits_within", "bits_beyond"}
