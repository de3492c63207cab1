"""The recipe section `evaluate`. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mmlm.base.schema import Strict

FEWEST_QUERIES = 8  # rows to predict, with fewer of which a table says nothing
JudgeName = Literal["words", "voice", "style", "pesq", "stoi", "si_sdr", "dnsmos"]


class EvaluateConfig(Strict):
    """How a trained model is measured: a model of tables beside baselines, what a model lets one hear by judges."""

    of_tables: ClassVar[tuple[str, ...]] = ("split", "shots", "seeds", "max_queries", "num_bins", "xgboost")
    of_sounds: ClassVar[tuple[str, ...]] = ("judges", "whisper", "max_sounds", "num_players")

    split: Literal["valid", "test", "file"] = Field("test", description="held-out tables; file: the held-out rows of data.train's files")
    shots: list[Annotated[int, Field(ge=0)]] = Field([8, 32], min_length=1, description="numbers of example rows; 0 is for text alone")
    seeds: int = Field(3, ge=1, description="draws of example rows a table")
    max_queries: int = Field(64, ge=FEWEST_QUERIES, description="most rows to predict in a draw")
    num_bins: int = Field(4, ge=2, le=10, description="bins of a numeric target; edges from the example rows")
    xgboost: Literal["default", "search"] = Field("default", description="default settings, or the best of a random search in each draw")
    judges: list[JudgeName] | None = Field(
        None,
        description="of sounds: word errors of a recognizer | likeness of the voice | the style that was asked for | PESQ | STOI | "
        "SI-SDR | DNSMOS; default: all whose packages are installed",
    )
    whisper: str | None = Field(
        None, description="folder of the Whisper that counts words; default: the English one of an installed package"
    )
    max_sounds: int = Field(64, ge=1, description="most sounds of a test source that are judged, the first ones")
    num_players: int = Field(4, ge=0, description="sounds of a test source that report.html plays and draws")
