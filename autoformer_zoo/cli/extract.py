"""The verb `extract`: a subnet out of a supernet's file, into a file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from autoformer_zoo.cli.command import option

if TYPE_CHECKING:
    from autoformer_zoo.space import SubnetConfig
    from autoformer_zoo.weights.checkpoint import SubnetWeights

# `weights.layouts.Layout`, without importing torch.
LayoutOption = Annotated[
    Literal["packed_prefix", "packed_interleaved"] | None,
    option(
        "{packed_prefix,packed_interleaved}",
        "(default: as the named model's file, else packed_prefix)",
        "Packing of q, k and v in a supernet's file that does not record it: packed_prefix if it "
        "is official, packed_interleaved if it is PreNAS'.",
    ),
]


@dataclass(frozen=True, slots=True)
class Extract:
    """Cut a subnet out of a supernet and write it as safetensors."""

    supernet: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SUPERNET")]
    """A supernet's file (official, PreNAS or canonical), or a model of `list`, for its supernet."""
    config: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG.json")]
    """The subnet: {"depth": ..., "embed_dim": ..., "num_heads": [...], "mlp_ratio": [...]}."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")]
    """The file to write; an existing one is replaced."""
    layout: LayoutOption = None
    img_size: Annotated[int | None, option("PIXELS", "(default: the supernet's)")] = None
    """Resample the position embedding to inputs of this side."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Write the file and yield what was written."""
        from autoformer_zoo.cli.inputs import read_config
        from autoformer_zoo.weights.checkpoint import save_subnet
        from autoformer_zoo.weights.files import check_output

        check_output(self.out, (self.supernet, self.config), (".safetensors",))
        subnet = read_config(self.config)
        weights = _extract(self.supernet, subnet, self.layout, self.img_size)
        save_subnet(weights, self.out)
        params = sum(tensor.numel() for tensor in weights.tensors.values())
        written = {
            "path": str(self.out),
            "size_bytes": self.out.stat().st_size,
            "params": params,
            "img_size": list(weights.img_size),
            "num_classes": weights.num_classes,
            "subnet": subnet.to_dict(),
        }
        if self.json:
            yield json.dumps(written)
        else:
            yield f"{self.out}: {params:,} parameters, {written['size_bytes']:,} bytes"


def _extract(
    path: Path, subnet: SubnetConfig, layout: str | None, img_size: int | None
) -> SubnetWeights:
    from autoformer_zoo.models.factory import extract_subnet
    from autoformer_zoo.weights.checkpoint import SubnetWeights
    from autoformer_zoo.weights.pretrained import load_supernet

    supernet = load_supernet(path, layout)
    model = extract_subnet(supernet, subnet, img_size)
    net = replace(supernet.net, sizes=subnet, img_size=model.patch_embed.img_size)
    return SubnetWeights(model.state_dict(), net, supernet.metadata)
