"""Benchmarks of the models and of what surrounds them; every published figure comes from here.

One command a question: `latency` (against timm's DeiT, in torch and onnxruntime), `attention` (its
forms), `operators` (where the time goes), `startup`, `accuracy`, `train_step` and `candidates` (a
supernet's training step, a search's candidate). `all.sh` runs what the tables need.

Read `measure/timing.py`, `measure/rows.py` and `latency.py` first, then any other command, then
`report/`.
"""
