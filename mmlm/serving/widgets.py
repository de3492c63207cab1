"""Fields of tasks as components of Gradio: what these hand over and are handed, and what is drawn beside them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmlm.analysis.drawing import as_html, drawn, figure, write_png
from mmlm.base.errors import DataError, MmlmError, require
from mmlm.chemistry import svg
from mmlm.data.audio_files import write_sound
from mmlm.data.picture_files import picture_facts, read_picture
from mmlm.data.points import READERS
from mmlm.data.sweep_source import read_ahead
from mmlm.evaluation.charts import shares
from mmlm.evaluation.spectrogram import attention_image, extent, spectrogram_image
from mmlm.serving.files import from_word
from mmlm.serving.values import short_sound, small_picture, sound_file, within_pixels
from mmlm.sound import Sound
from mmlm.tasks.forms import (
    MOST_PICTURES,
    MOST_PIXELS,
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
)
from mmlm.tokenizers.boxes import Grounded, Phrase
from mmlm.tokenizers.image_patches import resized

DRAWN = (Audio, Spans, Chances, Molecule, Looks)  # outputs with a drawing beside them
MOST_DRAWN = 40  # rows
MOST_DRAWN_SMILES = 300  # characters
MOST_MARKED, MARK = 320, 40  # pixels of the longer side of a marked picture, and of how many a first corner is one
MEANT = "what is meant"

# Plays what is appended to its value, "RATE:PCM IN BASE64", as it comes, without a gap. One that begins otherwise is another sound.
# Where a page may sound only after a gesture, as on phones, the next one lets it; until then its clock stands, so that nothing is missed.
# The context is kept for the sounds that follow, as each new one would wait again.
PLAYER = """
let context = null, sound = null, at = 0, heard = '';
const wake = () => { if (context && context.state !== 'running') context.resume(); };
for (const kind of ['click', 'touchend', 'keydown']) document.addEventListener(kind, wake, true);
watch('value', () => {
  const text = props.value || '';
  if (!heard || !text.startsWith(heard)) {
    if (sound) sound.disconnect();
    sound = null; at = 0; heard = ''; element.dataset.seconds = '0'; element.dataset.pieces = '0';
  }
  const begin = Math.max(heard.length, text.indexOf(':') + 1), rate = parseInt(text);
  if (text.length <= begin || !rate) return;
  const bytes = Uint8Array.from(atob(text.slice(begin)), (letter) => letter.charCodeAt(0));
  const samples = Float32Array.from(new Int16Array(bytes.buffer), (value) => value / 32768);
  heard = text;
  if (context && context.sampleRate !== rate) { context.close(); context = sound = null; }
  context = context || new AudioContext({sampleRate: rate});
  if (!sound) { sound = context.createGain(); sound.connect(context.destination); }
  const buffer = context.createBuffer(1, samples.length, rate), node = context.createBufferSource();
  buffer.copyToChannel(samples, 0);
  node.buffer = buffer;
  node.connect(sound);
  at = Math.max(at, context.currentTime + 0.05);
  node.start(at);
  at += samples.length / rate;
  element.dataset.seconds = String(Number(element.dataset.seconds) + samples.length / rate);
  element.dataset.pieces = String(Number(element.dataset.pieces) + 1);
});
"""


def widget(gradio: Any, each: Field, is_output: bool = False) -> Any:
    """A component of Gradio for a field."""
    about = {"label": each.label} if is_output else {"label": each.label, "value": each.usual}
    told = {} if is_output or not each.help else {"info": each.help}

    def text() -> Any:
        return gradio.Textbox(**about, **told, lines=getattr(each, "num_lines", 1), interactive=not is_output)

    kinds: Mapping[type[Field], Callable[[], Any]] = {
        Text: text,
        Molecule: text,
        Number: lambda: gradio.Slider(each.low, each.high, step=each.step, **about, **told),  # type: ignore[attr-defined]
        Flag: lambda: gradio.Checkbox(**about, **told),
        Looks: lambda: gradio.JSON(label=each.label, visible=False),  # for programs: people see the drawing
        Choice: lambda: gradio.Dropdown(list(each.options), **about, **told),  # type: ignore[attr-defined]
        Audio: lambda: _unread(
            gradio.Audio(label=each.label, sources=None if is_output else ["upload", "microphone"], format="wav", buttons=["download"])
        ),
        Image: lambda: _unread(gradio.Image(label=each.label, buttons=["download", "fullscreen"])),
        Pictures: lambda: _unread(gradio.Gallery(label=each.label, columns=3, format="png", file_types=["image"], buttons=["fullscreen"])),
        Part: text,
        Points: lambda: gradio.File(label=each.label, file_types=list(READERS), type="filepath"),
        Table: lambda: gradio.Dataframe(label=each.label, type="pandas", interactive=not is_output, wrap=True),
        Shares: lambda: gradio.Label(label=each.label, num_top_classes=5),
        Chances: lambda: gradio.JSON(label=each.label),
        Spans: lambda: gradio.JSON(label=each.label),
        Data: lambda: gradio.JSON(label=each.label),
    }
    return kinds[type(each)]()


def _unread(component: Any) -> Any:
    """A component that hands over the paths of what was uploaded: Gradio's readers know fewer kinds of files, and tell of broken ones with
    a word of where they lie."""

    def paths(payload: Any) -> Any:
        if payload is None or not hasattr(payload, "root"):
            return None if payload is None else payload.path
        return [(getattr(one, "image", None) or one.video).path for one in payload.root]

    component.preprocess = paths
    return component


def from_widget(each: Field, name: str, value: Any) -> Any:
    """What a component hands over, as a value of its field; None where it is empty. Raises DataError for what cannot be read."""
    if value is None:
        return None
    if isinstance(each, Audio):
        return _read(partial(short_sound, most_seconds=each.most_seconds), name, value)
    if isinstance(each, Image):
        return _read(small_picture, name, value)
    if isinstance(each, Pictures):
        if len(value) > MOST_PICTURES:
            raise DataError(f"{name}: holds {len(value)} pictures; {MOST_PICTURES} are allowed.")
        return within_pixels((partial(_small, f"{name}, picture {number}", path) for number, path in enumerate(value, 1)), MOST_PIXELS)
    if isinstance(each, Part):
        return from_word(each, name, value) if value.strip() else None
    if isinstance(each, Points):
        return _read(read_ahead, name, value)
    if isinstance(each, Table):
        frame = value.astype(object).where(value.notna() & (value.astype(str) != ""), None)
        return [row for row in frame.to_dict("records") if any(cell is not None for cell in row.values())]
    return value


def _small(name: str, path: str, most_pixels: int) -> np.ndarray:
    """A picture of at most so many pixels. Raises DataError."""
    found: np.ndarray = _read(partial(small_picture, most_pixels=most_pixels), name, path)
    return found


def _read(read: Callable[[Path], Any], name: str, path: str) -> Any:
    """What an uploaded file holds. Raises DataError without a word of where it lies."""
    try:
        return read(Path(path))
    except DataError as error:
        raise DataError(f"{name}: {str(error).replace(path, 'this file')}") from None


def to_widget(each: Field, value: Any) -> Any:
    """A value of a field as its component takes it."""
    if value is None:
        return None
    if isinstance(each, Audio):
        return value.rate_hz, (np.clip(value.wave_n, -1, 1) * 32767).round().astype(np.int16)
    if isinstance(each, Table):
        return require("pandas", "tabular").DataFrame(value)
    if isinstance(each, Part):
        return ",".join(f"{side:g}" for side in value)
    return value


def as_example(path: Path, each: Field, value: Any) -> Any:
    """A value of a field as an example of its component: sounds, pictures and sweeps as files."""
    if value is None:
        return None
    if isinstance(each, Audio):
        write_sound(path.with_suffix(".wav"), value)
        return str(path.with_suffix(".wav"))
    if isinstance(each, Image):
        write_png(path.with_suffix(".png"), value)
        return str(path.with_suffix(".png"))
    if isinstance(each, Pictures):
        return [as_example(path.with_name(f"{path.name}_{number}"), Image(each.label), one) for number, one in enumerate(value)]
    if isinstance(each, Points):
        np.save(path.with_suffix(".npy"), value)
        return str(path.with_suffix(".npy"))
    return to_widget(each, value)


def player(gradio: Any) -> Any:
    """A component that plays a sound while it is made; see `as_heard`."""
    return gradio.HTML(value="", html_template="", js_on_load=PLAYER, elem_classes="player", show_label=False)


def as_heard(sound: Sound, is_whole: bool) -> str:
    """A sound so far, as `player` takes it: always the beginning of what comes next."""
    count = len(sound.wave_n) if is_whole else len(sound.wave_n) // 3 * 3
    data = sound_file(Sound(sound.wave_n[:count], sound.rate_hz), "pcm")
    return f"{sound.rate_hz}:{base64.b64encode(data).decode()}"


def tapped(so_far: str | None, x: int, y: int) -> str:
    """The text of a `Part`, None where nothing was written, after a tap on its picture: the first one gives a corner, "x,y", the next one
    the sides, a third begins anew."""
    try:
        first_x, first_y = map(int, (so_far or "").split(","))
    except ValueError:
        return f"{x},{y}"
    (left, right), (top, bottom) = sorted((first_x, x)), sorted((first_y, y))
    return f"{left},{top},{right},{bottom}"


def marked(path: str | None, part: str | None) -> str:
    """A picture with the part of it that a text tells of, or its first corner, as HTML. Empty where there is nothing to draw: what is
    wrong is told to who asks."""
    if path is None or not part:
        return ""
    try:
        size = picture_facts(path).upright
        scale = min(1.0, MOST_MARKED / max(size))
        pixels = resized(read_picture(path, longest=MOST_MARKED), *(max(1, round(side * scale)) for side in size[::-1]))
        numbers = [float(each) for each in part.split(",")]
        sides = numbers if len(numbers) == 4 else [*numbers, *(each + max(size) / MARK for each in numbers)]
        left, top, right, bottom = (min(max(side / most, 0.0), 1.0) for side, most in zip(sides, size * 2, strict=True))
        if left > right or top > bottom:
            return ""
    except (ValueError, DataError):
        return ""
    said = Grounded(MEANT, (Phrase(0, len(MEANT), ((left, top, right, bottom),)),))
    return figure(drawn(pixels, said), f"{MEANT}: {escape(part)}" if len(numbers) == 4 else "tap the other corner", alt=MEANT)


def drawing(each: Field, value: Any, found: Values) -> str:
    """A value of a field as HTML; found: all of an answer. Empty where there is nothing to draw."""
    if value is None or not value:
        return ""
    if isinstance(each, Audio):
        return f"{spectrogram_image(value, escape(each.label, quote=True))}<br><small>{extent(value)}</small>"
    if isinstance(each, Spans):
        phrases = (Phrase(one["span"][0], one["span"][1], tuple(map(tuple, one["boxes"]))) for one in value)
        return f"<p>{as_html(Grounded(str(found.get(each.of) or ''), tuple(phrases)))}</p>"
    if isinstance(each, Looks):
        return f"<p>{escape(each.label)}</p>{attention_image(value['names'], torch.tensor(value['weights']))}"
    if isinstance(each, Chances):
        more = f"<p>The first {MOST_DRAWN} of {len(value):,} rows.</p>" if len(value) > MOST_DRAWN else ""
        return f"{shares(value[:MOST_DRAWN])}{more}"
    if isinstance(each, Molecule):
        return molecule(value)
    return ""


def molecule(smiles: str) -> str:
    """A molecule as HTML, or why there is no drawing. RDKit takes minutes for a long one, in which nobody else is served."""
    if len(smiles) > MOST_DRAWN_SMILES:
        return f"<p>{len(smiles):,} characters are too many to be drawn; {MOST_DRAWN_SMILES} are drawn.</p>"
    try:
        return svg(smiles) if smiles.strip() else ""
    except MmlmError as error:
        return f"<p>{escape(str(error))}</p>"
