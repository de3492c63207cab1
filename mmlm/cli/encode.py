"""`mmlm encode`: files, texts and rows as vectors, in a matrix or an index."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from mmlm.base.errors import DataError, RecipeError
from mmlm.base.files import write_whole


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("encoder", metavar="ENCODER|RUN", help="name of an encoder, '{type: name, option: value}', or the folder of a run")
    parser.add_argument(
        "items",
        nargs="+",
        metavar="ITEM",
        help="files to encode, or folders of them; molecules as SMILES; for a run of texts also tables and texts",
    )
    parser.add_argument(
        "--output", metavar="VECTORS.npy", help="file to write: one row for each item, in their order, of a folder sorted by path"
    )
    parser.add_argument("--index", metavar="FOLDER", help="instead: an index for `mmlm search`, which is made or added to")
    parser.add_argument("--skip", action="store_true", help="tell items that cannot be read and leave them out of the index")
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="items that are read together; default 8")
    parser.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32, or faster on a CPU: bf16")


def run(arguments: argparse.Namespace) -> int:
    """Write a matrix of vectors or an index; a bar on a terminal, one line at the end."""
    _check(arguments)
    from mmlm.embedding import encoder

    found = encoder(arguments.encoder)
    return _matrix(arguments, found) if arguments.output else _index(arguments, found)


def _check(arguments: argparse.Namespace) -> None:
    if bool(arguments.output) == bool(arguments.index):
        raise RecipeError("mmlm encode: give --output VECTORS.npy or --index FOLDER, one of them.")
    if arguments.output and Path(arguments.output).suffix != ".npy":
        raise RecipeError(f"mmlm encode: --output {arguments.output}: must end in .npy.")
    if arguments.batch_size < 1:
        raise RecipeError(f"mmlm encode: --batch-size must be at least 1, but is {arguments.batch_size}.")
    without = {"--skip": arguments.skip and arguments.output, "--normalize": arguments.normalize and arguments.index}
    if wrong := [flag for flag, given in without.items() if given]:
        raise RecipeError(f"mmlm encode: {wrong[0]} has no effect with {'--output' if arguments.output else '--index'}; leave it out.")


def _matrix(arguments: argparse.Namespace, encoder: Any) -> int:
    import numpy as np

    from mmlm.items import named_items

    items = [item for _, item in named_items(encoder, arguments.items)]
    with _bar(len(items)) as bar:
        vectors = encoder.encode(
            items,
            batch_size=arguments.batch_size,
            normalize=arguments.normalize,
            precision=arguments.precision,
            progress=lambda done, _: bar.update(done - bar.n),
        )
    output = Path(arguments.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    with io.BytesIO() as head:
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(vectors))
        write_whole(output, chain([head.getvalue()], (vector.tobytes() for vector in vectors)))
    print(f"{output}: {vectors.shape[0]} vectors of {vectors.shape[1]} numbers")
    return 0


def _index(arguments: argparse.Namespace, encoder: Any) -> int:
    from mmlm.embedding import check_again
    from mmlm.encoders.vectors import BadItem
    from mmlm.items import named_items
    from mmlm.retrieval.index import ABOUT, Index

    folder, name = Path(arguments.index), arguments.encoder
    if (folder / ABOUT).is_file():
        index = Index.load(folder)
    else:
        check_again(name, encoder)
        index = Index.of(encoder, name=str(Path(name).resolve()) if Path(name).is_dir() else name)
    told: list[str] = []

    def counted(items: Iterable[Any], bar: Any) -> Iterator[Any]:
        for item in items:
            yield item
            bar.update(1)

    def skip(_: int, error: Exception) -> None:
        told.append(str(error))

    with _bar(None) as bar:
        try:
            added = index.add_stream(
                counted(named_items(encoder, arguments.items), bar),
                encoder,
                batch_size=arguments.batch_size,
                precision=arguments.precision,
                skip=skip if arguments.skip else None,
            )
        except BadItem as error:
            raise DataError(f"{error} Nothing was added to {folder}; with --skip such items are told and left out.") from None
    for line in told:
        print(line, file=sys.stderr)
    index.save(folder)
    print(f"{folder}: {added} items added, {len(index)} in all" + (f"; {len(told)} could not be read" if told else ""))
    return 0


def _bar(total: int | None) -> Any:
    """Items that are done, on a terminal."""
    from tqdm import tqdm

    return tqdm(total=total, unit="item", disable=not sys.stderr.isatty())
