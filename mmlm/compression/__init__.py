"""Models made smaller or cheaper: layers replaced, dropped and grown."""
