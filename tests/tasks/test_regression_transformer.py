"""Numbers are read and molecules designed by filling hidden tokens, the same as in training; a run does both from the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rdkit")

from mmlm import cli
from mmlm.analysis.chemistry import RIDGE, designed_scores, steering
from mmlm.base.errors import DataError, RecipeError
from mmlm.chemistry import computed
from mmlm.data.dealing import place_of
from mmlm.data.molecules import Compound
from mmlm.designing import Designer
from mmlm.embedding import encoder
from mmlm.filling import fill
from mmlm.generation import Sampling
from mmlm.objectives.permutation import arranged
from mmlm.recipe import Recipe
from mmlm.records import DrawnSamples, Records
from mmlm.run import build_model, build_task, evaluate, train
from mmlm.stream import pack
from mmlm.tasks.regression_transformer import Design, Found, is_seed
from mmlm.vocabulary import Vocabulary

SMILES = [
    f"{ring}{tail}"
    for ring in ("c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CC1", "c1ccsc1", "C1CCNC1", "c1ccoc1", "C1CCC1", "c1ccc2ccccc2c1", "C1CCOC1")
    for tail in ("C", "O", "CC", "CN", "CCO", "C(=O)O")
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("molecules")
    lines = [{"smiles": smiles, "properties": {"size": len(smiles) / 10}} for smiles in SMILES]
    (folder / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Recipe.read(
        {
            "schema": 1,
            "name": "tiny",
            "output": str(folder / "run"),
            "task": {"type": "regression_transformer", "properties": ["logp"], "respell": 0.5, "seed_share": 1.0, "primers": 3},
            "data": {"train": [{"type": "molecule_manifest", "path": str(folder / "some.jsonl"), "compute": ["logp"]}]},
            "tokenizers": {"sequence": {"type": "molecules"}, "numbers": {"type": "numbers", "whole_digits": 1, "decimals": 1}},
            "backbone": {"width": 32, "num_layers": 2, "pattern": [{"type": "attention", "num_heads": 2}]},
            "objective": {"type": "permutation", "alternate_every": 2},
            "train": {"steps": 6, "batch_size": 4, "validate_every": 6, "sample_every": 6},
        }
    )


@pytest.fixture(scope="module")
def task(recipe):
    return build_task(recipe)


@pytest.fixture(scope="module")
def model(recipe, task):
    return build_model(recipe, task).eval()


@pytest.fixture(scope="module")
def run(recipe):
    train(recipe)
    return recipe.output


def test_filling_one_after_the_other_gives_the_scores_of_training(task, model):
    texts = ["c1ccccc1CCO", "CCO", "c1ccncc1C(=O)O"]
    streams = [task.stream(text, {"logp": 1.2}) for text in texts]
    rng = np.random.default_rng(0)
    hide = [[torch.zeros(len(each), dtype=torch.bool) for each in stream.segments] for stream in streams]
    for masks in hide:
        masks[-1][torch.from_numpy(rng.permutation(len(masks[-1]))[:-1])] = True  # all but one
    model = copy.deepcopy(model)
    with torch.no_grad():  # so that what stands before a query decides what is said there
        for parameter in model.backbone.parameters():
            parameter.mul_(4)
    found = fill(model, streams, hide, Sampling(), task._channels)
    for stream, masks, ids in zip(streams, hide, found, strict=True):
        for segment, some in zip(stream.segments, ids, strict=True):
            segment.ids = some
        view, query_of, _ = arranged(stream, [mask.numpy() for mask in masks], None)
        batch = pack([view], model.vocabulary, shift=False)
        h_btd, _ = model.hidden(batch)
        span = model.vocabulary.span("molecule")
        at = query_of[query_of >= 0]
        best = model.heads["language_model"].predict(h_btd[0, at], span).argmax(-1)
        assert best.tolist() == ids[-1][masks[-1]].tolist()


def test_a_penalty_of_repetitions_counts_what_was_filled_in_before(task, model):
    stream = task.stream("CCCCCCCC", {"logp": 1.2})
    hide = [torch.zeros(len(each), dtype=torch.bool) for each in stream.segments]
    hide[-1][1:] = True
    (*_, plain), (*_, apart) = (fill(model, [stream], [hide], Sampling(repetition_penalty=x), task._channels)[0] for x in (1.0, 1e6))
    assert len(set(plain[1:].tolist())) < 7 == len(set(apart[1:].tolist()))


def test_seeds_are_the_same_share_of_compounds_that_are_held_out_at_random():
    texts = [text for text in ("C" * at + "O" * more for at in range(1, 80) for more in range(80)) if place_of(text) < 0.1]
    assert 0.2 < np.mean([is_seed(text, 0.25) for text in texts]) < 0.3


def test_numbers_are_read_alike_alone_and_together(task, model):
    together = task.read_numbers(model, SMILES[:7])
    assert together == [task.read_numbers(model, [smiles])[0] for smiles in SMILES[:7]]


def test_a_design_keeps_what_was_not_to_be_written_anew(task, model, monkeypatch):
    seed = task.sequence.ids("c1ccccc1CCO")
    monkeypatch.setattr(task.sequence, "decode", lambda ids: ids.tolist())
    given = (["c1ccccc1CCO"] * 3, [{"logp": value} for value in (-1.0, 0.0, 3.0)])
    found = task.design(model, *given, mask_fraction=0.3, seed=1)
    assert {len(ids) for ids in found} == {11} and any(ids != seed for ids in found)
    places = {place for ids in found for place in range(11) if ids[place] != seed[place]}
    assert 0 < len(places) <= round(0.3 * 11)
    assert found == task.design(model, *given, mask_fraction=0.3, seed=1) != task.design(model, *given, mask_fraction=0.3, seed=2)
    assert all(len(task.design(model, ["CCO"], [{"logp": 0.5}], seed=number)) == 1 for number in (-1, 10**30))
    with pytest.raises(RecipeError, match="knows the properties logp, not 'qed'"):
        task.design(model, ["CCO"], [{"qed": 0.5}])
    with pytest.raises(RecipeError, match="mask_fraction must be above 0"):
        task.design(model, ["CCO"], [{"logp": 0.5}], mask_fraction=0)


def test_numbers_that_cannot_be_read_are_counted(task):
    records = [Compound(str(number), "CCO", {"logp": float(number)}) for number in range(4)]
    outputs = [Found({"logp": 0.0}), Found({"logp": 1.0}), Found({"logp": None}), Found({"logp": 3.0})]
    assert task.score(outputs, records) == {"rmse": 0, "r2": 1, "spearman": 1, "unparsable": 0.25}
    none = task.score([Found({"logp": None})] * 4, records)
    assert none == {"rmse": np.inf, "r2": -np.inf, "spearman": -np.inf, "unparsable": 1}


def test_test_molecules_that_are_trained_on_are_told_and_numbers_that_none_has_are_not(recipe, caplog):
    both = recipe.model_copy(update={"tasks": [recipe.tasks[0].model_copy(update={"properties": ["logp", "size"]})]})
    task = build_task(both)
    records = [Compound(text, text, {"logp": 1.0}) for text in ("CCO", "CCN", "CCS", "CCO")]
    outputs = [Found({"logp": 1.0})] * 4
    assert task.score(outputs, records)["rmse_size"] == np.inf  # in validation every metric has a value
    task.begin_tests()
    task.take_training([Compound("a", "OCC", {"logp": 1.0}), Compound("b", "NC", {"logp": 1.0})])
    found = task.score(outputs, records)
    assert found["trained_on"] == pytest.approx(1 / 3) and found["rmse_logp"] == 0 and "rmse_size" not in found
    assert [line.message for line in caplog.records] == ["1 of 3 measured molecules are trained on, such as CCO"]
    task.take_training([Compound("b", "NC", {"logp": 1.0})])
    assert "trained_on" not in task.score(outputs, records)


def test_what_selfies_cannot_write_is_left_out_of_training_and_measured_as_unread(recipe, caplog):
    pytest.importorskip("selfies")
    selfies = recipe.model_dump(by_alias=True) | {
        "tokenizers": {**recipe.model_dump()["tokenizers"], "sequence": {"type": "molecules", "notation": "selfies"}}
    }
    recipe = Recipe.read(selfies)
    task = build_task(recipe)
    model = build_model(recipe, task).eval()
    rare = [Compound(smiles, smiles, {"logp": 1.0}, f"list, line {line}") for line, smiles in ((1, "C[13CH3]"), (2, "CCO"))]
    for _ in range(2):
        streams = [task.example(each, np.random.default_rng(0)) for each in rare]
        assert streams[0] is None and streams[1] is not None
    assert [line.message for line in caplog.records if "left out" in line.message] == [
        "left out while training: list, line 1: SMILES 'C[13CH3]': its SELFIES symbol [13CH3] at place 2 is none that was fitted; "
        "notation: smiles writes any."
    ]
    outputs = task.predict(model, rare)
    assert not outputs[0].numbers and set(outputs[1].numbers) == {"logp"}
    assert task.score(outputs, rare)["unparsable"] >= 0.5


def test_a_design_that_selfies_cannot_write_again_is_told_without_numbers(recipe):
    pytest.importorskip("selfies")
    tokenizers = recipe.model_dump()["tokenizers"] | {"sequence": {"type": "molecules", "notation": "selfies"}}
    selfies = Recipe.read(recipe.model_dump(by_alias=True) | {"tokenizers": tokenizers})
    task = build_task(selfies)
    model = build_model(selfies, task).eval()
    task.design = lambda *given, **more: ["C[13CH3]"]  # a molecule for whose SELFIES it has no symbol
    (line,) = Designer.of(task, model).design(["CCO"], {"logp": 1.0})
    assert line["is_valid"] and line["model"] == {"logp": None} and line["rdkit"]["logp"] > 0
    (answer,) = task.answer(model, {"sequence": "CCO", "name": "logp", "wanted": "1", "seed": 0})
    assert answer == {"sequence": "C[13CH3]", "numbers": {"logp": None}}


def test_a_property_that_no_compound_has_is_told_with_those_that_are_there(recipe, caplog):
    other = recipe.model_copy(update={"tasks": [recipe.tasks[0].model_copy(update={"properties": ["Size"]})]})
    task = build_task(other)
    samples = DrawnSamples(task, other.objective.build(), Vocabulary(task.vocabulary), Records.of_training(other, task))
    with pytest.raises(DataError, match="none of 50 drawn records gives a sample: .* or lacks what it asks for. The last one: "):
        samples.sample(0, np.random.default_rng(0))
    (line,) = [line.message for line in caplog.records if "left out" in line.message]
    assert "has none of Size; it has size, logp. Others may be alike." in line


def test_numbers_are_looked_at_before_training_and_long_molecules_told_once(recipe, caplog):
    def looked_at(values, **digits):
        numbers = {"type": "numbers", "whole_digits": 1, "decimals": 1} | digits
        other = recipe.model_dump(by_alias=True) | {"tokenizers": recipe.model_dump()["tokenizers"] | {"numbers": numbers}}
        task = build_task(Recipe.read(other))
        records = [Compound(str(line), "CCO", {"logp": value}, f"list, line {line}") for line, value in enumerate(values, 1)]
        caplog.clear()
        task.read_ahead(records)
        task.read_ahead(records)
        return [line.message for line in caplog.records]

    with pytest.raises(DataError, match=r"^list, line 2: logp: the number -120 does not fit: .* below 10. Set tokenizers.numbers.whole_di"):
        looked_at([1.0, -120.0, 40.0])
    assert looked_at([1.0, -120.0, 40.0], whole_digits=3) == []
    assert looked_at([0.01, 0.03, 0.04]) == [
        "logp: rounding to 1 decimals changes it by 0.029, where it spreads by 0.012; tokenizers.numbers.decimals can keep more."
    ]
    assert looked_at([0.01, 0.03, 0.04], decimals=3) == looked_at([0.0, 1.0, 1.0], decimals=0) == []
    task = build_task(recipe)
    long = [Compound(str(line), "C" * 200, {"logp": 1.0}, f"list, line {line}") for line in (4, 5)]
    assert [task.example(each, np.random.default_rng(0)) for each in long] == [None, None]
    assert [line.message for line in caplog.records] == [
        "left out while training: list, line 4: has 200 tokens; task.max_tokens is 128. Others may be alike."
    ]


def test_a_protein_is_no_molecule(task, model):
    record = Compound("p", "MKT", {"logp": 1.0}, "list, line 4", "protein")
    with pytest.raises(DataError, match="line 4: is a protein, but the tokenizer 'sequence' reads molecules"):
        task.predict(model, [record])


def test_designs_are_judged_by_rdkit():
    designs = [Design("CCO", 0.0, text) for text in ("CCO", "OCC", "CCCl", "C1CC", "CCN")]
    found = designed_scores(designs, {"CCO", "CCN"}, "logp", is_molecule=True)
    assert found["validity"] == 0.8 and found["uniqueness"] == 0.75 and found["novelty"] == pytest.approx(1 / 3)
    assert found["changed"] == 0.5 and found["wanted_error"] == pytest.approx(
        np.mean([abs(computed(text, ["logp"])["logp"]) for text in ("CCO", "OCC", "CCCl", "CCN")])
    )
    ring = [Design("c1ccccc1", 0.0, "C1=CC=CC=C1")]
    for known in ("C1C=CC=CC=1", "[cH]1cccc[cH]1"):
        assert {"changed": 0.0, "novelty": 0.0}.items() <= designed_scores(ring, {known}, "logp", is_molecule=True).items()
    wanted = np.tile(np.arange(10.0), 20)
    told = steering(wanted, wanted**2, [str(number // 10) for number in range(200)])
    assert told["steering"] == 1 and abs(told["steering_shuffled"]) < 0.2


def test_a_run_is_measured_beside_plain_predictors_and_shows_its_designs(run, recipe):
    found = evaluate(run)
    assert {"rmse", "r2", "spearman", "unparsable", "validity"} <= found["metrics"].keys()
    ridge, mean = found["baselines"][RIDGE], found["baselines"]["the mean of the training compounds"]
    assert ridge["rmse"] < mean["rmse"] and abs(mean["spearman"]) == 0
    page = Path(run, "report.html").read_text(encoding="utf-8")
    assert "<svg" in page and "None of them was trained or validated on." in page and "trained_on" not in found["metrics"]


def test_molecules_become_vectors_by_a_run_or_as_fingerprints(run):
    own, plain = encoder(run), encoder("fingerprints", size=256)
    assert own.size == 32 and plain.size == 256
    vectors = own.encode(SMILES[:5])
    assert vectors.shape == (5, 32) and np.allclose(vectors, own.encode(SMILES[:5], batch_size=1), atol=1e-5)
    assert np.allclose(np.linalg.norm(own.encode(SMILES[:5], normalize=True), axis=1), 1, atol=1e-5)
    seen = []
    bits = plain.encode(["CCO", "OCC", "CCN"], batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert (bits[0] == bits[1]).all() and (bits[0] != bits[2]).any() and seen == [(2, 3), (3, 3)]
    for one in (own, plain):
        with pytest.raises(DataError, match="cannot be read"):
            one.encode(["C1CC"])
        with pytest.raises(RecipeError, match="must be auto or fp32"):
            one.encode(["C"], precision="int8")


def test_the_command_line_reads_numbers_and_designs(run, capsys, tmp_path):
    assert cli.main(["generate", run, "--smiles", "c1ccccc1O"]) == 0
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith("c1ccccc1O") and "logp" in line
    output = tmp_path / "designs.jsonl"
    assert cli.main(["generate", run, "--smiles", "c1ccccc1O", "--wanted", "logp=2.5", "--designs", "3", "--output", str(output)]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 3 and lines[0].keys() == {"seed", "wanted", "smiles", "is_valid", "rdkit", "model"}
    for arguments, told in (
        (["--smiles", "C1CC"], "cannot be read"),
        (["--smiles", "CCO", "--wanted", "size=1"], "knows the properties logp"),
        (["--smiles", "CCO", "--wanted", "logp"], "must look like NAME=NUMBER"),
        (["--wanted", "logp=1"], "--wanted goes with --smiles"),
        (["--smiles", "CCO", "--designs", "3"], "--designs goes with --wanted"),
        (["--smiles", "CCO", "--wanted", "logp=1", "--designs", "0"], "--designs must be at least 1"),
    ):
        assert cli.main(["generate", run, *arguments]) == 2
        assert told in capsys.readouterr().err


def test_the_command_line_reads_a_table_and_tells_its_bad_rows_at_the_end(run, capsys, tmp_path):
    given, output = tmp_path / "mine.csv", tmp_path / "mine.filled.csv"
    given.write_text("name,SMILES\nethanol,CCO\nnone,C1CC\ngap,\nphenol, c1ccccc1O\n", encoding="utf-8")
    assert cli.main(["generate", run, "--smiles", str(given)]) == 2
    told = capsys.readouterr()
    assert "the numbers of 2 rows" in told.out and "2 of 4 rows could not be read" in told.err
    assert "row 2: SMILES 'C1CC' cannot be read" in told.err and "row 3: smiles is missing" in told.err
    header, ethanol, none, gap, phenol = (line.split(",") for line in output.read_text(encoding="utf-8").splitlines())
    assert header == ["name", "SMILES", "logp by model"] and none[2] == gap[2] == ""
    read = encoder(run).read(["CCO", "c1ccccc1O"])
    assert [row[2] for row in (ethanol, phenol)] == ["" if one["logp"] is None else f"{one['logp']:.1f}" for one in read]
    given.write_text("smiles\nCCO,1\n", encoding="utf-8")
    assert cli.main(["generate", run, "--smiles", str(given)]) == 2
    assert "row 1 has more cells than the header" in capsys.readouterr().err
    given.write_text("molecule\nCCO\n", encoding="utf-8")
    for arguments, why in (([], "unknown column 'smiles'"), (["--wanted", "logp=1"], "--wanted goes with one molecule")):
        assert cli.main(["generate", run, "--smiles", str(given), *arguments]) == 2
        assert why in capsys.readouterr().err


@pytest.fixture(scope="module")
def protein_run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("proteins")
    letters = "ACDEFGHIKL"
    rows = [f"{a}{b}{b}{a}K,{letters.index(a) / 10},{letters.index(b) / 10}" for a in letters for b in letters[:4]]
    (folder / "some.csv").write_text("protein,first,second\n" + "\n".join(rows) + "\n", encoding="utf-8")
    source = {"type": "molecule_table", "path": str(folder / "some.csv"), "column": "protein", "holds_proteins": True}
    both = {"first": "first", "second": "second"}
    train(
        Recipe.read(
            recipe.model_dump(by_alias=True)
            | {
                "name": "proteins",
                "output": str(folder / "run"),
                "tasks": [{"type": "regression_transformer", "properties": list(both)}],
                "data": {"train": [source | {"properties": both}]},
                "tokenizers": {"sequence": {"type": "proteins"}, "numbers": {"type": "numbers", "whole_digits": 1, "decimals": 1}},
                "train": {"steps": 2, "batch_size": 4},
            }
        )
    )
    return str(folder / "run")


def test_the_command_line_designs_proteins_to_several_numbers(protein_run, capsys, tmp_path):
    assert cli.main(["generate", protein_run, "--smiles", "ACCAK"]) == 0
    assert capsys.readouterr().out.startswith("ACCAK: first")
    output = tmp_path / "designs.jsonl"
    wanted = ["--wanted", "first=0.3", "--wanted", "second=0.1"]
    assert cli.main(["generate", protein_run, "--smiles", "ACCAK", *wanted, "--designs", "2", "--output", str(output)]) == 0
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["wanted"] for line in lines] == [{"first": 0.3, "second": 0.1}] * 2
    assert capsys.readouterr().out.splitlines()[0].startswith(f"{lines[0]['protein']}: first")
