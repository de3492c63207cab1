"""Few-shot tasks from all tables below a folder, to train on many of them.

Which tables, columns and rows are used, which column is predicted, and which tables are kept for validation is decided as for TabuLa's
training set (arXiv:2406.12031), see `mmlm.data.table_cleaning`.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmlm.base.errors import DataError
from mmlm.data.config import EpisodeConfig, TableFolderConfig
from mmlm.data.episodes import TRIES, Episode, draw_episode, find_file
from mmlm.data.listed import Bad, tell
from mmlm.data.speech_check import files_below
from mmlm.data.table_cleaning import choose_target, clean, split_of, without_copies
from mmlm.data.table_reader import ENDINGS, read_table
from mmlm.data.tables import Table

logger = logging.getLogger(__name__)


class Tables:
    """Tasks from several tables, each with a drawn target. where: what they are, in messages. number_share: chance of a number as it."""

    def __init__(self, tables: Sequence[Table], where: str, number_share: float) -> None:
        self.tables, self.where, self.number_share = list(tables), where, number_share

    def draw(self, rng: np.random.Generator, config: EpisodeConfig) -> Episode:
        """A task from a table drawn evenly. Raises DataError where no table gives one."""
        own = config.model_copy(update={"own_target": 1.0})
        for _ in range(TRIES):
            table = self.tables[int(rng.integers(len(self.tables)))]
            found = draw_episode(table.with_target(choose_target(table, rng, self.number_share)), rng, own)
            if found is not None:
                return found
        raise DataError(f"{self.where}: no task could be drawn from {len(self.tables)} tables in {TRIES} tries.")


class TableFolder(Tables):
    """Tasks from the tables of a folder that are trained on. `bad`: files that cannot be read; what the filters leave out is in the log.

    Raises DataError for a file that cannot be read (on_bad: stop), and where no table is left for training, or none for validation.
    """

    def __init__(self, config: TableFolderConfig) -> None:
        folder = find_file(config.path)
        if not folder.is_dir():
            raise DataError(f"{folder}: is not a folder; of one table, table_file gives tasks.")
        read = {path: _read(path) for path in files_below(folder, ENDINGS)}
        self.bad = [each for each in read.values() if isinstance(each, Bad)]
        tell(self.bad, len(read), "tables", str(folder), config.on_bad)
        whole = {path: each for path, each in read.items() if isinstance(each, Table)}
        different = set(map(id, without_copies(whole.values())))
        left_out, trained, self.kept = list[Bad](), list[Table](), list[Table]()
        for path, table in whole.items():
            found = _cleaned(path, table, config) if id(table) in different else Bad(str(path), "has the content of an earlier table.")
            if isinstance(found, Bad):
                left_out.append(found)
            else:
                is_kept = split_of(table, valid=config.validate_share, test=0.0) == "valid"
                (self.kept if is_kept else trained).append(found)
        tell(left_out, len(read), "tables", str(folder), "skip")
        if not trained or config.validate_share and not self.kept:
            key = "validate_share" if trained or self.kept else "cleaning"
            told = "for validation; raise it" if trained else "to train on"
            raise DataError(f"{folder}: {key}: of {len(read)} tables none is left {told}.")
        super().__init__(trained, str(folder), config.number_share)

    def kept_back(self) -> Tables | None:
        """Tasks from the tables that are kept back for validation."""
        return Tables(self.kept, self.where, self.number_share) if self.kept else None


def _read(path: Path) -> Table | Bad:
    try:
        return read_table(path, infinite="missing")
    except DataError as error:
        return Bad(str(path), str(error))


def _cleaned(path: Path, table: Table, config: TableFolderConfig) -> Table | Bad:
    """What is left of a table, or why it is not trained on. What is drawn of a large one depends on its content alone."""
    rng = np.random.default_rng(int.from_bytes(hashlib.blake2b(table.content_hash().encode(), digest_size=8).digest(), "little"))
    found, drops = clean(table, config.cleaning, rng)
    if found is None:
        return Bad(str(path), f"{drops[-1].reason}.")
    if choose_target(found, rng) is None:
        return Bad(str(path), "no column of it can be a target.")
    for drop in drops:
        logger.info("%s: %s %r: %s", path, drop.what, drop.name, drop.reason)
    return found
