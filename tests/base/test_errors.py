import sys

import pytest

from mmlm.base.errors import (
    CheckpointError,
    DataError,
    MissingExtra,
    MmlmError,
    NumericsError,
    RecipeError,
    nearest,
    require,
    unknown_name,
)


@pytest.mark.parametrize(
    ("kind", "code"), [(RecipeError, 2), (DataError, 2), (CheckpointError, 2), (MissingExtra, 2), (NumericsError, 1), (MmlmError, 1)]
)
def test_the_exit_code_tells_a_users_mistake_from_a_failure(kind, code):
    assert issubclass(kind, MmlmError) and kind("x").exit_code == code


def test_a_missing_package_is_told_by_the_command_that_installs_it():
    with pytest.raises(MissingExtra, match=r"pip install 'mmlm\[speech\]'"):
        require("no_such_package.part", "speech")


def test_a_package_that_lacks_something_itself_says_what(tmp_path, monkeypatch):
    (tmp_path / "broken_inside.py").write_text("import no_such_package\n")
    (tmp_path / "broken_library.py").write_text("raise ImportError('libx.so: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, reason in (("broken_inside", "no_such_package"), ("broken_library", "libx.so")):
        with pytest.raises(MissingExtra, match=rf"{module}.*cannot be imported.*{reason}"):
            require(module, "speech")
        assert module not in sys.modules


def test_an_unknown_name_comes_with_the_nearest_and_all_known():
    assert unknown_name("mixer", "mamba3", ["mamba2", "attention"]) == (
        "unknown mixer 'mamba3'. Did you mean 'mamba2'? Known: attention, mamba2."
    )
    assert unknown_name("mixer", "zzz", []) == "unknown mixer 'zzz'. Known: none."
    assert "and 60 more" in unknown_name("table", "x", [f"t{i}" for i in range(100)])
    assert len(unknown_name("table", "x" * 10**7, ["y"])) < 300
    assert nearest("zzz", ["attention"]) == ""


@pytest.mark.parametrize(
    ("name", "near"),
    [("learning_rate", "lr"), ("heads", "num_heads"), ("bs", "batch_size"), ("Batch-Size", "batch_size"), ("stpes", "steps")],
)
def test_the_nearest_name_knows_words_and_first_letters(name, near):
    assert nearest(name, ["steps", "lr", "batch_size", "num_heads", "warmup", "seed"]) == f" Did you mean {near!r}?"
