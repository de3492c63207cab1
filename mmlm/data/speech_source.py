"""What all sources of speech have in common: filters, the check of every recording, and the split into training, validation and tests."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from mmlm.base.errors import DataError, unknown_name
from mmlm.data.base import Parted
from mmlm.data.config import SpeechConfig
from mmlm.data.dealing import deal_whole, place_of
from mmlm.data.listed import Bad, tell
from mmlm.data.speech import Speech, Utterance
from mmlm.data.speech_check import checked
from mmlm.data.token_shards import logged, sounds_of

logger = logging.getLogger(__name__)


class SpeechSource(Parted, Speech):
    """The utterances of a source that are trained on.

    found: what the source lists, in its order. Recordings that the filters of the config leave out are counted in `left_out` by reason;
    those that cannot be used are in `bad`, and are told as an error (on_bad: stop) or in the log (skip). Bad are: a line that cannot be
    read, a file that is missing, damaged, cut short or no sound, a rate or length other than the list claims, silence (nothing above -60
    dB of full scale) and clipping (more than max_clipped of the samples at full scale). Too short or too long is left out, not bad.
    """

    part = Speech

    def __init__(self, config: SpeechConfig, where: str, found: Iterable[Utterance | Bad]) -> None:
        listed = list(found)
        wanted, self.left_out = _filtered([each for each in listed if isinstance(each, Utterance)], config, where)
        good, bad, odd_lengths = checked(wanted, config, where)
        self.left_out.update(odd_lengths)
        self.bad = [each for each in listed if isinstance(each, Bad)] + bad
        tell(self.bad, len(listed), "recordings", where, config.on_bad)
        left = ", ".join(f"{number} {why}" for why, number in sorted(self.left_out.items()))
        if left:
            logger.info("%s: left out: %s.", where, left)
        if not good:
            told = "; ".join(part for part in (left and f"left out: {left}", self.bad and f"{len(self.bad)} cannot be used") if part)
            raise DataError(f"{where}: no recording to use{f' ({told})' if told else ''}.")
        if config.keep_hz is not None:
            good = sounds_of(good, config.keep_hz, progress=logged(where))
        *self.groups, trained = dealt(good, config, where)
        super().__init__(trained, where)


def _filtered(utterances: list[Utterance], config: SpeechConfig, where: str) -> tuple[list[Utterance], Counter[str]]:
    """(those in the named languages, of the named speakers, with text if it is needed; how many others there are by reason).

    Raises DataError for a language or speaker that none has.
    """
    left_out: Counter[str] = Counter()
    for key, attribute, names in (("languages", "language", config.languages), ("speakers", "speaker", config.speakers)):
        if names is None or not utterances:
            continue
        known = {getattr(each, attribute) for each in utterances}
        for name in names:
            if name not in known:
                raise DataError(f"{where}: {key}: {unknown_name(attribute, name, known - {''})}")
        kept = [each for each in utterances if getattr(each, attribute) in names]
        left_out.update({f"of other {key}": len(utterances) - len(kept)} if len(kept) < len(utterances) else {})
        utterances = kept
    if config.needs_text:
        kept = [each for each in utterances if each.text]
        left_out.update({"without text": len(utterances) - len(kept)} if len(kept) < len(utterances) else {})
        utterances = kept
    return utterances, left_out


def plain_text(text: str) -> str:
    """A text by which equal sentences are told: small letters and digits, words apart by one space."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def dealt(utterances: Sequence[Utterance], config: SpeechConfig, where: str) -> list[list[Utterance]]:
    """The utterances that are held out, kept back for validation, and trained on.

    By text or utterance, where one belongs is a function of its text (its id, if it has none) or its id, and of the shares: other
    recordings beside it change nothing. By speaker, the speakers are dealt in whole numbers (`deal_whole`).
    Raises DataError where a share gives nothing, or nothing is left.
    """
    if config.split_by == "speaker" and (config.hold_out or config.validate_share):
        return _by_speaker(utterances, config, where)
    groups: list[list[Utterance]] = [[], [], []]
    for each in utterances:
        place = place_of((plain_text(each.text) if config.split_by == "text" else "") or f"id {each.id}")
        groups[int(place >= config.hold_out) + int(place >= config.hold_out + config.validate_share)].append(each)
    for key, share, group in zip(("hold_out", "validate_share"), (config.hold_out, config.validate_share), groups, strict=False):
        if share and not group:
            raise DataError(f"{where}: {key}: {share:g} of {len(utterances)} recordings is none; raise it.")
    if not groups[-1]:
        raise DataError(f"{where}: hold_out and validate_share leave none of {len(utterances)} recordings to train on.")
    return groups


def _by_speaker(utterances: Sequence[Utterance], config: SpeechConfig, where: str) -> list[list[Utterance]]:
    nameless = next((each for each in utterances if not each.speaker), None)
    if nameless is not None:
        raise DataError(f"{nameless.where}: has no speaker, which split_by: speaker needs.")
    speakers = {each.speaker for each in utterances}
    try:
        number = deal_whole(speakers, [config.hold_out, config.validate_share])
    except ValueError:
        raise DataError(f"{where}: split_by: speaker: {len(speakers)} speakers are too few for hold_out and validate_share.") from None
    return [[each for each in utterances if number[each.speaker] == group] for group in range(3)]
