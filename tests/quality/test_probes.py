"""What mixers can and cannot do, by the recipes of the probes: trained as anybody would, measured on sequences that were never seen."""

from __future__ import annotations

import pytest

from mmlm.compare import cells, read_comparison, run_cell
from mmlm.recipe import Recipe
from mmlm.run import evaluate, train

pytestmark = pytest.mark.quality


def accuracies(name: str, folder, *overrides: str) -> list[float]:
    """Accuracy on each test source of a probe's recipe, in their order."""
    train(Recipe.read(name, [*overrides, f"output={folder}"]), fresh=True)
    found = evaluate(folder)["metrics"]
    print(f"\n{name} {' '.join(overrides)}: { ({key: round(value, 3) for key, value in found.items()}) }")
    return [value for key, value in found.items() if key.startswith("accuracy")]


def test_negative_eigenvalues_solve_parity_beyond_the_trained_length_and_positive_ones_do_not(tmp_path):
    """No linear recurrence of finite precision with positive eigenvalues alone can do it (arXiv:2411.12537), whatever it is trained on."""
    within, beyond = accuracies("probes/parity", tmp_path / "signed")
    assert within > 0.99 and beyond >= 0.95
    _, beyond = accuracies("probes/parity", tmp_path / "plain", "backbone.pattern.0.negative_eigenvalues=false")
    assert beyond <= 0.55


@pytest.mark.parametrize("variant", ["h3", "mamba2-attention", "deltanet"])
def test_recall_is_solved_where_keys_and_values_meet(variant, recall):
    assert recall(variant) >= 0.9


def test_recall_is_not_solved_by_a_fixed_filter(recall):
    """A diagonal system alone cannot compare two tokens (H3, arXiv:2212.14052, section 3)."""
    assert recall("s4-diagonal") <= 0.5


@pytest.fixture
def recall(tmp_path):
    """The accuracy of a variant of the comparison `probes` on recall at the trained length."""

    def run(variant: str) -> float:
        config = read_comparison("probes", [f"output={tmp_path}", "seeds=[0]"])
        (cell,) = [cell for cell in cells(config) if str(cell) == f"recall/{variant}/0"]
        found = run_cell(cell)["metrics"]
        print(f"\nrecall, {variant}: { ({key: round(value, 3) for key, value in found.items()}) }")
        return float(next(value for key, value in found.items() if key.startswith("accuracy")))

    return run


def test_a_hybrid_writes_text_at_least_as_well_as_its_parents_of_equal_size(tmp_path):
    """One seed. Seen: 2.022 bits a byte beside 2.029 (mamba2) and 2.198 (transformer), 2.632 by xz; 0.01 is what a CPU may change."""
    config = read_comparison("text", [f"output={tmp_path}", "seeds=[0]"])
    found = {cell.variant: run_cell(cell) for cell in cells(config)}
    bits = {variant: about["metrics"]["bits_per_byte"] for variant, about in found.items()}
    print(f"\nbits a byte of held-out text: {bits}")
    sizes = [about["parameters"] for about in found.values()]
    assert max(sizes) <= 1.01 * min(sizes)
    assert bits["hybrid"] <= min(bits["transformer"], bits["mamba2"]) + 0.01 and bits["hybrid"] < bits["transformer"] - 0.1
    assert bits["hybrid"] < found["hybrid"]["baselines"]["xz"]["bits_per_byte"]
