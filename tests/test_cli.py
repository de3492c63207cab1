"""The command line: light, frozen flags, one clear message, exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mmlm import cli
from mmlm.base.errors import NumericsError, RecipeError

ROOT = Path(__file__).resolve().parent.parent
GOOD = "schema: 1\nname: tiny\nbackbone: {width: 32, num_layers: 1}\n"

# A flag that is here may be used by somebody's script: taking one away or renaming it is a decision, adding one is a line here.
FLAGS = {
    "card": ["--output", "RUN"],
    "compare": ["--only", "COMPARISON", "key.path=value"],
    "convert": ["FOLDER", "SOURCE"],
    "demo": ["--host", "--port", "--task", "--token", "RUN"],
    "preview": ["--samples", "RECIPE", "key.path=value"],
    "data": ["--rows", "--target", "FILE", "action"],
    "encode": ["--batch-size", "--index", "--normalize", "--output", "--precision", "--skip", "ENCODER|RUN", "ITEM"],
    "export": ["--format", "--items", "--output", "ENCODER|RUN"],
    "evaluate": ["RUN", "key.path=value"],
    "generate": [
        "--audio",
        "--designs",
        "--expression",
        "--front",
        "--given",
        "--image",
        "--mask-fraction",
        "--max-new-tokens",
        "--output",
        "--pace",
        "--precision",
        "--question",
        "--seed",
        "--shots",
        "--smiles",
        "--sweep",
        "--table",
        "--target",
        "--temperature",
        "--text",
        "--view",
        "--voice",
        "--voice-text",
        "--wanted",
        "RUN",
    ],  # fmt: skip
    "kernels": ["OPERATION"],
    "list": ["KIND", "PATTERN"],
    "recipe": ["--overwrite", "FILE", "NAME", "action"],
    "search": ["--encoder", "--top", "INDEX", "QUERY"],
    "serve": ["--batch", "--host", "--no-token", "--port", "--queue", "--seconds", "--token", "RUN"],
    "train": ["--dry-run", "--fresh", "RECIPE", "key.path=value"],
    "validate": ["--resolved", "--schema", "RECIPE", "key.path=value"],
}


def flags(verb: str) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False)
    importlib.import_module(f"mmlm.cli.{cli.VERBS[verb].module}").options(parser)
    return sorted(flag for action in parser._actions for flag in action.option_strings or [action.metavar or action.dest])


def test_the_flags_of_every_verb_are_frozen():
    assert {verb: flags(verb) for verb in cli.VERBS} == FLAGS


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb_has_an_example_that_its_parser_accepts(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example:\n  mmlm {verb}" in text and "--traceback" in text
    import shlex

    parser = cli.Parser(prog="x")
    importlib.import_module(f"mmlm.cli.{cli.VERBS[verb].module}").options(parser)
    parser.parse_args(shlex.split(cli.VERBS[verb].example)[2:])


def test_help_names_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in cli.VERBS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vaildate"], "unknown verb 'vaildate'. Did you mean 'validate'?"),
        (["validate", "--scema"], "Did you mean '--schema'?"),
        (["validate"], "needs a RECIPE"),
        (["validate", "nothing.yaml"], "nothing.yaml: no such file"),
        (["list", "mixrs"], "Did you mean 'mixers'?"),
        (["list", "mixers", "mamba22"], "unknown name 'mamba22'. Did you mean 'mamba2'?"),
        (["generate", "x"], "give --text, --audio, --image, --sweep, --smiles, --given, or --table with --target and --shots."),
        (["generate", "x", "--target", "a"], "--table is missing"),
        (["generate", "x", "--image", "a.png", "--temperature", "1"], "--temperature goes with --text, not with --image."),
        (["generate", "x", "--audio", "a.wav", "--question", "Who?"], "--question goes with --image or --sweep, not with --audio."),
        (["generate", "x", "--text", "a", "--front", "90"], "--front goes with --sweep, not with --text."),
        (["train", "tabular/quickstart", "--train.steps=3"], "a key of the recipe is written without dashes: train.steps=3"),
        (["generate", "x", "--given", "a=1", "--given", "a=2"], "--given a=... stands there twice; an input has one value."),
        (["data", "check", "x.csv", "--rows", "0"], "--rows must be at least 1, but is 0."),
        (["demo", "no/folder", "--task", "tts"], "no/folder: no finished run: recipe.yaml is missing."),
        (["recipe", "cop", "x"], "invalid choice: 'cop'"),
        (["recipe", "copy", "no/such"], "no shipped recipe has this name"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(words, message, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and "Traceback" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RecipeError("a wrong key"), 2, "a wrong key\n"),
        (NumericsError("not finite"), 1, "not finite\n"),
        (OSError(28, "No space left on device", "runs/x"), 1, "mmlm: OSError: [Errno 28] No space left"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes_and_traceback(error, code, said, monkeypatch, capsys):
    def fails(arguments):
        raise error

    monkeypatch.setattr("mmlm.cli.listing.run", fails)
    assert cli.main(["list"]) == code
    assert capsys.readouterr().err.startswith(said)
    if code != 130:
        with pytest.raises(type(error)):
            cli.main(["list", "--traceback"])


def test_of_several_processes_that_train_one_tells(monkeypatch, tmp_path, capsys):
    from mmlm import run
    from mmlm.training.trainer import Result

    (tmp_path / "r.yaml").write_text(GOOD)
    monkeypatch.setattr(run, "train", lambda *words, **options: Result(3, "steps", 1.0, 0))
    for rank, told in (("0", "runs/tiny: 3 steps in 1 s, ended by steps\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        assert cli.main(["train", str(tmp_path / "r.yaml")]) == 0 and capsys.readouterr().out == told


def test_validate_tells_all_faults_or_that_it_is_valid(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    assert cli.main(["validate", str(path)]) == 0
    assert "valid; the run folder is runs/tiny" in capsys.readouterr().out
    assert cli.main(["validate", str(path), "backbone.widht=3", "seeed=1"]) == 2
    assert f"{path}: 2 problems\n" in capsys.readouterr().err


def test_validate_prints_the_whole_recipe_which_is_valid_again(tmp_path, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    assert cli.main(["validate", "--resolved", str(path)]) == 0
    path.write_text(capsys.readouterr().out)
    assert cli.main(["validate", "--resolved", str(path)]) == 0
    assert capsys.readouterr().out.strip() == path.read_text().strip()


def test_the_schema_for_editors_is_json(capsys):
    assert cli.main(["validate", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "mmlm recipe"


def test_list_prints_one_name_a_line_first_on_it_and_its_source(capsys):
    assert cli.main(["list", "mixers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2 and {line.split()[0] for line in lines} >= {"attention", "mamba2"}
    assert all(line.rstrip().endswith("]") for line in lines)
    assert cli.main(["list", "mixers", "*mba2"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["mamba2"]


def test_list_without_a_kind_counts_every_kind(capsys):
    assert cli.main(["list"]) == 0
    rows = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {"recipes", "mixers", "heads", "encoders", "objectives"} <= rows.keys() and int(rows["mixers"]) >= 2


def test_recipe_copy_writes_once(tmp_path, monkeypatch, capsys):
    shipped = tmp_path / "shipped.yaml"
    shipped.write_text(GOOD)
    monkeypatch.setattr("mmlm.recipe.shipped", lambda: {"toy/tiny": shipped})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recipe", "copy", "toy/tiny", "mine.yaml"]) == 0
    assert (tmp_path / "mine.yaml").read_text() == GOOD and "wrote mine.yaml" in capsys.readouterr().out
    assert cli.main(["recipe", "copy", "toy/tiny", "mine.yaml"]) == 2
    assert cli.main(["recipe", "copy", "toy/tiny", "mine.yaml", "--overwrite"]) == 0
    assert cli.main(["recipe", "copy", "toy/tiny", "no/such/folder.yaml"]) == 2
    assert cli.main(["recipe", "copy", "toy/tni"]) == 2
    assert "Did you mean 'toy/tiny'?" in capsys.readouterr().err


def test_data_check_advises_to_take_out_what_training_would_read(tmp_path, capsys):
    from mmlm.data.config import TableFileConfig

    (tmp_path / "t.csv").write_text("id,size,y\n" + "".join(f"{at},{at * at % 7},{'ab'[at % 2]}\n" for at in range(30)))
    assert cli.main(["data", "check", str(tmp_path / "t.csv"), "--target", "y"]) == 0
    assert "30 distinct  tells nothing, better taken out: it numbers the rows" in capsys.readouterr().out
    assert "id" in TableFileConfig(path=str(tmp_path / "t.csv"), target="y").build().table.names  # nothing takes it out by itself


def test_data_check_tells_what_is_in_every_file_and_what_is_wrong(tmp_path, capsys):
    good, ragged = tmp_path / "good.csv", tmp_path / "ragged.csv"
    good.write_text("id,city,price,empty\n1,Rome,3.5,\n2,Oslo,4,\n3,Rome,,\n")
    ragged.write_text("a,b\n1,2,3\n")
    assert cli.main(["data", "check", str(ragged), str(good), "--target", "price"]) == 2
    out, err = capsys.readouterr()
    assert f"{good}: 3 rows, 4 columns" in out and "the target" in out and "all its cells are missing" in out
    assert f"{ragged}, line 2" in err and err.count("\n") == 1
    assert cli.main(["data", "check", str(good)]) == 0
    assert cli.main(["data", "check", str(good), "--target", "prcie"]) == 2
    assert "Did you mean 'price'?" in capsys.readouterr().err


def test_kernels_tells_what_serves_each_operation_and_why_the_others_do_not(capsys):
    from mmlm.kernels.dispatch import OPS

    assert cli.main(["kernels"]) == 0
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    assert {row[0] for row in rows} == set(OPS) and all(len(row) == 3 for row in rows)
    assert [row[0] for row in rows if row[2].startswith("in use")] == list(OPS)
    assert all(row[2].startswith(("in use", "serves where those above do not", "no: ")) for row in rows)
    assert cli.main(["kernels", "ssd"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"ssd"}
    assert cli.main(["kernels", "sdd"]) == 2
    assert "Did you mean 'ssd'?" in capsys.readouterr().err


def test_a_name_that_cannot_be_shown_ends_nothing(tmp_path):
    place = os.path.join(os.fsencode(tmp_path), b"caf\xe9.csv")
    Path(os.fsdecode(place)).write_text("a,b\n1,2\n3,4\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-m", "mmlm", "data", "check", os.fsdecode(place)], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "caf\\udce9.csv: 2 rows, 2 columns" in done.stdout, done.stderr


HEAVY = "{'torch', 'numpy', 'pandas', 'transformers', 'accelerate', 'peft'} & set(sys.modules)"


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["validate", "--help"], ["list"], ["list", "mixers"], ["validate", "RECIPE"], ["nonsense"]],
    ids=" ".join,
)
def test_light_verbs_load_no_torch(words, tmp_path):
    (tmp_path / "RECIPE").write_text(GOOD)
    light = words[-1] in ("--help", "--version", "nonsense")
    code = (
        f"import sys; from mmlm.cli import main; main({words!r}); "
        f"sys.exit(str({HEAVY}) if {HEAVY} or ({light} and 'pydantic' in sys.modules) else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def spent(words: list[str], cwd: Path, env: dict[str, str]) -> float:
    """CPU seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, cwd=cwd, env=env, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("given", "found"), [(None, "passive"), ("active", "active")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(given, found, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    assert cli.main(["--version"]) == 0 and os.environ["OMP_WAIT_POLICY"] == found


@pytest.mark.parametrize("words", [["--help"], ["validate", "RECIPE"], ["list", "mixers"]], ids=" ".join)
def test_light_verbs_cost_little_beside_pydantic_alone(words, tmp_path):
    """CPU time against importing pydantic and yaml in the same minute, with compiled bytecode, best of three."""
    (tmp_path / "RECIPE").write_text(GOOD)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(tmp_path / "cache")}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    ours = [spent([sys.executable, "-m", "mmlm", *words], tmp_path, env) for _ in range(4)]
    floor = [spent([sys.executable, "-c", "import pydantic.main, yaml"], tmp_path, env) for _ in range(4)]
    assert min(ours[1:]) < (1.0 if words == ["--help"] else 4.0) * min(floor[1:])
