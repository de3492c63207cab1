"""Recipes: every fault at once with the nearest name, nothing in a file can run code, the dump reads back equal."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from mmlm.base import yaml
from mmlm.base.errors import RecipeError
from mmlm.base.jsonschema import json_schema
from mmlm.recipe import MAX_BYTES, Recipe, apply_override, find, shipped

ROOT = Path(__file__).resolve().parent.parent
HEAD = "schema: 1\nname: tiny\n"
FULL = (
    f"{HEAD}backbone: {{width: 32, num_layers: 2, pattern: [mamba2, {{type: attention, num_heads: 2}}]}}\n"
    "objective: {type: masked, rate: 0.2}\n"
)


def told(text: str, overrides=()) -> list[str]:
    """The faults of a recipe, one a line."""
    try:
        Recipe.read(text, overrides)
    except RecipeError as error:
        head, *lines = str(error).splitlines()
        return [line.strip() for line in lines] or [head]
    return []


# (kind of fault, recipe after the head, start of the sentence, nearest name or None where none is due)
FAULTS: list[tuple[str, str, str, str | None]] = [
    # a key written wrong
    ("typo", "sed: 1", "sed: unknown key.", "seed"),
    ("typo", "outptu: x", "outptu: unknown key.", "output"),
    ("typo", "backbones: {}", "backbones: unknown key.", "backbone"),
    ("typo", "head: {}", "head: unknown key.", "heads"),
    ("typo", "encoder: {}", "encoder: unknown key.", "encoders"),
    ("typo", "objectiv: causal", "objectiv: unknown key.", "objective"),
    ("typo", "backbone: {widht: 32}", "backbone.widht: unknown key.", "width"),
    ("typo", "backbone: {numlayers: 2}", "backbone.numlayers: unknown key.", "num_layers"),
    ("typo", "backbone: {n_layers: 2}", "backbone.n_layers: unknown key.", "num_layers"),
    ("typo", "backbone: {patern: [mamba2]}", "backbone.patern: unknown key.", "pattern"),
    ("typo", "backbone: {feedforward: swiglu}", "backbone.feedforward: unknown key.", "feed_forward"),
    ("typo", "backbone: {norm_epsilon: 1e-5}", "backbone.norm_epsilon: unknown key.", "norm_eps"),
    ("typo", "backbone: {drop_out: 0.1}", "backbone.drop_out: unknown key.", "dropout"),
    ("typo", "backbone: {pattern: [{type: mamba2, statesize: 8}]}", "backbone.pattern.0.statesize: unknown key.", "state_size"),
    ("typo", "backbone: {pattern: [mamba2, {type: attention, heads: 8}]}", "backbone.pattern.1.heads: unknown key.", "num_heads"),
    ("typo", "backbone: {pattern: [{mixer: {type: attention, qknorm: true}}]}", "backbone.pattern.0.mixer.qknorm: unknown key.", "qk_norm"),
    ("typo", "backbone: {pattern: [{mixer: mamba2, paralel: true}]}", "backbone.pattern.0.paralel: unknown key.", "parallel"),
    ("typo", "backbone: {pattern: [{type: attention, rope: {bases: 1e4}}]}", "backbone.pattern.0.rope.bases: unknown key.", "base"),
    (
        "typo",
        "backbone: {pattern: [{type: attention, rope: {scaling: {type: linear, facter: 2, factor: 2}}}]}",
        "backbone.pattern.0.rope.scaling.facter: unknown key.",
        "factor",
    ),
    ("typo", "backbone: {feed_forward: {type: moe, num_expert: 4}}", "backbone.feed_forward.num_expert: unknown key.", "num_experts"),
    ("typo", "heads: {a: {type: language_model, tie: true}}", "heads.a.tie: unknown key.", "tied"),
    ("typo", "heads: {a: {type: language_model, labelsmoothing: 0.1}}", "heads.a.labelsmoothing: unknown key.", "label_smoothing"),
    ("typo", "encoders: {cell: {type: table_cells, hiden: 8}}", "encoders.cell.hiden: unknown key.", "hidden"),
    ("typo", "objective: {type: masked, rte: 0.1}", "objective.rte: unknown key.", "rate"),
    ("typo", "train: {step: 5}", "train.step: unknown key.", "steps"),
    ("typo", "train: {learning_rate: 1e-3}", "train.learning_rate: unknown key.", "lr"),
    ("typo", "train: {batchsize: 4}", "train.batchsize: unknown key.", "batch_size"),
    ("typo", "train: {optimizer: {type: adamw, betta1: 0.9}}", "train.optimizer.betta1: unknown key.", "beta1"),
    ("typo", "train: {keep_best: {metrik: loss}, validate_every: 5}", "train.keep_best.metrik: unknown key.", "metric"),
    ("typo", "adapt: {lora: {ranks: 4}}", "adapt.lora.ranks: unknown key.", "rank"),
    # a name that is none of the choices
    ("choice", "backbone: {pattern: [mamba3]}", "backbone.pattern.0: unknown mixer 'mamba3'.", "mamba1"),
    ("choice", "backbone: {pattern: [mamba]}", "backbone.pattern.0: unknown mixer 'mamba'.", "mamba1"),
    ("choice", "backbone: {pattern: [{type: atention}]}", "backbone.pattern.0: unknown mixer 'atention'.", "attention"),
    ("choice", "backbone: {pattern: [{mixer: Attention}]}", "backbone.pattern.0.mixer: unknown mixer 'Attention'.", "attention"),
    ("choice", "backbone: {feed_forward: swiglue}", "backbone.feed_forward: unknown feed-forward 'swiglue'.", "swiglu"),
    ("choice", "backbone: {pattern: [{mixer: mamba2, feed_forward: defualt}]}", "backbone.pattern.0.feed_forward: must be", "default"),
    ("choice", "backbone: {norm: rmsnorm}", "backbone.norm: must be 'rms' or 'layer', but is 'rmsnorm'.", "rms"),
    ("choice", "backbone: {norm: layernorm}", "backbone.norm: must be 'rms' or 'layer', but is 'layernorm'.", "layer"),
    ("choice", "heads: {a: languagemodel}", "heads.a: unknown head 'languagemodel'.", "language_model"),
    ("choice", "heads: {a: {type: regresion}}", "heads.a: unknown head 'regresion'.", "regression"),
    ("choice", "heads: {a: {type: regression, loss: hubert}}", "heads.a.loss: must be", "huber"),
    ("choice", "encoders: {cell: table_cell}", "encoders.cell: unknown encoder 'table_cell'.", "table_cells"),
    ("choice", "objective: causual", "objective: unknown objective 'causual'.", "causal"),
    ("choice", "objective: {type: masked, policy: spans}", "objective.policy: must be", "span"),
    ("choice", "objective: {type: mask}", "objective: unknown objective 'mask'.", "masked"),
    ("choice", "backbone: {pattern: [{type: attention, rope: {scaling: {type: yarm}}}]}", "backbone.pattern.0.rope.scaling: un", "yarn"),
    ("choice", "train: {optimizer: adam}", "train.optimizer: unknown optimizer 'adam'.", "adamw"),
    ("choice", "train: {schedule: cosin}", "train.schedule: unknown schedule 'cosin'.", "cosine"),
    ("choice", "train: {precision: fp16}", "train.precision: must be 'fp32', 'bf16' or 'auto', but is 'fp16'.", "bf16"),
    # another kind of value
    ("kind", "train: {trackers: wandb}", "train.trackers: must be a list, but is 'wandb'.", None),
    ("kind", "adapt: {lr_scale: {backbone: '0.1'}}", "adapt.lr_scale.backbone: must be a number, but is '0.1'.", None),
    ("kind", "seed: one", "seed: must be a whole number, but is 'one'.", None),
    ("kind", "seed: '7'", "seed: must be a whole number, but is '7'.", None),
    ("kind", "seed: 1.5", "seed: must be a whole number, but is 1.5.", None),
    ("kind", "backbone: 3", "backbone: must be a section with keys, but is 3.", None),
    ("kind", "backbone: {width: true}", "backbone.width: must be a whole number, but is true.", None),
    ("kind", "backbone: {width: [32]}", "backbone.width: must be a whole number, but is [32].", None),
    ("kind", "backbone: {pattern: mamba2}", "backbone: pattern: a mixer by name belongs into a list: [mamba2].", None),
    ("kind", "backbone: {pattern: 7}", "backbone.pattern: must be a list, but is 7.", None),
    ("kind", "backbone: {pattern: [3]}", "backbone.pattern.0: must be a section with keys, but is 3.", None),
    ("kind", "backbone: {recompute: yes}", "backbone.recompute: must be true or false, but is 'yes'.", None),
    ("kind", "backbone: {dropout: ten}", "backbone.dropout: must be a number, but is 'ten'.", None),
    ("kind", "heads: [language_model]", "heads: must be a section with keys, but is ['language_model'].", None),
    ("kind", "heads: {a: {type: 3}}", "heads.a: must be a head whose type is a name, but is {'type': 3}.", None),
    ("kind", "objective: {rate: 0.1}", "objective: must be a objective: a name or {type: name, ...}", None),
    ("kind", "output: 3", "output: must be a text, but is 3.", None),
    # out of range
    ("range", "seed: -1", "seed: must be at least 0, but is -1.", None),
    ("range", "backbone: {width: 0}", "backbone.width: must be at least 8, but is 0.", None),
    ("range", "evaluate: {shots: [8, -1]}", "evaluate.shots.1: must be at least 0, but is -1.", None),
    ("range", "backbone: {dropout: 1.0}", "backbone.dropout: must be less than 1.0, but is 1.0.", None),
    ("range", "backbone: {pattern: []}", "backbone.pattern: must have at least 1 items, but has 0.", None),
    ("range", "backbone: {norm_eps: .nan}", "backbone.norm_eps: must be a finite number, but is nan.", None),
    ("range", "backbone: {pattern: [{type: mamba2, state_size: 4096}]}", "backbone.pattern.0.state_size: must be at most 1024", None),
    ("range", "objective: {type: masked, rate: 1.5}", "objective.rate: must be at most 1.0 or 'cosine', but is 1.5.", None),
    ("range", "objective: {type: masked, random_share: 0.6, keep_share: 0.5}", "objective: random_share (0.6) and keep_share (0.5) must", None),
    ("range", "backbone: {pattern: [{type: attention, num_heads: 4, num_kv_heads: 3}]}", "backbone.pattern.0: num_heads (4) must be", None),
    ("range", "train: {lr: 0}", "train.lr: must be greater than 0.0, but is 0.", None),
    ("range", "train: {batch_size: 4, micro_batch_size: 8}", "train: micro_batch_size (8) must be at most batch_size (4).", None),
    ("range", "train: {warmup: 1.5}", "train.warmup: must be a share below 1 or a whole number of steps, but is 1.5.", None),
    # missing
    ("missing", "backbone: {pattern: [{type: attention, rope: {scaling: linear}}]}", "backbone.pattern.0.rope.scaling: must be a section", None),
    ("missing", "backbone: {pattern: [{type: attention, rope: {scaling: {factor: 2}}}]}", "backbone.pattern.0.rope.scaling: needs a key", None),
    ("missing", "backbone: {pattern: [{type: attention, rope: {scaling: {type: ntk}}}]}", "backbone.pattern.0.rope.scaling.factor", None),
    ("missing", "backbone: {pattern: [{mixer: null, feed_forward: null}]}", "backbone.pattern.0: needs a mixer or a feed_forward.", None),
    ("missing", "task: regression_transformer", "recipe: objective: the task regression_transformer learns by permutation alone", None),
    ("missing", "heads: {a: {tied: true}}", "heads.a: must be a head: a name or {type: name, ...}", None),
    # twice
    ("twice", "seed: 1\nseed: 2", "line 4: key 'seed' stands twice (first in line 3).", None),
    ("twice", "backbone: {width: 8, width: 16}", "line 3: key 'width' stands twice (first in line 3).", None),
    ("twice", "name: other", "line 3: key 'name' stands twice (first in line 2).", None),
    # no effect
    ("no effect", "backbone: {pretrained: some/model, width: 64}", "backbone.width: has no effect: pretrained decides it.", None),
    ("no effect", "train: {schedule: constant, min_lr_ratio: 0.5}", "train.min_lr_ratio: has no effect: the schedule is constant.", None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "sentence", "near"), FAULTS, ids=[f"{case[0]}-{case[1]}"[:60] for case in FAULTS])
def test_a_fault_is_told_once_with_its_path(kind, text, sentence, near):
    found = told(HEAD + text)
    assert len(found) == 1 and found[0].startswith(sentence), found
    assert "Did you mean" in found[0] if near else "Did you mean" not in found[0]


def test_there_are_sixty_cases_of_six_kinds_and_the_nearest_name_is_right():
    kinds = {case[0] for case in FAULTS}
    assert len(FAULTS) >= 60 and {"typo", "choice", "kind", "range", "missing", "twice"} <= kinds
    due = [(text, near) for _, text, _, near in FAULTS if near]
    right = [near for text, near in due if f"Did you mean {near!r}?" in told(HEAD + text)[0]]
    assert len(due) >= 36 and len(right) / len(due) >= 0.9, set(due) - set(right)


def test_all_faults_of_a_file_and_of_its_overrides_are_told_at_once():
    text = (
        "schema: 2\nnmae: x\nseed: a\nseed: 3\nbackbone:\n  widht: 3\n  num_layers: 0\n"
        "  pattern: [mamba3, {type: mamba2, state_size: 0, x: 1}]\nheads: {a: {type: regression, loss: l2}}\nobjective: nothing\n"
    )
    found = told(text, ["backbone.drop=1", "no equals sign", "backbone.pattern.7=mamba2", "encoders.c=nothing"])
    paths = [line.partition(":")[0] for line in found]
    assert sorted(paths) == sorted(
        [
            "line 4", "override 'no equals sign' must look like path.to.key=value.", "override 'backbone.pattern.7=mamba2'",
            "schema", "nmae", "seed", "backbone.widht", "backbone.num_layers", "backbone.pattern.0",
            "backbone.pattern.1.state_size",
            "backbone.pattern.1.x", "heads.a.loss", "objective", "backbone.drop", "encoders.c",
        ]
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "7", "null", "just text", "- a\n- b"])
def test_a_file_that_is_no_section_is_told_in_one_line(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"r.yaml: 1 problem\n  recipe: must be a section with keys, but is"):
        Recipe.read(path)


HOSTILE = {
    "dotted target": "backbone: {target: 'os:system'}",
    "hydra target": "backbone: {_target_: os.system}",
    "target of a component": "objective: {type: causal, target: 'os:system'}",
    "type as an import path": "objective: {type: 'os:system'}",
    "type as a path": "objective: {type: ../../evil}",
    "python object": "objective: !!python/object/apply:os.system ['touch MARK']",
    "python name": "objective: !!python/name:os.system ''",
    "own tag": "objective: !run 'touch MARK'",
    "binary tag": "output: !!binary aGVsbG8=",
    "alias": "encoders: &a {x: table_cells}\nheads: *a",
    "alias bomb": "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
    "merge key": "backbone: {<<: {width: 8}}",
    "environment": "seed: ${oc.env:HOME}",
    "environment in a name": "name2: ${HOME}",
    "shell": "seed: $(touch MARK)",
    "second document": "---\nseed: 1",
    "NUL": "output: 'a\0b'",
    "deep nesting": "encoders: " + "[" * 5000,
    "deep sections": "encoders: " + "{a: " * 5000,
    "long number": "seed: " + "9" * 100_000,
    "long key": "x" * (MAX_BYTES + 1) + ": 1",
    "10 MB key": "? " + "x" * 10_000_000 + "\n: 1",
    "many keys": "encoders: {" + ", ".join(f"a{i}: nothing" for i in range(10_000)) + "}",
    "surrogate": "output: \ud800",
    "key that is a list": "? [a]\n: 1",
    "number as key": "1: 2",
    "infinite": "seed: .inf",
    "newline in a name": 'name3: "a\\nb"',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_recipe_is_one_short_recipe_error(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("ran a command"))
    with pytest.raises(RecipeError) as error:
        Recipe.read(HEAD + HOSTILE[case])
    lines = str(error.value).splitlines()
    assert max(map(len, lines)) < 1000 and len(lines) <= 102 and not (tmp_path / "MARK").exists()


def test_a_text_that_is_too_long_is_refused_before_it_is_parsed():
    with pytest.raises(RecipeError, match="characters long; a recipe has at most 262,144"):
        Recipe.read(HEAD + "#" * MAX_BYTES)


def test_there_are_twenty_hostile_recipes():
    assert len(HOSTILE) >= 20


@pytest.mark.parametrize("name", ["../up", "a/b", "/abs", "a\\b", ".hidden", "", "a b", "x" * 65, "a\nb", "con:", "~root"])
def test_a_name_that_could_leave_the_folder_of_runs_is_refused(name):
    with pytest.raises(RecipeError, match="name: "):
        Recipe.read({"schema": 1, "name": name})


def test_files_that_are_no_text_say_so(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"schema: 1\nname: \xff\xfe\n")
    with pytest.raises(RecipeError, match=r"binary.yaml: is not UTF-8 text \(byte 16\)"):
        Recipe.read(binary)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(RecipeError, match="bytes long; a recipe has at most"):
        Recipe.read(large)
    with pytest.raises(RecipeError, match="is a folder"):
        Recipe.read(tmp_path)
    with pytest.raises(RecipeError, match="no such file"):
        Recipe.read(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="U\\+0000"):
        Recipe.read("a\0b.yaml")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL.replace("\n", "\r\n").encode())
    assert Recipe.read(path) == Recipe.read(FULL)


@pytest.mark.parametrize("text", [HEAD, FULL, HEAD + "backbone: {pretrained: some/model}\n", HEAD + "output: elsewhere\n"])
def test_the_dump_is_complete_and_reads_back_equal(text):
    recipe = Recipe.read(text)
    again = Recipe.read(recipe.dump())
    assert again == recipe and again.dump() == recipe.dump()
    plain = yaml.parse(recipe.dump(), "dump")
    missing = {key for key in recipe.model_dump(by_alias=True) if key not in plain}
    assert not missing and plain["seed"] == 0 and plain["output"]


def test_the_run_folder_defaults_to_the_name():
    assert Recipe.read(HEAD).output == "runs/tiny"
    assert Recipe.read(HEAD, ["name=other"]).output == "runs/other"
    assert Recipe.read(HEAD, ["output=x/y"]).output == "x/y"


def test_overrides_reach_lists_and_components_written_by_name():
    recipe = Recipe.read(FULL, ["backbone.pattern.0.state_size=16", "backbone.pattern.1.num_heads=4", "backbone.norm_eps=1e-4", "seed=3"])
    first, second = (layer.mixer for layer in recipe.backbone.pattern)
    assert (first.state_size, second.num_heads, recipe.backbone.norm_eps, recipe.seed) == (16, 4, 1e-4, 3)
    assert Recipe.read(FULL, ["backbone.pattern=[attention]"]).backbone.pattern[0].mixer.type == "attention"


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("seed", "must look like path.to.key=value"),
        ("=3", "must look like path.to.key=value"),
        ("a.9=1", "a is a list of 2; '9' is no place in it"),
        ("a.x=1", "a is a list of 2; 'x' is no place in it"),
        ("a.-1=1", "is no place in it"),
        ("b.c=1", "b is 3 and has no keys"),
        ("b=[1", "line 1"),
        ("b=!!python/name:os.system x", "tags"),
        ("x" * 10_000, "must look like"),
    ],
)
def test_an_override_that_cannot_be_set_says_why(item, message):
    with pytest.raises(RecipeError) as error:
        apply_override({"a": [1, 2], "b": 3}, item)
    assert message in str(error.value) and len(str(error.value)) < 300


def test_reading_a_mapping_leaves_it_as_it_was():
    raw = {"schema": 1, "name": "tiny", "backbone": {"width": 32}}
    assert Recipe.read(raw, ["backbone.width=64"]).backbone.width == 64
    assert raw == {"schema": 1, "name": "tiny", "backbone": {"width": 32}}


def test_every_shipped_recipe_is_valid_and_says_what_it_is():
    found = shipped()
    assert sorted([*found.values(), *shipped("comparisons").values()]) == sorted((ROOT / "recipes").rglob("*.yaml"))
    for name, path in found.items():
        recipe = Recipe.read(name)
        assert recipe == Recipe.read(path) == Recipe.read(f"recipes/{name}.yaml") == Recipe.read(recipe.dump())
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert re.match(r"# .*Cost.*mmlm \w+ ", first), f"{name}: its first line says what it trains, its cost and one override"


def test_a_shipped_recipe_is_found_by_name_and_a_wrong_name_is_told(tmp_path, monkeypatch):
    (tmp_path / "recipes" / "toy").mkdir(parents=True)
    (tmp_path / "recipes" / "toy" / "tiny.yaml").write_text(FULL)
    import mmlm

    monkeypatch.setattr(mmlm, "__path__", [str(tmp_path)])
    assert list(shipped()) == ["toy/tiny"]
    assert find("toy/tiny") == find("recipes/toy/tiny.yaml") == tmp_path / "recipes" / "toy" / "tiny.yaml"
    with pytest.raises(RecipeError, match="no shipped recipe has this name. Did you mean 'toy/tiny'?"):
        find("toy/tny")


def test_the_json_schema_accepts_and_refuses_what_the_recipe_does():
    validator = jsonschema.Draft202012Validator(json_schema(Recipe, "recipe"))
    assert validator.is_valid(yaml.parse(FULL, "x")) and validator.is_valid(yaml.parse(Recipe.read(FULL).dump(), "x"))
    assert validator.is_valid(yaml.parse(HEAD + "backbone: {pattern: [{mixer: mamba2, feed_forward: null}, attention]}", "x"))
    beyond = (
        ".nan",
        "num_kv_heads: 3",
        "mixer: null",
        "micro_batch_size",
        "warmup",
        "metrik",
        "keep_share",
    )  # what a JSON schema cannot say
    for kind, text, _, _ in FAULTS:
        if kind in ("typo", "choice", "range", "missing") and not any(each in text for each in beyond):
            assert not validator.is_valid(yaml.parse(HEAD + text, "x")), text
    json.dumps(validator.schema)


THEIRS = '''
from typing import Literal
from pydantic import Field
from mmlm.backbone.config import MIXERS
from mmlm.base.registry import Component

class Shift:
    def __init__(self, config, width):
        self.text = f"shift by {config.steps} at width {width}"

@MIXERS.register("their_package:Shift", source="them, 2026")
class ShiftConfig(Component):
    """Moves tokens."""
    type: Literal["shift"] = "shift"
    steps: int = Field(1, ge=1)
'''


def test_a_recipe_uses_a_mixer_of_another_package(tmp_path):
    (tmp_path / "their_package.py").write_text(THEIRS)
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mmlm.mixers]\nshift = their_package:ShiftConfig\n")
    (tmp_path / "r.yaml").write_text(HEAD + "backbone: {pattern: [attention, {type: shift, steps: 2}]}\n")
    (tmp_path / "wrong.yaml").write_text(HEAD + "backbone: {pattern: [{type: shift, step: 2}]}\n")
    code = (
        "import sys; from mmlm.recipe import Recipe; from mmlm.cli import main\n"
        "print(Recipe.read('r.yaml').backbone.pattern[1].mixer.build(8).text)\n"
        "main(['list', 'mixers', 'shift']); main(['validate', 'wrong.yaml'])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["shift by 2 at width 8", "shift  Moves tokens.  [them, 2026]"]
    assert "backbone.pattern.0.step: unknown key. Did you mean 'steps'?" in done.stderr


def test_the_pages_of_options_and_components_are_up_to_date(tmp_path):
    code = "import json; from mmlm.cli.docs import pages; print(json.dumps(pages()))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = json.loads(done.stdout)
    assert sorted(pages) == ["components.md", "options.md", "systems.md"]
    old = [name for name, text in pages.items() if (ROOT / "docs" / name).read_text(encoding="utf-8") != text]
    assert old == [], "run `make docs` and commit what it writes"


def test_a_recipe_with_random_damage_is_read_or_refused_and_never_breaks_the_reader():
    rng = random.Random(0)
    whole = Recipe.read(FULL).dump()
    signs = "{}[]:,-#&*!|>'\"%@` \n\t0179.eEnN~\\\u00e9\u2028"
    refused = 0
    for _ in range(500):
        text = rng.choice([FULL, whole])
        for _ in range(rng.randint(1, 4)):
            start = rng.randrange(len(text))
            end = min(len(text), start + rng.choice([0, 0, 1, 1, 5, 40]))
            text = text[:start] + "".join(rng.choices(signs, k=rng.randint(0, 3))) + text[end:]
        try:
            recipe = Recipe.read(text + "\n")
        except RecipeError:
            refused += 1
        else:
            assert Recipe.read(recipe.dump()) == recipe
    assert 250 < refused < 500
