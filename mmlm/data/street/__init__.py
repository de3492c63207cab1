"""Streets of cuboids as a spinning LiDAR sees them."""
