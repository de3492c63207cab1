"""Demos in a browser, on Gradio: a tab for each task of each run, made of nothing but its inputs and outputs.

Everything a page can hand over is checked as a server would check it (`mmlm.serving.uses`); a file is read only where a person uploaded it.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.analysis.drawing import write_png
from mmlm.base.errors import DataError, MmlmError, RecipeError, require
from mmlm.data.audio_files import write_sound
from mmlm.data.points import READERS
from mmlm.data.sweep_source import read_ahead
from mmlm.evaluation.card import figures
from mmlm.model import read_json
from mmlm.run import METRICS
from mmlm.serving.examples import examples_of
from mmlm.serving.uses import Use
from mmlm.sound import Sound
from mmlm.tasks.forms import Audio, Choice, Data, Field, Image, Number, Points, Shares, Table, Text

logger = logging.getLogger(__name__)
MOST_MEGABYTES = 20  # of an upload
WAITING = 16  # most people in the queue
FONTS = ["system-ui", "sans-serif"]  # Gradio's own would be fetched from elsewhere


def build(uses: Sequence[Use]) -> Any:
    """The page, a gradio.Blocks. Raises RecipeError without anything to show, MissingExtra without Gradio."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is told to anybody
    if not uses:
        raise RecipeError("mmlm demo: none of these runs has a task that can be asked by hand.")
    gradio = require("gradio", "demo")
    with gradio.Blocks(title="mmlm", analytics_enabled=False) as page:
        if len(uses) == 1:
            _tab(gradio, uses[0])
        else:
            with gradio.Tabs():
                for use in uses:
                    with gradio.Tab(use.title):
                        _tab(gradio, use)
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    return page


def launch(uses: Sequence[Use], *, host: str = "127.0.0.1", port: int | None = None, token: str | None = None, wait: bool = True) -> str:
    """Serve the page; returns its address. token: the password of the user `mmlm`; None: none is asked for on this machine alone, elsewhere
    one is made and logged. wait: until it is stopped."""
    page, gradio = build(uses), require("gradio", "demo")
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        token = secrets.token_urlsafe(16)
        logger.warning("the page asks for the user mmlm with the password %s", token)
    _, address, _ = page.launch(
        server_name=host, server_port=port, auth=None if token is None else ("mmlm", token), max_file_size=f"{MOST_MEGABYTES}mb",
        theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]), footer_links=[], ssr_mode=False,
        share=False, quiet=True, prevent_thread_lock=True, show_error=True,
    )  # fmt: skip
    if wait:
        logger.warning("open %s in a browser; Ctrl-C ends it", address)
        page.block_thread()
    return str(address)


def _tab(gradio: Any, use: Use) -> None:
    gradio.Markdown(f"## {use.title}")
    with gradio.Accordion("How good it is", open=False):
        gradio.Markdown("\n".join(measured(use)))
    with gradio.Row():
        with gradio.Column(min_width=320):
            needed = {name: each for name, each in use.inputs.items() if not each.is_optional}
            more = {name: each for name, each in use.inputs.items() if each.is_optional}
            widgets = {name: widget(gradio, each) for name, each in needed.items()}
            if more:
                with gradio.Accordion("Settings", open=bool(set(more) - {"seed", "temperature"})):
                    widgets |= {name: widget(gradio, each) for name, each in more.items()}
            with gradio.Row():
                ask, stop = gradio.Button("Ask", variant="primary"), gradio.Button("Stop")
        with gradio.Column(min_width=320):
            shown = {name: widget(gradio, each, is_output=True) for name, each in use.outputs.items()}
    inputs, outputs = [widgets[name] for name in use.inputs], list(shown.values())
    running = ask.click(answering(use, gradio.Error), inputs, outputs, api_name=_api_name(use))
    stop.click(None, None, None, cancels=[running])
    examples, why = examples_of(use)
    if why:
        gradio.Markdown(why)
    elif examples:
        folder = Path(tempfile.mkdtemp(prefix="mmlm-examples-"))
        rows = [
            [as_example(folder / f"{row}_{name}", use.inputs[name], given.get(name, use.inputs[name].usual)) for name in use.inputs]
            for row, given in enumerate(examples)
        ]
        gradio.Examples(rows, inputs, outputs, fn=answering(use, gradio.Error), run_on_click=True, cache_examples=False, api_name=False)


def measured(use: Use) -> list[str]:
    """How good a run was when it was measured, beside baselines, in Markdown."""
    path = use.run / METRICS
    if not path.is_file():
        return ["Nobody has measured this run yet; `mmlm evaluate` does."]
    metrics = read_json(path)
    return figures(use.recipe, metrics["tasks"][use.name] if "tasks" in metrics else metrics)


def _api_name(use: Use) -> str:
    return f"{use.run.name}_{use.name}".replace("-", "_").replace(".", "_")


def answering(use: Use, error_type: Callable[[str], Exception]) -> Callable[..., Iterator[Any]]:
    """What a page calls: values of the widgets in, values of the widgets out, again and again while an answer grows. What is wrong with
    what was given is told as it is; whatever else goes wrong is logged, and told without a word of where."""

    def answer(*values: Any) -> Iterator[Any]:
        try:
            given = {name: from_widget(each, name, value) for (name, each), value in zip(use.inputs.items(), values, strict=True)}
            for found in use.answer({name: value for name, value in given.items() if value is not None}):
                shown = [to_widget(each, found.get(name)) for name, each in use.outputs.items()]
                yield shown[0] if len(shown) == 1 else shown
        except MmlmError as error:
            raise error_type(str(error)) from None
        except Exception:
            logger.exception("%s could not answer", use.title)
            raise error_type("This could not be answered; the log of the program says why.") from None

    return answer


def widget(gradio: Any, each: Field, is_output: bool = False) -> Any:
    """A component of Gradio for a field."""
    about = {"label": each.label} if is_output else {"label": each.label, "value": each.usual}
    told = {} if is_output or not each.help else {"info": each.help}
    kinds: Mapping[type[Field], Callable[[], Any]] = {
        Text: lambda: gradio.Textbox(**about, **told, lines=getattr(each, "num_lines", 1), interactive=not is_output),
        Number: lambda: gradio.Slider(each.low, each.high, step=each.step, **about, **told),  # type: ignore[attr-defined]
        Choice: lambda: gradio.Dropdown(list(each.options), **about, **told),  # type: ignore[attr-defined]
        Audio: lambda: gradio.Audio(label=each.label, type="numpy", sources=None if is_output else ["upload", "microphone"], format="wav"),
        Image: lambda: gradio.Image(label=each.label, type="numpy", image_mode="RGB"),
        Points: lambda: gradio.File(label=each.label, file_types=list(READERS), type="filepath"),
        Table: lambda: gradio.Dataframe(label=each.label, type="pandas", interactive=not is_output, wrap=True),
        Shares: lambda: gradio.Label(label=each.label, num_top_classes=5),
        Data: lambda: gradio.JSON(label=each.label),
    }
    return kinds[type(each)]()


def from_widget(each: Field, name: str, value: Any) -> Any:
    """What a component hands over, as a value of its field; None where it is empty. Raises DataError for what cannot be read."""
    if value is None:
        return None
    if isinstance(each, Audio):
        rate_hz, wave = value
        wave = np.asarray(wave)
        scale = float(np.iinfo(wave.dtype).max) + 1 if np.issubdtype(wave.dtype, np.integer) else 1.0
        wave_n = (wave if wave.ndim == 1 else wave.mean(axis=1)).astype(np.float32) / np.float32(scale)
        return Sound(wave_n, int(rate_hz))
    if isinstance(each, Points):
        try:
            return read_ahead(Path(value))
        except DataError as error:
            raise DataError(f"{name}: {str(error).replace(str(value), 'this file')}") from None
    if isinstance(each, Table):
        frame = value.astype(object).where(value.notna() & (value.astype(str) != ""), None)
        return [row for row in frame.to_dict("records") if any(cell is not None for cell in row.values())]
    return value


def to_widget(each: Field, value: Any) -> Any:
    """A value of a field as its component takes it."""
    if value is None:
        return None
    if isinstance(each, Audio):
        return value.rate_hz, (np.clip(value.wave_n, -1, 1) * 32767).astype(np.int16)
    if isinstance(each, Table):
        return require("pandas", "tabular").DataFrame(value)
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
    if isinstance(each, Points):
        np.save(path.with_suffix(".npy"), value)
        return str(path.with_suffix(".npy"))
    return to_widget(each, value)
