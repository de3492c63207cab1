"""Every demo in a headless Chromium: it opens on a phone, runs its examples, shows what it should, and refuses what is too large."""

from __future__ import annotations

import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from PIL import Image as Pictures

from mmlm.base.errors import DataError
from mmlm.base.giving_up import go_on
from mmlm.data import token_shards
from mmlm.recipe import Recipe
from mmlm.serving.demo import launch
from mmlm.serving.examples import Answers, examples_of
from mmlm.serving.uses import Use, uses_of
from mmlm.sound import Sound
from mmlm.tasks.forms import Audio, Text

from .test_hostile import BROKEN
from .tiny import made_in

gradio = pytest.importorskip("gradio")
for package in ("pandas", "playwright", "rdkit", "timm", "soundfile"):
    pytest.importorskip(package)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.skipif(CHROMIUM is None, reason="needs: apt-get install chromium")]
DEMOS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "demos").glob("*.py"))
PIECES, PIECE, EARLY = 8, 4500, 4  # of a rate of 8 kHz
GO = Event()  # lets the second half of a sound be made
HOSTILE = "<img src=x onerror='window.taken=1'><script>window.taken=1</script>"
READS = {"picture_classes": ".png", "image_text": ".jpg", "enhancement": ".wav", "sweeps": ".npy"}  # demos that read files
ANSWER_SECONDS = 3.0  # in which a kept answer has to be there, by the processor's clock of this program

# Of each kind of task, what has to be seen of an answer, as CSS within its tab.
SEEN = {
    "text": "label:has-text('Continued') textarea",
    "tabular": ".drawing svg rect",
    "tabular_text": ".drawing svg rect",
    "regression_transformer": ".drawing svg path",
    "picture_classes": "[data-testid='label-output-value'], .output-class",
    "image_codes": "img",
    "image_text": ".drawing svg rect",
    "codec": ".drawing img[alt^='spectrogram']",
    "robust_units": "label:has-text('Units') textarea",
    "enhancement": ".drawing img[alt^='spectrogram']",
    "gense_codes": ".drawing img[alt^='spectrogram']",
    "tts": ".drawing img[alt^='spectrogram']",
    "grounded": "img",
    "sweeps": "img",
}


def talk(given):
    """Half a second of sound at a time, of which the test lets the second half be made."""
    wave_n = 0.3 * np.sin(np.arange(PIECES * PIECE) / 5).astype(np.float32)
    for count in range(1, PIECES + 1):
        while count > EARLY and not GO.wait(0.05):
            go_on()
        yield {"audio": Sound(wave_n[: PIECE * count], 8000)}


class Talks:
    """A task without records of its own, so that it has no examples."""

    inputs, outputs = {"text": Text("Text")}, {"audio": Audio("Speech", grows=True)}
    answer = None

    def given_by(self, record):
        raise DataError("this task has none.")


@pytest.fixture(scope="module")
def uses(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_shards, "user_cache_folder", lambda: folder / "cache")
        runs = made_in(folder, DEMOS)
    return [use for run in runs for use in uses_of(run)]


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    recipe, run = Recipe.read("tabular/quickstart"), tmp_path_factory.mktemp("own") / "talker"
    return Use(run, "talk", "talk", Talks.inputs, Talks.outputs, talk, recipe, Talks(), None)


@pytest.fixture(scope="module")
def page(uses, talker):
    playwright = pytest.importorskip("playwright.sync_api")
    address = launch([*uses, talker], wait=False)
    began = time.monotonic()
    while not all((use.run / "demo" / f"{use.name}.json").is_file() for use in uses) and time.monotonic() - began < 60:
        time.sleep(0.1)
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield phone(browser, address)
        browser.close()
    gradio.close_all()


def phone(browser, address):
    """The page on a phone, laid out."""
    page = browser.new_page(viewport={"width": 400, "height": 900})
    page.set_default_timeout(60_000)
    page.goto(address)
    page.locator(".overflow-menu > button, button[aria-label*='more' i]").first.wait_for()
    return page


def holds(shown, name, value):
    """Wait until an element, looked for again each time as pages draw anew, has a property."""
    from playwright.sync_api import expect

    expect(shown).to_have_js_property(name, value, timeout=60_000)


def opened(page, name):
    """The panel of a tab; on a phone some tabs are behind a button."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.first.is_visible():
        page.locator(".overflow-menu > button, button[aria-label*='more' i]").first.click()
        page.locator(f".overflow-dropdown button:text-is('{name}')").click()
    else:
        tab.first.click()
    return page.get_by_role("tabpanel").locator("visible=true").first


def test_there_is_a_demo_for_each_kind_of_task(uses, page):
    assert len(DEMOS) == len(SEEN) == 14 and [use.type for use in uses] == DEMOS == sorted(SEEN)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


@contextmanager
def answering(page):
    """Until what is asked inside is answered."""
    asked: list[str] = []
    ended: list[str] = []

    def ask(request):
        if "/queue/join" in request.url:
            asked.append(request.url)

    def end(request):
        if "/queue/data" in request.url and asked:  # and not the end of what was asked before
            ended.append(request.url)

    heard = {"request": ask, "requestfinished": end, "requestfailed": end}  # the page closes the connection, or the server
    for event, hear in heard.items():
        page.on(event, hear)
    yield
    began = time.monotonic()
    while not ended and time.monotonic() - began < 60:
        page.wait_for_timeout(10)
    for event, hear in heard.items():
        page.remove_listener(event, hear)
    assert ended


@pytest.mark.parametrize("kind", DEMOS)
def test_a_demo_opens_and_shows_the_answer_to_each_example_at_once(kind, page, uses, tmp_path):
    (use,) = (use for use in uses if use.type == kind)
    panel, answers, (examples, _) = opened(page, kind), Answers(use), examples_of(use)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    shown = panel.locator(".examples .gallery-item, .examples .tr-body")
    assert shown.count() == len(examples) >= 1
    for number, given in enumerate(examples):
        began = time.process_time()
        with answering(page):
            shown.nth(number).click()
        panel.locator(SEEN[kind]).last.wait_for(state="visible")
        for name, each in use.outputs.items():
            if type(each) is Text:
                holds(panel.get_by_label(each.label, exact=True), "value", answers.find(given)[name])
        assert time.process_time() - began < ANSWER_SECONDS
    page.screenshot(path=tmp_path / f"{kind}.png", full_page=True)
    assert not faults and page.locator(".toast-body.error").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_two_people_at_once_see_their_own_answers_alone(page, uses):
    (use,) = (use for use in uses if use.type == "text")
    asked = ("The 3. line", "lines came before it: 7")
    pages = [page, phone(page.context.browser, page.url)]
    panels = [opened(each, "text") for each in pages]
    for panel, text in zip(panels, asked, strict=True):
        panel.get_by_role("textbox").first.fill(text)
    assert panels[1].get_by_label("Continued", exact=True).input_value() == ""  # nothing of the first one's is here
    for panel in panels:
        panel.get_by_role("button", name="Ask").click()
    for panel, text in zip(panels, asked, strict=True):
        *_, last = use.answer({"text": text})
        holds(panel.get_by_label("Continued", exact=True), "value", last["text"])
        assert last["text"].startswith(text)
    pages[1].wait_for_timeout(500)
    assert panels[0].get_by_label("Continued", exact=True).input_value().startswith(asked[0])
    pages[1].close()


def told(page):
    """What a page says is wrong; it is taken away again."""
    page.locator(".toast-body.error").first.wait_for(state="visible")
    said = page.locator(".toast-body.error").first.inner_text()
    page.locator(".toast-close").first.click()
    page.locator(".toast-body.error").first.wait_for(state="detached")
    return said


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.quality)], ids=["some", "every"])
@pytest.mark.parametrize("kind", READS)
def test_a_broken_file_is_told_on_the_page(kind, every, page, tmp_path):
    panel, place = opened(page, kind), list(READS).index(kind)
    for number, (name, data) in enumerate(BROKEN.items()):
        if not every and number % len(READS) != place:
            continue
        path = tmp_path / f"{number}{READS[kind]}"
        path.write_bytes(data)
        clear(panel)
        with page.expect_response(lambda response: "/upload" in response.url):
            panel.locator("input[type=file]").first.set_input_files(path)
        page.wait_for_timeout(300)
        panel.get_by_role("button", name="Ask").click()
        said = told(page)
        assert "this file" in said or "is missing" in said, (name, said)
        assert "/tmp" not in said and "Traceback" not in said, (name, said)
    clear(panel)


def test_hostile_words_are_refused_or_shown_as_words(page):
    """What looks like a page's own language is not taken for it."""
    panel = opened(page, "text")
    box = panel.get_by_role("textbox").first
    for words, said in {"   ": "is empty", "x" * 20_001: "20,001 characters", "x " * 9_000: "tokens long"}.items():
        box.fill(words)
        panel.get_by_role("button", name="Ask").click()
        assert said in told(page)
    box.fill(HOSTILE)
    with answering(page):
        panel.get_by_role("button", name="Ask").click()
    assert panel.get_by_label("Continued", exact=True).input_value().startswith(HOSTILE)
    panel = opened(page, "grounded")
    with answering(page):
        panel.locator(".examples .tr-body").first.click()
    panel.get_by_label("Part").fill(HOSTILE)
    panel.get_by_role("button", name="Ask").click()
    assert HOSTILE[:40] in told(page)
    panel = opened(page, "regression_transformer")
    panel.get_by_role("textbox").first.fill(HOSTILE)
    panel.locator(".drawing p", has_text=HOSTILE).first.wait_for(state="visible")
    panel = opened(page, "image_text")
    with answering(page):
        panel.locator(".examples .tr-body").first.click()
    panel.get_by_role("textbox").first.fill(HOSTILE)
    with answering(page):
        panel.get_by_role("button", name="Ask").click()
    panel.locator(".drawing svg rect").first.wait_for(state="visible")
    assert page.evaluate("window.taken === undefined")


def test_speech_is_played_while_it_is_made_and_stops(page, talker):
    panel = opened(page, "talker")
    player = panel.locator(".player").first
    panel.get_by_role("textbox").first.fill("a word")
    panel.get_by_role("button", name="Ask").click()
    heard = "(e) => (e.dataset.pieces ? e : e.querySelector('[data-pieces]') || e).dataset"
    page.wait_for_function(f"(e) => ({heard})(e).seconds === '2.25'", arg=player.element_handle())
    assert panel.locator(".drawing img").count() == 0  # it is still being made
    GO.set()
    panel.locator(".drawing img").wait_for(state="visible")
    page.wait_for_function(f"(e) => ({heard})(e).seconds === '4.5'", arg=player.element_handle())
    assert int(player.evaluate(f"(e) => ({heard})(e).pieces")) >= 2
    GO.clear()
    panel.get_by_role("button", name="Ask").click()
    page.wait_for_function(f"(e) => ({heard})(e).seconds === '2.25'", arg=player.element_handle())
    panel.get_by_role("button", name="Stop").click()
    began = time.monotonic()
    while talker.lock.locked() and time.monotonic() - began < 20:
        time.sleep(0.05)
    assert not talker.lock.locked()  # its work has ended
    GO.set()
    page.wait_for_timeout(500)
    assert player.evaluate(f"(e) => ({heard})(e).seconds") == "2.25"


def test_a_molecule_is_drawn_while_it_is_written(page):
    panel = opened(page, "regression_transformer")
    box = panel.get_by_role("textbox").first
    box.fill("CC(=O)Oc1ccccc1C(=O)O")
    panel.locator(".drawing svg").first.wait_for(state="visible")
    box.fill("C1CC")
    panel.locator(".drawing p", has_text="C1CC").first.wait_for(state="visible")


def test_a_part_of_a_picture_is_marked_by_two_taps(page, tmp_path):
    panel = opened(page, "grounded")
    Pictures.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).resize((800, 600)).save(tmp_path / "a.png")
    clear(panel)
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "a.png")
    shown = panel.locator(".image-frame img, img[alt='']").first
    shown.wait_for(state="visible")
    holds(shown, "naturalWidth", 800)
    wide, tall = (shown.evaluate(f"(e) => e.{side}") for side in ("clientWidth", "clientHeight"))
    scale = min(wide / 800, tall / 600)
    edges = [(wide - 800 * scale) / 2, (tall - 600 * scale) / 2]
    for x, y in ((600, 150), (200, 450)):
        shown.click(position={"x": edges[0] + x * scale, "y": edges[1] + y * scale})
        panel.locator(".drawing figcaption", has_text="tap the other corner" if x == 600 else "what is meant").wait_for(state="visible")
    sides = panel.get_by_label("Part").input_value().split(",")
    assert np.abs(np.array(sides, float) - [200, 150, 600, 450]).max() <= 1 / scale + 1
    with answering(page):  # until then the button does nothing
        panel.get_by_role("button", name="Ask").click()
    panel.get_by_label("Part").fill("600,150,200,450")
    panel.get_by_role("button", name="Ask").click()
    page.locator(".toast-body.error", has_text="must be [left, top, right, bottom]").first.wait_for(state="visible")
    page.locator(".toast-close").first.click()


def clear(panel):
    """Take a picture out of its input, if one is there."""
    if (shown := panel.get_by_label("Remove Image").or_(panel.get_by_label("Clear"))).count():
        shown.first.click()


def test_an_upload_that_is_too_large_is_refused(page, tmp_path):
    panel = opened(page, "picture_classes")
    (tmp_path / "large.png").write_bytes(b"\0" * (21 << 20))
    clear(panel)
    panel.locator("input[type=file]").first.set_input_files(tmp_path / "large.png")
    page.get_by_text("exceed the maximum allowed size of 20").first.wait_for(state="visible")
