"""Latency profiles for the search: `autoformer-zoo profile` at the sizes of a training run.

    python -m training.search.costs --space tiny --out latency-tiny.json  # measures this machine
    python -m training.search.costs --space nano --img-size 24 --out latency-24.json

`training.search` measures a profile itself if none is given. Everything else about latency is in
`autoformer_zoo/specialization/latency`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from autoformer_zoo.published import find_space
from autoformer_zoo.specialization.latency.measure import SECONDS, profile_device
from autoformer_zoo.specialization.latency.profile import NS_PER_MS, Backend, Device, Precision
from autoformer_zoo.weights.files import check_output
from autoformer_zoo.weights.whole_files import write_whole
from training.run.command import run_command


def measure_command(
    out: Path,
    space: str = "nano",
    device: Device = "cpu",
    backend: Backend = "eager",
    precision: Precision = "fp32",
    batch_size: int = 1,
    img_size: int | None = None,
    seconds: float = SECONDS,
) -> None:
    """Measure the latency profile of a space on this machine and write it as JSON.

    Args:
        out: JSON file to write.
        space: name of the search space.
        device: device to measure.
        backend: library that runs the networks.
        precision: number format of the networks.
        batch_size: images per call.
        img_size: input side in pixels, such as that of a run's last stage (None: the space's).
        seconds: time networks for about this long.
    """
    check_output(out)
    sized = find_space(space)
    if img_size is not None:
        sized = replace(sized, img_size=img_size)
        if img_size % sized.patch_size:
            raise ValueError(f"img_size is {img_size}; expected a multiple of {sized.patch_size}")
    profile = profile_device(
        sized,
        device=device,
        backend=backend,
        precision=precision,
        batch_size=batch_size,
        seconds=seconds,
        use_cache=False,
    )
    write_whole(out, profile.to_json() + "\n")
    for b in profile.blocks:
        print(f"{b.embed_dim:5d} {b.num_heads:3d} {b.mlp_ratio:4g} {b.ns / NS_PER_MS:9.4f} ms")
    error = profile.error_percent
    print(json.dumps({"out": str(out), "rest_ns": profile.rest_ns, "error_percent": error}))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    return run_command("python -m training.search.costs", measure_command, argv)


if __name__ == "__main__":
    sys.exit(main())
