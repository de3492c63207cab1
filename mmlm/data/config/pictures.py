"""Configs of pictures of one's own. Imports no torch and no numpy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from mmlm.data.config.base import SOURCES, Held, PartedConfig, true_path


class PicturesConfig(PartedConfig):
    """What every source of picture files has: what is bad, what is never trained on."""

    gives: ClassVar[str] = "pictures"
    longest: int | None = Field(
        None, ge=16, description="pixels of the longest side that are needed: JPEGs are decoded no larger than that; null: whole"
    )
    list_things: bool = Field(
        False, description="pictures without a caption get one that lists the things in them, from the top down, with their boxes"
    )
    on_bad: Literal["stop", "skip"] = Field("stop", description="pictures that cannot be used: told as an error | listed and left out")


@SOURCES.register("mmlm.data.picture_sources:PictureManifest", source="files of your own")
class PictureManifestConfig(PicturesConfig):
    """Pictures listed in a .jsonl file, one object a line: image (path relative to the list), and where known caption, phrases (span and
    boxes), expressions (text and box), questions (question, answer and kind), things (label and box; [] says that there is none), id. Boxes
    are [x1, y1, x2, y2] in pixels of the stored file."""

    type: Literal["picture_manifest"] = "picture_manifest"
    path: str = Field(description="the list, .jsonl or .jsonl.gz, or one that is shipped beside the recipes")

    def holds(self) -> str:
        """The list."""
        return f"the list {true_path(self.path)}"


@SOURCES.register("mmlm.data.picture_sources:PictureFolder", source="files of your own")
class PictureFolderConfig(PicturesConfig):
    """A folder of pictures, each with its caption in a .txt beside it; or folders named by what their pictures show."""

    type: Literal["picture_folder"] = "picture_folder"
    path: str = Field(description="the folder; all below it counts")
    captions: Literal["txt", "folders", "none"] = Field("txt", description="NAME.txt beside NAME.jpg | the folder's name | none")

    def holds(self) -> str:
        """The folder."""
        return f"the folder {true_path(self.path)}"

    def held(self) -> Held:
        """A folder holds all pictures below it."""
        return Held("pictures", frozenset([true_path(self.path)]), below=True)


@SOURCES.register("mmlm.data.picture_sources:Coco", source="COCO, arXiv:1405.0312; LVIS, arXiv:1908.03195, has the same form")
class CocoConfig(PicturesConfig):
    """Pictures with the annotations of COCO or LVIS: captions, boxes of things, or both."""

    type: Literal["coco"] = "coco"
    path: str = Field(description="the folder of the pictures")
    annotations: list[str] = Field(min_length=1, description="JSON files: instances_*.json, captions_*.json")

    def holds(self) -> str:
        """The annotations."""
        return f"the pictures of {', '.join(map(true_path, self.annotations))}"

    def held(self) -> Held:
        """Each of the files."""
        return Held("annotations", frozenset(map(true_path, self.annotations)))


@SOURCES.register("mmlm.data.picture_sources:Yolo", source="Darknet; Ultralytics' layout of folders")
class YoloConfig(PicturesConfig):
    """Pictures with a .txt of boxes each: class, middle, width and height as shares; in labels/ beside images/, or beside the picture."""

    type: Literal["yolo"] = "yolo"
    path: str = Field(description="the folder of the pictures")
    names: list[str] = Field(min_length=1, description="what the classes 0, 1, ... are called")

    def holds(self) -> str:
        """The folder."""
        return f"the folder {true_path(self.path)}"

    def held(self) -> Held:
        """A folder holds all pictures below it."""
        return Held("pictures", frozenset([true_path(self.path)]), below=True)


@SOURCES.register("mmlm.data.flickr30k:Flickr30k", source="Flickr30k Entities, arXiv:1505.04870")
class Flickr30kConfig(PicturesConfig):
    """Pictures with the captions and boxes of Flickr30k Entities: five captions each, whose phrases carry boxes."""

    type: Literal["flickr30k"] = "flickr30k"
    path: str = Field(description="the folder of the pictures, ID.jpg")
    annotations: str = Field(description="the folder that holds Sentences/ID.txt and Annotations/ID.xml")
    ids: str | None = Field(None, description="a file with the numbers of the pictures that are used, one a line (train.txt); null: all")

    def holds(self) -> str:
        """The annotations, and which of them."""
        return f"the pictures of {true_path(self.annotations)}{f' in {true_path(self.ids)}' if self.ids else ''}"

    def held(self) -> Held:
        """Pictures of other lists are other pictures."""
        only = {"ids": frozenset([true_path(self.ids)])} if self.ids else {}
        return Held("flickr30k", frozenset([true_path(self.annotations)]), only=only)


@SOURCES.register("mmlm.data.visual_genome:VisualGenome", source="Visual Genome, arXiv:1602.07332")
class VisualGenomeConfig(PicturesConfig):
    """Pictures with the regions and objects of Visual Genome: each region is an expression with its box, each object a thing. Boxes are cut
    to the picture; those without extent are left out."""

    type: Literal["visual_genome"] = "visual_genome"
    path: str = Field(description="the folder of the pictures, or that of VG_100K and VG_100K_2")
    image_data: str = Field(description="image_data.json: numbers and sizes of the pictures")
    regions: str | None = Field(None, description="region_descriptions.json")
    objects: str | None = Field(None, description="objects.json")

    @model_validator(mode="after")
    def _says_something(self) -> VisualGenomeConfig:
        if self.regions is None and self.objects is None:
            raise ValueError("regions, objects: name at least one of them")
        return self

    def holds(self) -> str:
        """The annotations."""
        return f"the pictures of {true_path(self.image_data)}"
