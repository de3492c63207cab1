"""Weights of other libraries in and out, one name map per family."""
