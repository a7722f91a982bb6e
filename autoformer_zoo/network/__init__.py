"""The static network, its supernet, and what they cost.

Read `attention` (the definition of relative position, and its fast exact forms; `relpos` has the
geometry), `block`, `vit` (the whole network), `supernet` and `complexity`. The rest makes the CPU
faster and changes no result: `fast` (blocks without calls of modules), `workspace` (attention with
operands in place), `frozen` and `packed_linear` (weights packed for the processor, by `freeze`).
"""
