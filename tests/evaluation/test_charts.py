"""Charts show what there is: one point, many series, values that never change, names of any length."""

import re

from mmlm.evaluation.charts import COLOURS, WIDTH, colour_of, dots, lines, shares, ticks


def told(page: str) -> list[float]:
    """The numbers at the axes."""
    return [float(each) for each in re.findall(r"<text [^>]*>(-?[\d.]+(?:e[-+]\d+)?)</text>", page)]


def test_a_series_of_one_point_is_a_dot():
    page = lines({"validation loss": [(3.0, 0.5)], "loss": [(1.0, 2.0), (2.0, None), (3.0, float("nan"))]}, "step", "loss")
    assert page.count("<circle") == 2 and "<polyline" not in page
    assert lines({"a": []}, "x", "y") == lines({"a": [(1.0, None)]}, "x", "y") == dots([], "x") == shares([]) == ""
    page = lines({"a": [(1.0, 2.0), (2.0, 3.0)], "b": []}, "x", "y")
    assert page.count("<polyline") == 1 and "<circle" not in page


def test_an_axis_tells_the_size_of_a_value_that_never_changes():
    for value in (3e-4, 1.0, -7.0):
        page = lines({"lr": [(1.0, value), (9.0, value)]}, "step", "learning rate")
        (height,) = set(re.findall(r'<polyline[^>]*points="[\d.]+,([\d.]+) [\d.]+,([\d.]+)"', page)[0])
        assert 100 < float(height) < 140  # the middle
        assert max(map(abs, told(page)[:3])) < 2 * abs(value) and (value < 0 or value in told(page))


def test_numbers_at_the_axes_are_written_out():
    page = lines({"a": [(1_200_000.0, 0.1), (1_200_004.0, 0.3)]}, "step", "loss")
    assert {1_200_000.0, 1_200_001.0, 1_200_004.0} <= set(told(page)) and "e+" not in page and "0.15" in page
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def test_every_series_has_a_colour_and_a_name_within_the_picture():
    names = [f"<source {number}>" for number in range(18)]
    page = lines({name: [(0.0, number), (1.0, number)] for number, name in enumerate(names)}, "x", "y")
    colours = re.findall(r'<polyline fill="none" stroke="(#\w+)"', page)
    assert len(set(colours)) == 18 and colours[:6] == COLOURS and colours == re.findall(r'<rect [^>]*fill="(#\w+)"', page)
    height = int(re.search(r'viewBox="0 0 \d+ (\d+)"', page)[1])
    assert all(int(y) < height for y in re.findall(r'<text x="\d+" y="(\d+)"', page))
    assert "&lt;source 17&gt;" in page and "<source" not in page
    bars = shares([{f"class {number}": 0.1 for number in range(10)}])
    assert len(set(re.findall(r'height="15" fill="(#\w+)"', bars))) == 10 and colour_of(18) == colour_of(0)


def test_a_long_name_is_cut_and_told_whole_to_a_pointer():
    for letter in "a語<":
        name = letter * 20_000
        bars = shares([{name: 0.5, "other": 0.5}])
        cut = re.search(r'font-size="11" fill="currentColor">([^<]*)\.\.\.<title>', bars)[1].replace("&lt;", "<")
        assert set(cut) == {letter} and 40 < len(cut) < WIDTH // 7 and ">other</text>" in bars
