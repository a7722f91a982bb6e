"""The one table of upstream weight files: where they are, what is in them, what is known of them.

Data only. `pretrained.py` fetches what stands here, `autoformer.py` makes timm's tags from it, and
the tools of `hub/` read the same table. Nothing here was downloaded when the table was written:
URLs, layouts and the starts of hashes are as their authors published them, see `Source.verified`.

Sources: the README files of microsoft/Cream@4a13c40 (AutoFormer) and tinyvision/PreNAS@1513339, and
NNI 3.0 (nni/nas/hub/pytorch/autoformer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from autoformer_zoo.published import SUBNETS

NOT_VERIFIED = (
    "nothing of the file itself: no copy was at hand; its layout was checked against checkpoints "
    "of the same names and shapes that hold made-up numbers"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One upstream file.

    Args:
        name: key of the table, and the file's stem in the cache.
        origin: who trained the weights.
        url: where the file is.
        space: key of `SPACES`, the space whose supernet or subnet it is.
        kind: what it holds: a supernet, any subnet of which can be cut out, or one subnet; unknown
            for addresses that are not of this table.
        layout: how q, k and v lie in it, as `load_supernet` takes it; None where the keys tell.
        size_bytes: exact size, None where none was published.
        sha256: digest of the file, or its first digits; None where none was published.
        license: SPDX name, None where none is stated for the weights.
        license_note: what is known of the license, in words.
        page: where the authors describe the weights.
        paper_ids: papers to cite.
        trained_on: data set.
        verified: what was checked on the real file.
    """

    name: str
    origin: str
    url: str
    space: str
    kind: Literal["supernet", "subnet", "unknown"]
    layout: str | None
    size_bytes: int | None
    sha256: str | None
    license: str | None
    license_note: str
    page: str
    paper_ids: tuple[str, ...]
    trained_on: str = "ImageNet-1k"
    verified: str = NOT_VERIFIED

    @property
    def license_text(self) -> str:
        """The license, or that it is unknown and why."""
        return self.license or f"unknown: {self.license_note}"


def _official(space: str) -> Source:
    return Source(
        name=f"official-{space}",
        origin="AutoFormer",
        url=(
            "https://github.com/silent-chen/AutoFormer-model-zoo/releases/download/v1.0/"
            f"supernet-{space}.pth"
        ),
        space=space,
        kind="supernet",
        layout="packed_prefix",
        size_bytes=None,
        sha256=None,
        license=None,
        license_note="none is stated for the weights (the code is MIT)",
        page="https://github.com/microsoft/Cream/tree/main/AutoFormer",
        paper_ids=("arXiv:2107.00651",),
    )


def _prenas(space: str) -> Source:
    return Source(
        name=f"prenas-{space}",
        origin="PreNAS",
        url=f"https://idstcv.oss-cn-zhangjiakou.aliyuncs.com/PreNAS/supernet-{space}.pth",
        space=space,
        kind="supernet",
        layout="packed_interleaved",  # same keys and shapes as the official files: only this tells
        size_bytes=None,
        sha256=None,
        license="apache-2.0",
        license_note="stated by the repository",
        page="https://github.com/tinyvision/PreNAS",
        paper_ids=("arXiv:2304.14636", "arXiv:2107.00651"),
    )


def _nni(space: str, sha256_start: str) -> Source:
    return Source(
        name=f"nni-{space}",
        origin="NNI",
        url=(
            f"https://nni.blob.core.windows.net/nashub/autoformer-{space}-subnet-{sha256_start}.pth"
        ),
        space=space,
        kind="subnet",  # NNI's supernets have a wrong v bias in all but the largest layers
        layout=None,
        size_bytes=None,
        sha256=sha256_start,
        license=None,
        license_note="none is stated for the weights (the code is MIT)",
        page="https://github.com/microsoft/nni/tree/v3.0",
        paper_ids=("arXiv:2107.00651",),
        verified=f"{NOT_VERIFIED}; the address may be gone",
    )


SOURCES: Mapping[str, Source] = MappingProxyType(
    {
        source.name: source
        for source in (
            _official("tiny"),
            _official("small"),
            _official("base"),
            _prenas("tiny"),
            _prenas("small"),
            _prenas("base"),
            _nni("tiny", "12ed42ff"),
            _nni("small", "b4e25a1b"),
            _nni("base", "85105f76"),
        )
    }
)

PRETRAINED: Mapping[str, str] = MappingProxyType(
    {
        # The first tag of a model is its default.
        **{
            f"autoformer_{space}.{tag}": f"{origin}-{space}"
            for space in ("tiny", "small", "base")
            for tag, origin in (("ms_in1k", "official"), ("nni_in1k", "nni"))
        },
        **{
            f"{name}.in1k": f"prenas-{name.split('_')[1]}"
            for name in SUBNETS
            if name[:6] == "prenas"
        },
    }
)
"""Weights that are downloaded: model.tag -> key of `SOURCES`."""
