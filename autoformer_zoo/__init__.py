"""AutoFormer: vision transformers found by one-shot search, ready to run."""

__version__ = "0.1.0"
