"""Charts as inline SVG: lines, and dots with intervals. Every text is escaped; colours are those of Okabe and Ito."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MIXED = ((0, 0.45), (255, 0.5))  # how far a colour that comes again is mixed with black, then with white
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 260, 72, 36, 14, 14
LETTER, WIDE_LETTER, MARK = 7, 12, 30  # points of a letter of a legend, of one of scripts with wide ones, and of what stands around a name


def colour_of(number: int) -> str:
    """The colour of the series of a number, counted from 0: those of COLOURS, then as many darker ones, then as many paler ones."""
    turn, place = divmod(number % (len(COLOURS) * (1 + len(MIXED))), len(COLOURS))
    if not turn:
        return COLOURS[place]
    other, share = MIXED[turn - 1]
    parts = (int(COLOURS[place][at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (other - part)):02X}" for part in parts)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low to high."""
    span = max(high - low, 1e-12)
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step + 1e-9) + 1)]


def lines(series: Mapping[str, Sequence[tuple[float, float | None]]], x_name: str, y_name: str, diagonal: bool = False) -> str:
    """One line a series of (x, y), a dot where it has a single point; points whose y is None or not finite are left out. diagonal draws
    y = x. The names of several series stand below."""
    drawn = {name: [(x, y) for x, y in line if y is not None and math.isfinite(y)] for name, line in series.items()}
    points = [point for line in drawn.values() for point in line]
    if not points:
        return ""
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    if diagonal:
        left, right, low, high = 0.0, 1.0, 0.0, 1.0
    (left, right), (low, high) = _widened(left, right), _widened(low, high)

    def place(x: float, y: float) -> str:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - BOTTOM - TOP):.1f}"

    parts = _frame(ticks(left, right), ticks(low, high), lambda x: place(x, low), lambda y: place(left, y), x_name, y_name)
    if diagonal:
        parts.append(f'<polyline class="grid" stroke="#8884" points="{place(0, 0)} {place(1, 1)}"/>')
    for number, line in enumerate(drawn.values()):
        colour = colour_of(number)
        if len(line) == 1:
            across, down = place(*line[0]).split(",")
            parts.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{colour}"/>')
        elif line:
            places = " ".join(place(x, y) for x, y in line)
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{places}"/>')
    bottom = HEIGHT
    if len(drawn) > 1:
        legend, bottom = _legend({name: colour_of(number) for number, name in enumerate(drawn)}, LEFT, HEIGHT + 14)
        parts += legend
    return _svg(parts, bottom, f"{y_name} over {x_name}")


def dots(rows: Sequence[tuple[str, float, float, float]], x_name: str) -> str:
    """One row each of (name, value, low, high): a dot on its interval; the first row stands out."""
    if not rows:
        return ""
    low, high = min(row[2] for row in rows), max(row[3] for row in rows)
    pad = 0.05 * max(high - low, 1e-6)
    low, high, begin, tall = low - pad, high + pad, 170, 30 * len(rows) + 40

    def place(x: float) -> float:
        return begin + (x - low) / (high - low) * (WIDTH - begin - RIGHT)

    parts = []
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" stroke="#8884" x1="{place(tick):.1f}" x2="{place(tick):.1f}" y1="6" y2="{tall - 34}"/>')
        parts.append(f'<text x="{place(tick):.1f}" y="{tall - 20}" text-anchor="middle">{tick:.10g}</text>')
    for number, (name, value, start, stop) in enumerate(rows):
        y, colour = 22 + 30 * number, COLOURS[0] if number == 0 else "currentColor"
        parts.append(f'<text x="{begin - 12}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<line x1="{place(start):.1f}" x2="{place(stop):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{place(value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
    parts.append(f'<text x="{(begin + WIDTH) / 2:.0f}" y="{tall - 4}" text-anchor="middle">{escape(x_name)}</text>')
    return _svg(parts, tall, x_name)


def shares(rows: Sequence[Mapping[str, float]]) -> str:
    """A bar for each row, parted by the probability of each name, with the names in their colours beneath."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return ""
    colours, tall, begin = {name: colour_of(at) for at, name in enumerate(names)}, 18 * len(rows), 40
    parts = []
    for number, row in enumerate(rows):
        left, y = float(begin), 18 * number
        parts.append(f'<text x="{begin - 8}" y="{y + 12}" font-size="11" fill="currentColor" text-anchor="end">{number + 1}</text>')
        for name, share in row.items():
            wide = share * (WIDTH - begin - RIGHT)
            parts.append(f'<rect x="{left:.1f}" y="{y}" width="{max(wide, 0):.1f}" height="15" fill="{colours[name]}">'
                         f"<title>{escape(name)}: {share:.3f}</title></rect>")  # fmt: skip
            left += wide
    legend, bottom = _legend(colours, begin, tall + 16)
    return _svg([*parts, *legend], bottom, "probabilities, a bar for each row")


def _legend(colours: Mapping[str, str], begin: int, top: int) -> tuple[list[str], int]:
    """(names beside their colours, in rows from `begin` and `top` on, height down to their end). One that is too long for a row is cut; a
    pointer that rests on it is told the whole."""
    parts, x, y = list[str](), begin, top
    room = WIDTH - begin - MARK
    for name, colour in colours.items():
        said = name[: room // LETTER]
        while said != name and _wide(f"{said}...") > room or _wide(said) > room:
            said = said[:-1]
        whole = "" if said == name else f"<title>{escape(name)}</title>"
        said += "" if said == name else "..."
        wide = _wide(said)
        if x + wide + MARK > WIDTH and x > begin:
            x, y = begin, y + 18
        parts.append(f'<rect x="{x}" y="{y - 10}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="{y}" font-size="11" fill="currentColor">{escape(said)}{whole}</text>')
        x += wide + MARK
    return parts, y + 8


def _wide(text: str) -> int:
    """About how many points a text takes in a legend."""
    return sum(LETTER if ord(letter) < 0x1100 else WIDE_LETTER for letter in text)


def _widened(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis; of a single value it lies in the middle, so that the axis tells its size."""
    if high > low:
        return low, high
    pad = abs(low) / 2 or 0.5
    return low - pad, high + pad


Place = Callable[[float], str]


def _frame(x_ticks: list[float], y_ticks: list[float], at_x: Place, at_y: Place, x_name: str, y_name: str) -> list[str]:
    parts = []
    for tick in y_ticks:
        y = at_y(tick).split(",")[1]
        parts.append(f'<line class="grid" stroke="#8884" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:.10g}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{at_x(tick).split(",")[0]}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:.10g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>')
    parts.append(
        f'<text x="14" y="{HEIGHT / 2:.0f}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2:.0f})">{escape(y_name)}</text>'
    )
    return parts


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    name = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" fill="currentColor" font-size="12" role="img" aria-label="{name}">{"".join(parts)}</svg>'
