"""What the commands share: timing, rows, models and their memory, scoring.

Read `timing` (interleaved rounds), `rows` (one figure each), `results` (their files), `text_table`
and `options` (the runner of all commands); then `models` (from a name to a call), `memory`; for
accuracies `classifiers` and `evaluation`.
"""
