"""Files and sounds as vectors, from Python and from the command line."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import mmlm
from mmlm.base.errors import DataError, RecipeError
from mmlm.cli import main
from mmlm.data.audio_files import write_sound
from mmlm.sound import Sound

pytest.importorskip("torchaudio")
pytest.importorskip("soundfile")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two short files of different rates."""
    paths = []
    for number, rate_hz in enumerate((16_000, 44_100)):
        wave_n = 0.1 * np.random.default_rng(number).normal(size=rate_hz // 2).astype(np.float32)
        paths.append(str(tmp_path / f"{number}.wav"))
        write_sound(paths[-1], Sound(wave_n, rate_hz))
    return paths


def test_files_and_sounds_become_rows_in_their_order(files: list[str]) -> None:
    from mmlm.data.audio_files import read_sound

    found = mmlm.encoder("log_mel", num_bands=10, context=1)
    vectors = found.encode(files)
    assert vectors.shape == (2, 30) and vectors.dtype == np.float32 and found.rate_hz == Fraction(50)
    np.testing.assert_allclose(found.encode([read_sound(files[1]), Path(files[0])], batch_size=1), vectors[::-1], rtol=1e-6)
    assert [len(frames) for frames in found.frames(files)] == [25, 25]


def test_the_verb_writes_what_python_gives(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "vectors.npy"
    assert main(["encode", "{type: log_mel, context: 0}", *files, "--output", str(output), "--normalize"]) == 0
    assert "2 vectors of 40 numbers" in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(output), mmlm.encoder("log_mel", context=0).encode(files, normalize=True))


def test_a_folder_stands_for_its_files_sorted(files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(files[0]).parent
    (folder / "notes.txt").write_text("no sound")
    assert main(["encode", "log_mel", str(folder), "--output", str(tmp_path / "v.npy")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), mmlm.encoder("log_mel").encode(sorted(files)))
    (tmp_path / "none").mkdir()
    assert main(["encode", "log_mel", str(tmp_path / "none"), "--output", str(tmp_path / "v.npy")]) == 2
    assert "no file below this folder ends in" in capsys.readouterr().err


def test_a_run_of_several_tasks_gives_the_first_that_is_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmlm import embedding

    molecules = "{type: regression_transformer, name: molecules, properties: [logp], objective: permutation}"
    tasks = f"tasks: [{{type: tabular, name: tables}}, {molecules}]"
    data = "data: {train: [{type: structural_tables}, {type: moses}], test: [{type: moses, split: test}]}"
    (tmp_path / "recipe.yaml").write_text(f"schema: 1\nname: a\n{tasks}\n{data}\n")
    monkeypatch.setattr(embedding, "Designer", lambda folder: ("designer", folder))
    assert mmlm.encoder(tmp_path) == ("designer", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("schema: 1\nname: a\ntask: {type: tabular}\n")
    with pytest.raises(RecipeError, match="its tasks are tabular, and it uses no encoders of speech"):
        mmlm.encoder(tmp_path)


def test_a_run_gives_its_encoder(tmp_path: Path, files: list[str]) -> None:
    units = "tokenizers: {units: {type: units, encoder: {type: log_mel, num_bands: 7, context: 0}}}"
    (tmp_path / "recipe.yaml").write_text(f"schema: 1\nname: a\n{units}\n")
    assert mmlm.encoder(tmp_path).encode(files).shape == (2, 7)
    with pytest.raises(RecipeError, match="the run decides the options of its encoder; leave out context"):
        mmlm.encoder(tmp_path, context=1)
    (tmp_path / "recipe.yaml").write_text("schema: 1\nname: a\n")
    with pytest.raises(RecipeError, match="uses no encoders of speech"):
        mmlm.encoder(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["encode", "log_mell", "FILE", "--output", "v.npy"], "unknown encoder 'log_mell'. Did you mean 'log_mel'?"),
        (["encode", "{type: log_mel, bands: 3}", "FILE", "--output", "v.npy"], "bands"),
        (["encode", "table_cells", "FILE", "--output", "v.npy"], "is a part of a model"),
        (["encode", "log_mel", "FILE", "--output", "v.csv"], "must end in .npy"),
        (["encode", "runs/nowhere", "FILE", "--output", "v.npy"], "runs/nowhere: no finished run, as recipe.yaml is missing"),
        (["encode", "log_mel", "nowhere.wav", "--output", "v.npy"], "nowhere.wav"),
        (["encode", "log_mel", "FILE", "--output", "v.npy", "--batch-size", "0"], "--batch-size must be at least 1, but is 0"),
        (["encode", "log_mel", "FILE", "--precision", "int3", "--output", "v.npy"], "precision must be one of"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], told: str, files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([files[0] if word == "FILE" else word for word in arguments]) == 2
    assert told in capsys.readouterr().err


def test_a_file_that_is_no_sound_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("no sound")
    with pytest.raises(DataError, match=r"a\.wav"):
        mmlm.encoder("log_mel").encode([tmp_path / "a.wav"])
