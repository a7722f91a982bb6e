"""Tables and plots from the files of rows: `python -m benchmarks.report`.

Read `tables`, then `plots`, then `__main__`, which puts them into README and docs.
"""
