"""Numbers of molecules and proteins, and molecules and proteins with wanted numbers, by one model of one objective.

    property digits | ... | symbols of the sequence

Predicting hides all digits of the numbers and finds them in order; designing hides spans of a known sequence, tells the wanted numbers and
fills the spans. A number is never a head of its own: it is written and read like the rest. What a designed molecule is like is said by
RDKit, never by the model.

Source: Regression Transformer, arXiv:2202.01338.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmlm.analysis.chemistry import among, compound_baselines, designed_scores, fitted_on, reached
from mmlm.analysis.numbers import number_scores
from mmlm.base.errors import DataError, RecipeError
from mmlm.base.files import write_text_whole
from mmlm.chemistry import DESCRIPTORS, computed, is_valid, parsed, respelled, svg
from mmlm.data.dealing import place_of
from mmlm.data.molecules import Compound
from mmlm.filling import fill
from mmlm.generation import Sampling
from mmlm.model import MultimodalLM
from mmlm.model_config import ChannelConfig
from mmlm.objectives.permutation import spans
from mmlm.stream import Segment, Stream, pack, positions, unpack
from mmlm.tasks.base import UsualTask, tokenizer_of
from mmlm.tasks.config import RegressionTransformerConfig
from mmlm.tasks.forms import Choice, Data, Field, Molecule, Number, Text, Values
from mmlm.tokenizers.molecules import MoleculeTokenizer, Unwritable
from mmlm.tokenizers.numbers import NUMBER, NumberTokenizer
from mmlm.tokenizers.proteins import ProteinTokenizer

logger = logging.getLogger(__name__)

PROPERTY = "property"
PICTURED = 3  # seeds whose designs are drawn in a report
SEEDS = 1 << 64  # a seed may be any whole number
AT_ONCE = 128  # sequences that are filled together
CHANGED = 0.05  # of their spread: numbers that rounding changes by more are told
UNREAD = {"rmse": math.inf, "r2": -math.inf, "spearman": -math.inf}  # where no number could be read


@dataclass(frozen=True)
class Design:
    """A sequence that was written from a seed. wanted: of the first property."""

    seed: str
    wanted: float
    text: str


@dataclass(frozen=True)
class Found:
    """Of a compound: numbers by name, None where what was written is none; and what was designed from it."""

    numbers: Mapping[str, float | None]
    designs: Sequence[Design] = ()


def is_seed(text: str, share: float) -> bool:
    """Whether a compound is one of the share of seeds: decided by it alone, and not as compounds are held out."""
    return place_of(f"seed {text}") < share


class RegressionTransformerTask(UsualTask):
    """Streams of numbers and sequences, and what a model reads and writes of them."""

    features: Mapping[str, int] = {}
    asks = None
    over = "the wanted value"

    def __init__(self, config: RegressionTransformerConfig, tokenizers: Mapping[str, Any]) -> None:
        self.config, self.tokenizers = config, tokenizers
        kinds = (MoleculeTokenizer, ProteinTokenizer)
        self.sequence: MoleculeTokenizer | ProteinTokenizer = tokenizer_of(
            tokenizers, config.sequence, "task.sequence", kinds, "molecules or proteins"
        )
        self.numbers: NumberTokenizer = tokenizer_of(tokenizers, config.numbers, "task.numbers", NumberTokenizer, "numbers")
        self.kind = "protein" if isinstance(self.sequence, ProteinTokenizer) else "molecule"
        self.training: list[Compound] = []
        self.left_out = set[str]()  # what of it was told to be left out
        self.is_tested, self.is_looked_at = False, False

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Names of the properties and what ends them, digits, symbols."""
        return {PROPERTY: len(self.config.properties) + 1, **self.numbers.sizes, **self.sequence.sizes, "mask": 1}

    @property
    def channels(self) -> Mapping[str, ChannelConfig]:
        """The fixed encoding of digits."""
        return {NUMBER: ChannelConfig(kind="number", size=1)}

    @property
    def metrics(self) -> Sequence[str]:
        """Those of each property."""
        return [self._named(metric, name) for name in self.config.properties for metric in ("rmse", "r2", "spearman", "unparsable")]

    def _named(self, metric: str, name: str) -> str:
        return metric if len(self.config.properties) == 1 else f"{metric}_{name}"

    def begin_tests(self) -> None:
        """From now on sequences are designed too."""
        self.is_tested = True

    def take_training(self, records: Sequence[Compound]) -> None:
        """What the model was trained on, for baselines and to tell what is new."""
        self.training = list(records)

    def read_ahead(self, records: Sequence[Compound], progress: Callable[[int, int], None] | None = None) -> None:
        """Look at the numbers that come with the first records, before anything is trained: raises DataError for one that does not fit, and
        tells in the log which are changed much by rounding."""
        if self.is_looked_at:
            return
        self.is_looked_at = True
        for name in self.config.properties:
            given = [each for each in records if isinstance(each.properties, dict) and name in each.properties]
            if given:
                self._look_at(name, given)

    def _look_at(self, name: str, given: Sequence[Compound]) -> None:
        values_n = np.array([each.properties[name] for each in given])
        at, decimals = int(np.abs(values_n).argmax()), self.numbers.config.decimals
        try:
            self.numbers.ids(float(values_n[at]))
        except DataError as error:
            raise DataError(f"{given[at].where}: {name}: {error} Set tokenizers.{self.config.numbers}.whole_digits.") from None
        change, spread = float(np.sqrt(((values_n.round(decimals) - values_n) ** 2).mean())), float(values_n.std())
        if change > CHANGED * spread:
            logger.warning(
                "%s: rounding to %d decimals changes it by %.2g, where it spreads by %.2g; tokenizers.%s.decimals can keep more.",
                name, decimals, change, spread, self.config.numbers,
            )  # fmt: skip

    # streams

    def stream(self, text: str, numbers: Mapping[str, float], name: str = "", where: str = "") -> Stream:
        """A sequence with the numbers of it that are known. Raises DataError naming where."""
        segments = list[Segment]()
        try:
            for place, each in enumerate(self.config.properties):
                if each in numbers:
                    segments.append(Segment(PROPERTY, torch.tensor([place])))
                    digits = self.numbers.encode(numbers[each])
                    digits.weight = 1.0
                    segments += [digits, Segment(PROPERTY, torch.tensor([len(self.config.properties)]))]
            symbols = self.sequence.encode(text)
        except DataError as error:
            raise type(error)(f"{where}: {error}" if where else str(error)) from None
        symbols.weight = 1.0
        return Stream([*segments, symbols], name=name, source=where)

    def example(self, record: Compound, rng: np.random.Generator) -> Stream | None:
        """A compound with its numbers, some molecules spelled in another way; None, which the log tells, without a number, where it is too
        long and where the tokenizer cannot write it."""
        self._check(record)
        text = record.text
        if self.kind == "molecule" and self.config.respell and rng.random() < self.config.respell:
            text = respelled(text, rng)
        numbers = {name: record.properties[name] for name in self.config.properties if name in record.properties}
        if not numbers:
            lacks = f"has none of {', '.join(self.config.properties)}; {_has(record)}"
            self._left_out("", f"{record.where}: {lacks}. Others may be alike.")
            return None
        try:
            found = self.stream(text, numbers, record.id, record.where)
        except Unwritable as error:
            self._left_out(record.where, str(error))
            return None
        if (size := len(found.segments[-1])) > self.config.max_tokens:
            told = f"{record.where}: has {size} tokens; task.max_tokens is {self.config.max_tokens}. Others may be alike."
            self._left_out("too long", told)
            return None
        return found

    def _left_out(self, what: str, told: str) -> None:
        """Say once of each thing that nothing is trained on it, and why."""
        if what not in self.left_out:
            self.left_out.add(what)
            logger.warning("left out while training: %s", told)

    def _check(self, record: Compound) -> None:
        if record.kind != self.kind:
            raise DataError(f"{record.where}: is a {record.kind}, but the tokenizer {self.config.sequence!r} reads {self.kind}s.")

    def _can_write(self, text: str) -> bool:
        try:
            self.sequence.encode(text)
        except Unwritable:
            return False
        return True

    def texts(self, record: Compound, rng: np.random.Generator) -> list[str]:
        """Its sequence, as it is spelled."""
        return [record.text]

    def title(self, record: Compound) -> str:
        """Its sequence."""
        return record.text if len(record.text) <= 100 else f"{record.text[:97]}..."

    def shown(self, record: Compound) -> str:
        """Sequence, numbers and their tokens."""
        lines = [self.title(record)]
        for name in self.config.properties:
            if name in record.properties:
                tokens = " ".join(self.numbers.symbol(index) for index in self.numbers.ids(record.properties[name]))
                lines.append(f"{name} {record.properties[name]:g}: {tokens}")
        return "\n".join(lines)

    # what a model makes of them

    def _channels(self, modality: str, ids: Tensor) -> dict[str, Tensor]:
        return {NUMBER: self.numbers.values(ids)} if modality == NUMBER else {}

    def read_numbers(self, model: MultimodalLM, texts: Sequence[str], names: Sequence[str] | None = None) -> list[dict[str, float | None]]:
        """The numbers of sequences, by name; None where what was written is no number. names: default all properties."""
        names = list(self.config.properties) if names is None else list(names)
        found: list[dict[str, float | None]] = []
        for start in range(0, len(texts), AT_ONCE):
            streams = [self.stream(text, dict.fromkeys(names, 0.0)) for text in texts[start : start + AT_ONCE]]
            hide = [[torch.full((len(each),), each.modality == NUMBER) for each in stream.segments] for stream in streams]
            for stream, ids in zip(streams, fill(model, streams, hide, Sampling(), self._channels), strict=True):
                said = [self.numbers.decode(some) for each, some in zip(stream.segments, ids, strict=True) if each.modality == NUMBER]
                found.append(dict(zip((name for name in self.config.properties if name in names), said, strict=True)))
        return found

    def read_design(self, model: MultimodalLM, text: str) -> dict[str, float | None]:
        """The numbers of what was designed. None in place of each where the tokenizer cannot write it: SELFIES of a molecule are not always
        the symbols that it was made of."""
        return self.read_numbers(model, [text])[0] if self._can_write(text) else dict.fromkeys(self.config.properties)

    def states(self, model: MultimodalLM, texts: Sequence[str]) -> Tensor:
        """float32 [n, d]: the mean over each sequence of the model's last states, as it reads it before it writes the numbers."""
        names = dict.fromkeys(self.config.properties, 0.0)
        streams = [self.stream(text, names) for text in texts]
        shown = [[each for each in stream.segments if each.modality != NUMBER] for stream in streams]
        for stream, segments in zip(streams, shown, strict=True):
            places = [position for each, position in zip(stream.segments, positions(stream), strict=True) if each.modality != NUMBER]
            for segment, position in zip(segments, places, strict=True):
                segment.position, segment.mutual, segment.weight = position, 1, 0.0
        batch = pack([Stream(segments) for segments in shown], model.vocabulary, shift=False).to(model.device)
        h_btd, _ = model.hidden(batch)
        parts = [h_td[-len(segments[-1]) :].float().mean(0) for h_td, segments in zip(unpack(h_btd, batch.layout), shown, strict=True)]
        return torch.stack(parts).cpu()

    def design(
        self, model: MultimodalLM, seeds: Sequence[str], wanted: Sequence[Mapping[str, float]], *, mask_fraction: float | None = None,
        seed: int = 0,
    ) -> list[str]:  # fmt: skip
        """Sequences like `seeds`, parts of which are written anew to the wanted numbers, by name. mask_fraction: default the
        task's. What is hidden of a seed depends on it and `seed` alone. Raises RecipeError for unknown properties."""
        share = self.config.mask_fraction if mask_fraction is None else mask_fraction
        if not 0 < share <= 1:
            raise RecipeError(f"mask_fraction must be above 0 and at most 1, but is {share:g}.")
        sampling = Sampling(temperature=self.config.temperature)
        if strange := [name for each in wanted for name in each if name not in self.config.properties]:
            raise RecipeError(f"this run knows the properties {', '.join(self.config.properties)}, not {strange[0]!r}.")
        found: list[str] = []
        for start in range(0, len(seeds), AT_ONCE):
            streams = [self.stream(text, numbers) for text, numbers in zip(seeds[start : start + AT_ONCE], wanted[start : start + AT_ONCE])]
            hide = []
            for text, stream in zip(seeds[start : start + AT_ONCE], streams, strict=True):
                rng = np.random.default_rng([seed % SEEDS, int(place_of(text) * 2**53)])
                may = np.ones(len(stream.segments[-1]), dtype=bool)
                hidden = torch.from_numpy(spans(may, share, self.config.max_span, rng))
                hide.append([*(torch.zeros(len(each), dtype=torch.bool) for each in stream.segments[:-1]), hidden])
            filled = fill(model, streams, hide, sampling, self._channels, seed=seed + start)
            found += [self.sequence.decode(ids[-1]) for ids in filled]
        return found

    @property
    def inputs(self) -> Mapping[str, Field]:
        """A sequence whose numbers are read, or from which another is designed where a number is wanted."""
        names = list(self.config.properties)
        what = "SMILES" if self.kind == "molecule" else "Protein"
        return {
            "sequence": (Molecule if self.kind == "molecule" else Text)(what, "whose numbers are read"),
            "name": Choice("Wanted property", "of a design", True, names[0], names),
            "wanted": Text("Wanted number", "empty: the numbers are read and nothing is designed", True, ""),
            "seed": Number("Seed", "another number, another design", True, 0, 0, 1_000_000, 1),
        }

    @property
    def outputs(self) -> Mapping[str, Field]:
        """The sequence, or the one that was designed, and its numbers."""
        kind = Molecule if self.kind == "molecule" else Text
        return {"sequence": kind("Sequence"), "numbers": Data("Its numbers, as the model reads them")}

    def given_by(self, record: Compound) -> Values:
        """The sequence."""
        return {"sequence": record.text}

    def answer(self, model: MultimodalLM, given: Values) -> Iterator[Values]:
        """The numbers of the sequence, or of one that is designed from it. Raises DataError for what is no sequence and no number."""
        text: str = given["sequence"].strip()
        self.sequence.ids(text)
        if self.kind == "molecule":
            parsed(text)
        if given["wanted"]:
            try:
                wanted = {given["name"]: float(given["wanted"])}
            except ValueError:
                raise DataError(f"wanted: must be a number, but is {given['wanted'][:40]!r}.") from None
            (text,) = self.design(model, [text], [wanted], seed=int(given["seed"]))
            if self.kind == "molecule" and not is_valid(text):
                yield {"sequence": text, "numbers": {"no molecule": "what was written is none; try another seed"}}
                return
        yield {"sequence": text, "numbers": self.read_design(model, text)}

    def predict(self, model: MultimodalLM, records: Sequence[Compound]) -> list[Found]:
        """The numbers of each compound, none of one that the tokenizer cannot write; of test records some are also seeds of designs to
        evenly spaced values of the first property."""
        for record in records:
            self._check(record)
        can = [self._can_write(record.text) for record in records]
        known = [
            [name for name in self.config.properties if may and name in each.properties] for may, each in zip(can, records, strict=True)
        ]
        numbers: list[dict[str, float | None]] = [{} for _ in records]
        for names in {tuple(each) for each in known if each}:
            mine = [place for place, each in enumerate(known) if tuple(each) == names]
            for place, said in zip(mine, self.read_numbers(model, [records[place].text for place in mine], names), strict=True):
                numbers[place] = said
        designs: list[list[Design]] = [[] for _ in records]
        if self.is_tested and self.config.seed_share:
            mine = [place for place, record in enumerate(records) if is_seed(record.text, self.config.seed_share) and known[place]]
            name, values = self.config.properties[0], self.primers()
            pairs = [(place, value) for place in mine for value in values]
            texts = self.design(model, [records[place].text for place, _ in pairs], [{name: value} for _, value in pairs])
            for (place, value), text in zip(pairs, texts, strict=True):
                designs[place].append(Design(records[place].text, value, text))
        return [Found(said, some) for said, some in zip(numbers, designs, strict=True)]

    def primers(self) -> list[float]:
        """Evenly spaced values of the first property, over the middle 98 % of the training compounds. Raises DataError without any."""
        name = self.config.properties[0]
        known = [each for each in self.training if name in each.properties]
        if not known:
            raise DataError(f"no training compound has the property {name!r}.")
        low, high = np.quantile([each.properties[name] for each in fitted_on(known)], [0.01, 0.99])
        return [round(float(value), self.numbers.config.decimals) for value in np.linspace(low, high, self.config.primers)]

    # how good that is

    def score(self, outputs: Sequence[Found], records: Sequence[Compound]) -> dict[str, float]:
        """rmse, r2, spearman: of the numbers that could be read, endlessly bad without any.   unparsable: share that could not.
        trained_on: of test records, the share of different ones that training holds, where it holds any. Of designs, by RDKit: see
        `designed_scores`. In tests nothing is told of a number that no record has."""
        found: dict[str, float] = {}
        for name in self.config.properties:
            pairs = [(out.numbers.get(name), each.properties[name]) for out, each in zip(outputs, records) if name in each.properties]
            if not pairs and self.is_tested:
                continue
            read = [(said, true) for said, true in pairs if said is not None]
            scores = number_scores([said for said, _ in read], [true for _, true in read]) if read else {}
            scores["unparsable"] = 1 - len(read) / len(pairs) if pairs else 0.0
            found |= {self._named(metric, name): value for metric, value in {**UNREAD, **scores}.items()}
        known = {each.text for each in self.training}
        texts = {each.text for each in records}
        if seen := among(texts, known, is_molecule=self.kind == "molecule"):
            logger.warning("%d of %d measured %ss are trained on, such as %s", len(seen), len(texts), self.kind, min(seen))
            found["trained_on"] = len(seen) / len(texts)
        if designs := [one for out in outputs for one in out.designs]:
            found |= designed_scores(designs, known, self.config.properties[0], is_molecule=self.kind == "molecule")
        return found

    def baselines(self, records: Sequence[Compound]) -> dict[str, dict[str, float]]:
        """Predictors that see the same training compounds."""
        found: dict[str, dict[str, float]] = {}
        for name in self.config.properties:
            mine = [each for each in records if name in each.properties]
            train = [each for each in self.training if name in each.properties]
            if not mine or not train:
                continue
            for who, said in compound_baselines(train, mine, name).items():
                scores = number_scores(said, [each.properties[name] for each in mine])
                found.setdefault(who, {}).update({self._named(metric, name): value for metric, value in scores.items()})
        return found

    def curves(self, outputs: Sequence[Found], records: Sequence[Compound]) -> dict[str, list[tuple[float, float]]]:
        """What designed molecules have, by RDKit, over what was wanted."""
        designs = [one for out in outputs for one in out.designs]
        points = reached(designs, self.config.properties[0]) if designs and self.kind == "molecule" else []
        return {f"{self.config.properties[0]} by RDKit": points} if points else {}

    def pictures(self, outputs: Sequence[Found], records: Sequence[Compound]) -> list[str]:
        """The first seeds of molecules, each with its designs in the order of the wanted values; of invalid ones there is no drawing."""
        if self.kind != "molecule":
            return []
        found, name = list[str](), self.config.properties[0]
        for out in [each for each in outputs if each.designs][:PICTURED]:
            found.append(svg(out.designs[0].seed, legend="seed"))
            for one in out.designs:
                if is_valid(one.text):
                    value = f", is {computed(one.text, [name])[name]:.2f}" if name in DESCRIPTORS else ""
                    found.append(svg(one.text, legend=f"wanted {name} {one.wanted:.2f}{value}"))
        return found

    def write_samples(self, model: MultimodalLM, records: Sequence[Compound], folder: Path) -> None:
        """numbers.txt: what was read beside the truth; molecules as NUMBER.svg."""
        lines = []
        for number, (out, record) in enumerate(zip(self.predict(model, records), records, strict=True), 1):
            told = [f"{name} {'none' if said is None else format(said, 'g')} (true {record.properties[name]:g})"
                    for name, said in out.numbers.items()]  # fmt: skip
            lines.append(f"{number}. {self.title(record)}: {', '.join(told)}")
            if self.kind == "molecule":
                write_text_whole(folder / f"{number}.svg", svg(record.text, legend=", ".join(told)))
        write_text_whole(folder / "numbers.txt", "\n".join(lines) + "\n")


def _has(record: Compound) -> str:
    return f"it has {', '.join(record.properties)}" if record.properties else "it has no numbers"
