"""What a network costs beside its latency: `operators` of its graphs, `startup` of the package."""
