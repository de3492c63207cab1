"""Finding items by their vectors."""
