"""Supernet training, search and evaluation: reproduces AutoFormer's method (arXiv 2107.00651)."""
