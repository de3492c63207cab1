"""Drawn scenes: what stands in them, what is said of them, and programs that check it."""
