"""Where files go that are made of others."""

from __future__ import annotations

from pathlib import Path

from mmlm.base.files import beside


def test_what_is_made_of_a_file_or_folder_lies_beside_it(tmp_path, monkeypatch):
    (tmp_path / "photos.v2").mkdir()
    assert beside(tmp_path / "a.wav", ".new.wav") == tmp_path / "a.new.wav"
    assert beside(tmp_path / "photos.v2", ".described") == tmp_path / "photos.v2.described"
    monkeypatch.chdir(tmp_path / "photos.v2")
    assert beside(Path("."), ".described") == tmp_path.resolve() / "photos.v2.described"
    assert beside(Path(".."), ".described") == tmp_path.resolve().with_name(f"{tmp_path.name}.described")
