"""What goes on inside a model, to be looked at."""
