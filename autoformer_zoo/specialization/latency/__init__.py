"""How long a subnet takes on this machine: timed for some, predicted for all.

Read timing.py (stopwatches), network_runs.py (a subnet, untrained, in a backend), onnx_parts.py
(its ONNX graph without exporting it), profile.py (the model of latency and its fit), then
measure.py.
"""
