"""Demos in a browser, on Gradio: a tab for each task of each run, made of nothing but its inputs and outputs.

Everything a page can hand over is checked as a server would check it (`mmlm.serving.uses`); a file is read only where a person uploaded it.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from threading import Event, Thread
from typing import Any

from mmlm.base.errors import MmlmError, RecipeError, require
from mmlm.base.files import read_json
from mmlm.base.giving_up import GivenUp, as_told, unless
from mmlm.evaluation.card import figures
from mmlm.evaluation.report import plots
from mmlm.run import METRICS
from mmlm.serving.examples import Answers, examples_of
from mmlm.serving.uses import Use
from mmlm.serving.widgets import DRAWN, as_example, as_heard, drawing, from_widget, marked, molecule, player, tapped, to_widget, widget
from mmlm.tasks.config import TASKS
from mmlm.tasks.forms import Audio, Molecule, Part, Values

logger = logging.getLogger(__name__)
MOST_MEGABYTES = 20  # of an upload
WAITING = 16  # most people in the queue
FONTS = ["system-ui", "sans-serif"]  # Gradio's own would be fetched from elsewhere


@dataclass
class Asking:
    """A use as a page asks it. skip: what leaves a component as it is.   error_type: how a page is told of an error.   examples: of the
    use, or why there are none.   at_work: of each person who asks, what ends each of their answers."""

    use: Use
    error_type: Callable[[str], Exception] = RuntimeError
    skip: Any = None
    at_work: dict[str | None, list[Event]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.answers = Answers(self.use)
        self.examples, self.why_none = examples_of(self.use)
        self.heard = [name for name, each in self.use.outputs.items() if isinstance(each, Audio) and each.grows]
        self.drawn = [name for name, each in self.use.outputs.items() if isinstance(each, DRAWN)]

    def ask(self, values: Sequence[Any], person: str | None = None) -> Iterator[list[Any]]:
        """For values of the inputs' components those of the outputs' ones, of the players and of the drawings, again and again while an
        answer grows. What is wrong with what was given is told as it is; whatever else goes wrong is logged, and told without a word of
        where."""
        with self._telling():
            given = {name: from_widget(each, name, value) for (name, each), value in zip(self.use.inputs.items(), values, strict=True)}
            yield from self._answered({name: value for name, value in given.items() if value is not None}, person)

    def show(self, number: int, person: str | None = None) -> Iterator[list[Any]]:
        """What was answered to an example, or its answer while it grows, which is then kept."""
        given = self.examples[number]
        with self._telling():
            if (known := self.answers.find(given)) is not None:
                yield self._shown(known, is_whole=True)
            else:
                yield from self._answered(given, person, keep=True)

    def stop(self, person: str | None = None) -> None:
        """Nobody waits any more for anything that a person asked."""
        for unwanted in [*self.at_work.get(person, ())]:
            unwanted.set()

    def prepare(self) -> None:
        """Answer the examples whose answers are not known."""
        for given in self.examples:
            if self.answers.find(given) is None:
                *_, last = self.use.answer(given)
                self.answers.keep(given, last)

    def _answered(self, given: Values, person: str | None, *, keep: bool = False) -> Iterator[list[Any]]:
        unwanted = Event()
        self.at_work[person] = [*self.at_work.get(person, ()), unwanted]

        def work(tell: Callable[[Values], None]) -> None:
            with unless(unwanted):
                for found in self.use.answer(given):
                    tell(found)

        last: Values = {}
        try:
            for last in as_told(work):
                yield self._shown(last, is_whole=False)
        except GivenUp:
            return
        finally:
            if left := [each for each in self.at_work[person] if each is not unwanted]:
                self.at_work[person] = left
            else:
                del self.at_work[person]
        if keep:
            self.answers.keep(given, last)
        yield self._shown(last, is_whole=True)

    def _shown(self, found: Values, *, is_whole: bool) -> list[Any]:
        outputs = self.use.outputs
        shown = [self.skip if name in self.heard and not is_whole else to_widget(each, found.get(name)) for name, each in outputs.items()]
        heard = [as_heard(found[name], is_whole) if found.get(name) is not None else "" for name in self.heard]
        drawn = [drawing(outputs[name], found.get(name), found) if is_whole else self.skip for name in self.drawn]
        return [*shown, *heard, *drawn]

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What goes wrong inside is told as the page's error."""
        try:
            yield
        except MmlmError as error:
            raise self.error_type(str(error)) from None
        except Exception:
            logger.exception("%s could not answer", self.use.title)
            raise self.error_type("This could not be answered; the log of the program says why.") from None


def build(uses: Sequence[Use]) -> Any:
    """The page, a gradio.Blocks. Raises RecipeError without anything to show, MissingExtra without Gradio."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing is told to anybody
    if not uses:
        raise RecipeError("mmlm demo: none of these runs has a task that can be asked by hand.")
    gradio = require("gradio", "demo")

    def error(message: str) -> Exception:
        """Its words alone: what Gradio is told is shown as HTML, and messages quote what people wrote."""
        found: Exception = gradio.Error(escape(message, quote=False), print_exception=False)
        return found

    asked = [Asking(use, error, gradio.skip()) for use in uses]
    with gradio.Blocks(title="mmlm", analytics_enabled=False) as page:
        if len(asked) == 1:
            _tab(gradio, asked[0])
        else:
            with gradio.Tabs():
                for one in asked:
                    with gradio.Tab(one.use.title):
                        _tab(gradio, one)

        def leave(request: Any) -> None:
            for one in asked:
                one.stop(request.session_hash)

        leave.__annotations__["request"] = gradio.Request
        page.unload(leave)  # whoever closes the page waits for nothing any more
    page.queue(max_size=WAITING, default_concurrency_limit=1)
    page.asked = asked
    return page


def launch(uses: Sequence[Use], *, host: str = "127.0.0.1", port: int | None = None, token: str | None = None, wait: bool = True) -> str:
    """Serve the page; returns its address. token: the password of the user `mmlm`; None: none is asked for on this machine alone, elsewhere
    one is made and logged. wait: until it is stopped. Examples whose answers are not known are answered meanwhile."""
    page, gradio = build(uses), require("gradio", "demo")
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        token = secrets.token_urlsafe(16)
        logger.warning("the page asks for the user mmlm with the password %s", token)
    name = f"[{host}]" if ":" in host else host  # as it stands in addresses
    _, address, _ = page.launch(
        server_name=name, server_port=port, auth=None if token is None else ("mmlm", token), max_file_size=f"{MOST_MEGABYTES}mb",
        theme=gradio.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]), footer_links=[], ssr_mode=False,
        share=False, quiet=True, prevent_thread_lock=True, show_error=True,
    )  # fmt: skip
    Thread(target=_prepare, args=[page.asked], daemon=True).start()
    if wait:
        logger.warning("open %s in a browser; Ctrl-C ends it", address)
        page.block_thread()
    return str(address)


def _prepare(asked: Sequence[Asking]) -> None:
    for one in asked:
        try:
            one.prepare()
        except Exception as error:  # told again to whoever clicks on the example
            logger.warning("%s: an example was not answered: %s", one.use.title, error)


def _tab(gradio: Any, asking: Asking) -> None:
    use = asking.use
    gradio.Markdown(f"## {use.title}\n\n{what_it_does(use)}")
    with gradio.Accordion("How good it is", open=False):
        told, drawn = measured(use)
        gradio.Markdown("\n".join(told))
        if drawn:
            gradio.HTML("".join(drawn), elem_classes="drawing measured")
    with gradio.Row():
        with gradio.Column(min_width=320):
            needed = {name: each for name, each in use.inputs.items() if not each.is_optional}
            more = {name: each for name, each in use.inputs.items() if each.is_optional}
            widgets = {name: _input(gradio, each) for name, each in needed.items()}
            if more:
                with gradio.Accordion("Settings", open=bool(set(more) - {"seed", "temperature"})):
                    widgets |= {name: _input(gradio, each) for name, each in more.items()}
            for name, each in use.inputs.items():
                if isinstance(each, Part):
                    _marking(gradio, widgets[each.of], widgets[name])
            with gradio.Row():
                ask, stop = gradio.Button("Ask", variant="primary"), gradio.Button("Stop")
        with gradio.Column(min_width=320):
            shown, drawn = [], []
            for name, each in use.outputs.items():
                shown.append(widget(gradio, each, is_output=True))
                drawn += [gradio.HTML(elem_classes="drawing")] if name in asking.drawn else []
            heard = [player(gradio) for _ in asking.heard]
    inputs, outputs = [widgets[name] for name in use.inputs], [*shown, *heard, *drawn]

    def answer(request: Any, *values: Any) -> Iterator[Any]:
        for each in asking.ask(values, request.session_hash):
            yield each if len(each) > 1 else each[0]

    def give_up(request: Any) -> None:
        asking.stop(request.session_hash)

    for call in (answer, give_up):
        call.__annotations__["request"] = gradio.Request
    running = [ask.click(answer, inputs, outputs, api_name=_api_name(use))]
    if asking.why_none:
        gradio.Markdown(asking.why_none)
    elif asking.examples:
        running.append(_examples(gradio, asking, inputs, outputs))
    stop.click(give_up, None, None, cancels=running, queue=False, api_visibility="private")


def _input(gradio: Any, each: Any) -> Any:
    """A component of an input; that of a molecule with its drawing."""
    found = widget(gradio, each)
    if isinstance(each, Molecule):
        drawn = gradio.HTML(elem_classes="drawing")
        found.change(molecule, found, drawn, show_progress="hidden", api_visibility="private")
    return found


def _marking(gradio: Any, picture: Any, part: Any) -> None:
    """Two taps on a picture write the sides of a part of it, which is drawn; another picture has none."""
    drawn = gradio.HTML(elem_classes="drawing")

    def tap(event: Any, so_far: str) -> str:
        return tapped(so_far, *event.index)

    tap.__annotations__["event"] = gradio.SelectData
    silent = {"show_progress": "hidden", "api_visibility": "private"}
    picture.select(tap, part, part, **silent)
    picture.input(lambda: "", None, part, **silent)
    part.change(marked, [picture, part], drawn, **silent)


def _examples(gradio: Any, asking: Asking, inputs: list[Any], outputs: list[Any]) -> Any:
    """Examples to click on, which then stand in the inputs beside their answers."""
    folder, fields = Path(tempfile.mkdtemp(prefix="mmlm-examples-")), asking.use.inputs
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rows = [
        [as_example(folder / f"{row}_{name}", each, given.get(name, each.usual)) for name, each in fields.items()]
        for row, given in enumerate(asking.examples)
    ]
    shown = gradio.Dataset(components=inputs, samples=rows, type="index", label="Examples", elem_classes="examples")

    def show(request: Any, number: int) -> Iterator[list[Any]]:
        row = rows[number]
        for each in asking.show(number, request.session_hash):
            yield [*row, *each]
            row = [asking.skip] * len(row)

    show.__annotations__["request"] = gradio.Request
    return shown.click(show, shown, [*inputs, *outputs], api_visibility="private")


def what_it_does(use: Use) -> str:
    """The first paragraph of what the code says of the task; nothing of a task that is not registered."""
    about = (getattr(TASKS.entries.get(use.type), "__doc__", None) or "").strip()
    return " ".join(about.partition("\n\n")[0].split())


def measured(use: Use) -> tuple[list[str], list[str]]:
    """How good a run was when it was measured, beside baselines, in Markdown, and what there is to draw of that, in HTML."""
    path = use.run / METRICS
    if not path.is_file():
        return ["Nobody has measured this run yet; `mmlm evaluate` does."], []
    try:
        metrics = read_json(path)
    except MmlmError as error:  # other runs are to be shown all the same
        logger.warning("%s", error)
        return ["What was measured of this run cannot be read; `mmlm evaluate` measures it again."], []
    own = metrics["tasks"][use.name] if "tasks" in metrics else metrics
    return figures(use.recipe, own), plots(own)


def _api_name(use: Use) -> str:
    return f"{use.run.name}_{use.name}".replace("-", "_").replace(".", "_")
