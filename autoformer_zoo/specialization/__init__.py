"""The best subnet for a device and a budget, without training.

Read constraints.py (costs of subnets and bounds on them), predictor.py (top-1 accuracy of a subnet
with inherited weights, predicted), latency/ (how long a subnet takes here), evolution.py and
search.py (the search), then selection.py (all of it together), front.py and slices.py.
"""
