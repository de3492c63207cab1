"""Encoders and decoders as parts of the pipelines of other libraries."""
