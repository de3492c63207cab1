"""The measures of units, which tasks read too and which therefore lie with the tokenizer."""

from mmlm.tokenizers.unit_measures import UnitQuality, frame_phones, unit_edit_distance, unit_perplexity, unit_quality, without_repetitions

__all__ = ["UnitQuality", "frame_phones", "unit_edit_distance", "unit_perplexity", "unit_quality", "without_repetitions"]
