"""Configs of the data: what of it is used. Imports no torch and no numpy.

Each source says what it `gives`: tables, labels (sequences with labels at some tokens), texts, speech, pictures or molecules; a task reads
one of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmlm.base.errors import unknown_name
from mmlm.base.schema import Strict
from mmlm.data.config.augment import AUGMENTATIONS as AUGMENTATIONS
from mmlm.data.config.base import SOURCES, Held, PartedConfig, SourceConfig, true_path
from mmlm.data.config.cutouts import EmojiConfig as EmojiConfig
from mmlm.data.config.cutouts import StampsConfig as StampsConfig
from mmlm.data.config.molecules import ChemicalsConfig as ChemicalsConfig
from mmlm.data.config.molecules import DatamolConfig as DatamolConfig
from mmlm.data.config.molecules import MoleculeManifestConfig as MoleculeManifestConfig
from mmlm.data.config.molecules import MoleculeTableConfig as MoleculeTableConfig
from mmlm.data.config.molecules import MosesConfig as MosesConfig
from mmlm.data.config.pictures import CocoConfig as CocoConfig
from mmlm.data.config.pictures import Flickr30kConfig as Flickr30kConfig
from mmlm.data.config.pictures import PictureFolderConfig as PictureFolderConfig
from mmlm.data.config.pictures import PictureManifestConfig as PictureManifestConfig
from mmlm.data.config.pictures import VisualGenomeConfig as VisualGenomeConfig
from mmlm.data.config.pictures import YoloConfig as YoloConfig
from mmlm.data.config.scenes import ScenesConfig as ScenesConfig
from mmlm.data.config.speech import AsteriskConfig as AsteriskConfig
from mmlm.data.config.speech import SpeechConfig as SpeechConfig
from mmlm.data.config.speech import SpeechFolderConfig as SpeechFolderConfig
from mmlm.data.config.speech import SpeechManifestConfig as SpeechManifestConfig
from mmlm.data.config.speech import SynthesizedConfig as SynthesizedConfig
from mmlm.data.config.stamps import TuxPaintConfig as TuxPaintConfig
from mmlm.data.config.street import StreetConfig as StreetConfig
from mmlm.data.config.styled import StyledSpeechConfig as StyledSpeechConfig
from mmlm.data.config.sweeps import SweepFolderConfig as SweepFolderConfig


class TableCleaning(Strict):
    """Filters for tables to train on; the defaults are those of TabuLa's training set."""

    min_rows: int = Field(64, ge=1, description="tables with fewer rows are dropped")
    max_rows: int = Field(1000, ge=1, description="more rows are sampled down to this number")
    min_columns: int = Field(6, ge=2, description="tables with fewer columns are dropped")
    max_columns: int = Field(512, ge=2, description="more columns are sampled down to this number")
    max_numeric_names: float = Field(0.1, ge=0, le=1, description="largest share of column names that are numbers")
    max_unnamed: float = Field(0.5, ge=0, le=1, description="largest share of columns without a name")
    min_ascii_letters: float = Field(0.5, ge=0, le=1, description="smallest share of ASCII among the letters of names and texts")
    max_private_cells: float = Field(0.05, ge=0, le=1, description="a text column with more personal data or code drops the table")
    max_name_characters: int = Field(256, ge=1, description="columns with a longer name are dropped")
    min_distinct: int = Field(2, ge=1, description="columns with fewer distinct values are dropped")
    max_missing: float = Field(0.1, ge=0, le=1, description="columns with a larger share of missing cells are dropped")
    max_cell_characters: int = Field(14_336, ge=1, description="rows with a longer cell are dropped")
    markers: list[str] = Field(["<|endinput|>", "<|endcompletion|>", "||"], description="rows with one of these in a cell are dropped")
    drop_index_columns: bool = Field(True, description="drop columns that number the rows (rownames, id, index, ...)")
    drop_id_columns: bool = Field(True, description="drop text columns that are distinct in over 95 % of the rows")
    drop_duplicate_rows: bool = Field(True, description="keep one of several equal rows")


CellKind = Literal["text", "picture", "sound", "molecule"]


class EpisodeConfig(Strict):
    """How few-shot tasks are drawn from a table while training."""

    num_rows: int = Field(48, ge=4, le=4096, description="rows of a task, example rows and rows to predict")
    min_shots: int = Field(2, ge=1, description="fewest example rows")
    max_shots: int = Field(40, ge=1, description="most example rows; drawn evenly on a log scale")
    max_columns: int = Field(12, ge=1, description="most feature columns; more are sampled down")
    max_classes: int = Field(10, ge=2, le=10, description="most classes; rows of further ones are left out")
    max_bins: int = Field(8, ge=2, le=10, description="numeric targets are cut into 2 to this many quantile bins")
    own_target: float = Field(0.5, ge=0, le=1, description="chance that the table's own target is used, not another column")

    @model_validator(mode="after")
    def _shots_fit(self) -> EpisodeConfig:
        if not self.min_shots <= self.max_shots < self.num_rows:
            raise ValueError(f"min_shots {self.min_shots} <= max_shots {self.max_shots} < num_rows {self.num_rows} must hold")
        return self


@SOURCES.register("mmlm.data.episodes:RealTables", source="tables that come with installed packages; see real_tables.csv")
class RealTablesConfig(SourceConfig):
    """Few-shot tasks from real tables of installed packages."""

    type: Literal["real_tables"] = "real_tables"
    split: Literal["train", "valid", "test"] = Field("train", description="which part of the tables")

    def holds(self) -> str:
        """The split."""
        return f"the {self.split} split of real_tables"


@SOURCES.register("mmlm.data.prior:StructuralTables", source="prior over structural causal models, TabPFN, arXiv:2207.01848, section 4")
class StructuralTablesConfig(SourceConfig):
    """Few-shot tasks from tables generated by random structural models."""

    type: Literal["structural_tables"] = "structural_tables"
    max_causes: int = Field(6, ge=1, description="most hidden causes")
    max_units: int = Field(16, ge=2, description="most units in a layer of the model")
    max_layers: int = Field(3, ge=1, description="most layers between causes and columns")


@SOURCES.register("mmlm.data.episodes:TableFile", source="a file of your own")
class TableFileConfig(PartedConfig):
    """Few-shot tasks from one table: a CSV, TSV, Parquet, Excel or JSON-lines file, or a saved Hugging Face data set."""

    type: Literal["table_file"] = "table_file"
    path: str = Field(description="the file, or one that is shipped beside the recipes")
    target: str = Field(description="the column to predict")
    sheet: str | None = Field(None, description="sheet of a workbook or split of a data set; default the first")
    kinds: dict[str, CellKind] = Field(
        {},
        description="what the cells of a column are, by its name: texts, paths of pictures or sounds, beside the table, or molecules as "
        "SMILES; guessed where nothing is said. Read by tabular_text; others take them as texts",
    )
    hold_out: float = Field(0.2, ge=0, lt=1, description="share of the rows that is never trained on; evaluate.split: file predicts them")
    validate_share: float = Field(
        0.0, ge=0, lt=1, description="further share of the rows that is never trained on: validation predicts them from the training rows"
    )

    def holds(self) -> str:
        """The file, and which of its tables."""
        return f"the file {true_path(self.path)}{f' ({self.sheet})' if self.sheet else ''}"

    def held(self) -> Held:
        """Tables of one file are told apart where both are named."""
        return Held("table", frozenset([true_path(self.path)]), only={"sheet": frozenset([self.sheet])} if self.sheet else {})


@SOURCES.register("mmlm.data.table_folder:TableFolder", source="training set of TabuLa-8B, arXiv:2406.12031")
class TableFolderConfig(SourceConfig):
    """Few-shot tasks from all tables below a folder (.csv, .tsv, .parquet, .xlsx, .jsonl), any column of which may be the one predicted."""

    type: Literal["table_folder"] = "table_folder"
    path: str = Field(description="the folder; all below it counts")
    cleaning: TableCleaning = Field(TableCleaning(), description="which tables, columns and rows are left out")
    number_share: float = Field(0.1, ge=0, le=1, description="chance that a number is predicted, where a table has categories too")
    validate_share: float = Field(0.0, ge=0, lt=1, description="share of the tables, by their headers, that is kept for validation")
    on_bad: Literal["stop", "skip"] = Field("stop", description="files that cannot be read: told as an error | listed and left out")

    def holds(self) -> str:
        """The folder."""
        return f"the folder {true_path(self.path)}"

    def held(self) -> Held:
        """A folder holds all tables below it."""
        return Held("table", frozenset([true_path(self.path)]), below=True)


class ProbeConfig(SourceConfig):
    """Base of the generated sequences with labels at some tokens."""

    gives: ClassVar[str] = "labels"
    scored_from: int = Field(0, ge=0, description="labels at earlier places of a sequence are left out, to measure beyond a trained length")

    @property
    def vocabulary_size(self) -> int:
        """How many different tokens and labels there are."""
        raise NotImplementedError


@SOURCES.register("mmlm.data.probes.recall:Recall", source="multi-query associative recall, Zoology, arXiv:2312.04927")
class RecallConfig(ProbeConfig):
    """Pairs of a key and a value, then the keys again in another order among filler: say the value of each."""

    type: Literal["recall"] = "recall"
    length: int = Field(64, ge=4, description="tokens of a sequence")
    num_pairs: int = Field(8, ge=1, description="pairs of a key and its value")
    num_tokens: int = Field(128, ge=4, multiple_of=2, description="filler and keys are the first half, values the second")

    @model_validator(mode="after")
    def _fits(self) -> RecallConfig:
        if 3 * self.num_pairs > self.length:
            raise ValueError(f"length ({self.length}) must be at least 3 times num_pairs ({self.num_pairs})")
        if self.num_pairs >= self.num_tokens // 2:
            raise ValueError(f"num_pairs ({self.num_pairs}) must be below the number of keys ({self.num_tokens // 2 - 1})")
        return self

    @property
    def vocabulary_size(self) -> int:
        """Filler, keys and values."""
        return self.num_tokens


@SOURCES.register("mmlm.data.probes.recall:Induction", source="induction heads, arXiv:2209.11895; synthetic form of H3, arXiv:2212.14052")
class InductionConfig(ProbeConfig):
    """Random tokens with a special one among them that comes again at the end: say what followed it the first time."""

    type: Literal["induction"] = "induction"
    length: int = Field(30, ge=4, description="tokens of a sequence")
    num_tokens: int = Field(20, ge=2, description="ordinary tokens")

    @property
    def vocabulary_size(self) -> int:
        """The special token and the ordinary ones."""
        return self.num_tokens + 1


@SOURCES.register("mmlm.data.probes.copying:Copying", source="selective copying, Mamba, arXiv:2312.00752, section 4.1.1")
class CopyingConfig(ProbeConfig):
    """Values at random places among filler, then a mark for each: say the values in their order. Without filler: plain copying."""

    type: Literal["copying"] = "copying"
    length: int = Field(48, ge=1, description="tokens before the marks; num_values of them are values")
    num_values: int = Field(8, ge=1, description="values to say again")
    num_tokens: int = Field(16, ge=2, description="different values")

    @model_validator(mode="after")
    def _fits(self) -> CopyingConfig:
        if self.num_values > self.length:
            raise ValueError(f"num_values ({self.num_values}) must be at most length ({self.length})")
        return self

    @property
    def vocabulary_size(self) -> int:
        """Filler, mark and values."""
        return self.num_tokens + 2


@SOURCES.register("mmlm.data.probes.tracking:Counting", source="parity and modular counting, arXiv:2411.12537")
class CountingConfig(ProbeConfig):
    """Random bits: say at each how many ones there have been, modulo a number; 2 is parity."""

    type: Literal["counting"] = "counting"
    length: int = Field(40, ge=1, description="bits of a sequence")
    modulus: int = Field(2, ge=2, le=64, description="what is counted modulo")

    @property
    def vocabulary_size(self) -> int:
        """Bits and counts."""
        return self.modulus


@SOURCES.register(
    "mmlm.data.probes.tracking:Permutations", source="word problem of the symmetric groups as in The Illusion of State, arXiv:2404.08819"
)
class PermutationsConfig(ProbeConfig):
    """Random permutations: say at each what all so far make of the first arrangement."""

    type: Literal["permutations"] = "permutations"
    length: int = Field(24, ge=1, description="permutations of a sequence")
    size: int = Field(3, ge=2, le=5, description="things that are permuted: 3 for S3, 5 for S5")
    swaps_only: bool = Field(False, description="only swaps of two things, which one reflection a token can follow")

    @property
    def vocabulary_size(self) -> int:
        """All permutations."""
        return math.factorial(self.size)


@SOURCES.register("mmlm.data.probes.retrieval:Needle", source="needle in a haystack, as in RULER, arXiv:2404.06654")
class NeedleConfig(ProbeConfig):
    """Filler with a few marked keys and values at any depth, and questions for them at the end."""

    type: Literal["needle"] = "needle"
    length: int = Field(128, ge=8, description="tokens of a sequence, needles and questions included")
    num_needles: int = Field(1, ge=1, description="keys with a value, all of them asked for")
    num_keys: int = Field(16, ge=1, description="different keys")
    num_values: int = Field(16, ge=2, description="different values")
    num_fillers: int = Field(32, ge=1, description="different tokens of the filler")

    @model_validator(mode="after")
    def _fits(self) -> NeedleConfig:
        if self.num_needles > self.num_keys:
            raise ValueError(f"num_needles ({self.num_needles}) must be at most num_keys ({self.num_keys})")
        if 5 * self.num_needles > self.length:
            raise ValueError(f"length ({self.length}) must be at least 5 times num_needles ({self.num_needles})")
        return self

    @property
    def vocabulary_size(self) -> int:
        """Two marks, fillers, keys and values."""
        return 2 + self.num_fillers + self.num_keys + self.num_values


@SOURCES.register(
    "mmlm.data.probes.retrieval:Phonebook",
    source="phonebook as in Repeat After Me, arXiv:2402.01032; An Empirical Study of Mamba, arXiv:2406.07887, section 3.3.3",
)
class PhonebookConfig(ProbeConfig):
    """Lines of a name and a number, and one name to say the number of, asked after the book or before it."""

    type: Literal["phonebook"] = "phonebook"
    num_entries: int = Field(16, ge=1, description="lines of the book")
    name_size: int = Field(2, ge=1, description="tokens of a name")
    number_size: int = Field(4, ge=1, description="digits of a number")
    num_names: int = Field(32, ge=2, description="different tokens of names")
    asked_first: bool = Field(False, description="the question stands before the book and the answer after it")

    @model_validator(mode="after")
    def _fits(self) -> PhonebookConfig:
        if self.num_entries > self.num_names**self.name_size:
            raise ValueError(f"num_entries ({self.num_entries}) must be at most the number of names ({self.num_names**self.name_size})")
        return self

    @property
    def vocabulary_size(self) -> int:
        """A mark, ten digits and the tokens of names."""
        return 11 + self.num_names


@SOURCES.register("mmlm.data.texts:PythonDocs", source="texts of the Python in use: pydoc_data.topics and docstrings of its library")
class PythonDocsConfig(SourceConfig):
    """English prose about Python that every Python brings along: the topics of its help and the docstrings of its library."""

    gives: ClassVar[str] = "texts"
    type: Literal["python_docs"] = "python_docs"
    split: Literal["train", "valid", "test"] = Field("train", description="which part of the documents: about 90, 5 and 5 % of them")

    def holds(self) -> str:
        """The split."""
        return f"the {self.split} split of python_docs"


@SOURCES.register("mmlm.data.texts:TextFiles", source="files of your own")
class TextFilesConfig(PartedConfig):
    """Texts in a file or in all files below a folder: .txt and .md hold one each, .jsonl one a line."""

    gives: ClassVar[str] = "texts"
    type: Literal["text_files"] = "text_files"
    path: str = Field(description="a file, or a folder with files")
    field: str = Field("text", description="key of the text in a line of .jsonl")

    def holds(self) -> str:
        """The file or the folder."""
        return f"the text in {true_path(self.path)}"

    def held(self) -> Held:
        """A folder holds all files below it."""
        return Held("text", frozenset([true_path(self.path)]), below=True)


class DataConfig(Strict):
    """What is trained, validated and measured on."""

    train: list[SOURCES.choice] = Field([RealTablesConfig()], min_length=1, description="sources of training samples, mixed by weight")
    validation: list[SOURCES.choice] = Field(
        [], alias="validate", description="sources of validation samples, beside what train keeps back by validate_share; mixed by weight"
    )
    validate_samples: int = Field(64, ge=1, description="validation samples, drawn once: the same in every validation")
    test: list[SOURCES.choice] = Field(
        [], description="sources that evaluate measures, each by itself, beside what train holds out; tables are named in `evaluate`"
    )
    test_samples: int = Field(256, ge=1, description="test samples of each source; of texts these are the first pieces")

    @model_validator(mode="after")
    def _is_apart(self) -> DataConfig:
        """What a source holds is told by its `held`."""
        trained = [held for source in self.train if (held := source.held()) is not None]
        for key, share, sources in (("validate", "validate_share: 0.1", self.validation), ("test", "hold_out: 0.1", self.test)):
            for place, source in enumerate(sources):
                held = source.held()
                if held is not None and any(map(held.meets, trained)):
                    does = "Validate on" if key == "validate" else "Test on"
                    raise ValueError(
                        f"{key}.{place}: {source.holds()} is trained on too. {does} other data, or keep a part of a file back: "
                        f"leave this source out and write {share} in that of train"
                    )
        return self

    def without_effect(self) -> dict[str, str]:
        """Test samples are of texts and labels."""
        tables = all(source.gives == "tables" for source in self.train)
        return dict.fromkeys(("test", "test_samples"), "evaluate names the tables that are measured") if tables else {}

    def of(self, name: str, reads: str) -> DataConfig:
        """What one of several tasks uses."""
        kept = {key: [each for each in sources if each.serves(name, reads)] for key, sources in self._parts.items()}
        return self.model_copy(update={"train": kept["train"], "validation": kept["validate"], "test": kept["test"]})

    def faults(self, reads: Mapping[str, str]) -> list[str]:
        """What is wrong with sources for tasks, by name, that each read records of one kind."""
        found = []
        for key, sources in self._parts.items():
            for place, source in enumerate(sources):
                asked = {name: reads[name] for name in source.tasks or reads if name in reads}
                if unknown := [name for name in source.tasks or () if name not in reads]:
                    found.append(f"data.{key}.{place}.tasks: {unknown_name('task', unknown[0], reads)}")
                elif not any(source.serves(name, kind) for name, kind in asked.items()):
                    who = f"the task {next(iter(asked))}" if source.tasks else "the task" if len(reads) == 1 else "no task reads that; they"
                    found.append(f"data.{key}.{place}: {source.type!r} gives {source.gives}, but {_that_read(who, set(asked.values()))}")
        for name, kind in reads.items() if not found else ():
            if not any(source.serves(name, kind) for source in self.train):
                found.append(f"data.train: has no source for {_that_read(f'the task {name}, which', {kind})}")
        return found

    @property
    def _parts(self) -> dict[str, Sequence[SourceConfig]]:
        return {"train": self.train, "validate": self.validation, "test": self.test}

    @property
    def has_validation(self) -> bool:
        """Whether there is anything to validate on."""
        return bool(self.validation) or any(getattr(source, "validate_share", 0) for source in self.train)


def _that_read(who: str, kinds: set[str]) -> str:
    """Who reads what, and the sources that give it."""
    fit = sorted(name for name, each in SOURCES.entries.items() if issubclass(each, SourceConfig) and each.gives in kinds)
    return f"{who} read{'' if who.endswith('they') else 's'} {', '.join(sorted(kinds))}: {', '.join(fit)}"
