"""k-means in blocks: no more than a block of distances is ever held.

Sources: Lloyd 1982; first centroids by Arthur & Vassilvitskii 2007, "k-means++".

Axes: n vectors   k centroids   f channels
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmlm.base.errors import DataError

BLOCK = 8192
FIRST_FROM = 20_000  # vectors that the first centroids are chosen among


def nearest(vectors_nf: Tensor, centroids_kf: Tensor) -> tuple[Tensor, Tensor]:
    """Index [n] of the nearest centroid and the squared distance [n] to it; the first one of several that are as near."""
    lengths_k = centroids_kf.square().sum(1)
    found, distances = [], []
    for block in vectors_nf.split(BLOCK):
        near, at = torch.addmm(lengths_k, block, centroids_kf.T, alpha=-2).min(1)
        found.append(at)
        distances.append((near + block.square().sum(1)).clamp(min=0))
    return torch.cat(found), torch.cat(distances)


def fit_centroids(vectors_nf: Tensor, num_centroids: int, *, iterations: int, generator: torch.Generator) -> Tensor:
    """Centroids [k, f] of vectors, the same for the same generator. A centroid that nothing is near to goes to the farthest vector.

    Raises DataError where there are fewer different vectors than centroids.
    """
    centroids_kf = _first(vectors_nf, num_centroids, generator)
    before = None
    for _ in range(iterations):
        at_n, distance_n = nearest(vectors_nf, centroids_kf)
        if before is not None and torch.equal(at_n, before):
            break
        before = at_n
        count_k = torch.bincount(at_n, minlength=num_centroids)
        sums_kf = torch.zeros_like(centroids_kf).index_add_(0, at_n, vectors_nf)
        empty = (count_k == 0).nonzero()[:, 0]
        centroids_kf = sums_kf / count_k.clamp(min=1)[:, None]
        centroids_kf[empty] = vectors_nf[distance_n.topk(len(empty)).indices]
    return centroids_kf


def _first(vectors_nf: Tensor, num_centroids: int, generator: torch.Generator) -> Tensor:
    """Vectors drawn one after the other, each with a chance that grows with its squared distance to those drawn before."""
    order = torch.randperm(len(vectors_nf), generator=generator)[: max(FIRST_FROM, 4 * num_centroids)]
    among_nf = vectors_nf[order]
    chosen = [among_nf[0]]
    distance_n = (among_nf - chosen[0]).square().sum(1)
    for _ in range(num_centroids - 1):
        if not bool(distance_n.max() > 0):
            raise DataError(f"{num_centroids} units need as many different frames, but there are {len(chosen)}.")
        chosen.append(among_nf[int(torch.multinomial(distance_n, 1, generator=generator))])
        distance_n = torch.minimum(distance_n, (among_nf - chosen[-1]).square().sum(1))
    return torch.stack(chosen)
