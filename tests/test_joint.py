"""Several tasks in one run: one vocabulary, batches and losses of each, resume, evaluation of each, and the task that an input is for."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmlm.adapt import adapt, adapted_layers, adapter_names, adapter_tensors
from mmlm.base.errors import RecipeError
from mmlm.cli import main
from mmlm.joint import Apart, JointSamples, JointValidation, Part, vocabulary_of
from mmlm.model import MultimodalLM
from mmlm.recipe import Recipe
from mmlm.records import Records
from mmlm.run import _learner, build_parts, build_task, evaluate, load_parts, load_run, load_text_model, load_tokenizer, preview, train
from mmlm.text_vectors import TextEmbedder
from mmlm.training.log import read_log
from mmlm.training.state import load_model

RECIPE = """
schema: 1
name: joint
tasks:
  - {type: text, name: write, context: 24, batch_size: 3, weight: 0.5}
  - {type: grounded, name: see, kinds: {caption: 1}, patches: patches}
data:
  train:
    - {type: text_files, path: FOLDER, hold_out: 0.25, validate_share: 0.25}
    - {type: scenes}
  validate: [{type: scenes, split: validate}]
  test: [{type: scenes, split: test, count: 3}]
  validate_samples: 3
tokenizers:
  text: {type: text, vocabulary_size: 300}
  patches: {type: image_patches, patch: 8, margin: 4, max_side: 32, places: true}
  boxes: {type: boxes, num_bins: 8}
encoders: {vision: {type: patch_stem, channels: [4, 4, 8]}}
backbone: {width: 16, num_layers: 1, pattern: [{type: attention, num_heads: 2}]}
heads: {language_model: {type: language_model, ranges: [text, special, obj, loc]}}
train: {steps: 4, batch_size: 2, log_every: 1, validate_every: 2, sample_every: 4, checkpoint_every: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    lines = [json.dumps({"text": f"The {number}. line says how many lines came before it: {number}."}) for number in range(24)]
    (root / "lines.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return root


def recipe(folder, *overrides: str) -> Recipe:
    return Recipe.read(RECIPE.replace("FOLDER", str(folder)), overrides)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    train(recipe(folder, f"output={output}"))
    return output


def test_a_recipe_of_several_tasks_is_that_of_each_with_its_own_data(folder):
    whole = recipe(folder)
    write, see = whole.alone
    assert [source.type for source in write.data.train] == ["text_files"] and write.data.validation == write.data.test == []
    assert [source.type for source in see.data.train] == ["scenes"] and len(see.data.validation) == 1
    assert write.tasks == [whole.tasks[0]] and see.tokenizers == whole.tokenizers
    (alone,) = write.alone
    assert alone is write


def test_a_source_is_for_all_tasks_that_read_it_or_for_those_it_names(folder):
    source = f"{{type: text_files, path: {folder}, hold_out: 0, tasks: [again]}}"
    two = recipe(
        folder, "tasks=[{type: text, name: write}, {type: text, name: again}]", f"data.train.1={source}", "data.validate=[]", "data.test=[]"
    )
    write, again = two.alone
    assert len(write.data.train) == 1 and len(again.data.train) == 2 and write.data.train[0] == again.data.train[0] == two.data.train[0]


def test_of_special_ids_each_task_uses_the_first():
    def part(name: str, **sizes: int) -> Part:
        task = SimpleNamespace(vocabulary=sizes, features={}, channels={})
        return Part(SimpleNamespace(tasks=[SimpleNamespace(called=name)]), task)

    assert vocabulary_of([part("a", special=1, unit=5), part("b", special=3, mask=1), part("c", special=2)]) == {
        "special": 3,
        "unit": 5,
        "mask": 1,
    }


def test_the_vocabulary_holds_each_range_once_and_a_shared_tokenizer_reads_the_texts_of_all(folder):
    parts = build_parts(recipe(folder))
    write, see = (part.task for part in parts)
    assert write.text is see.text and write.vocabulary["text"] == see.vocabulary["text"]
    learner, _ = _learner(recipe(folder), parts)
    assert learner.model.vocabulary.sizes == {**write.vocabulary, **see.vocabulary}
    words = "left of the circle"  # which no line says
    alone = build_task(recipe(folder).alone[0]).text
    assert len(write.text.ids([words])[0]) < len(alone.ids([words])[0])


def test_losses_are_means_over_each_task_and_count_by_its_weight(folder):
    parts = build_parts(recipe(folder))
    learner, made = _learner(recipe(folder), parts)
    batches = []
    for part, make in zip(parts, made, strict=True):
        samples = make(Records.of_training(part.recipe, part.task))
        batches.append(Apart(part.name, samples.collate([samples.sample(0, np.random.default_rng(at)) for at in range(part.size)])))
    assert [one.num_tokens > 0 for one in batches] == [True, True]
    for one in batches:
        found, weights = learner(one), learner.loss_weights(one)
        assert found.keys() == weights.keys() == {f"{one.name}.language_model"}
        plain = learner.model.losses(one.batch)["language_model"]
        assert torch.equal(found[f"{one.name}.language_model"][0], plain[0]) and float(plain[1]) == weights[f"{one.name}.language_model"]
    assert JointSamples(
        parts, [make(Records.of_training(each.recipe, each.task)) for each, make in zip(parts, made, strict=True)]
    ).sizes == [3, 2]
    assert learner.weight_of("write.language_model") == 0.5 and learner.weight_of("see.language_model") == 1.0


def test_a_step_reads_samples_of_each_task_and_the_log_tells_them_apart(run):
    log = [line for line in read_log(run / "log.jsonl") if line.get("loss") is not None]
    assert len(log) == 4
    for line in log:
        write, see = line["loss.write.language_model"], line["loss.see.language_model"]
        assert line["loss"] == pytest.approx(0.5 * write + see)
    (checked, last) = [line for line in read_log(run / "log.jsonl") if "validation.loss" in line]
    assert {"validation.write.bits_per_byte", "validation.see.loss", "validation.see.rouge_l"} <= last.keys() == checked.keys()
    assert last["validation.loss"] == pytest.approx(0.5 * last["validation.write.loss"] + last["validation.see.loss"])
    drawn = run / "samples" / "step_000004"
    assert {path.name for path in drawn.iterdir()} == {"write", "see"} and all(any(path.iterdir()) for path in drawn.iterdir())


def test_a_stopped_run_goes_on_bit_for_bit(run, folder, tmp_path):
    from mmlm.run import build_parts
    from mmlm.training.trainer import Trainer

    whole = recipe(folder, f"output={tmp_path / 'run'}", "train.validate_every=0", "train.sample_every=0")
    parts = build_parts(whole, run)
    for until in (2, None):
        learner, made = _learner(whole, parts)
        each = [make(Records.of_training(part.recipe, part.task)) for part, make in zip(parts, made, strict=True)]
        Trainer(learner, JointSamples(parts, each), whole.train, tmp_path / "run", seed=whole.seed).fit(until=until)
    _, _, known = load_run(run)
    assert known.stop == ()  # an end of texts ends nothing else
    for (name, one), other in zip(known.state_dict().items(), learner.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_each_task_is_measured_and_has_a_report(run, capsys):
    assert main(["evaluate", str(run)]) == 0
    told = capsys.readouterr().out
    assert "\nwrite\n" in told and "\nsee\n" in told and "bits_per_byte" in told and "cider" in told
    found = json.loads((run / "metrics.json").read_text())["tasks"]
    assert found.keys() == {"write", "see"} and found["see"]["data"]["records"] == {"scenes": 3}
    for part in found:
        assert json.loads((run / part / "metrics.json").read_text()) == found[part]
        page = (run / part / "report.html").read_text()
        assert "<h2>Measured" in page and "<h2>Training" not in page
    whole = (run / "report.html").read_text()
    assert '<a href="see/report.html">' in whole and "<h2>Training" in whole and "bits per byte" in whole
    card = (run / "README.md").read_text()
    assert "`text`, `grounded`" in card and "### write" in card and "### see" in card and "--text" in card


def test_an_input_goes_to_the_task_that_it_is_for(run, tmp_path, capsys):
    from PIL import Image

    assert load_run(run)[1].config.type == "text"
    some, task, _ = load_run(run, fits=lambda config: config.type == "grounded")
    assert task.config.type == "grounded" and [each.type for each in some.data.train] == ["scenes"]
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    assert main(["generate", str(run), "--image", str(tmp_path / "red.png"), "--output", str(tmp_path / "told")]) == 0
    assert "red.png" in capsys.readouterr().out
    assert main(["generate", str(run), "--audio", str(tmp_path / "red.png")]) == 2
    assert "--audio needs a run that does" in capsys.readouterr().err


def test_every_task_is_shown_before_training(folder):
    told = preview(recipe(folder), 1)
    assert "task write" in told and "task see" in told and "a batch of 3:" in told and "a batch of 2:" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("tasks.1.name=write", "tasks: several are called write; give each a name of its own"),
        ("tasks.1={type: codec}", "tasks: codec trains a network of its own"),
        ("data.train.1.tasks=[looks]", "data.train.1.tasks: unknown task 'looks'. Known: see, write."),
        ("data.train.1.tasks=[write]", "data.train.1: 'scenes' gives pictures, but the task write reads texts"),
        (
            "data.train.1={type: asterisk, hold_out: 0}",
            "data.train.1: 'asterisk' gives speech, but no task reads that; they read pictures, texts",
        ),
        ("data.train.1=null", "data.train"),
        ("train.keep_best={metric: accuracy}", "train.keep_best.metric: unknown validation metric 'accuracy'"),
    ],
)
def test_what_does_not_fit_together_is_told(folder, change, message, tmp_path):
    with pytest.raises(RecipeError, match=None) as error:
        train(recipe(folder, change, f"output={tmp_path / 'run'}"))
    assert message in str(error.value)


def test_a_task_without_data_and_tokenizers_that_differ_are_told(folder):
    with pytest.raises(RecipeError, match="data.train: has no source for the task see, which reads pictures: .*scenes"):
        recipe(
            folder,
            f"data.train=[{{type: text_files, path: {folder}, hold_out: 0.25}}]",
            "data.validate=[]",
            "data.test=[]",
            "train.validate_every=0",
            "train.sample_every=0",
        )
    other = recipe(folder, "tokenizers.words={type: text, vocabulary_size: 290}", "tasks.1.text=words")
    with pytest.raises(RecipeError, match="tasks: write has 287 ids 'text', see has 290; let both use the same tokenizer"):
        _learner(other, build_parts(other))


# an objective for each task

MOLECULES = """
  - type: regression_transformer
    name: molecules
    properties: [size]
    batch_size: 4
    objective: {type: permutation, alternate_every: 2}
"""
COMPOUNDS = [
    f"{ring}{tail}" for ring in ("c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CC1", "c1ccsc1", "C1CCNC1") for tail in ("C", "O", "CC", "CN")
]


def mixed(folder, *overrides: str) -> Recipe:
    """The recipe above with molecules under an objective of their own."""
    lines = [json.dumps({"smiles": smiles, "properties": {"size": len(smiles) / 10}}) for smiles in COMPOUNDS]
    path = folder.with_name("compounds.jsonl")
    path.write_text("\n".join(lines), encoding="utf-8")
    source = f"{{type: molecule_manifest, path: {path}, hold_out: 0.2, validate_share: 0.2}}"
    text = RECIPE.replace("FOLDER", str(folder)).replace("data:\n  train:", f"{MOLECULES.strip(chr(10))}\ndata:\n  train:\n    - {source}")
    tokenizers = "tokenizers:\n  sequence: {type: molecules}\n  numbers: {type: numbers, whole_digits: 1, decimals: 1}"
    text = text.replace("tokenizers:", tokenizers)
    return Recipe.read(text.replace("[text, special, obj, loc]", "[text, special, obj, loc, number, molecule]"), overrides)


@pytest.fixture(scope="module")
def mixed_run(folder, tmp_path_factory):
    pytest.importorskip("rdkit")
    output = tmp_path_factory.mktemp("runs") / "mixed"
    train(mixed(folder, f"output={output}"))
    return output


def test_each_task_has_its_own_objective_and_the_others_that_of_the_recipe(folder):
    whole = mixed(folder, "objective={type: prefix}")
    assert [alone.objective.type for alone in whole.alone] == ["prefix", "prefix", "permutation"]
    assert [each.objective.type for alone in whole.alone for each in alone.alone] == ["prefix", "prefix", "permutation"]
    assert Recipe.read(whole.dump() + "\n") == whole
    only = {"type": "text_files", "path": str(folder), "hold_out": 0.25}
    one = Recipe.read({"schema": 1, "name": "one", "task": {"type": "text", "objective": "masked"}, "data": {"train": [only]}})
    assert one.alone[0].objective.type == "masked" and one.alone[0].alone[0] == one.alone[0]


def test_a_step_takes_the_loss_of_each_objective(mixed_run):
    lines = [line for line in read_log(mixed_run / "log.jsonl") if line.get("loss") is not None]
    views = [sorted(name for name in line if name.startswith("loss.molecules.")) for line in lines]
    sequence = ["loss.molecules.self_consistency", "loss.molecules.sequence"]
    assert views == [["loss.molecules.property"]] * 2 + [sequence] * 2
    for line in lines:
        parts = {name: value for name, value in line.items() if name.startswith("loss.")}
        weights = {name: 0.5 if name.startswith("loss.write.") else 1.0 for name in parts}
        assert line["loss"] == pytest.approx(sum(weights[name] * parts[name] for name in parts))
    (_, checked) = [line for line in read_log(mixed_run / "log.jsonl") if "validation.loss" in line]
    assert {"validation.molecules.loss.property", "validation.molecules.loss.sequence", "validation.molecules.rmse"} <= checked.keys()


def test_a_task_learns_beside_others_what_it_learns_under_its_objective_alone(folder):
    whole = mixed(folder)
    parts = build_parts(whole)
    learner, made = _learner(whole, parts)
    alone = whole.alone[2].objective.build()
    samples = made[2](Records.of_training(parts[2].recipe, parts[2].task))
    batch = samples.collate([samples.sample(0, np.random.default_rng(at)) for at in range(4)])
    learner.train()
    for step in (0, 2):
        learner.begin_step(step, 4)
        alone.begin_step(step, 4)
        torch.manual_seed(0)  # what is read again is drawn
        found = learner(Apart("molecules", batch))
        torch.manual_seed(0)
        true = alone.losses(learner.model, batch)
        assert found.keys() == {f"molecules.{name}" for name in true} == learner.loss_weights(Apart("molecules", batch)).keys()
        for name, (total, weight) in true.items():
            assert torch.equal(found[f"molecules.{name}"][0], total) and torch.equal(found[f"molecules.{name}"][1], weight)
    (text,) = [part for part in parts if part.name == "write"]
    some = made[parts.index(text)](Records.of_training(text.recipe, text.task))
    packed = some.collate([some.sample(0, np.random.default_rng(0))])
    assert torch.equal(learner(Apart("write", packed))["write.language_model"][0], learner.model.losses(packed)["language_model"][0])


def test_a_stopped_run_of_several_objectives_goes_on_bit_for_bit(mixed_run, folder, tmp_path):
    from mmlm.training.trainer import Trainer

    whole = mixed(folder, f"output={tmp_path / 'run'}", "train.validate_every=0", "train.sample_every=0")
    parts = build_parts(whole, mixed_run)
    for until in (3, None):
        learner, made = _learner(whole, parts)
        each = [make(Records.of_training(part.recipe, part.task)) for part, make in zip(parts, made, strict=True)]
        Trainer(learner, JointSamples(parts, each), whole.train, tmp_path / "run", seed=whole.seed).fit(until=until)
    _, _, known = load_run(mixed_run)
    for (name, one), other in zip(known.state_dict().items(), learner.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_molecules_are_read_designed_and_measured_by_a_run_of_several_objectives(mixed_run, capsys):
    some, task, _ = load_run(mixed_run, fits=lambda config: config.type == "regression_transformer")
    assert some.objective.type == "permutation" and load_run(mixed_run)[0].objective.type == "causal"
    assert main(["generate", str(mixed_run), "--smiles", "CCO"]) == 0
    assert "CCO" in capsys.readouterr().out
    assert main(["evaluate", str(mixed_run)]) == 0
    capsys.readouterr()
    found = json.loads((mixed_run / "metrics.json").read_text())["tasks"]
    assert found.keys() == {"write", "see", "molecules"} and "rmse" in found["molecules"]["metrics"]
    assert "Objectives: `causal` (write), `causal` (see), `permutation` (molecules)." in (mixed_run / "README.md").read_text()


def test_every_view_of_a_task_is_shown_before_training(folder):
    told = preview(mixed(folder), 1)
    assert "a batch of 4, property: 4 documents" in told and "a batch of 4, sequence: 4 documents" in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["tasks.0.objective=causual"], "tasks.0.objective: unknown objective 'causual'."),
        (
            ["tasks.0.objective=causal", "tasks.1.objective=causal", "objective=prefix"],
            "objective: has no effect: each task has an objective of its own",
        ),
        (["tasks.1={type: codec, objective: causal}"], "objective: has no effect: the task trains a network of its own"),
    ],
)
def test_an_objective_that_does_nothing_is_told(folder, changes, message):
    with pytest.raises(RecipeError) as error:
        recipe(folder, *changes)
    assert message in str(error.value)


# adapters of each task on shared weights

OWN_ADAPTERS = ["adapt.lora={rank: 2, per_task: true}", "train.lr=0.05"]


@pytest.fixture(scope="module")
def adapted_run(folder, tmp_path_factory):
    pytest.importorskip("peft")
    output = tmp_path_factory.mktemp("runs") / "adapted"
    train(recipe(folder, f"output={output}", *OWN_ADAPTERS))
    return output


def test_a_task_trains_its_own_adapters_and_no_other(folder):
    whole = recipe(folder, *OWN_ADAPTERS)
    parts = build_parts(whole)
    learner, made = _learner(whole, parts)
    adapt(learner.model, whole.adapt, whole.seed, [part.name for part in parts])
    assert adapter_names(learner.model) == ["write", "see"]
    for part, make in zip(parts, made, strict=True):
        samples = make(Records.of_training(part.recipe, part.task))
        learner.zero_grad()
        losses = learner(Apart(part.name, samples.collate([samples.sample(0, np.random.default_rng(0))])))
        sum(loss / weight for loss, weight in losses.values()).backward()
        own, other = (adapter_tensors(learner.model, name) for name in (part.name, "see" if part.name == "write" else "write"))
        assert own.keys() == other.keys() and all(tensor.requires_grad for tensor in [*own.values(), *other.values()])
        assert any(tensor.grad is not None and tensor.grad.any() for tensor in own.values())
        assert all(tensor.grad is None or not tensor.grad.any() for tensor in other.values())
    held = [parameter for name, parameter in learner.model.named_parameters() if name.startswith("backbone") and "lora_" not in name]
    assert held and not any(parameter.requires_grad for parameter in held)


def test_validation_counts_each_loss_as_often_as_training_does(folder):
    class Measured:
        fingerprint = ""

        def __call__(self, model, step):
            return {"loss": 3.0, "loss.language_model": 2.0, "loss.balance": 1.0, "right": 0.5}

    whole = recipe(folder, "train.loss_weights={see.language_model: 3.0}")
    parts = build_parts(whole)
    learner, _ = _learner(whole, parts)
    metrics = JointValidation(parts, [Measured(), Measured()], whole.train)(learner, 1)
    assert metrics["loss"] == pytest.approx(0.5 * (2 + 1) + 3 * 2 + 1)
    assert metrics["see.right"] == 0.5 and metrics["write.loss"] == 3.0


def test_samples_of_a_task_are_drawn_with_its_own_adapters(folder, tmp_path):
    class Drawing:
        fingerprint = ""

        def draw(self, model, step, folder):
            drawn.append((folder.name, next(iter(adapted_layers(model.model).values())).active_adapters))

    drawn: list[tuple[str, list[str]]] = []
    whole = recipe(folder, *OWN_ADAPTERS)
    parts = build_parts(whole)
    learner, _ = _learner(whole, parts)
    adapt(learner.model, whole.adapt, whole.seed, [part.name for part in parts])
    JointValidation(parts, [Drawing(), Drawing()], whole.train).draw(learner, 1, tmp_path)
    assert drawn == [("write", ["write"]), ("see", ["see"])]


def test_a_run_keeps_the_shared_weights_once_and_each_task_gets_its_own(adapted_run, folder):
    learner, _ = _learner(recipe(folder), build_parts(recipe(folder), adapted_run))
    begun = {name: tensor for name, tensor in learner.model.state_dict().items() if name.startswith("backbone.layers")}
    plain = MultimodalLM.from_pretrained(adapted_run).state_dict()
    assert begun and all(torch.equal(plain[name], tensor) for name, tensor in begun.items())
    models = [load_run(adapted_run, fits=lambda config, kind=kind: config.type == kind)[2].state_dict() for kind in ("text", "grounded")]
    (changed,) = {tuple(name for name in begun if not torch.equal(some[name], plain[name])) for some in models}
    assert changed and all(not torch.equal(models[0][name], models[1][name]) for name in changed)
    assert all(torch.equal(models[0][name], models[1][name]) for name in plain if name not in changed)


def test_what_is_loaded_computes_what_was_trained(adapted_run, folder):
    whole = recipe(folder, *OWN_ADAPTERS)
    parts = build_parts(whole, adapted_run)
    learner, made = _learner(whole, parts)
    adapt(learner.model, whole.adapt, whole.seed, [part.name for part in parts])
    load_model(learner, adapted_run / "checkpoints" / "step_000004")
    _, _, models = load_parts(adapted_run)
    for part, make, model in zip(parts, made, models, strict=True):
        samples = make(Records.of_training(part.recipe, part.task))
        batch = samples.collate([samples.sample(0, np.random.default_rng(0))])
        trained = learner.alone(part.name).eval()(batch)["language_model"][0]
        loaded = model.losses(batch)["language_model"][0]
        assert float(loaded) == pytest.approx(float(trained), rel=1e-5)
    assert float(models[0].losses(batch)["language_model"][0]) != pytest.approx(float(loaded), rel=1e-5)


def test_texts_are_written_and_encoded_with_the_adapters_of_the_task_of_texts(adapted_run, tmp_path):
    _, _, models = load_parts(adapted_run)  # of the text task first
    ids = torch.arange(5)[None] + models[0].vocabulary.span("text").start
    text, plain = load_text_model(adapted_run), MultimodalLM.from_pretrained(adapted_run)
    assert torch.equal(text.logits(ids), models[0].logits(ids)) and not torch.equal(text.logits(ids), plain.logits(ids))
    assert torch.equal(TextEmbedder(adapted_run).model.logits(ids), models[0].logits(ids))
    assert (
        main(["generate", str(adapted_run), "--text", "a word", "--max-new-tokens", "3", "--output", str(tmp_path / "new" / "a.txt")]) == 0
    )
    assert (tmp_path / "new" / "a.txt").read_text().startswith("a word")


def test_a_tokenizer_of_a_run_is_the_fitted_one(adapted_run):
    text = load_tokenizer(adapted_run, "text")
    assert text.decode(text.ids(["line says how"])[0]) == "line says how" and len(text.ids(["The "])[0]) < 4
    with pytest.raises(RecipeError, match="has the tokenizers text, patches, boxes; name one of them"):
        load_tokenizer(adapted_run)
    with pytest.raises(RecipeError, match="unknown tokenizer 'txt'. Did you mean 'text'?"):
        load_tokenizer(adapted_run, "txt")


def test_a_run_with_adapters_of_each_task_is_measured(adapted_run):
    assert evaluate(adapted_run)["tasks"].keys() == {"write", "see"}


def test_a_run_with_adapters_of_each_task_goes_on_where_it_stopped(adapted_run, folder, tmp_path):
    from shutil import copytree, rmtree

    copytree(adapted_run, tmp_path / "run")
    rmtree(tmp_path / "run" / "checkpoints" / "step_000004")
    train(recipe(folder, f"output={tmp_path / 'run'}", *OWN_ADAPTERS))
    for name in ("write", "see"):
        files = [path / "adapter" / name / "adapter.safetensors" for path in (adapted_run, tmp_path / "run")]
        assert files[0].read_bytes() == files[1].read_bytes()
