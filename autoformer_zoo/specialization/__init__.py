"""The best subnet for a device and a budget, without training.

Read predictor.py (top-1 accuracy of a subnet with inherited weights, predicted).
"""
