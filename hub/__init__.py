"""Tools for the files that models come from: `sources` lists them, `convert` makes ours of them.

Nothing in the runtime imports this.
"""
