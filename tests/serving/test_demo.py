"""Pages in a browser: what components hand over and are handed, and over HTTP; `test_browser.py` looks at them."""

from __future__ import annotations

import base64
import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.giving_up import go_on
from mmlm.data.audio_files import write_sound
from mmlm.recipe import Recipe
from mmlm.serving.demo import Asking, build, launch, measured, what_it_does
from mmlm.serving.examples import Answers
from mmlm.serving.uses import Use, uses_of
from mmlm.serving.widgets import as_example, drawing, from_widget, marked, molecule, tapped, to_widget, widget
from mmlm.sound import Sound
from mmlm.tasks.forms import (
    Audio,
    Chances,
    Choice,
    Data,
    Field,
    Flag,
    Image,
    Looks,
    Molecule,
    Number,
    Part,
    Pictures,
    Points,
    Shares,
    Spans,
    Table,
    Text,
    Values,
)  # fmt: skip

gradio = pytest.importorskip("gradio")
pandas = pytest.importorskip("pandas")
FIELDS: list[Field] = [
    Text("a"),
    Number("a"),
    Choice("a", options=("b",)),
    Audio("a"),
    Flag("a"),
    Looks("a"),
    Image("a"),
    Pictures("a"),
    Points("a"),
    Table("a"),
    Shares("a"),
    Chances("a"),
    Spans("a"),
    Part("a"),
    Molecule("a"),
    Data("a"),
]


class Turned:
    """A task that somebody else wrote: it turns texts round."""

    inputs = {"text": Text("Text"), "times": Number("Times", is_optional=True, usual=1, low=1, high=3, step=1)}
    outputs = {"text": Text("Turned")}

    def given_by(self, record: str) -> Values:
        return {"text": record}

    def answer(self, model: object, given: Values) -> Iterator[Values]:
        if given["text"] == "fault":
            raise OSError("/secret/place is gone")
        yield {"text": given["text"][:1]}
        yield {"text": given["text"][::-1] * int(given["times"])}


@pytest.fixture(scope="module")
def turned() -> Use:
    task = Turned()
    recipe = Recipe.read("tabular/quickstart")
    return Use(Path("runs/turned"), "turn", "turn", task.inputs, task.outputs, lambda given: task.answer(None, given), recipe, task, None)


@pytest.fixture(scope="module")
def address(runs, turned):
    uses = [use for folder in runs.values() for use in uses_of(folder)]
    yield launch([*uses, turned], wait=False)
    gradio.close_all()


@pytest.mark.parametrize("is_output", [False, True])
@pytest.mark.parametrize("field", FIELDS, ids=lambda field: type(field).__name__)
def test_each_field_has_a_component(field, is_output):
    assert widget(gradio, field, is_output).label == "a"


def test_a_part_of_a_picture_is_written_as_its_sides():
    part = Part("a")
    assert from_widget(part, "a", "10,5,21,9.5") == [10, 5, 21, 9.5] and to_widget(part, [10, 5, 21, 9.5]) == "10,5,21,9.5"
    assert from_widget(part, "a", " ") is None and to_widget(part, None) is None
    with pytest.raises(DataError, match="a: must be LEFT,TOP,RIGHT,BOTTOM"):
        from_widget(part, "a", "10,5")


def test_two_taps_write_the_sides_of_a_part_which_is_drawn(tmp_path):
    path = as_example(tmp_path / "a", Image("a"), np.zeros((60, 80, 3), np.uint8))
    assert tapped(None, 1, 2) == "1,2" and not marked(path, None)  # of a box that was never written in
    seen = [""]
    for point in ((50, 40), (10, 45), (7, 8), (9, 3)):
        seen.append(tapped(seen[-1], *point))
    assert seen[1:] == ["50,40", "10,40,50,45", "7,8", "7,3,9,8"] and tapped("any word", 1, 2) == "1,2"
    assert "tap the other corner" in marked(path, "50,40") and "what is meant: 10,40,50,45" in marked(path, "10,40,50,45")
    assert not any(marked(path, part) for part in ("", "a", "1", "1,2,3", "nan,1,<b>,2", "1,2,3,4,5", "50,4,10,5", "1,9,2,4"))
    assert not marked(None, "1,2,3,4")
    large = as_example(tmp_path / "large", Image("a"), np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8))
    assert len(marked(large, "100,200,300,400")) < 400_000  # a page holds it
    assert marked(path, "-1e400,2,1e9,nan")  # as far as it can be
    (tmp_path / "broken.png").write_bytes(b"none")
    assert not marked(str(tmp_path / "broken.png"), "1,2,3,4")


def test_sounds_and_tables_survive_the_way_there_and_back(tmp_path):
    sound = Sound(np.sin(np.arange(800) / 9).astype(np.float32) / 2, 8000)
    back = from_widget(Audio("a"), "a", as_example(tmp_path / "a", Audio("a"), sound))
    assert back.rate_hz == 8000 and np.abs(back.wave_n - sound.wave_n).max() < 1e-4
    assert to_widget(Audio("a"), sound)[0] == 8000
    write_sound(tmp_path / "long.wav", Sound(np.zeros(80_000, np.float32), 8000))
    with pytest.raises(DataError, match=r"a: this file: lasts longer than the 0\.05 s"):
        from_widget(Audio("a", most_seconds=0.05), "a", str(tmp_path / "long.wav"))
    pictures = [np.full((4, 5, 3), level, np.uint8) for level in (9, 200)]
    again = from_widget(Pictures("a"), "a", as_example(tmp_path / "b", Pictures("a"), pictures))
    assert all(map(np.array_equal, again, pictures)) and len(again) == 2
    rows = [{"a": "x", "b": 1.5}, {"a": None, "b": 2.0}]
    frame = pandas.concat([to_widget(Table("a"), rows), pandas.DataFrame([{"a": "", "b": None}])], ignore_index=True)
    assert from_widget(Table("a"), "a", frame) == rows


def test_a_molecule_that_would_take_minutes_is_not_drawn():
    pytest.importorskip("rdkit")
    assert '<svg role="img" aria-label="CCO"' in molecule("CCO") and "cannot be read" in molecule("C1CC")
    assert "<svg" not in molecule("C" * 301) and "301 characters are too many" in molecule("C" * 301)


def test_pictures_that_are_too_large_together_are_told_before_the_last_one_is_decoded(tmp_path, monkeypatch):
    paths = as_example(tmp_path / "a", Pictures("a"), [np.full((3000, 3000, 3), level, np.uint8) for level in (9, 200)])
    decoded = []
    monkeypatch.setattr("mmlm.serving.values.read_picture", lambda path: decoded.append(path) or np.zeros((3000, 3000, 3), np.uint8))
    with pytest.raises(DataError, match="given, picture 2: this file: has 3000 x 3000 pixels; 7,000,000 in all are allowed beside"):
        from_widget(Pictures("a"), "given", paths)
    assert len(decoded) == 1


@pytest.mark.parametrize("field", [Points("a"), Audio("a"), Image("a"), Pictures("a")], ids=lambda field: type(field).__name__)
def test_a_file_that_cannot_be_read_is_told_without_where_it_lies(field, tmp_path):
    path = tmp_path / "s.npy"
    path.write_bytes(b"neither points nor sound nor picture")
    with pytest.raises(DataError, match="given.*: this file") as error:
        from_widget(field, "given", [str(path)] if isinstance(field, Pictures) else str(path))
    assert str(tmp_path) not in str(error.value)


def test_what_is_wrong_is_told_and_what_breaks_is_not_told_from_where(turned, caplog):
    ask = Asking(turned).ask
    assert [*ask(["abc", 2])] == [["a"], ["cbacba"], ["cbacba"]]
    with pytest.raises(RuntimeError, match="times: must be from 1 to 3"):
        [*ask(["abc", 9])]
    with pytest.raises(RuntimeError, match="text: is missing"):
        [*ask([None, 1])]
    with pytest.raises(RuntimeError) as error:
        [*ask(["fault", 1])]
    assert "/secret" not in str(error.value) and "/secret/place" in caplog.text


def talker(tmp_path, pieces=4, may_end=None):
    """A use that speaks in pieces, and which of them it has made; the last only once it may end."""
    made: list[int] = []
    wave_n = np.sin(np.arange(100 * pieces) / 7).astype(np.float32) * 0.9

    def speak(given: Values) -> Iterator[Values]:
        for count in range(1, pieces + 1):
            if may_end is not None and count == pieces:
                assert may_end.wait(60)
            go_on()
            made.append(count)
            yield {"audio": Sound(wave_n[: 100 * count], 8000)}

    inputs, outputs = {"text": Text("Text")}, {"audio": Audio("Speech", grows=True)}
    recipe = Recipe.read("tabular/quickstart")
    return Use(tmp_path, "talk", "talk", inputs, outputs, speak, recipe, Turned(), None), made


def test_a_sound_that_grows_is_heard_piece_by_piece_and_shown_whole_with_its_spectrogram(tmp_path):
    use, _ = talker(tmp_path)
    *growing, last = Asking(use, skip="as it was").ask(["a"])
    assert len(growing) == 4 and all(shown == "as it was" and drawn == "as it was" for shown, _, drawn in growing)
    heard = [piece for _, piece, _ in growing]
    assert all(later.startswith(earlier) and len(later) > len(earlier) > 99 for earlier, later in itertools.pairwise([*heard, last[1]]))
    rate, _, data = last[1].partition(":")
    assert rate == "8000" and np.array_equal(np.frombuffer(base64.b64decode(data), "<i2"), last[0][1]) and "spectrogram" in last[2]


def test_who_stops_ends_the_work_of_their_own_alone(tmp_path):
    may_end = Event()
    use, made = talker(tmp_path, may_end=may_end)
    asking = Asking(use)
    mine = asking.ask(["a"], "me")
    other = Asking(talker(tmp_path)[0]).ask(["a"], "them")
    next(mine), next(other)
    asking.stop("nobody")
    next(mine)
    asking.stop("me")
    may_end.set()
    assert len(list(mine)) <= 1 and 4 not in made and len(list(other)) == 4 and not asking.at_work


def test_who_stops_ends_all_that_they_asked(tmp_path):
    may_end = Event()
    (use, made), (other, more) = talker(tmp_path, may_end=may_end), talker(tmp_path, may_end=may_end)
    asking = Asking(use)
    first = asking.ask(["a"], "me")
    next(first)
    asking.use = other
    second = asking.ask(["b"], "me")
    next(second)
    asking.stop("me")
    may_end.set()
    assert len(list(first)) <= 3 and len(list(second)) <= 3 and 4 not in made and 4 not in more and not asking.at_work


def test_who_closes_the_page_waits_for_nothing_any_more(tmp_path):
    import httpx

    began, ended = Event(), Event()

    def work(given: Values) -> Iterator[Values]:
        began.set()
        try:
            while True:
                go_on()
                time.sleep(0.01)
        finally:
            ended.set()
        yield {}

    class Alone(Turned):
        def given_by(self, record: object) -> Values:
            raise DataError("there are no examples.")

    fields = {"text": Text("Text")}
    use = Use(tmp_path, "long", "long", fields, fields, work, Recipe.read("tabular/quickstart"), Alone(), None)
    address = launch([use], wait=False)
    try:
        with httpx.Client(base_url=f"{address}gradio_api/", timeout=30) as client:
            (ask,) = (each["id"] for each in client.get("../config").json()["dependencies"] if each["api_name"].endswith("long"))
            with client.stream("GET", "heartbeat/me") as alive:
                told = alive.iter_lines()  # held, as the page holds it
                next(told)
                client.post("queue/join", json={"data": ["a"], "fn_index": ask, "session_hash": "me"}).raise_for_status()
                assert began.wait(20) and not ended.is_set()
        assert ended.wait(20)
    finally:
        gradio.close_all()


def test_answers_to_examples_are_kept_beside_the_run_and_forgotten_with_its_weights(runs, caplog):
    (use,) = uses_of(runs["rows"])
    asking = Asking(use)
    first = list(asking.show(0))
    assert len(first) == 2 and (runs["rows"] / "demo" / "tabular.json").is_file()
    again = Asking(replace(use, call=lambda given: pytest.fail("asked again")))
    ((shown, chances, drawn),) = again.show(0)
    assert shown.equals(first[-1][0]) and [chances, drawn] == first[-1][1:] and "<rect" in drawn
    weights = runs["rows"] / "model.safetensors"
    held = weights.read_bytes()
    try:
        weights.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
        assert Answers(use).find(asking.examples[0]) is None
    finally:
        weights.write_bytes(held)
    adapter = runs["rows"] / "adapter" / "tabular" / "adapter.safetensors"  # as tasks with adapters of their own have
    adapter.parent.mkdir(parents=True)
    try:
        adapter.write_bytes(b"other weights")
        assert Answers(use).find(asking.examples[0]) is None
    finally:
        adapter.unlink()
    assert Answers(use).find(asking.examples[0]) is not None
    (runs["rows"] / "demo" / "tabular.json").write_text("{")
    assert Answers(use).find(asking.examples[0]) is None
    asking.prepare()
    assert len(list(asking.show(0))) == 1


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (Spans("a"), [{"span": [0, 3], "boxes": [[1, 2, 3, 4]]}], '<b style="border-bottom:3px solid rgb(230,60,60)">a &lt;</b>'),
        (Chances("a"), [{"x<": 0.25, "y": 0.75}], "x&lt;: 0.250"),
        (Chances("a"), [{"x": 1.0}] * 1001, "<p>The first 40 of 1,001 rows.</p>"),
        (Looks("<a>"), {"names": ["<b>", "c"], "weights": [[0.5, 0.25], [0.5, 0.75]]}, "&lt;b&gt;</text>"),
        (Audio("<a>"), Sound(np.ones(800, np.float32), 8000), "spectrogram of &lt;a&gt;"),
        (Molecule("a"), "CCO", "<svg"),
        (Molecule("a"), "C1C<", "C1C&lt;"),
        (Molecule("a"), "", ""),
        (Spans("a"), [], ""),
    ],
)
def test_what_is_drawn(field, value, words):
    if isinstance(field, Molecule):
        pytest.importorskip("rdkit")
    drawn = drawing(field, value, {"text": "a < b"})
    assert words in drawn and (bool(words) or not drawn) and "<script" not in drawn


def test_what_a_run_does_is_said_above_it(turned):
    assert what_it_does(turned) == ""
    about = what_it_does(replace(turned, type="tts"))
    assert about.startswith("Speak texts: ") and "\n" not in about and about.endswith(".")


def test_how_good_a_run_is_is_said_or_that_nobody_measured_it(turned, runs):
    told, drawn = measured(turned)
    assert "`mmlm evaluate`" in told[0] and not drawn
    (use,) = uses_of(runs["rows"])
    found = {"metrics": {"accuracy_4": 0.5, "calibration_error": 0.125}, "baselines": {}, "reliability": [[0.5, 0.25, 8], [0.75, 1.0, 8]],
             "data": {"split": "file", "tables": {"4": 1}, "seeds": 1}}  # fmt: skip
    (runs["rows"] / "metrics.json").write_text(json.dumps(found))
    try:
        told, (plot,) = measured(use)
    finally:
        (runs["rows"] / "metrics.json").unlink()
    assert any("| model | 0.500 |" in line for line in told) and "error 0.125" in plot and "share right over confidence" in plot
    (runs["rows"] / "metrics.json").write_text("{")
    try:
        assert "cannot be read" in measured(use)[0][0]
    finally:
        (runs["rows"] / "metrics.json").unlink()
    with pytest.raises(RecipeError, match="can be asked by hand"):
        build([])


def test_programs_ask_over_http(address, runs, tmp_path):
    client = pytest.importorskip("gradio_client").Client(address, verbose=False)
    names = set(client.view_api(return_format="dict")["named_endpoints"])
    assert names == {"/words_text", "/seen_grounded", "/rows_tabular", "/turned_turn"}
    text, looked, drawn = client.predict("The 3.", 4, 0, 0, True, api_name="/words_text")
    assert text.startswith("The 3.") and len(looked["weights"]) == len(looked["names"]) and drawn.count("<text") == len(looked["names"])
    assert client.predict("abc", 1, api_name="/turned_turn") == "cba"
    with pytest.raises(Exception, match="is empty"):
        client.predict(" ", 4, 0, 0, False, api_name="/words_text")


def test_a_page_at_an_address_of_ipv6_can_be_opened(turned):
    import httpx

    before = set(gradio.Blocks.get_instances())
    address = launch([turned], host="::1", wait=False)
    try:
        assert address.startswith("http://[::1]:") and httpx.get(address).status_code == 200
    finally:
        for page in set(gradio.Blocks.get_instances()) - before:
            page.close()


def test_a_file_that_is_too_large_is_refused(address, tmp_path):
    import httpx

    with httpx.Client(base_url=address) as client:
        too_large = client.post("/gradio_api/upload", files={"files": ("a.wav", b"0" * (21 << 20))})
        write_sound(tmp_path / "a.wav", Sound(np.zeros(800, np.float32), 8000))
        fine = client.post("/gradio_api/upload", files={"files": ("a.wav", (tmp_path / "a.wav").read_bytes())})
    assert too_large.status_code == 413 and fine.status_code == 200


def test_files_of_the_machine_are_not_served(address):
    import httpx

    with httpx.Client(base_url=address) as client:
        found = [client.get(f"/gradio_api/file={path}").status_code for path in ("/etc/passwd", "../../etc/passwd", str(Path(__file__)))]
    assert all(code in (403, 404) for code in found)


def test_a_path_that_nobody_uploaded_is_not_read(address, tmp_path):
    """Our own readers open what Gradio has let pass, and nothing else."""
    import httpx

    picture = as_example(tmp_path / "a", Image("a"), np.zeros((60, 80, 3), np.uint8))
    with httpx.Client(base_url=address, timeout=60) as client, Path(picture).open("rb") as file:
        (uploaded,) = client.post("/gradio_api/upload", files={"files": ("a.png", file)}).json()

        def ask(path: str) -> str:
            given = {"path": path, "meta": {"_type": "gradio.FileData"}}
            call = "/gradio_api/call/seen_grounded"
            begun = client.post(call, json={"data": [given, "grounded_caption", "", "", 0, 0]}).json()
            return client.get(f"{call}/{begun['event_id']}").text

        assert "event: complete" in ask(uploaded)
        for path in (picture, "/etc/passwd", f"{Path(uploaded).parent}/../../../etc/passwd"):
            found = ask(path)
            assert "event: error" in found and "known format" not in found and "root:" not in found
