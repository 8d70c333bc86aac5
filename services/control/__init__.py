"""Composes, starts, watches, measures and stops the other roles; never on the data path."""
