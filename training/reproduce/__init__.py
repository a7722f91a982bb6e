"""Reproduce the paper's method and answer its questions; `python -m training.reproduce`.

Read in this order: `config` (what is done), `trainings` (the networks that it trains), `phases`
(training, search, ..., report), `separate` (the weights that entanglement is compared with),
`answers` and `intervals` (verdicts and statistics), `report` (the text), `estimate` (the plan with
the expected time), `__main__`.
"""
