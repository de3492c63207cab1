"""`mmlm generate`: use a model on new data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.files import write_text_whole

TABLE = ("table", "target", "shots")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument(
        "folder",
        metavar="RUN",
        help="the folder of a finished run; for --text also a folder or hub id of a decoder of transformers",
    )
    parser.add_argument("--table", help="table to fill: CSV, TSV, Parquet, Excel, JSON lines or a data set's folder")
    parser.add_argument("--target", help="the column to fill; rows that have a value keep it")
    parser.add_argument("--shots", help="table with example rows, the target among its columns")
    parser.add_argument("--text", help="a text to continue, or with a run that speaks to say")
    parser.add_argument("--voice", metavar="FILE", help="recording of some seconds in whose voice a text is said")
    parser.add_argument("--voice-text", default="", metavar="TEXT", help="what is said in it")
    parser.add_argument("--pace", type=float, default=1.0, metavar="X", help="how fast a text is said; 2 is twice as fast; default 1")
    parser.add_argument("--audio", help="sound to mend: a file, or a folder with files; any rate, channels and length")
    parser.add_argument("--image", help="picture to describe, to name or to code: a file, or a folder with files")
    parser.add_argument("--sweep", help="sweep of LiDAR to describe: .bin, .npy, .npz, .pcd or .las, or a folder with files")
    parser.add_argument("--view", metavar="NAME", help="the part of a sweep that is asked about: front, 'front left', ...; default: all")
    parser.add_argument(
        "--front", type=float, default=0.0, metavar="DEGREES", help="where ahead lies in a sweep, from x towards y; default 0"
    )
    parser.add_argument("--expression", metavar="TEXT", help="words for one thing in it, to be pointed at; of a picture or a sweep")
    parser.add_argument("--question", metavar="TEXT", help="a question about it")
    parser.add_argument(
        "--smiles", metavar="SMILES", help="molecule whose numbers are read, or from which others are designed; or a table of them"
    )
    parser.add_argument(
        "--wanted",
        action="append",
        metavar="NAME=NUMBER",
        help="a number that is wanted of designed molecules, such as logp=2.5; again for others",
    )
    parser.add_argument("--designs", type=int, default=1, metavar="N", help="molecules that are designed; default 1")
    parser.add_argument("--mask-fraction", type=float, metavar="X", help="share of the molecule that is written anew; default: the run's")
    parser.add_argument(
        "--given", action="append", default=[], metavar="NAME=VALUE", help="any input by the name that its task gives it; again for others"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="most tokens to write after a text; default 64")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default: always the likeliest token")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides the draws at a temperature above 0")
    parser.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32, or faster on a CPU: bf16, int8")
    parser.add_argument(
        "--output",
        help="file to write, or folder for a folder; default: what was given with .filled or .enhanced, the terminal for a text, "
        "spoken.wav for speech, a folder for pictures and sweeps",
    )


def run(arguments: argparse.Namespace) -> int:
    """Fill a column of a table, continue or say a text, mend sounds, describe pictures and sweeps, or read and design molecules."""
    way = _way(arguments)
    usual = argparse.ArgumentParser()
    options(usual)
    for name, ways in BELONGS.items():
        if getattr(arguments, name) != usual.get_default(name) and way not in ways:
            flag, those = name.replace("_", "-"), " or ".join(f"--{each}" for each in ways)
            raise RecipeError(f"mmlm generate: --{flag} goes with {those}, {'which is missing' if way is None else f'not with --{way}'}.")
    if way is None:
        raise RecipeError(f"mmlm generate: give {', '.join(f'--{each}' for each in WAYS)}, or --table with --target and --shots.")
    return WAYS[way](arguments) if way in WAYS else _table(arguments)


def _way(arguments: argparse.Namespace) -> str | None:
    """What is given to the model; None where nothing is. Raises RecipeError for two things at once, and a table without its other flags."""
    ways = [name for name in WAYS if getattr(arguments, name) not in (None, [])]
    of_table = [name for name in TABLE if getattr(arguments, name) is not None]
    if len(both := [*ways, *of_table[:1]]) > 1:
        raise RecipeError(f"mmlm generate: --{both[0]} and --{both[1]} exclude each other.")
    if of_table and (missing := [name for name in TABLE if name not in of_table]):
        raise RecipeError(f"mmlm generate: --table, --target and --shots go together; --{missing[0]} is missing.")
    return "table" if of_table else next(iter(ways), None)


def _given(arguments: argparse.Namespace) -> int:
    """Ask the first task of a run that has inputs of these names; what it answers is printed, and written with an output."""
    from mmlm.serving.files import from_word, write_value
    from mmlm.serving.uses import uses_of
    from mmlm.serving.values import to_json
    from mmlm.tasks.forms import Audio, Image, Pictures

    words: dict[str, str] = {}
    for name, word in map(_pair, arguments.given):
        if name in words:
            raise RecipeError(f"mmlm generate: --given {name}=... stands there twice; an input has one value.")
        words[name] = word
    uses = uses_of(arguments.folder)
    use = next((use for use in uses if set(words) <= set(use.inputs)), None)
    if use is None:
        known = " | ".join(f"{use.name}: {', '.join(use.inputs)}" for use in uses)
        raise RecipeError(
            f"mmlm generate: --given {', '.join(words)}: no task of {arguments.folder} has these inputs. It has {known or 'none'}."
        )
    found: dict[str, Any] = {}
    for answer in use.answer({name: from_word(use.inputs[name], name, word) for name, word in words.items()}):
        found = dict(answer)
    for name, value in found.items():
        if value is None:  # nobody asked for it
            continue
        must = isinstance(use.outputs[name], Audio | Image | Pictures)
        if arguments.output or must:
            print(f"{name}: {write_value(use.outputs[name], value, Path(arguments.output or '.') / name)}")
        else:
            print(f"{name}: {value if isinstance(value, str) else json.dumps(to_json(value), ensure_ascii=False)}")
    return 0


def _pair(item: str) -> tuple[str, str]:
    name, sign, value = item.partition("=")
    if not sign:
        raise RecipeError(f"mmlm generate: --given {item!r} must look like NAME=VALUE.")
    return name, value


def _speech(arguments: argparse.Namespace) -> int:
    from mmlm.data.audio_files import write_sound
    from mmlm.speaking import Speaker

    output = Path(arguments.output or "spoken.wav")
    if output.suffix not in (".wav", ".flac"):  # a folder
        output = output / "spoken.wav"
    speaker = Speaker(arguments.folder)
    (sound,) = speaker.say(arguments.text, voice=arguments.voice, voice_text=arguments.voice_text, pace=arguments.pace, seed=arguments.seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_sound(output, sound)
    print(f"{output}: {sound.seconds:.2f} s of speech")
    return 0


def _text(arguments: argparse.Namespace) -> int:
    from mmlm.speaking import speaks

    is_speech = speaks(arguments.folder)
    idle = WRITING if is_speech else SPEAKING
    if named := [name for name, usual in idle.items() if getattr(arguments, name) != usual]:
        what = "says its text" if is_speech else "writes on and says nothing"
        raise RecipeError(f"mmlm generate: --{named[0].replace('_', '-')} has no effect: {arguments.folder} {what}.")
    return _speech(arguments) if is_speech else _written(arguments)


def _written(arguments: argparse.Namespace) -> int:
    from mmlm.run import load_text_model

    sampling = {"temperature": arguments.temperature}
    (found,) = load_text_model(arguments.folder).generate(
        arguments.text, max_new_tokens=arguments.max_new_tokens, sampling=sampling, seed=arguments.seed, precision=arguments.precision
    )
    text = f"{arguments.text}{found.text}"
    if arguments.output:
        _write_text(arguments.output, text + "\n")
        print(f"{arguments.output}: {len(found.ids)} tokens written")
    else:
        print(text)
    return 0


def _audio(arguments: argparse.Namespace) -> int:
    """Mend sounds, with a bar on a terminal."""
    from mmlm.enhancing import enhance

    bar: Any = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(desc=arguments.audio, unit="s")

    def progress(done: float, total: float) -> None:
        if bar is not None:
            bar.total = round(total, 1)
            bar.update(round(done, 1) - bar.n)

    output = Path(arguments.output) if arguments.output else None
    written, failed = enhance(arguments.folder, Path(arguments.audio), output, progress)
    if bar is not None:
        bar.close()
    for path in written:
        print(f"{path}: written")
    _require_all(arguments.audio, len(written), [each.why for each in failed], "mended")
    return 0


def _image(arguments: argparse.Namespace) -> int:
    """Describe pictures, say what they show, or code and decode them."""
    from mmlm.classifying import names_classes
    from mmlm.describing import describe
    from mmlm.recoding import TASK
    from mmlm.run import is_run_of

    if names_classes(arguments.folder):
        return _classes(arguments)
    if is_run_of(arguments.folder, TASK):
        return _recoded(arguments)
    return _described(describe, arguments, arguments.image)


def _sweep(arguments: argparse.Namespace) -> int:
    """Describe sweeps."""
    from mmlm.describing_sweeps import describe_sweeps

    return _described(describe_sweeps, arguments, arguments.sweep, view=arguments.view, front_degrees=arguments.front)


def _described(do: Callable[..., tuple[list[Any], list[Any]]], arguments: argparse.Namespace, given: str, **more: Any) -> int:
    """Tell of each file as it is done."""

    def listen(one: Any) -> None:
        answers = " | ".join(said.answer.text for said in one.said)
        print(f"{one.path}: {answers}\n  boxes in {one.json}, drawn in {one.picture}", flush=True)

    output = Path(arguments.output) if arguments.output else None
    asked = {name: getattr(arguments, name) for name in ASKING}
    found, failed = do(arguments.folder, Path(given), output, **asked, **more, listen=listen)
    _require_all(given, len(found), [each.why for each in failed], "described")
    return 0


def _classes(arguments: argparse.Namespace) -> int:
    """Name the classes of pictures."""
    from mmlm.classifying import Classified, classify

    _refuse_asking(arguments, "names what a picture shows")

    def listen(one: Classified) -> None:
        print(f"{one.path}: " + ", ".join(f"{name} {chance:.3f}" for name, chance in one.classes), flush=True)

    output = Path(arguments.output) if arguments.output else None
    found, failed = classify(arguments.folder, Path(arguments.image), output, listen)
    _require_all(arguments.image, len(found), failed, "read")
    return 0


def _recoded(arguments: argparse.Namespace) -> int:
    """Code and decode pictures."""
    from mmlm.recoding import recode

    _refuse_asking(arguments, "codes pictures")

    def listen(one: Any) -> None:
        print(f"{one.path}: codes in {one.json}, decoded in {one.picture}", flush=True)

    output = Path(arguments.output) if arguments.output else None
    found, failed = recode(arguments.folder, Path(arguments.image), output, listen)
    _require_all(arguments.image, len(found), [each.why for each in failed], "coded")
    return 0


def _require_all(given: str, done: int, failed: list[str], what: str, things: str = "files") -> None:
    """Raises DataError with the reasons where some things of those given failed."""
    if failed:
        lines = "\n".join(f"  {why}" for why in failed)
        raise DataError(f"{given}: {len(failed)} of {len(failed) + done} {things} could not be {what}:\n{lines}")


def _refuse_asking(arguments: argparse.Namespace, does: str) -> None:
    """Raises RecipeError for a question to a run that answers none."""
    if named := [name for name in ASKING if getattr(arguments, name) is not None]:
        raise RecipeError(f"mmlm generate: --{named[0]} has no effect: {arguments.folder} {does} and answers nothing.")


def _smiles(arguments: argparse.Namespace) -> int:
    from mmlm.data.table_reader import ENDINGS
    from mmlm.designing import Designer

    idle = {"--designs": arguments.designs != 1, "--mask-fraction": arguments.mask_fraction is not None, "--seed": arguments.seed != 0}
    if arguments.wanted is None and (named := [flag for flag, is_given in idle.items() if is_given]):
        raise RecipeError(f"mmlm generate: {named[0]} goes with --wanted, the number that designed molecules are to have.")
    if arguments.designs < 1:
        raise RecipeError(f"mmlm generate: --designs must be at least 1, but is {arguments.designs}.")
    designer = Designer(arguments.folder)
    if Path(arguments.smiles).suffix.lower() in ENDINGS:
        return _smiles_of_table(arguments, designer)
    if arguments.wanted is None:
        (numbers,) = designer.read([arguments.smiles])
        lines: list[dict[str, Any]] = [{designer.called: arguments.smiles, "model": numbers}]
    else:
        wanted, share = dict(map(_wanted, arguments.wanted)), arguments.mask_fraction
        lines = designer.design([arguments.smiles], wanted, mask_fraction=share, count=arguments.designs, seed=arguments.seed)
    for line in lines:
        numbers = {**line["model"], **{f"{name} by RDKit": value for name, value in line.get("rdkit", {}).items()}}
        told = ", ".join(f"{name} {'none' if value is None else format(value, '.4g')}" for name, value in numbers.items())
        is_bad = line.get("is_valid") is False
        print(f"{line[designer.called]}: {told}" + (" (no molecule)" if is_bad else ""))
    if arguments.output:
        _write_text(arguments.output, "".join(json.dumps(line) + "\n" for line in lines))
    return 0


def _smiles_of_table(arguments: argparse.Namespace, designer: Any) -> int:
    """Read the numbers of all molecules of a table, and say at the end which of them are none."""
    given = Path(arguments.smiles)
    if arguments.wanted is not None:
        raise RecipeError("mmlm generate: --wanted goes with one molecule, not with a table.")
    output = Path(arguments.output) if arguments.output else given.with_name(f"{given.stem}.filled.csv")
    count, bad = designer.read_file(given, output)
    print(f"{output}: the numbers of {count} rows")
    _require_all(str(given), count, bad, "read", "rows")
    return 0


def _write_text(output: str, text: str) -> None:
    """Write a file of text, in a folder that is made. Raises RecipeError where it cannot be written."""
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, text)
    except OSError as error:
        raise RecipeError(f"mmlm generate: --output {output}: cannot be written: {error.strerror}.") from None


def _wanted(item: str) -> tuple[str, float]:
    name, _, value = item.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise RecipeError(f"mmlm generate: --wanted {item!r} must look like NAME=NUMBER.") from None


def _table(arguments: argparse.Namespace) -> int:
    from mmlm.predictor import fill_column

    given = Path(arguments.table)
    output = Path(arguments.output) if arguments.output else given.with_name(f"{given.stem}.filled.csv")
    count = fill_column(arguments.folder, given, arguments.target, Path(arguments.shots), output)
    column = f"in column {arguments.target!r}"
    print(f"{output}: {count} rows filled {column}" if count else f"{output}: every row has a value {column} already")
    return 0


WAYS = {"text": _text, "audio": _audio, "image": _image, "sweep": _sweep, "smiles": _smiles, "given": _given}
ASKING = ("expression", "question")
SPEAKING: dict[str, Any] = {"voice": None, "voice_text": "", "pace": 1.0}
WRITING: dict[str, Any] = {"max_new_tokens": 64, "temperature": 0.0, "precision": "auto"}
BELONGS: dict[str, tuple[str, ...]] = {  # options that only some ways of asking read
    **dict.fromkeys((*SPEAKING, *WRITING), ("text",)),
    **dict.fromkeys(ASKING, ("image", "sweep")),
    **dict.fromkeys(("view", "front"), ("sweep",)),
    **dict.fromkeys(("wanted", "designs", "mask_fraction"), ("smiles",)),
    "seed": ("text", "smiles"),
}
