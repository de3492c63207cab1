"""Generated sequences that tell mixers apart: each file a kind of memory that they need."""
