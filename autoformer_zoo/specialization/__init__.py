"""The best subnet for a device and a budget, without training.

Read constraints.py (costs of subnets and bounds on them), predictor.py (top-1 accuracy of a subnet
with inherited weights, predicted), then evolution.py (the search).
"""
