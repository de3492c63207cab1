"""What plays a sound while it is made, in a headless Chromium that lets pages sound after a gesture alone, as phones do."""

from __future__ import annotations

import base64
import json
import shutil

import numpy as np
import pytest

from mmlm.serving.widgets import PLAYER

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs: apt-get install chromium")]

# The component's script with what Gradio hands over to it. It is given its first sound before anything is asked of the page, as what
# Playwright asks counts as a gesture.
PAGE = """
window.made = [];
window.AudioContext = class extends AudioContext { constructor(given) { super(given); window.made.push(this); } };
window.element = document.body;
window.props = {value: ''};
new Function('element', 'props', 'watch', PLAYER)(element, props, (name, act) => { window.changed = act; });
window.hear = (value) => { props.value = value; changed(); };
FIRST.forEach(hear);
setTimeout(() => { window.before = [made.length, made[0].state, made[0].currentTime, element.dataset.seconds]; }, 300);
"""


def heard(rate_hz: int, count: int) -> str:
    """A value of the player: so many samples of one sound."""
    data = (8000 * np.sin(np.arange(count) / 5)).astype("<i2").tobytes()
    return f"{rate_hz}:{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=document-user-activation-required"]
        )
        page = browser.new_page()
        script = PAGE.replace("PLAYER", json.dumps(PLAYER)).replace("FIRST", json.dumps([heard(8000, 3000), heard(8000, 6000)]))
        (folder := tmp_path_factory.mktemp("page")).joinpath("page.html").write_text(f"<button>Ask</button><script>{script}</script>")
        page.goto((folder / "page.html").as_uri())
        yield page
        browser.close()


def test_a_sound_that_waits_for_a_gesture_is_heard_from_its_beginning_and_the_next_waits_no_more(page):
    page.wait_for_function("window.before")
    assert page.evaluate("before") == [1, "suspended", 0, "0.75"]
    page.get_by_role("button").click()
    page.wait_for_function("made[0].state === 'running' && made[0].currentTime > 0")
    page.evaluate("hear('')")
    page.evaluate(f"hear('{heard(8000, 4000)}')")
    assert page.evaluate("[made.length, made[0].state, element.dataset.seconds]") == [1, "running", "0.5"]
    page.evaluate(f"hear('{heard(16_000, 4000)}')")
    assert page.evaluate("[made.length, made[0].state, made[1].sampleRate]") == [2, "closed", 16_000]
