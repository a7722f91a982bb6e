"""The accuracy predictor of a space, fitted to measured subnets.

Read measured.py (what is given), process.py (the model), validation.py (its errors), fit.py (both
together), then __main__.py (the command).
"""
