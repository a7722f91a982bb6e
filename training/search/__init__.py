"""Search a trained supernet for good subnets; `python -m training.search` is the command.

Read in this order: `evolution` (the algorithm), `constraints` (which subnets are allowed) and
`costs` (parameters, multiply-adds, latency), `evaluation` (how a subnet is scored), `scoring`
(all processes, resuming), `search` (all of it together), `config` and `__main__`.
"""
