"""Config of sweeps of one's own. Imports no torch and no numpy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from mmlm.data.config.base import SOURCES, Held, PartedConfig, true_path


@SOURCES.register("mmlm.data.sweep_source:SweepFolder", source="files of your own; labels as SUSTechPOINTS writes them")
class SweepFolderConfig(PartedConfig):
    """A folder of sweeps (.bin, .npy, .npz, .pcd, .las), each with its boxes in NAME.json beside it: a list of objects with obj_type and
    psr (position, scale and rotation, each with x, y and z; of rotations z alone counts). Captions, expressions and questions are made
    of the boxes. Sweeps without labels show nothing that could be asked about."""

    gives: ClassVar[str] = "sweeps"
    type: Literal["sweep_folder"] = "sweep_folder"
    path: str = Field(description="the folder; all below it counts")
    front_degrees: float = Field(
        0.0, ge=-360, le=360, description="where ahead lies in the files' axes, as an angle from x towards y; -90: along -y"
    )
    columns: int | None = Field(None, ge=4, description="numbers of a point in .bin files; null: told by their size, 4 or 5")
    reach: float = Field(50.0, gt=0, description="metres along the ground beyond which things are not told of")
    on_bad: Literal["stop", "skip"] = Field("stop", description="sweeps that cannot be used: told as an error | listed and left out")

    split_by: Literal["sweep", "folder"] = Field(
        "sweep", description="what is never in two parts: a sweep | the sweeps of one folder, as those of a drive are alike"
    )

    def without_effect(self) -> dict[str, str]:
        """Of splitting, what has nothing to act on."""
        return {} if self.hold_out or self.validate_share else {"split_by": "hold_out and validate_share are 0"}

    def holds(self) -> str:
        """The folder."""
        return f"the folder {true_path(self.path)}"

    def held(self) -> Held:
        """A folder holds all sweeps below it."""
        return Held("sweeps", frozenset([true_path(self.path)]), below=True)
