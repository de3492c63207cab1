"""Training: one loop that sees only `model(batch) -> losses`, and what keeps a run exact and safe."""
