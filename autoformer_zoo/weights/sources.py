"""The one table of upstream weight files: where each is, what it holds, what is known about it.

Data only. `pretrained.py` downloads these files, `autoformer.py` makes timm's tags from them, and
`python -m hub.sources` prints the table. No file was downloaded when it was written: addresses,
layouts and the starts of hashes are as their authors published them, see `UpstreamFile.verified`.

Sources: the README files of microsoft/Cream@4a13c40 (AutoFormer) and tinyvision/PreNAS@1513339, and
NNI 3.0 (nni/nas/hub/pytorch/autoformer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

NANO_WEIGHTS = Path(__file__).parent / "nano.safetensors"  # inside the package: no upstream file
NOT_VERIFIED = (
    "not downloaded here; the reader was tested on synthetic files with the same names and shapes"
)


@dataclass(frozen=True, slots=True)
class UpstreamFile:
    """One file of weights that somebody else published.

    Args:
        name: key of the table, and the file's stem in the cache.
        url: address of the file.
        origin: who trained the weights.
        space: key of `SPACES`; "" if unknown.
        kind: a supernet, any subnet of which can be cut out, or one subnet; None if unknown.
        layout: packing of q, k and v, as `load_supernet` takes it; None if names determine it.
        size_bytes: exact size; None if none was published.
        sha256: digest of the file, or its first digits; None if none was published.
        license: SPDX name; None if none is stated for the weights.
        license_note: what is known of the license, in words.
        page: where the authors describe the weights.
        paper_ids: papers to cite.
        trained_on: data set.
        verified: what was checked on the real file.
    """

    name: str
    url: str
    origin: str = ""
    space: str = ""
    kind: Literal["supernet", "subnet"] | None = None
    layout: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    license: str | None = None
    license_note: str = "not in the table of sources"
    page: str = ""
    paper_ids: tuple[str, ...] = ()
    trained_on: str = "ImageNet-1k"
    verified: str = NOT_VERIFIED

    @property
    def license_text(self) -> str:
        """The license, or that it is unknown and why."""
        return self.license or f"unknown: {self.license_note}"

    @property
    def summary(self) -> str:
        """Who trained what, in one line."""
        return f"{self.origin}, {self.kind or 'weights'}, trained on {self.trained_on}"


def _official(space: str) -> UpstreamFile:
    return UpstreamFile(
        name=f"official-{space}",
        url=(
            "https://github.com/silent-chen/AutoFormer-model-zoo/releases/download/v1.0/"
            f"supernet-{space}.pth"
        ),
        origin="AutoFormer",
        space=space,
        kind="supernet",
        layout="packed_prefix",
        license_note="none is stated for the weights (the code is MIT)",
        page="https://github.com/microsoft/Cream/tree/main/AutoFormer",
        paper_ids=("arXiv:2107.00651",),
    )


def _prenas(space: str) -> UpstreamFile:
    return UpstreamFile(
        name=f"prenas-{space}",
        url=f"https://idstcv.oss-cn-zhangjiakou.aliyuncs.com/PreNAS/supernet-{space}.pth",
        origin="PreNAS",
        space=space,
        kind="supernet",
        layout="packed_interleaved",  # names and shapes are as in the official files
        license="apache-2.0",
        license_note="stated by the repository",
        page="https://github.com/tinyvision/PreNAS",
        paper_ids=("arXiv:2304.14636", "arXiv:2107.00651"),
    )


def _nni(space: str, sha256_start: str) -> UpstreamFile:
    return UpstreamFile(
        name=f"nni-{space}",
        url=(
            f"https://nni.blob.core.windows.net/nashub/autoformer-{space}-subnet-{sha256_start}.pth"
        ),
        origin="NNI",
        space=space,
        kind="subnet",  # NNI's supernets have a wrong v bias in all but the largest layers
        sha256=sha256_start,
        license_note="none is stated for the weights (the code is MIT)",
        page="https://github.com/microsoft/nni/tree/v3.0",
        paper_ids=("arXiv:2107.00651",),
        verified=f"{NOT_VERIFIED}; the address may be gone",
    )


_NNI_HASHES = {"tiny": "12ed42ff", "small": "b4e25a1b", "base": "85105f76"}

SOURCES: Mapping[str, UpstreamFile] = MappingProxyType(
    {
        file.name: file
        for file in (
            *map(_official, ("tiny", "small", "base")),
            *map(_prenas, ("tiny", "small", "base")),
            *(_nni(space, digits) for space, digits in _NNI_HASHES.items()),
        )
    }
)
