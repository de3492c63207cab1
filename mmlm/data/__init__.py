"""Records, tables, mixing and packing: everything between a file and a batch."""
