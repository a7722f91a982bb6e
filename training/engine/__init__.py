"""What a training run computes.

Read `network` (what is trained), `sampling` (which subnets a step trains), `losses`, `step` (one
step), `loop` (all of them, with log, evaluation and checkpoints), `weights` (the final file),
`review` (figures of a fine-tuned network), `teacher` (stored soft answers to learn from).
"""
