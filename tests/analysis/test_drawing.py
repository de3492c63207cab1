"""Pictures in pages are small enough for them, and boxes are seen where all of a picture is."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from mmlm.analysis.drawing import IN_PAGE, drawn, figure
from mmlm.tokenizers.boxes import Grounded, Phrase


def test_a_photograph_does_not_stand_whole_in_a_page():
    photograph = np.random.default_rng(0).integers(0, 256, (3000, 2000, 3), dtype=np.uint8)
    page = figure(photograph, "a", alt='"<b>"')
    held = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", page)[1])))
    assert max(held.size) == IN_PAGE and f'width="{held.width}" height="{held.height}"' in page and "<b>" not in page
    small = np.zeros((4, 6, 3), np.uint8)
    assert 'width="60" height="40"' in figure(small, "a", least=60)


@pytest.mark.parametrize("shape", [(300, 400, 3), (3000, 4000, 3), (4000, 3, 3)])
def test_a_box_is_seen_on_a_picture_of_any_size(shape):
    box = Grounded("a", (Phrase(0, 1, ((0.2, 0.2, 0.8, 0.8),)),))
    picture = drawn(np.full(shape, 255, np.uint8), box)
    colored = (picture != 255).any(2)[picture.shape[0] // 2]
    assert colored.sum() >= min(2 * max(picture.shape) / 400, 2)
    assert (drawn(np.full(shape, 255, np.uint8), box, box) != 255).any()
