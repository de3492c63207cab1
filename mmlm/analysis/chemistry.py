"""How good designed molecules are, and plain predictors of numbers of molecules and proteins.

Source of the measures of designs: MOSES, arXiv:1811.12823; steering by evenly spaced wanted values, arXiv:2202.01338.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Protocol

import numpy as np

from mmlm.analysis.numbers import spearman
from mmlm.base.errors import require
from mmlm.chemistry import DESCRIPTORS, canonical, computed, diversity, fingerprints, is_valid
from mmlm.data.molecules import Compound
from mmlm.tokenizers.proteins import LETTERS

MOST_COMPARED = 1000  # designs whose likeness to one another is taken
FITTED_COMPOUNDS = 50_000  # training compounds that plain predictors are fitted on, evenly from all: 0.4 GB of fingerprints
FOREST_COMPOUNDS = 5000  # of these those of the random forest, the first ones
MEAN, RIDGE, FOREST = "the mean of the training compounds", "ridge", "random forest"


class Designed(Protocol):
    """A sequence that was written from a seed to a wanted value."""

    @property
    def seed(self) -> str:
        """What it was written from."""

    @property
    def wanted(self) -> float:
        """The value that was asked for."""

    @property
    def text(self) -> str:
        """What was written."""


def _atoms(text: str) -> str:
    """The letters of a SMILES but for hydrogen, sorted: the same for all spellings of a molecule."""
    return "".join(sorted(re.sub("[^a-z]|h", "", text.lower())))


def among(texts: Collection[str], known: Iterable[str], *, is_molecule: bool) -> set[str]:
    """Those of different sequences that are known, of molecules in whatever spelling."""
    if not is_molecule:
        return set(texts) & set(known)
    atoms = {_atoms(text) for text in texts}  # a training set of millions is not read by RDKit for some hundred molecules
    before = {canonical(text) for text in known if _atoms(text) in atoms}
    return {text for text in texts if canonical(text) in before}


def designed_scores(designs: Sequence[Designed], known: AbstractSet[str], name: str, *, is_molecule: bool) -> dict[str, float]:
    """validity: share that RDKit reads.   uniqueness: different ones among these.   novelty: share of the different ones not in `known`.
    diversity: see `mmlm.chemistry.diversity`.   changed: share that is not the seed. Other spellings of a molecule are the same one.
    Where RDKit knows the property: wanted_error, mean |wanted - RDKit|; steering: rank correlation of wanted and RDKit's value over the
    designs of each seed, its mean over seeds; steering_all: over all designs; steering_shuffled: as steering, wanted values shuffled.
    Of proteins all are valid; uniqueness, novelty and changed alone are told."""
    valid = [one for one in designs if not is_molecule or is_valid(one.text)]
    found = {"validity": len(valid) / len(designs)} if is_molecule else {}
    if not valid:
        return found
    spelled: Callable[[str], str] = canonical if is_molecule else str
    texts = [spelled(one.text) for one in valid]
    different = sorted(set(texts))
    found["uniqueness"] = len(different) / len(valid)
    found["novelty"] = 1 - len(among(different, known, is_molecule=is_molecule)) / len(different)
    seeds = {seed: spelled(seed) for seed in {one.seed for one in valid}}
    found["changed"] = float(np.mean([text != seeds[one.seed] for text, one in zip(texts, valid, strict=True)]))
    if not is_molecule:
        return found
    found["diversity"] = diversity(different[:MOST_COMPARED])
    if name in DESCRIPTORS:
        values = np.array([computed(one.text, [name])[name] for one in valid])
        wanted = np.array([one.wanted for one in valid])
        found["wanted_error"] = float(np.abs(values - wanted).mean())
        found |= steering(wanted, values, [one.seed for one in valid])
    return found


def steering(wanted_n: np.ndarray, values_n: np.ndarray, seeds: Sequence[str]) -> dict[str, float]:
    """Rank correlations of wanted and reached values, see `designed_scores`; of a seed only with three designs or more."""
    rng = np.random.default_rng(0)
    by_seed: dict[str, list[int]] = {}
    for place, seed in enumerate(seeds):
        by_seed.setdefault(seed, []).append(place)
    groups = [np.array(places) for places in by_seed.values() if len(places) > 2]
    if not groups:
        return {"steering_all": spearman(wanted_n, values_n)}
    return {
        "steering": float(np.mean([spearman(wanted_n[at], values_n[at]) for at in groups])),
        "steering_all": spearman(wanted_n, values_n),
        "steering_shuffled": float(np.mean([spearman(rng.permutation(wanted_n[at]), values_n[at]) for at in groups])),
    }


def reached(designs: Sequence[Designed], name: str) -> list[tuple[float, float]]:
    """(wanted value, mean of what RDKit says of the valid designs to it); none where RDKit does not know the property."""
    if name not in DESCRIPTORS:
        return []
    by_wanted: dict[float, list[float]] = {}
    for one in designs:
        if is_valid(one.text):
            by_wanted.setdefault(one.wanted, []).append(computed(one.text, [name])[name])
    return [(wanted, float(np.mean(values))) for wanted, values in sorted(by_wanted.items())]


def fitted_on(train: Sequence[Compound]) -> Sequence[Compound]:
    """All of them, or of more than `FITTED_COMPOUNDS` so many, evenly spaced."""
    count = FITTED_COMPOUNDS
    return train if len(train) <= count else [train[at * len(train) // count] for at in range(count)]


def compound_baselines(train: Sequence[Compound], asked: Sequence[Compound], name: str) -> Mapping[str, list[float]]:
    """What plain predictors, fitted on `train` (see `fitted_on`), say of a number of `asked`: its mean, ridge regression (penalty by
    cross-validation) and a random forest, both on Morgan fingerprints, of proteins on residues."""
    linear, ensemble = require("sklearn.linear_model", "molecules"), require("sklearn.ensemble", "molecules")
    train = fitted_on(train)
    truth_n = np.array([each.properties[name] for each in train])
    found = {MEAN: [float(truth_n.mean())] * len(asked)}
    both_nf = plain_features([*train, *asked], like=train)
    left_nf, right_nf = both_nf[: len(train)], both_nf[len(train) :]
    found[RIDGE] = linear.RidgeCV(alphas=10.0 ** np.arange(-1, 4)).fit(left_nf, truth_n).predict(right_nf).tolist()
    forest = ensemble.RandomForestRegressor(100, max_features=0.3, random_state=0, n_jobs=1)
    found[FOREST] = forest.fit(left_nf[:FOREST_COMPOUNDS], truth_n[:FOREST_COMPOUNDS]).predict(right_nf).tolist()
    return found


def plain_features(compounds: Sequence[Compound], like: Sequence[Compound]) -> np.ndarray:
    """float32 [compounds, f]: fingerprints; of proteins that are all of one length the residue at each place that differs among `like`,
    which are some of them, else counts of residues."""
    if compounds[0].kind == "molecule":
        return fingerprints([each.text for each in compounds])
    if len({len(each.text) for each in compounds}) > 1:
        return np.array([[each.text.count(letter) for letter in LETTERS] for each in compounds], dtype=np.float32)
    return _hot(compounds, _differing(like))


def _differing(compounds: Sequence[Compound]) -> list[tuple[int, str]]:
    """(place, letter) of all residues that some of the sequences have and some have not."""
    letters = np.array([list(each.text) for each in compounds])
    return [(place, str(letter)) for place in range(letters.shape[1]) for letter in np.unique(letters[:, place])[:-1]]


def _hot(compounds: Sequence[Compound], asked: Sequence[tuple[int, str]]) -> np.ndarray:
    rows: list[Any] = [[each.text[place] == letter for place, letter in asked] for each in compounds]
    return np.array(rows, dtype=np.float32).reshape(len(compounds), len(asked))
