"""The decoder: layers of mixers and feed-forwards over vectors and a layout; it knows no modality."""
