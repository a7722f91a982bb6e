"""A teacher's stored soft answers, for `--distill.answers`, and a small teacher to make them.

Read `__main__` (the command), `answers` (what is stored, and how a source uses it), then `train`
and `network` (the convolutional teacher). `training.data.views` defines what a view is.
"""
