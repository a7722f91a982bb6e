"""Measures what the package's models cost; nothing else in the repository claims a speed."""
