"""Sweeps of one's own: boxes lie on their points, whatever way the sensor looks; faulty labels and files are named; texts are true."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mmlm.analysis.birds_eye import seen_from_above
from mmlm.base.errors import DataError
from mmlm.data import sweep_source
from mmlm.data.config.sweeps import SweepFolderConfig
from mmlm.data.points import read_points
from mmlm.data.sweeps import Cuboid, Sweep
from mmlm.encoders.views import VIEWS, view_of
from mmlm.tokenizers.boxes import Grounded, Phrase

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "lidar_sustech"


def label(x: float, y: float, heading: float, kind: str = "Car", length: float = 4.0) -> dict:
    parts = {"position": (x, y, 0.0), "scale": (length, 2.0, 1.5), "rotation": (0.0, 0.0, heading)}
    return {"obj_type": kind, "psr": {name: dict(zip("xyz", values, strict=True)) for name, values in parts.items()}}


def written(folder: Path, name: str, labels: object, ending: str = ".bin") -> Path:
    """A sweep with points within each box."""
    points = np.random.default_rng(0).uniform(-1, 1, (500, 4)).astype(np.float32)
    (points.tofile if ending == ".bin" else lambda path: np.save(path, points))(folder / f"{name}{ending}")
    (folder / f"{name}.json").write_text(labels if isinstance(labels, str) else json.dumps(labels))
    return folder


def inside(points_n4: np.ndarray, thing: Cuboid) -> int:
    x, y, z, length, width, height, heading = thing.box
    off = points_n4[:, :3] - np.array([x, y, z])
    along = off[:, 0] * math.cos(heading) + off[:, 1] * math.sin(heading)
    across = off[:, 1] * math.cos(heading) - off[:, 0] * math.sin(heading)
    held = (np.abs(along) <= length / 2 + 0.1) & (np.abs(across) <= width / 2 + 0.1) & (np.abs(off[:, 2]) <= height / 2 + 0.1)
    return int(held.sum())


def real(**options: object) -> list[Sweep]:
    if not REAL.is_dir():
        pytest.skip(f"{REAL} is not there")
    given = {"path": str(REAL), "front_degrees": -90.0, "hold_out": 0.0} | options
    return SweepFolderConfig.model_validate(given).build().everything()


def test_real_boxes_lie_on_their_points_and_most_things_are_ahead() -> None:
    sweeps = real(reach=100.0)
    things = [thing for sweep in sweeps for thing in sweep.things]
    assert len(sweeps) == 4 and len(things) == 87 and {thing.label for thing in things} >= {"car", "bus", "rider", "pedestrian"}
    counts = [inside(sweep.read(), thing) for sweep in sweeps for thing in sweep.things]
    assert min(counts) >= 5
    views = [VIEWS[thing.view] for thing in things]
    assert views.count("front") > views.count("back")
    assert sum(inside(sweep.read(), thing) > 4 for sweep in real(reach=100.0, front_degrees=0.0) for thing in sweep.things) == 87
    for sweep in sweeps:
        picture = seen_from_above(sweep.read(), Grounded("", tuple(Phrase(0, 0, (each.box,)) for each in sweep.things)), reach=51.2)
        colored = (picture.max(-1).astype(int) - picture.min(-1)) > 60
        assert picture.shape == (512, 512, 3) and colored.sum() > 200


def test_what_is_said_of_real_sweeps_is_true_and_always_the_same() -> None:
    assert sum(len(one.expressions) for one in real()) > 2
    for one, again in zip(real(), real(), strict=True):
        assert (one.captions, one.expressions, one.questions) == (again.captions, again.expressions, again.questions)
        assert one.captions and one.questions and all(thing.distance <= 50 for thing in one.things)
        boxes = {thing.box: thing.label for thing in one.things}
        assert all(box in boxes and boxes[box] in each.said.words(phrase)
                   for each in one.captions for phrase in each.said.phrases for box in phrase.boxes)  # fmt: skip
        for asked in one.questions:
            if asked.said.text == "What is nearest?":
                seen = [thing for thing in one.things if asked.view is None or thing.view == asked.view]
                assert min(seen, key=lambda thing: thing.distance).label == asked.said.answer


def test_ahead_is_where_the_config_says(tmp_path) -> None:
    written(tmp_path, "a", [label(0.0, -10.0, -math.pi / 2), label(10.0, 0.0, 0.0, "Traffic_Cone")])
    for degrees, wanted in ((0.0, (-90.0, 0.0)), (-90.0, (0.0, 90.0)), (90.0, (180.0, -90.0))):
        (sweep,) = SweepFolderConfig(path=str(tmp_path), front_degrees=degrees, hold_out=0.0).build().everything()
        for thing, angle in zip(sweep.things, wanted, strict=True):
            x, y, *_, heading = thing.box
            assert math.isclose(math.cos(math.atan2(y, x) - math.radians(angle)), 1, abs_tol=1e-6)
            assert math.isclose(math.cos(heading - math.atan2(y, x)), 1, abs_tol=1e-6)
            assert thing.view == view_of(x, y)
        assert [thing.label for thing in sweep.things] == ["car", "traffic cone"]


def test_sweeps_of_one_folder_stay_together_where_asked(tmp_path) -> None:
    for drive in "abcd":
        (tmp_path / drive).mkdir()
        for at in range(5):
            written(tmp_path / drive, str(at), [label(5, 5, 0)])
    source = SweepFolderConfig(path=str(tmp_path), split_by="folder", hold_out=0.05, validate_share=0.3).build()
    folders = [{each.id[0] for each in group} for group in source.groups]
    assert [len(group) for group in source.groups] == [5, 5, 10] and len(set.union(*folders)) == 4
    with pytest.raises(DataError, match="split_by: folder: 4 folders are too few for hold_out and validate_share"):
        SweepFolderConfig(path=str(tmp_path), split_by="folder", hold_out=0.5, validate_share=0.5 - 1e-9).build()


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ("{", "a.json: cannot be read"),
        ({"objects": []}, "a.json: must be a list of objects"),
        ([label(1, 1, 0), {"obj_type": "Car"}], "a.json, object 2: has no 'psr'"),
        ([{**label(1, 1, 0), "obj_type": 3}], "a.json, object 1: obj_type must be a text, but is 3"),
        ([label(1, 1, 0, length=0.0)], "a.json, object 1: numbers must be finite and the scale above 0"),
        ([label(float("nan"), 1, 0)], "a.json, object 1: numbers must be finite"),
    ],
)
def test_faulty_labels_are_named_and_can_be_left_out(tmp_path, labels, fault) -> None:
    written(written(tmp_path, "a", labels), "b", [label(5, 5, 0)], ".npy")
    with pytest.raises(DataError, match=fault):
        SweepFolderConfig(path=str(tmp_path), hold_out=0.0).build()
    source = SweepFolderConfig(path=str(tmp_path), hold_out=0.0, on_bad="skip").build()
    assert [each.id for each in source.everything()] == ["b.npy"] and len(source.bad) == 1


def test_files_are_read_again_only_where_they_have_changed(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "sweeps"
    folder.mkdir()
    config = SweepFolderConfig(path=str(written(folder, "a", [label(3, 0, 0)])), hold_out=0.0)
    written(folder, "b", [label(3, 0, 0)])
    seen: list[str] = []
    monkeypatch.setattr(sweep_source, "read_points", lambda path, columns: seen.append(path.name) or read_points(path, columns))
    assert len(config.build().everything()) == 2 and seen == ["a.bin", "b.bin"]
    assert len(config.build().everything()) == 2 and len(seen) == 2
    (folder / "b.bin").write_bytes((folder / "a.bin").read_bytes()[:1601])
    with pytest.raises(DataError, match="b.bin: 1601 bytes are no whole number of points"):
        config.build()
    assert len(config.model_copy(update={"columns": 5, "on_bad": "skip"}).build().everything()) == 1
    assert seen[2:] == ["b.bin", "a.bin", "b.bin"], "numbers of a point decide what is read"


def test_files_that_are_cut_short_and_folders_without_any_are_told(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no sweep"):
        SweepFolderConfig(path=str(tmp_path), hold_out=0.0).build()
    written(tmp_path, "a", [label(5, 5, 0)])
    (tmp_path / "b.bin").write_bytes(b"\0" * 7)
    with pytest.raises(DataError, match="b.bin: 7 bytes"):
        SweepFolderConfig(path=str(tmp_path), hold_out=0.0).build()
