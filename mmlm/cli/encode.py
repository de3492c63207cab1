"""`mmlm encode`: files as vectors."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mmlm.base.errors import RecipeError


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("encoder", metavar="ENCODER|RUN", help="name of an encoder, '{type: name, option: value}', or the folder of a run")
    parser.add_argument("files", nargs="+", metavar="FILE", help="files to encode")
    parser.add_argument("--output", required=True, metavar="VECTORS.npy", help="file to write: one row for each file, in their order")
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="files that are read together; default 8")
    parser.add_argument("--precision", default="auto", metavar="NAME", help="auto, fp32, or faster on a CPU: bf16")


def run(arguments: argparse.Namespace) -> int:
    """Write a matrix of vectors; a bar on a terminal, one line at the end."""
    output = Path(arguments.output)
    if output.suffix != ".npy":
        raise RecipeError(f"mmlm encode: --output {output}: must end in .npy.")
    import numpy as np

    from mmlm.embedding import encoder

    bar: Any = None
    if sys.stderr.isatty():
        from tqdm import tqdm

        bar = tqdm(total=len(arguments.files), unit="file")
    vectors = encoder(arguments.encoder).encode(
        arguments.files,
        batch_size=arguments.batch_size,
        normalize=arguments.normalize,
        precision=arguments.precision,
        progress=None if bar is None else lambda done, _: bar.update(done - bar.n),
    )
    if bar is not None:
        bar.close()
    output.parent.mkdir(parents=True, exist_ok=True)
    np.save(output, vectors)
    print(f"{output}: {vectors.shape[0]} vectors of {vectors.shape[1]} numbers")
    return 0
