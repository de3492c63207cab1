"""Errors, registry, schema and YAML: what everything else stands on. Imports no torch."""
