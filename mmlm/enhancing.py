"""Files of sound through a model that mends sounds: any rate, channels and length, in windows, so that memory does not grow with the file.

Windows are as long as the task says; neighbours share a tenth of that, over which one goes over into the other. Each channel is mended by
itself. What lies above half the model's rate is lost; the file that is written has the rate, channels and samples of the one that was read.

Axes: n samples   c channels
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmlm.base.errors import DataError, RecipeError, require
from mmlm.base.files import beside
from mmlm.data.audio_files import ENDINGS, WRITES, read_sound, sound_facts, writing
from mmlm.data.audio_readers import SoundFacts
from mmlm.data.speech_check import SILENT_DB, files_below
from mmlm.run import load_run
from mmlm.sound import Sound
from mmlm.tasks.base import Enhances

SHARED = 0.1  # of a window
Progress = Callable[[float, float], None]


@dataclass(frozen=True)
class Failed:
    """A file that could not be mended, and why."""

    path: Path
    why: str


def enhance(
    run: str | Path, given: str | Path, output: str | Path | None = None, progress: Progress | None = None
) -> tuple[list[Path], list[Failed]]:
    """Mend a file, or all files of sound below a folder; returns what was written and what could not be.

    output: a .wav or .flac file, or a folder for a folder; default: NAME.enhanced.wav, or FOLDER.enhanced, beside what was given.
    progress(seconds of sound done, seconds in all). Raises RecipeError for a run that mends no sounds, and DataError for a single file that
    is missing, empty, cut short, no sound, or silent.
    """
    given, output = Path(given), None if output is None else Path(output)
    recipe, task, model = load_run(run, fits=lambda task: getattr(task, "mends_sound", False))
    if not isinstance(task, Enhances):
        raise RecipeError(f"{run}: its task {recipe.tasks[0].type!r} mends no sounds; --audio needs a run that does.")
    if not given.is_dir():
        target = output or beside(given, ".enhanced.wav")
        if target.is_dir() or not target.parent.is_dir():
            raise DataError(f"{target}: {'is a folder' if target.is_dir() else f'the folder {target.parent} does not exist'}; name a file.")
        if target.exists() and given.exists() and target.samefile(given):
            raise DataError(f"{target}: is read from, so it cannot be the output; name another file.")
        total = sound_facts(given).seconds
        enhance_file(task, model, given, target, lambda done: progress(done, total) if progress is not None else None)
        return [target], []
    files = files_below(given, ENDINGS)
    if not files:
        raise DataError(f"{given}: no file below this folder ends in {', '.join(ENDINGS)}.")
    folder = output or beside(given, ".enhanced")
    if folder.is_file() or folder.resolve().is_relative_to(given.resolve()):
        raise DataError(f"{folder}: {'is a file' if folder.is_file() else 'lies in the folder that is read'}; name another folder.")
    return _enhance_all(task, model, given, files, folder, progress)


def _enhance_all(
    task: Enhances, model: Any, given: Path, files: list[Path], folder: Path, progress: Progress | None
) -> tuple[list[Path], list[Failed]]:
    lengths, failed, written = dict[Path, float](), list[Failed](), list[Path]()
    for path in files:
        try:
            lengths[path] = sound_facts(path).seconds
        except DataError as error:
            failed.append(Failed(path, str(error)))
    before, total = 0.0, sum(lengths.values())

    def tick(done: float) -> None:
        if progress is not None:
            progress(before + done, total)

    names = _names([path.relative_to(given) for path in lengths])
    for (path, seconds), name in zip(lengths.items(), names, strict=True):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            enhance_file(task, model, path, target, tick)
            written.append(target)
        except DataError as error:
            failed.append(Failed(path, str(error)))
        before += seconds
    return written, failed


def _names(files: list[Path]) -> list[Path]:
    """What is written for each file: its own name, with .wav behind it where that kind is not written, and a number where another file of
    the folder has that name."""
    taken = {path for path in files if path.suffix.lower() in WRITES}
    found = []
    for path in files:
        name = path if path in taken else path.with_name(f"{path.name}.wav")
        for number in itertools.count(2):
            if name == path or name not in taken:
                break
            name = path.with_name(f"{path.name}.{number}.wav")
        taken.add(name)
        found.append(name)
    return found


def enhance_file(task: Enhances, model: Any, source: Path, target: Path, tick: Callable[[float], None]) -> None:
    """Mend one file. tick: told the seconds that are done. Raises DataError; then nothing is written."""
    facts, rate_hz = sound_facts(source), task.rate_hz
    stream, read, wrote, peak = None, 0, 0, 0.0
    if rate_hz != facts.rate_hz:
        stream = require("soxr", "speech").ResampleStream(rate_hz, facts.rate_hz, facts.channels, dtype="float32")
    with writing(target, facts.rate_hz, facts.channels) as write:
        for made_nc, loudest, is_last in mended_windows(task, model, source, facts):
            read, peak = read + len(made_nc), max(peak, loudest)
            block_nc = made_nc if stream is None else stream.resample_chunk(made_nc, last=is_last)
            if is_last:
                block_nc = _of_length(block_nc, _num_samples(facts, read, rate_hz) - wrote)
            write(block_nc)
            wrote += len(block_nc)
            tick(min(read / rate_hz, facts.seconds))
        if peak < 10 ** (SILENT_DB / 20):
            raise DataError(f"{source}: is silent: nothing in it is louder than {SILENT_DB:.0f} dB of full scale.")


def mended_windows(task: Enhances, model: Any, source: Path, facts: SoundFacts) -> Iterator[tuple[np.ndarray, float, bool]]:
    """(what is finished with each window, float32 [n, c] at the model's rate; the peak of what was read for it; whether it is the last)."""
    rate_hz = task.rate_hz
    size = round(task.window_seconds * rate_hz)
    shared = round(SHARED * size)
    total = -(-facts.num_samples * rate_hz // facts.rate_hz)
    rising_n1 = (0.5 - 0.5 * np.cos(np.pi * (np.arange(shared) + 0.5) / shared)).astype(np.float32)[:, None]
    tail_nc = np.zeros((0, facts.channels), np.float32)
    for start in range(0, max(total, 1), size - shared):
        is_last = start + size >= total  # what a next window would add is only what it shares with this one
        length = None if is_last else size / rate_hz
        given = [
            read_sound(source, rate_hz=rate_hz, start_seconds=start / rate_hz, seconds=length, channel=channel)
            for channel in range(facts.channels)
        ]
        made_nc = np.stack([one.wave_n for one in task.enhance(model, given)], axis=1)
        if len(tail_nc):
            made_nc = made_nc.copy()
            made_nc[:shared] = tail_nc[: len(made_nc)] * (1 - rising_n1[: len(made_nc)]) + made_nc[:shared] * rising_n1[: len(made_nc)]
        end = len(made_nc) if is_last else size - shared
        tail_nc = made_nc[end:]
        yield made_nc[:end], max(_peak(one) for one in given), is_last
        if is_last:
            return


def _peak(sound: Sound) -> float:
    return float(np.abs(sound.wave_n).max(initial=0))


def _num_samples(facts: SoundFacts, read: int, rate_hz: int) -> int:
    """Samples to write: those of the file; of a compressed one whose header missed its length, what stands for the samples read."""
    if read == -(-facts.num_samples * rate_hz // facts.rate_hz):
        return facts.num_samples
    return round(read * facts.rate_hz / rate_hz)


def _of_length(block_nc: np.ndarray, size: int) -> np.ndarray:
    return np.pad(block_nc[: max(size, 0)], ((0, max(0, size - len(block_nc))), (0, 0)))
