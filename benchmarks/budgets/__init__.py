"""Latency profiles and what a budget buys: `python -m benchmarks.budgets.NAME`.

profiles.py (how well profiles predict), gains.py (found subnets against the published ones, timed),
slices.py (makes the catalogue of named subnets).
"""
