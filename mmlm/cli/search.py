"""`mmlm search`: what lies nearest to a file or a text, in an index of `mmlm encode`."""

from __future__ import annotations

import argparse

from mmlm.base.errors import RecipeError


def options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("index", metavar="INDEX", help="the folder that `mmlm encode --index` wrote")
    parser.add_argument("queries", nargs="+", metavar="QUERY", help="a file as the encoder reads it, or a text where it reads texts")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="items that are shown of each query; default 5")
    parser.add_argument("--encoder", metavar="ENCODER|RUN", help="where the encoder lies now; default: as the index was told")


def run(arguments: argparse.Namespace) -> int:
    """Print score and name of what was found, the best first; with several queries each below its name."""
    from mmlm.embedding import encoder
    from mmlm.items import query_vectors
    from mmlm.retrieval.index import Index

    index = Index.load(arguments.index)
    name = arguments.encoder or index.encoder
    if not name:
        raise RecipeError(f"{arguments.index}: does not say which encoder made it; name it by --encoder.")
    made_by = encoder(name)
    index.check(made_by, name)
    asked = [query_vectors(made_by, word) for word in arguments.queries]
    is_titled = sum(len(names) for names, _ in asked) > 1
    for names, vectors_qd in asked:
        for query, found in zip(names, index.search(vectors_qd, arguments.top), strict=True):
            if is_titled:
                print(query)
            for one in found:
                print(f"{one.score:.4f}\t{one.name}")
    return 0
