"""Search a trained supernet for good subnets; `python -m training.search` is the command.

The algorithm and the constraints are the package's own (`autoformer_zoo/specialization`). Read in
this order: `costs` (latency), `evaluation` (how a subnet is scored), `scoring` (all processes,
resuming), `search` (all of it together), `config` and `__main__`. `accuracies` measures random
subnets for an accuracy predictor.
"""
