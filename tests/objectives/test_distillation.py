"""A student learns its teacher's probabilities, and new layers what the old ones do with the same input."""

import pytest
import torch

from mmlm.base.errors import RecipeError
from mmlm.base.schema import check
from mmlm.compression.surgery import replace_mixers
from mmlm.layout import Layout
from mmlm.model import MultimodalLM
from mmlm.model_config import ModelConfig
from mmlm.objectives import distillation
from mmlm.objectives.config import DistillationConfig
from mmlm.objectives.distillation import Distillation
from mmlm.recipe import Recipe
from mmlm.run import load_run, train
from mmlm.stream import Segment, Stream


def teacher(vocabulary=None, heads=None, width=16, num_heads=2):
    torch.manual_seed(0)
    backbone = {"width": width, "num_layers": 2, "pattern": [{"type": "attention", "num_heads": num_heads}]}
    raw = {"schema": 1, "vocabulary": vocabulary or {"text": 30}, "backbone": backbone, **({"heads": heads} if heads else {})}
    return MultimodalLM(check(ModelConfig, raw, "test")).double()


def batch(objective, model):
    g = torch.Generator().manual_seed(1)
    weights = [torch.tensor([0.0, 1, 1, 0.5, 0, 2]), torch.ones(4)]
    streams = [Stream([Segment("text", torch.randint(0, 30, (len(weight),), generator=g), weight=weight)]) for weight in weights]
    return objective.collate(streams, model.vocabulary)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_the_divergence_of_the_probabilities(direction, temperature, monkeypatch):
    monkeypatch.setattr(distillation, "ROWS_AT_ONCE", 3)
    old = teacher()
    new = replace_mixers(old, [1])
    objective = Distillation(DistillationConfig(teacher="t", direction=direction, temperature=temperature, label_weight=0.5))
    objective.set_teacher(old)
    given = batch(objective, new)
    losses = objective.losses(new, given)
    p, q = ((model.heads["language_model"].predict(model.hidden(given)[0]) / temperature).softmax(-1) for model in (old, new))
    p, q = (p, q) if direction == "forward" else (q, p)
    each = temperature**2 * (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(losses["kl"][0].double(), (each * given.weight).sum(), rtol=1e-6, atol=0)
    x = old.embedding(given.ids)
    x, _, _ = old.backbone.layers[0](x, given.layout)
    ours, theirs = (model.backbone.layers[1](x, given.layout)[0] for model in (new, old))
    torch.testing.assert_close(losses["layers"][0], (ours - theirs).norm(dim=-1).sum(), rtol=1e-10, atol=0)
    plain = new.losses(given)["language_model"][0]
    torch.testing.assert_close(losses["language_model"][0].double(), 0.5 * plain.double(), rtol=1e-6, atol=0)
    assert {name: float(weight) for name, (_, weight) in losses.items()} == objective.loss_weights(new, given)
    sum(value for value, _ in losses.values()).backward()
    assert all(p.grad is None for p in old.parameters()) and new.backbone.layers[1].mixer.input.weight.grad.abs().max() > 0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rows_that_no_head_writes_leave_the_gradient_finite(direction):
    head = {"language_model": {"type": "language_model", "ranges": ["text"]}}
    old, new = teacher({"text": 30, "unit": 4}, head), teacher({"text": 30, "unit": 4}, head)
    with torch.no_grad():
        old.embedding.weight.mul_(1.5)
    objective = Distillation(DistillationConfig(teacher="t", direction=direction))
    objective.set_teacher(old)
    loss, _ = objective.losses(new, batch(objective, new))["kl"]
    loss.backward()
    assert float(loss.detach()) > 0 and new.embedding.weight.grad.isfinite().all() and new.embedding.weight.grad.abs().max() > 0


def test_the_teacher_goes_where_the_student_is():
    objective = Distillation(DistillationConfig(teacher="t"))
    objective.set_teacher(teacher())
    assert objective._teacher_on(torch.device("meta")).device.type == "meta"  # as good as another device


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    old = teacher()
    objective = Distillation(DistillationConfig(teacher="t"))
    with pytest.raises(RecipeError, match="has not been loaded"):
        objective.losses(old, batch(objective, old))
    objective.set_teacher(teacher())
    losses = objective.losses(old, batch(objective, old))
    assert set(losses) == {"kl"} and abs(float(losses["kl"][0])) < 1e-12


def test_what_does_not_fit_is_told():
    old = teacher()
    objective = Distillation(DistillationConfig(teacher="runs/t"))
    wider = teacher()
    wider.extend_vocabulary({"unit": 4})
    objective.set_teacher(wider)
    with pytest.raises(RecipeError, match="runs/t has the vocabulary {'text': 30, 'unit': 4}, the model {'text': 30}"):
        objective.losses(old, batch(objective, old))
    objective.set_teacher(teacher({"unit": 4, "text": 30}))  # as many rows, of other ids
    with pytest.raises(RecipeError, match="runs/t has the vocabulary {'unit': 4, 'text': 30}, the model {'text': 30, 'unit': 4}"):
        objective.losses(wider, batch(objective, wider))
    objective.set_teacher(teacher(width=32, num_heads=4))
    for told in (objective.loss_weights, objective.losses):
        with pytest.raises(RecipeError, match="the teacher is 32 wide, the student 16, .*; say match_layers: false"):
            told(old, batch(objective, old))
    free = Distillation(DistillationConfig(teacher="runs/t", match_layers=False))
    free.set_teacher(teacher(width=32, num_heads=4))
    assert set(free.losses(old, batch(free, old))) == {"kl"}


TEXT = """
schema: 1
name: tiny
task: {type: tabular_text, context: 400, episode: {num_rows: 6, max_shots: 4, max_columns: 2, max_classes: 3}}
data: {train: [{type: structural_tables}]}
tokenizers: {text: {type: text, vocabulary_size: 300}}
backbone: {width: 32, num_layers: 4, pattern: [{mixer: {type: attention, num_heads: 2}}]}
train: {steps: 3, batch_size: 2, log_every: 1, lr: 0.003}
"""


def test_a_recipe_turns_a_quarter_of_a_run_into_mamba2_and_teaches_it(tmp_path):
    train(Recipe.read(TEXT, [f"output={tmp_path / 'teacher'}"]))
    changes = [
        f"output={tmp_path / 'student'}",
        f"tokenizers.text.path={tmp_path / 'teacher' / 'tokenizers' / 'text'}",
        "tokenizers.text.vocabulary_size=4096",
        f"backbone={{pretrained: {tmp_path / 'teacher'}}}",
        "adapt={replace: {share: 0.25}}",
        f"objective={{type: distillation, teacher: {tmp_path / 'teacher'}}}",
    ]
    recipe = Recipe.read(TEXT, changes)
    train(recipe)
    _, _, student = load_run(tmp_path / "student")
    _, _, old = load_run(tmp_path / "teacher")
    assert [layer.mixer.type for layer in student.config.backbone.layers] == ["mamba2", "attention", "attention", "attention"]
    kept = [name for name, _ in student.named_parameters() if ".layers.0.mixer." not in name]
    mine, theirs = dict(student.named_parameters()), dict(old.named_parameters())
    assert all(torch.equal(mine[name], theirs[name]) for name in kept), "only the new mixer is trained"
    x = torch.zeros(1, 3, 32)
    assert student.backbone(x, Layout.plain(1, 3))[0].isfinite().all()
    with pytest.raises(RecipeError, match="adapt.replace: there is nothing to replace"):
        train(Recipe.read(TEXT, [f"output={tmp_path / 'no'}", "adapt={replace: {share: 0.5}}"]))


def test_a_pretrained_decoder_gets_another_dropout_and_keeps_it(tmp_path):
    with pytest.raises(RecipeError, match="adapt.dropout: is of a pretrained decoder"):
        train(Recipe.read(TEXT, [f"output={tmp_path / 'no'}", "adapt.dropout=0.5"]))
    train(Recipe.read(TEXT, [f"output={tmp_path / 'first'}"]))
    tokenizer = f"tokenizers.text={{type: text, path: {tmp_path / 'first' / 'tokenizers' / 'text'}}}"
    more = [f"output={tmp_path / 'second'}", f"backbone={{pretrained: {tmp_path / 'first'}}}", tokenizer]
    with pytest.raises(RecipeError, match="heads: those of backbone.pretrained, .*first, are others"):
        train(Recipe.read(TEXT, [*more, "heads={other: {type: language_model}}"]))
    train(Recipe.read(TEXT, [*more, "adapt.dropout=0.5", "heads={language_model: {type: language_model}}"]))
    _, _, model = load_run(tmp_path / "second")
    assert model.config.backbone.dropout == 0.5 and all(layer.dropout == 0.5 for layer in model.backbone.layers)
    x, layout = torch.ones(1, 3, 32), Layout.plain(1, 3)
    assert torch.equal(model.backbone(x, layout)[0], model.backbone(x, layout)[0])
    model.train()
    assert not torch.equal(model.backbone(x, layout)[0], model.backbone(x, layout)[0])


def test_several_codebooks_at_a_token_have_no_teacher():
    objective, model = Distillation(DistillationConfig(teacher="t")), teacher()
    objective.set_teacher(teacher())
    given = batch(objective, model)
    given.code_labels = given.labels[..., None]
    with pytest.raises(RecipeError, match="the batch asks for several codebooks a token"):
        objective.losses(model, given)
