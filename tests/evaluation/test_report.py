"""What the report, the model card and the preview say is what was measured and what the model reads."""

import json
import re
import shutil
from html import escape

import numpy as np
import pytest

from mmlm.cli import main
from mmlm.evaluation.card import card, figures
from mmlm.evaluation.history import sample_links
from mmlm.evaluation.report import _headline, plots, training
from mmlm.recipe import Recipe
from mmlm.run import evaluate, preview, train
from mmlm.training.log import read_log

RECIPE = """
schema: 1
name: tiny
task: {type: tabular, episode: {num_rows: 12, max_shots: 8, max_columns: 4}}
data: {train: [{type: table_file, path: tabular/penguins.csv, target: species, hold_out: 0.3, validate_share: 0.1}], validate_samples: 3}
encoders: {cell: {type: table_cells, hidden: 16}}
backbone:
  width: 16
  num_layers: 2
  pattern:
    - {mixer: {type: attention, num_heads: 2, over: column, causal: false, rope: null}, feed_forward: null}
    - {mixer: {type: attention, num_heads: 2, over: row, causal: false, rope: null}}
train: {steps: 3, batch_size: 2, log_every: 1, validate_every: 1, sample_every: 2, keep_best: {metric: accuracy, mode: max}}
evaluate: {split: file, shots: [4, 16], seeds: 2, max_queries: 16}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "a run"
    train(Recipe.read(RECIPE, [f"output={folder}"]))
    assert "Nothing yet" in (folder / "README.md").read_text()
    evaluate(folder)
    return folder


def test_the_report_is_one_file_that_says_what_was_measured(run):
    page, found = (run / "report.html").read_text(), json.loads((run / "metrics.json").read_text())
    assert not re.search(r"<script|src=|href=(?!\"samples/)|@import|url\(", page)
    for count in (4, 16):
        for row in (found["metrics"], *found["baselines"].values()):
            assert f"<td>{row[f'accuracy_{count}']:.3f}</td>" in page
    assert f"{found['metrics']['calibration_error']:.3f}" in page and "its default settings" in page
    confidence, right, rows = np.array(found["reliability"]).T
    assert np.all(np.diff(confidence) > 0) and 0 <= right.min() <= right.max() <= 1 and 1 < len(rows) <= 15
    assert (rows * np.abs(confidence - right)).sum() / rows.sum() == pytest.approx(found["metrics"]["calibration_error"])
    assert page.count('aria-label="share right over confidence"') == 1
    assert "species" in page and "flipper_length_mm" in page and page.count("<svg") >= 5
    last = sorted(run.glob("samples/step_000003/*.txt"))[0].read_text()
    assert "<h2>Samples at the end</h2><pre>" in page and escape(last[:200]) in page
    assert found["data"]["split"] == "file" and found["data"]["tables"] == {"4": 1, "16": 1}


def test_the_report_and_the_card_tell_validation_the_kept_step_and_the_samples(run):
    page, card = (run / "report.html").read_text(), (run / "README.md").read_text()
    assert f'TabularPredictor("{run}")' in card and f"    mmlm demo '{run}'\n" in card
    log = [line for line in read_log(run / "log.jsonl") if "validation.loss" in line]
    assert [line["step"] for line in log] == [1, 2, 3]
    best = max(log, key=lambda line: (line["validation.accuracy"], -line["step"]))
    values = f"loss {best['validation.loss']:.3f}, accuracy {best['validation.accuracy']:.3f}"
    told = f"Validation on 3 samples at step {best['step']}: {values}; kept are the weights of this step, the best of 3 by accuracy."
    assert told in page and told in card
    for name in ("loss", "validation accuracy"):
        assert page.count(f'aria-label="{name} over training time, s"') == 1
        assert page.count(f'aria-label="{name} over step"') == 1 + (name == "loss")
    links = re.findall(r'href="([^"]+)"', page)
    assert links == ["samples/step_000002/predictions.txt", "samples/step_000003/predictions.txt"]
    assert all((run / link).is_file() for link in links)


def test_what_was_measured_is_kept_with_a_run_that_stays_and_not_with_one_that_is_trained_on(run, tmp_path, caplog):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    recipe = Recipe.read(RECIPE, [f"output={again}", "train.schedule=constant"])
    train(Recipe.read(RECIPE, [f"output={run}"]))
    assert (run / "report.html").is_file() and "| model |" in (run / "README.md").read_text() and not caplog.records
    train(recipe, fresh=True)
    assert not (again / "metrics.json").exists() and not (again / "report.html").exists() and "taken away" in caplog.text
    assert "Nothing yet" in (again / "README.md").read_text()


def test_samples_at_the_end_are_those_of_the_last_step_of_every_task(tmp_path):
    for step, words in (("step_999500", "before"), ("step_1000000", "last")):
        for task in ("see", "write"):
            (tmp_path / "samples" / step / task).mkdir(parents=True)
            (tmp_path / "samples" / step / task / "1.txt").write_text(f"{words} {task} <b>")
    page = sample_links(tmp_path)
    assert "last see &lt;b&gt;" in page and "last write" in page and "before" not in page and "<h3>write</h3>" in page
    assert page.index("samples/step_999500/see") < page.index("samples/step_1000000/see") and sample_links(tmp_path / "none") == ""


def test_a_search_is_said_where_it_was_made(run):
    evaluate(run, ["evaluate.xgboost=search", "evaluate.seeds=1", "evaluate.shots=[16]"])
    assert "the best of a random search" in (run / "report.html").read_text()


def test_the_card_holds_the_figures_and_how_to_use_the_model(run):
    metrics = evaluate(run)
    card = (run / "README.md").read_text()
    assert f"| model | {metrics['metrics']['accuracy_4']:.3f} |" in card and "TabularPredictor(" in card and "table_file" in card


def test_one_table_alone_has_no_interval_over_tables(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("accuracy, mean of 2 draws ") and " to 0." not in told and "interval" not in (run / "README.md").read_text()
    page = (run / "report.html").read_text()
    assert "1 table at 4 examples" in page and "Intervals" not in page and not re.search(r"<td>[^<]*\.\d+ to ", page)


def test_several_tables_have_intervals_where_they_are_several():
    model = {key: value for count in (4, 16) for key, value in
             {f"accuracy_{count}": 0.5, f"accuracy_{count}_interval": [0.4, 0.6], f"nll_{count}": 1.0}.items()}  # fmt: skip
    other = {f"model_minus_this_{count}{end}": value for count in (4, 16) for end, value in (("", -0.1), ("_interval", [-0.2, 0.1]))}
    tables = {"split": "test", "tables": {4: 3, 16: 1}, "seeds": 1}
    found = {"metrics": {**model, "calibration_error": 0.1}, "baselines": {"majority": {**model, **other}}, "data": tables}
    page = _headline(found, [4, 16])
    assert page.count("<td>0.500 (0.400 to 0.600)</td>") == page.count("<td>0.500</td>") == 2
    assert page.count("<td>-0.100 (-0.200 to +0.100)</td>") == page.count("<td>-0.100</td>") == 1
    assert "| model | 0.500 (0.400 to 0.600) | 0.500 |" in figures(Recipe.read("tabular/quickstart"), found)


def test_the_cost_of_a_run_counts_steps_after_the_last_finite_loss():
    common = {"lr": 1e-3, "seconds": 1.0, "peak_gib": 0.5}
    log = [{"step": 1, "loss": 2.0, "grad_norm": 0.0, "tokens": 10, "skipped": 0, **common},
           {"step": 2, "loss": None, "grad_norm": None, "tokens": 20, "skipped": 1, **common},
           {"step": 2, "validation.loss": 3.0}]  # fmt: skip
    page = training(log)
    assert "2 steps, 20 tokens" in page and "1 steps skipped" in page and page.count("<svg") == 3


def test_the_preview_shows_rows_and_counts_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert main(["preview", str(tmp_path / "r.yaml"), "--samples", "1", f"output={tmp_path / 'nowhere'}"]) == 0
    told = capsys.readouterr().out
    assert "sample 1: predict 'species'" in told and "?" in told and "a batch of 2: 2 documents" in told
    assert not (tmp_path / "nowhere").exists()
    assert main(["preview", str(tmp_path / "r.yaml"), "--samples", "0"]) == 2 and "--samples must be" in capsys.readouterr().err
    text = preview(Recipe.read("tabular/tabula", ["data.train=[{type: structural_tables}]", "tokenizers.text.vocabulary_size=400"]), 1)
    assert "Predict the outcome ||" in text and "<|endinput|>" in text


def test_the_loss_of_a_prediction_counts_classes_that_no_example_showed():
    from mmlm.evaluation.metrics import accuracy, nll

    chance, truth = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([-1, 1])
    assert accuracy(chance, truth) == 0.5 and nll(chance, truth) > 5


def test_the_card_of_a_run_says_what_it_is_whose_its_data_are_what_it_cannot_do_and_the_licence(run, tmp_path, capsys):
    assert main(["card", str(run), "--output", str(tmp_path / "card.md")]) == 0
    card = (tmp_path / "card.md").read_text()
    assert card == (run / "README.md").read_text() and card in capsys.readouterr().out
    assert re.findall("^## (.*)$", card, flags=re.MULTILINE) == ["Training data", "Use", "Measured", "Limits", "Licence"]
    assert "3 steps" in card and "`table_file` (weight 1)" in card and "From: a file of your own" in card
    assert "At most ten classes" in card and "Apache-2.0" in card and "expected calibration error" in card


def test_the_card_says_what_weights_a_run_began_from(tmp_path):
    encoder = "encoders={image: {type: timm, model: resnet18, PATH}}"
    for override, told in (
        ("seed=0", "Trained from random weights by mmlm"),
        (encoder.replace("PATH", "pretrained: true"), "Trained from the weights of `resnet18` and random ones by mmlm"),
        (encoder.replace("PATH", "path: a/b.pth"), "Trained from the weights of `a/b.pth` and random ones by mmlm"),
        ("backbone={pretrained: some/decoder}", "Trained from the weights of `some/decoder` by mmlm"),
    ):
        assert told in card(tmp_path, Recipe.read("probes/text", [override]), None)


def test_a_card_of_no_run_is_one_message(tmp_path, capsys):
    assert main(["card", str(tmp_path)]) == 2
    assert "no finished run: recipe.yaml is missing" in capsys.readouterr().err


def test_measures_that_are_no_numbers_are_told_as_such_read_back_too():
    found = {
        "data": {"records": {"a": 2}},
        "metrics": {"rmse": None, "r2": 0.5},
        "baselines": {"mean": {"rmse": float("inf")}},
        "over": "size",
    }
    assert figures(Recipe.read("molecules/quickstart"), found)[-2:] == ["| model | none | 0.5 |", "| mean | none |  |"]
    parted = {**found, "metrics": {"rmse: a|b": 1.0}, "baselines": {}}
    assert "| | rmse: a\\|b |" in figures(Recipe.read("molecules/quickstart"), parted)
    assert "polyline" in plots(found | {"curves": {"model": {"rmse": [[1, None], [2, 0.5], [3, 0.7]]}}})[0]
