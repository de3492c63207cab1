"""A trained decoder whose first of four attentions becomes Mamba-2 is as good as before, after a short distillation (arXiv:2503.13440).

Teacher and students read the small real corpus of `probes/text`; held-out loss is compared. A student begins from the weights of the
attention it replaces, or, for comparison, from new ones.
"""

from __future__ import annotations

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train

pytestmark = pytest.mark.quality
STEPS = 300


def bits(folder, *overrides: str) -> float:
    """Bits a byte of held-out text after training."""
    train(Recipe.read("probes/text", [f"output={folder}", *overrides]), fresh=True)
    return evaluate(folder)["metrics"]["bits_per_byte"]


def test_a_quarter_of_the_layers_becomes_mamba2_within_3_percent_of_the_teacher_and_better_than_from_new_weights(tmp_path):
    teacher = tmp_path / "teacher"
    found = {"teacher": bits(teacher, "backbone.pattern=[attention]", "backbone.num_layers=4", f"train.steps={2 * STEPS}")}
    student = [
        f"backbone={{pretrained: {teacher}}}", f"tokenizers.text.path={teacher}", f"objective={{type: distillation, teacher: {teacher}}}",
        f"train.steps={STEPS}", "train.lr=2e-3",
    ]  # fmt: skip
    for name, carry in (("carried over", "true"), ("new", "false")):
        found[name] = bits(tmp_path / name.replace(" ", "-"), *student, f"adapt.replace={{share: 0.25, carry: {carry}}}")
    print(f"\nbits a byte of held-out text: {({name: round(value, 4) for name, value in found.items()})}")
    assert found["carried over"] <= 1.03 * found["teacher"]
    assert found["carried over"] < found["new"]
