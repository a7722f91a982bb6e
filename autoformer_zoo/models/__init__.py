"""From a name to a network: `autoformer` (timm's entry points), then `factory` (what they call)."""
