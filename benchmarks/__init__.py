"""Benchmarks of the models and of what surrounds them: where the generated tables come from.

One command a question: `latency` (against timm's DeiT, in torch and onnxruntime), `attention`
(its forms), `accuracy`, `search` (methods of search on real accuracies), `footprint/` (operators,
start), `training/` (a supernet's training step, a search's candidate), `budgets/` (latency
profiles, what a budget buys), `gpu` (all that a GPU is needed for). `report/all.sh` runs what the
tables need.

Read `measure/timing.py`, `measure/rows.py` and `latency.py` first, then any other command, then
`report/`.
"""
