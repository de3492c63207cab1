"""Comparisons: cells are run once, stopped ones go on, and the table says what they found."""

from __future__ import annotations

import json

import pytest
import torch

from mmlm import compare as comparing
from mmlm.base.errors import CheckpointError, MissingExtra, RecipeError
from mmlm.cli import main
from mmlm.compare import cells, compare, read_comparison
from mmlm.evaluation.comparison import column_label, shade, table, text_table, with_spread, write_comparison
from mmlm.recipe import shipped
from mmlm.training.lock import RunLock
from mmlm.weights import write_tensors

RECIPE = """
schema: 1
name: NAME
task: labels
data:
  train: [{type: counting, length: 8}]
  test: [{type: counting, length: 8}, {type: counting, length: 16}]
  test_samples: 8
backbone: {width: 16, num_layers: 1, pattern: [attention]}
train: {steps: 2, batch_size: 2, log_every: 1}
"""
PLAN = """
schema: 1
name: both
output: OUTPUT/table
recipes: [OUTPUT/one.yaml, OUTPUT/two.yaml]
variants:
  attention: {"backbone.pattern": [{type: attention, num_heads: 2}]}
  mamba2: {"backbone.pattern": [{type: mamba2, head_size: 16, state_size: 8}]}
seeds: [0, 1]
"""


@pytest.fixture
def plan(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(RECIPE.replace("NAME", name))
    (tmp_path / "plan.yaml").write_text(PLAN.replace("OUTPUT", str(tmp_path)))
    return tmp_path / "plan.yaml"


@pytest.fixture
def trained(monkeypatch):
    """The names of the cells that were really trained."""
    found, whole = [], comparing.run_cell

    def run_cell(cell, progress=None):
        before = comparing._read(cell.folder).get("finished")
        about = whole(cell, progress)
        if not before:
            found.append(str(cell))
        return about

    monkeypatch.setattr(comparing, "run_cell", run_cell)
    return found


def test_all_cells_are_run_once_and_told_in_one_table(plan, trained, capsys):
    assert main(["compare", str(plan), "--only", "one/*/0"]) == 0
    assert trained == ["one/attention/0", "one/mamba2/0"]
    assert "±" not in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in plan.parent.glob("table/one/*/seed_0/run/model.safetensors")}
    assert main(["compare", str(plan)]) == 0
    told = capsys.readouterr().out
    assert len(times) == 2 and all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(trained) == len(set(trained)) == 8
    found = json.loads((plan.parent / "table" / "table.json").read_text())
    assert found["variants"] == ["attention", "mamba2"] and found["errors"] == {}
    assert list(found["values"]) == ["one, length 8", "one, length 16", "two, length 8", "two, length 16"]
    for row in found["values"].values():
        assert all(len(values) == 2 for values in row.values())
        assert all(with_spread(values) in told for values in row.values())
    for costs in found["cost"].values():
        assert all(own["microseconds"] > 0 and own["parameters"] > 500 for own in costs.values())
    page = (plan.parent / "table" / "report.html").read_text()
    assert page.count("color-mix") == 8 and "<svg" in page and "two, length 16" in page
    assert not list(plan.parent.glob("table/*/*/*/run/checkpoints/step_*"))


def test_a_changed_recipe_begins_anew_and_its_old_cells_are_not_told(plan, trained):
    compare(read_comparison(plan, ["seeds=[0]"]), "one/attention/*")
    (plan.parent / "one.yaml").write_text(RECIPE.replace("NAME", "one").replace("steps: 2", "steps: 3"))
    config = read_comparison(plan, ["seeds=[0]"])
    found = compare(config, "two/attention/*")
    assert list(found["values"]) == ["two, length 8", "two, length 16"]
    folder = cells(config)[0].folder
    compare(config, "one/attention/*")
    assert json.loads((folder / "cell.json").read_text())["steps"] == 3


def test_a_stopped_cell_goes_on_where_it_was(plan, monkeypatch):
    import mmlm.run
    from mmlm.training.trainer import Trainer

    config = read_comparison(plan, ["seeds=[0]", "keys={train.checkpoint_every: 1}"])
    cell = cells(config)[0]
    whole, fresh = Trainer.fit, []
    with monkeypatch.context() as patch:
        patch.setattr(mmlm.run, "evaluate", lambda folder: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            compare(config, str(cell))
    assert not json.loads((cell.folder / "cell.json").read_text())["finished"]

    def fit(self, *, fresh_=None, **options):
        fresh.append(options["fresh"])
        return whole(self, **options)

    monkeypatch.setattr(Trainer, "fit", fit)
    found = compare(config, str(cell))
    assert fresh == [False] and found["values"]


def test_a_cell_that_another_process_is_at_is_left_to_it(plan, trained, caplog):
    config = read_comparison(plan, ["seeds=[0]"])
    cell = cells(config)[0]
    cell.folder.mkdir(parents=True)
    with RunLock(cell.folder):
        found = compare(config, "one/*")
    assert "one/attention/0 is left to the process that is at it" in caplog.text
    assert found["variants"] == ["mamba2"] and trained[-1] == "one/mamba2/0"


def test_what_a_variant_cannot_do_is_told_in_its_cell(plan, capsys):
    extra = "variants.columns={backbone.pattern: [{type: attention, num_heads: 2, over: column}]}"
    assert main(["compare", str(plan), extra, "seeds=[0]", "--only", "one/*/0"]) == 0
    told = capsys.readouterr().out
    assert "one, columns: attention works over axis 'column', but the data's axes are time." in told
    assert "Not run" in (plan.parent / "table" / "report.html").read_text()


def test_a_missing_package_or_a_damaged_model_ends_its_cell_alone(plan, monkeypatch, capsys):
    faults = iter([MissingExtra("mmlm[hf] is not installed"), CheckpointError("model.safetensors is damaged")])

    def fails(*_, **__):
        raise next(faults)

    monkeypatch.setattr("mmlm.run.train", fails)
    assert main(["compare", str(plan), "seeds=[0]", "--only", "one/*/0"]) == 0
    told = capsys.readouterr().out
    assert "mmlm[hf] is not installed" in told and "model.safetensors is damaged" in told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["variants.bad={backbone.widht: 3}"], "variant bad: backbone.widht: unknown key. Did you mean 'width'?"),
        (["variants.a/b={seed: 3}"], "'a/b' is no name for a folder"),
        (["seeds=[1, 1]"], "seeds: each must be another one"),
        (["recipes=[no/such]"], "no shipped recipe has this name"),
        (["sedes=[1]"], "sedes: unknown key. Did you mean 'seeds'?"),
    ],
)
def test_a_comparison_with_a_fault_is_told_before_anything_starts(overrides, told, plan, capsys):
    assert main(["compare", str(plan), *overrides]) == 2
    assert told in capsys.readouterr().err and not (plan.parent / "table").exists()
    assert main(["compare", str(plan), "--only", "three/*"]) == 2
    assert "no cell fits 'three/*'; they are named recipe/variant/seed, such as one/attention/0" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="no shipped comparison has this name. Did you mean 'probes'?"):
        read_comparison("probe")


def test_shipped_comparisons_are_valid_and_say_what_they_are():
    found = shipped("comparisons")
    assert "probes" in found
    for name, path in found.items():
        assert cells(read_comparison(name))
        assert path.read_text().startswith("# ") and "Cost" in path.read_text().splitlines()[0] and "mmlm compare" in path.read_text()


def test_a_model_of_several_tasks_has_a_column_for_each(tmp_path):
    recipe = """
schema: 1
name: both
tasks: [{type: labels, name: counts}, {type: labels, name: more}]
data:
  train: [{type: counting, length: 8}]
  test: [{type: counting, length: 8}]
backbone: {width: 16, num_layers: 1, pattern: [attention]}
"""
    (tmp_path / "both.yaml").write_text(recipe)
    (tmp_path / "plan.yaml").write_text(
        PLAN.replace("OUTPUT/one.yaml, OUTPUT/two.yaml", "OUTPUT/both.yaml").replace("OUTPUT", str(tmp_path))
    )
    everything = cells(read_comparison(tmp_path / "plan.yaml", ["seeds=[0]"]))
    cost = {"parameters": 7, "tokens_a_step": 10, "seconds_a_step": 1e-3}
    for cell in everything:
        cell.folder.mkdir(parents=True)
        tasks = {name: {"metrics": {"accuracy": value}, "baselines": {}} for name, value in (("counts", 0.5), ("more", 0.75))}
        about = {"recipe": cell.recipe.dump(), "finished": True, "tasks": tasks, "headline": {"accuracy": "max"}, **cost}
        comparing._write(cell.folder / comparing.CELL, about)
    found = table(comparing._finished(everything), ["attention", "mamba2"])
    assert found["values"] == {f"both {name}": {"attention": [v], "mamba2": [v]} for name, v in (("counts", 0.5), ("more", 0.75))}
    assert set(found["cost"]) == {"both counts", "both more"}


def test_the_table_tells_metrics_with_a_number_in_their_name_beside_what_can_be_beaten():
    common = {"name": "r", "variant": "a", "seed": 0, "parameters": 7, "headline": {"cider": "max", "acc_50": "max", "accuracy": "max"}}
    baselines = {"the true answers": {"acc_50": 1.0, "cider": 10.0}, "a random box": {"acc_50": 0.1}}
    found = table([{**common, "metrics": {"acc_50": 0.4, "cider": 2.0, "accuracy_8": 0.7, "acc": 1.0}, "baselines": baselines}], ["a"])
    assert found["values"] == {"r, acc_50": {"a": [0.4]}, "r": {"a": [2.0]}, "r, accuracy_8, accuracy": {"a": [0.7]}}
    assert found["columns"]["r, acc_50"] == {"better": "max", "chance": 0.1} and found["columns"]["r"]["chance"] is None


def test_what_is_no_share_is_shaded_up_to_the_best_of_its_row():
    decibels = {"better": "max", "chance": 10.0}
    assert [shade(value, [10.0, 15.0, 20.0], decibels) for value in (5.0, 10.0, 15.0, 20.0)] == [0.0, 0.0, 0.5, 1.0]


def test_the_table_takes_means_over_seeds_and_shades_from_the_baseline_on():
    common = {"name": "r", "headline": {"accuracy": "max", "bits": "min"}, "baselines": {"chance": {"accuracy: s, length 3": 0.5}}}
    cost = {"parameters": 7, "tokens_a_step": 10, "seconds_a_step": 1e-3}
    made = [
        {**common, **cost, "variant": "a", "seed": seed, "metrics": {"accuracy: s, length 3": value, "bits: s, length 3": 2.0, "other": 1}}
        for seed, value in enumerate((0.5, 1.0))
    ]
    found = table(made, ["b", "a"])
    assert found["variants"] == ["a"] and found["values"] == {"r, length 3": {"a": [0.5, 1.0]}, "r, length 3, bits": {"a": [2.0, 2.0]}}
    assert found["columns"]["r, length 3"] == {"better": "max", "chance": 0.5}
    assert found["cost"]["r"]["a"] == {"parameters": 7, "runs": 2, "microseconds": pytest.approx(100)}
    assert with_spread([0.5, 1.0]) == "0.750 ±0.354" and with_spread([0.25]) == "0.250" and with_spread([]) == ""
    assert shade(0.75, [0.75], found["columns"]["r, length 3"]) == 0.5 and shade(0.2, [0.2], found["columns"]["r, length 3"]) == 0
    bits = {"better": "min", "chance": None}
    assert [shade(value, [1.0, 3.0], bits) for value in (1.0, 2.0, 3.0, float("nan"))] == [1.0, 0.5, 0.0, 0.0]
    assert column_label("r", "accuracy_8") == "r, accuracy_8" and column_label("r", "accuracy") == "r"


def test_a_key_within_a_section_that_all_variants_share_is_set_in_its_own_alone(plan):
    plan.write_text(plan.read_text() + "keys: {train: {steps: 2, batch_size: 2}}\n", encoding="utf-8")
    found = cells(read_comparison(plan, ["variants.attention={train.lr: 0.5}", "variants.mamba2={}"]))
    assert {cell.variant: cell.recipe.train.lr == 0.5 for cell in found} == {"attention": True, "mamba2": False}


def test_a_variant_without_figures_has_its_curves_and_no_time_that_nobody_measured(tmp_path):
    common = {"name": "r", "seed": 0, "parameters": 7, "headline": {"rmse": "min"}, "baselines": {}, "over": "size"}
    curves = {"s": {"rmse": [[1, None], [2, 0.5]]}}
    made = [{**common, "variant": "a", "metrics": {"rmse": None}, "curves": curves},
            {**common, "variant": "b", "metrics": {"rmse": float("nan")}, "tokens_a_step": 10, "seconds_a_step": 1e-3}]  # fmt: skip
    found = table(made, ["a", "b", "c"])
    assert found["variants"] == ["a", "b"] and found["cost"]["r"]["a"]["microseconds"] is None
    page = write_comparison(tmp_path, "x", found).read_text()
    assert "<td>unknown<br>7</td><td>100.0<br>7</td>" in page and "<circle" in page and "unknown" in text_table(found)


def test_weights_are_those_of_the_model_or_of_the_tokenizer_that_was_trained_in_its_place(tmp_path):
    write_tensors(make(tmp_path / "tokenizers" / "codec") / "model.safetensors", {"a": torch.zeros(5)})
    assert comparing._parameters(tmp_path) == 5
    write_tensors(tmp_path / "model.safetensors", {"a": torch.zeros(3), "b": torch.zeros(2, 2)})
    assert comparing._parameters(tmp_path) == 7


def make(folder):
    folder.mkdir(parents=True)
    return folder
