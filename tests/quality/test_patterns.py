"""Where attention lies decides what a decoder can find again: full layers below windows, one attention among recurrences."""

from __future__ import annotations

from typing import Any

import pytest

from mmlm.recipe import Recipe
from mmlm.run import evaluate, train

pytestmark = pytest.mark.quality
WINDOWS = [
    "backbone.symbols={W: {type: attention, num_heads: 4, window: 32}}", "train.lr=2e-3", "train.optimizer={type: adamw, beta2: 0.98}",
]  # fmt: skip
NEEDLE = [
    "data.train=[{type: needle, length: 64}, {type: needle, length: 512}]", "data.test=[{type: needle, length: 512}]", "train.steps=600",
]  # fmt: skip
BOOK = [
    "data.train=[{type: phonebook, num_entries: 2}, {type: phonebook, num_entries: 8}, {type: phonebook, num_entries: 32}]",
    "data.test=[{type: phonebook, num_entries: 32}]", "backbone.width=128", "train.steps=600",
]  # fmt: skip
REACH = 6 * 31  # tokens back that six layers see by windows of 32


def measured(folder, name: str, *overrides: str) -> dict[str, Any]:
    """What is measured of a probe after training."""
    train(Recipe.read(name, [*overrides, f"output={folder}", "train.precision=bf16"]), fresh=True)
    return evaluate(folder)


def curve(folder, name: str, *overrides: str) -> list[tuple[float, float]]:
    """(tokens back, share of right answers) of a probe after training."""
    (found,) = measured(folder, name, *overrides)["curves"].values()
    print(f"\n{name} {overrides[0]}: {[(round(back), round(right, 3)) for back, right in found['accuracy']]}")
    return found["accuracy"]


def test_two_full_layers_find_what_lies_beyond_all_windows(tmp_path):
    """MASFormer, arXiv:2310.12442: windows alone guess one of 16 values there."""
    heads = "backbone.overrides={'*': {num_heads: 4}}"
    full = curve(tmp_path / "full", "probes/needle", "backbone.pattern=(*)x2 (W-)x4", heads, *NEEDLE, *WINDOWS)
    assert min(right for _, right in full) >= 0.95
    windows = curve(tmp_path / "windows", "probes/needle", "backbone.pattern=(W)x2 (W-)x4", *NEEDLE, *WINDOWS)
    near, far = ([right for back, right in windows if (back > REACH) == beyond] for beyond in (False, True))
    assert sum(near) / len(near) >= 0.9 and len(far) >= 5
    assert sum(far) / len(far) <= 0.15


def test_one_attention_among_recurrences_reads_a_phonebook_that_they_alone_do_not(tmp_path):
    """arXiv:2406.07887, section 3.3.3, small: 32 names of two tokens, numbers of four digits, states of 16 channels."""
    mamba = "{state_size: 16, head_size: 32}"
    patterns = {
        "hybrid": ("backbone.pattern=M-M-*-M-", f"backbone.overrides={{M: {mamba}, '*': {{num_heads: 4, rope: null}}}}"),
        "mamba2": ("backbone.pattern=(M-)x4", f"backbone.overrides={{M: {mamba}}}"),
    }
    found = {name: measured(tmp_path / name, "probes/phonebook", *keys, *BOOK)["metrics"] for name, keys in patterns.items()}
    print(f"\nphonebook of 32 lines: {found}")
    exact = {name: next(value for key, value in metrics.items() if key.startswith("exact")) for name, metrics in found.items()}
    assert exact["hybrid"] >= 0.9 and exact["mamba2"] <= exact["hybrid"] - 0.3
