"""What is hidden, shifted or compared: one file per objective."""
