"""Whatever is wrong with a recipe, a file or a folder: one message that names it, exit code 2, no trace of Python, nothing lost."""

import numpy as np
import pytest

from mmlm.cli import main
from mmlm.recipe import Recipe
from mmlm.run import train

RECIPE = """
schema: 1
name: tiny
task: {type: tabular, episode: {num_rows: 12, max_shots: 8, max_columns: 4}}
data: {train: [{type: table_file, path: "PATH", target: kind}]}
encoders: {cell: {type: table_cells, hidden: 16}}
backbone:
  width: 16
  num_layers: 2
  pattern:
    - {mixer: {type: attention, num_heads: 2, over: column, causal: false, rope: null}, feed_forward: null}
    - {mixer: {type: attention, num_heads: 2, over: row, causal: false, rope: null}}
train: {steps: 4, batch_size: 2, log_every: 1, checkpoint_every: 2}
"""
GOOD = "size,kind\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(60))


def told(capfd, *words: str) -> str:
    """What a call that must fail writes."""
    assert main(list(words)) == 2
    error = capfd.readouterr().err.strip()
    assert error and "Traceback" not in error and "Error:" not in error
    return error


def tables() -> dict[str, tuple[bytes, str]]:
    """name: (content of the file, what the message must hold)"""
    wide = ",".join(f"c{i}" for i in range(1_000_000))
    return {
        "empty": (b"", "own.csv"),
        "header alone": (b"size,kind\n", "no row"),
        "ragged": (GOOD.encode() + b"1,2,3,4\n", "line 62"),
        "no such target": (GOOD.replace("kind", "sort").encode(), "'kind'"),
        "one class": (GOOD.replace(",b", ",a").encode(), "'kind'"),
        "target missing everywhere": (GOOD.replace(",a", ",").replace(",b", ",").encode(), "'kind'"),
        "infinite": (GOOD.encode() + b"inf,a\n", "line 62"),
        "duplicate header": (GOOD.replace("size,kind", "kind,kind").encode(), "kind"),
        "zero bytes": (b"\x00\x01\x02\x03" * 100, "own.csv"),
        "a million columns": (f"{wide},kind\n{',' * 1_000_000}a\n".encode(), "columns"),
    }


@pytest.mark.parametrize("name", tables())
def test_a_table_that_cannot_be_used_is_told(name, tmp_path, capfd):
    content, wanted = tables()[name]
    (tmp_path / "own.csv").write_bytes(content)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("PATH", str(tmp_path / "own.csv")))
    error = told(capfd, "train", str(tmp_path / "r.yaml"), f"output={tmp_path / 'run'}")
    assert wanted in error and "own.csv" in error and not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ("train.stepz=3", "train.stepz: unknown key. Did you mean 'steps'?"),
        ("task.type=tabluar", "Did you mean 'tabular'?"),
        ("backbone.pattern.0.mixer.type=atention", "Did you mean 'attention'?"),
        ("train.lr=-1", "train.lr"),
        ("train.steps=many", "train.steps"),
        ("data.train.0.path=/nowhere/own.csv", "/nowhere/own.csv: no such file"),
        ("encoders={}", "encoders"),
        ("backbone={pretrained: /nowhere}", "/nowhere"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_told(change, wanted, tmp_path, capfd):
    (tmp_path / "own.csv").write_text(GOOD)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("PATH", str(tmp_path / "own.csv")))
    assert wanted in told(capfd, "train", str(tmp_path / "r.yaml"), f"output={tmp_path / 'run'}", change)
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there_or_no_recipe_is_told(tmp_path, capfd):
    assert "missing.yaml" in told(capfd, "train", str(tmp_path / "missing.yaml"))
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00broken")
    assert "r.yaml" in told(capfd, "train", str(tmp_path / "r.yaml"))
    (tmp_path / "r.yaml").write_text("schema: 1\nname: [unfinished\n")
    assert "r.yaml" in told(capfd, "train", str(tmp_path / "r.yaml"))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "own.csv").write_text(GOOD)
    train(Recipe.read(RECIPE.replace("PATH", str(tmp_path / "own.csv")), [f"output={tmp_path / 'run'}"]))
    return tmp_path / "run"


GENERATE = ["--target", "kind", "--shots"]


@pytest.mark.parametrize(
    ("shots", "table", "wanted"),
    [
        ("size,sort\n1,a\n2,b\n", "size\n1\n", "'kind'"),
        ("size,kind\n1,a\n2,a\n", "size\n1\n", "kind"),
        (GOOD, "length\n1\n", "'size'"),
        (GOOD, "", "new.csv"),
        (GOOD, "size\n1\n2,3\n", "line 3"),
        ("size,kind\n" + "".join(f"{i},k{i}\n" for i in range(30)), "size\n1\n", "at most 10 apart"),
    ],
)
def test_files_that_cannot_be_filled_are_told_and_nothing_is_written(run, tmp_path, capfd, shots, table, wanted):
    (tmp_path / "shots.csv").write_text(shots)
    (tmp_path / "new.csv").write_text(table)
    output = tmp_path / "out.csv"
    words = ["generate", str(run), "--table", str(tmp_path / "new.csv"), *GENERATE, str(tmp_path / "shots.csv"), "--output", str(output)]
    assert wanted in told(capfd, *words) and not output.exists()


def test_a_folder_that_is_cut_short_is_told_and_training_goes_on_from_what_is_whole(run, tmp_path, capfd):
    weights = run / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    error = told(capfd, "evaluate", str(run))
    assert "model.safetensors" in error
    weights.write_bytes(whole)
    (run / "config.json").write_text("{")
    assert "config.json" in told(capfd, "evaluate", str(run))
    (run / "recipe.yaml").unlink()
    assert "recipe.yaml" in told(capfd, "evaluate", str(run))
    assert "nowhere" in told(capfd, "evaluate", str(tmp_path / "nowhere"))


def test_files_of_other_encodings_are_read_and_said(tmp_path, caplog):
    from mmlm.data.table_reader import read_table

    (tmp_path / "latin.csv").write_bytes("gr\u00f6\u00dfe,kind\n1,a\n2,b\n".encode("latin-1"))
    assert read_table(tmp_path / "latin.csv").names == ["gr\u00f6\u00dfe", "kind"] and "latin-1" in caplog.text
    (tmp_path / "wide.csv").write_bytes("gr\u00f6\u00dfe,kind\n1,a\n2,b\n".encode("utf-16"))
    assert np.isfinite(read_table(tmp_path / "wide.csv").column("gr\u00f6\u00dfe").values).all()
