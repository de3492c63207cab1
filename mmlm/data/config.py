"""Configs of the data: what of it is used. Imports no torch and no numpy."""

from __future__ import annotations

from pydantic import Field

from mmlm.base.schema import Strict


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
