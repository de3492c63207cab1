"""The pictures of the README: a part of a run's report.html, as a browser shows it.

    python docs/pictures/make.py runs/enhancement-mask .heard docs/pictures/enhancement.png

RUN is the folder of a run that `mmlm evaluate` has measured, PART a selector of what is shown, the first that fits (`>> nth=2`: the third).
Needs playwright and a Chromium (apt-get install chromium).
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image

WIDTH, COLORS = 860, 128  # pixels of the page; shades that are kept, so that files stay small


def main() -> None:
    """Write one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("part", metavar="PART")
    parser.add_argument("picture", metavar="PICTURE")
    parser.add_argument("--width", type=int, default=WIDTH, help="pixels of the page; 390 is a phone's")
    parser.add_argument("--height", type=int, help="so many pixels of the part, from its top; default: all")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": given.width, "height": 800}, color_scheme="light")
        page.goto((Path(given.run) / "report.html").resolve().as_uri())
        data = page.locator(given.part).first.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.crop((0, 0, picture.width, given.height or picture.height)).quantize(COLORS).save(given.picture, optimize=True)


if __name__ == "__main__":
    main()
