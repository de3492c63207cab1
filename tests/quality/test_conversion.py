"""A trained decoder whose first of four attentions becomes Mamba-2 is as good as before, after a short distillation (arXiv:2503.13440).

Teacher and students read the small real corpus of `probes/text`; held-out loss is compared, and how far the students are from their teacher
at the end. A student begins from the weights of the attention it replaces, or, for comparison, from new ones.
"""

from __future__ import annotations

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train
from mmlm.training.log import read_log
from mmlm.training.trainer import LOG

pytestmark = pytest.mark.quality
STEPS = 300


def trained(folder, *overrides: str) -> tuple[float, float | None]:
    """Bits a byte of held-out text after training, and nats between teacher and student over the last 40 steps."""
    train(Recipe.read("probes/text", [f"output={folder}", *overrides]), fresh=True)
    kl = [line["loss.kl"] for line in read_log(folder / LOG) if "loss.kl" in line][-2:]
    return evaluate(folder)["metrics"]["bits_per_byte"], sum(kl) / 2 if kl else None


def test_a_quarter_of_the_layers_becomes_mamba2_within_3_percent_of_the_teacher_and_better_than_from_new_weights(tmp_path):
    teacher = tmp_path / "teacher"
    found = {"teacher": trained(teacher, "backbone.pattern=[attention]", "backbone.num_layers=4", f"train.steps={2 * STEPS}")}
    student = [
        f"backbone={{pretrained: {teacher}}}", f"tokenizers.text.path={teacher}", f"objective={{type: distillation, teacher: {teacher}}}",
        f"train.steps={STEPS}", "train.lr=2e-3",
    ]  # fmt: skip
    for name, carry in (("carried over", "true"), ("new", "false")):
        found[name] = trained(tmp_path / name.replace(" ", "-"), *student, f"adapt.replace={{share: 0.25, carry: {carry}}}")
    print(f"\nbits a byte of held-out text, and nats from the teacher: {found}")
    (whole, _), (carried, near), (new, far) = found.values()
    assert carried <= 1.03 * whole and carried < new
    assert 1.3 * near <= far
