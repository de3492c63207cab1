"""A table of the user's own: which rows are trained on, which are held out, and what is said when it cannot be used."""

import numpy as np
import pytest

from mmlm.base.errors import DataError
from mmlm.data.config import EpisodeConfig, TableFileConfig
from mmlm.data.episodes import OneTable
from mmlm.data.tables import Column, Table
from mmlm.evaluation.baselines import majority
from mmlm.evaluation.config import EvaluateConfig
from mmlm.evaluation.protocol import compare, draw


def write(path, rows=120):
    path.write_text("number,colour,kind\n" + "".join(f"{i},{'red' if i % 3 else 'blue'},{'ab'[i % 2]}\n" for i in range(rows)))
    return TableFileConfig(path=str(path), target="kind", hold_out=0.25)


def test_held_out_rows_are_never_drawn_in_training_and_alone_predicted_in_the_comparison(tmp_path):
    source = write(tmp_path / "own.csv").build()
    held = set(np.flatnonzero(source.held_out).tolist())
    assert 15 < len(held) < 45
    rng = np.random.default_rng(0)
    drawn = [source.draw(rng, EpisodeConfig(num_rows=24, max_shots=16)) for _ in range(40)]
    assert all(episode.target == "kind" and "kind" not in episode.features.names for episode in drawn)
    numbers = {int(v) for e in drawn if "number" in e.features.names for v in e.features.column("number").values}
    assert len(numbers) > 60 and not numbers & held
    problem = draw(source.whole, 8, 0, EvaluateConfig(), source.held_out)
    assert not {int(v) for v in problem.shots.column("number").values} & held
    assert {int(v) for v in problem.queries.column("number").values} <= held
    found = compare([source.whole], majority, EvaluateConfig(shots=[8], seeds=1), {}, held_out=[source.held_out])
    assert list(found.values["accuracy", 8, "model"]) == ["own"]


def test_rows_kept_back_are_predicted_in_validation_alone_from_training_rows(tmp_path):
    config = write(tmp_path / "own.csv").model_copy(update={"validate_share": 0.25})
    source, before = config.build(), write(tmp_path / "own.csv").build()
    np.testing.assert_array_equal(source.held_out, before.held_out)
    assert before.kept_back() is None
    held = set(np.flatnonzero(source.held_out).tolist())
    episodes = EpisodeConfig(num_rows=24, max_shots=16)

    def numbers(source):
        rng, shots, queries = np.random.default_rng(0), set(), set()
        for _ in range(60):
            episode = source.draw(rng, episodes)
            if "number" in episode.features.names:
                shots |= set(episode.shots.column("number").values.astype(int).tolist())
                queries |= set(episode.queries.column("number").values.astype(int).tolist())
        return shots, queries

    trained = set().union(*numbers(source))
    shots, kept = numbers(source.kept_back())
    assert len(trained) > 40 and 15 < len(kept) < 45 and trained | kept | held == set(range(120))
    assert shots <= trained and not kept & (trained | held)


def test_a_share_that_keeps_no_row_back_is_told(tmp_path):
    (tmp_path / "own.csv").write_text("x,kind\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(6)))
    with pytest.raises(DataError, match=r"own\.csv: validate_share: 0\.001 of its 6 rows keeps none back"):
        TableFileConfig(path=str(tmp_path / "own.csv"), target="kind", validate_share=0.001).build()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x,kind\n1,a\n2,a\n3,a\n", "kind"),
        ("x,other\n1,a\n2,b\n", "kind"),
        ("x,kind\n", "no row"),
        ("", "own.csv"),
        ("x,kind\n" + "".join(f"{i},name{i}\n" for i in range(80)), "different texts"),
    ],
)
def test_a_file_that_gives_no_task_is_told_by_name(tmp_path, text, told):
    (tmp_path / "own.csv").write_text(text)
    with pytest.raises(DataError, match=r"own\.csv") as error:
        TableFileConfig(path=str(tmp_path / "own.csv"), target="kind").build().draw(np.random.default_rng(0), EpisodeConfig())
    assert told in str(error.value)


def test_a_missing_file_is_told_and_a_shipped_one_found():
    with pytest.raises(DataError, match="nowhere.csv: no such file"):
        TableFileConfig(path="nowhere.csv", target="x").build()
    assert TableFileConfig(path="tabular/penguins.csv", target="species").build().whole.num_rows == 344


def test_rows_to_predict_are_no_examples_where_the_others_are_too_few():
    table = Table("t", [Column("n", "number", np.arange(60.0)), Column("kind", "category", np.arange(60) % 2.0, ["a", "b"])], "kind")
    held_out = np.arange(60) >= 12
    found = draw(table, 12, 0, EvaluateConfig(), held_out)
    assert found is not None and found.shots.column("n").values.max() < 12
    assert draw(table, 16, 0, EvaluateConfig(), held_out) is None


def test_tables_of_one_name_are_told_apart():
    column = Column("kind", "category", np.arange(60) % 2.0, ["a", "b"])
    tables = [Table(name, [Column("n", "number", np.arange(60.0)), column], "kind") for name in ("train", "other", "train")]
    found = compare(tables, majority, EvaluateConfig(shots=[8], seeds=1), {})
    assert list(found.values["accuracy", 8, "model"]) == ["train (1)", "other", "train (2)"]


@pytest.mark.parametrize("kind", ["category", "number"])
@pytest.mark.parametrize("validates", [False, True])
def test_a_target_that_hardly_ever_changes_gives_tasks_too(kind, validates):
    values = np.zeros(5000)
    values[[71, 4000]] = 1.0 if kind == "category" else 0.5
    target = Column("y", kind, values, ["no", "yes"] if kind == "category" else [])
    table = Table("t", [Column("x", "number", np.arange(5000.0)), target], "y")
    predicted = np.arange(5000) % 7 == 0 if validates else None
    source = OneTable(table, "t", predicted)
    places = list[int]()
    for seed in range(8):
        found = source.draw(np.random.default_rng(seed), EpisodeConfig(num_rows=8, min_shots=2, max_shots=5))
        x, shots = found.features.column("x").values.astype(int), found.num_shots
        assert len(found.classes) == 2
        assert len(set(x)) == len(x) and (not validates or (x[:shots] % 7 > 0).all() and (x[shots:] % 7 == 0).all())
        places += np.flatnonzero(np.isin(x[:shots], [71, 4000])).tolist()
    assert len(places) > 5 and len(set(places)) > 2  # the rare row is not told by its place
