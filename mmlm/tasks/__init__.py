"""Tasks: the only places that know how records, tokenizers, heads and metrics belong together."""
