"""Files of pictures through the codes of a run and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mmlm.base.errors import RecipeError
from mmlm.data.picture_files import ENDINGS, read_picture
from mmlm.describing import Described, Failed, Told, each_file
from mmlm.run import is_run_of, load_run
from mmlm.tokenizers.image_codes import ImageCodes, told

TASK = "image_codes"


def recode(
    run: str | Path, given: str | Path, output: str | Path | None = None, listen: Callable[[Described], None] | None = None
) -> tuple[list[Described], list[Failed]]:
    """A file, or all pictures below a folder, as codes (NAME.json: rows, columns, and of each book its codes row by row) and decoded
    (NAME.png, at the size at which it is coded); and which files could not be read.

    output: a folder, default GIVEN.recoded beside what was given. listen: told of each as it is done. Raises RecipeError for a run that
    trained no such codes, and DataError for a single file that cannot be read.
    """
    if not is_run_of(run, TASK):
        raise RecipeError(f"{run}: is no run of the task {TASK}.")
    codec: ImageCodes = load_run(run)[1].codec

    def say(path: Path) -> Told:
        segment = codec.encode(read_picture(path))
        return [], [told(segment)], codec.decode(segment)

    return each_file(given, output, ENDINGS, "image", say, listen, suffix="recoded")
