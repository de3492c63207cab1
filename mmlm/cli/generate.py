"""`mmlm generate`: use a model on new data."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmlm.base.errors import RecipeError

TABLE = ("table", "target", "shots")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("folder", metavar="RUN", help="the folder of a finished run; for --text also a decoder of transformers")
    parser.add_argument("--table", help="table to fill: CSV, TSV, Parquet, Excel, JSON lines or a data set's folder")
    parser.add_argument("--target", help="the column to fill; rows that have a value keep it")
    parser.add_argument("--shots", help="table with example rows, the target among its columns")
    parser.add_argument("--text", help="a text to continue, or with a run that speaks to say")
    parser.add_argument("--voice", metavar="FILE", help="recording of some seconds in whose voice a text is said")
    parser.add_argument("--voice-text", default="", metavar="TEXT", help="what is said in it")
    parser.add_argument("--pace", type=float, default=1.0, metavar="X", help="how fast a text is said; 2 is twice as fast; default 1")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="most tokens to write after a text; default 64")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default: always the likeliest token")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="decides the draws at a temperature above 0")
    parser.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32, or faster on a CPU: bf16, int8")
    parser.add_argument(
        "--output", help="file to write; default: TABLE with .filled before its ending, the terminal for a text, spoken.wav for speech"
    )


def run(arguments: argparse.Namespace) -> int:
    """Fill a column of a table, or continue a text."""
    given = {name: getattr(arguments, name) for name in TABLE}
    if arguments.text is not None:
        if named := [name for name, value in given.items() if value is not None]:
            raise RecipeError(f"mmlm generate: --text and --{named[0]} exclude each other.")
        from mmlm.speaking import speaks

        return _speech(arguments) if speaks(arguments.folder) else _text(arguments)
    if missing := [name for name, value in given.items() if value is None]:
        raise RecipeError(f"mmlm generate: give --text, or --table, --target and --shots; --{missing[0]} is missing.")
    return _table(arguments)


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
    from mmlm.interop.load import load

    sampling = {"temperature": arguments.temperature}
    (found,) = load(arguments.folder).generate(
        arguments.text, max_new_tokens=arguments.max_new_tokens, sampling=sampling, seed=arguments.seed, precision=arguments.precision
    )
    text = f"{arguments.text}{found.text}"
    if arguments.output:
        Path(arguments.output).write_text(text + "\n", encoding="utf-8")
        print(f"{arguments.output}: {len(found.ids)} tokens written")
    else:
        print(text)
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from mmlm.predictor import fill_column

    given = Path(arguments.table)
    output = Path(arguments.output) if arguments.output else given.with_name(f"{given.stem}.filled.csv")
    count = fill_column(arguments.folder, given, arguments.target, Path(arguments.shots), output)
    column = f"in column {arguments.target!r}"
    print(f"{output}: {count} rows filled {column}" if count else f"{output}: every row has a value {column} already")
    return 0
