"""The verbs `specialize` and `profile`: the best subnet for a device and a budget."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from autoformer_zoo.cli.command import PROGRAM, option

if TYPE_CHECKING:
    from autoformer_zoo.specialization.latency.profile import LatencyProfile
    from autoformer_zoo.specialization.selection import Choices, Specialized

# `latency.profile`'s, without importing NumPy.
Device = Literal["cpu", "cuda"]
Backend = Literal["eager", "compile", "onnxruntime"]
Precision = Literal["fp32", "bf16", "int8"]

Number = Annotated[float | None, option("N", "(default: no bound)")]
Milliseconds = Annotated[float | None, option("MS", "(default: no bound)")]
Threads = Annotated[int | None, option("N", "(default: PyTorch's choice)")]
PLOTS = (".png", ".svg")


@dataclass(frozen=True, slots=True)
class Specialize:
    """Find the most accurate subnets within a budget; without one, print what is reachable."""

    space: Annotated[str, option("NAME")]
    """Search this space: tiny, small, base or nano."""
    max_params: Number = None
    """Allow at most this many parameters."""
    max_macs: Number = None
    """Allow at most this many multiply-adds of one image."""
    max_latency_ms: Milliseconds = None
    """Allow at most this time of one call; the first time, this machine is measured for minutes."""
    min_params: Number = None
    """Require at least this many parameters."""
    min_macs: Number = None
    """Require at least this many multiply-adds."""
    min_latency_ms: Milliseconds = None
    """Require at least this time of one call."""
    device: Device = "cpu"
    """Device of the latency."""
    backend: Backend = "eager"
    """Library that runs the network."""
    precision: Precision = "fp32"
    """Number format of the network; int8 is for onnxruntime."""
    batch_size: int = 1
    """Images per call."""
    threads: Threads = None
    """Threads on the CPU."""
    profile: Annotated[Path | None, option("FILE", "(default: this machine's)")] = None
    """Take latencies from this file of `profile --out`."""
    predictor: Annotated[Path | None, option("FILE", "(default: the space's)")] = None
    """Predict accuracy with this file of training.fit_predictor."""
    top: int = 1
    """Print this many subnets, the most accurate first."""
    seed: int = 0
    """Seed of the search."""
    out: Annotated[Path | None, option("FILE.json")] = None
    """Write the subnets to this file, which `export --config` reads."""
    export: Annotated[Path | None, option("FILE.onnx")] = None
    """Write the best subnet with its pretrained weights as an ONNX file."""
    pareto: Annotated[Path | None, option("FILE.png|.svg")] = None
    """Draw the front of accuracy against latency; the CSV file beside it has the figures."""
    against: Literal["latency", "params"] = "latency"
    """With --pareto: what accuracy is drawn against."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Search, write the files, and yield a table."""
        from autoformer_zoo.specialization.latency.profile import LatencyProfile
        from autoformer_zoo.specialization.selection import DEFAULT_SETTING, with_latency

        self._check()
        bounds = self._bounds()
        choices, profile = with_latency(
            self.space,
            self.predictor,
            bounds,
            None if self.profile is None else LatencyProfile.load(self.profile),
            {name: getattr(self, name) for name in DEFAULT_SETTING},
            measure=bool(bounds.constrain_latency or (self.pareto and self.against == "latency")),
            progress=sys.stderr.isatty(),
        )
        if self.pareto is not None:
            yield from self._draw(choices, profile)
            return
        if bounds == type(bounds)() and self.out is None and self.export is None:
            yield from self._reach(choices)
            return
        found = choices.search(bounds, self.top, self.seed)
        document = self._document(found, profile)
        if self.out is not None:
            from autoformer_zoo.weights.whole_files import write_whole

            write_whole(self.out, json.dumps(document, indent=1) + "\n")
        yield from [json.dumps(document)] if self.json else _result_lines(found, profile)
        if self.export is not None:  # last: the weights may be missing
            self._export(found[0], profile.setting.precision if profile else self.precision)

    def _check(self) -> None:
        """Check before the work starts what can be checked."""
        from autoformer_zoo.specialization.front import require_matplotlib
        from autoformer_zoo.weights.files import check_output

        if self.top < 1:
            raise ValueError(f"--top is {self.top}; expected 1 or more")
        inputs = [path for path in (self.profile, self.predictor) if path]
        for path, suffixes in ((self.out, (".json",)), (self.export, (".onnx",))):
            if path is not None:
                check_output(path, inputs, suffixes)
        if self.pareto is not None:
            optional = (*BOUNDS, "out", "export")
            unused = [name for name in optional if getattr(self, name) is not None]
            if self.top > 1:
                unused.append("top")
            if unused:
                flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
                raise ValueError(f"--pareto draws the whole front; leave {flags} out")
            check_output(self.pareto, inputs, PLOTS)
            check_output(self.pareto.with_suffix(".csv"), inputs)
            require_matplotlib()

    def _bounds(self) -> Any:  # Bounds
        from autoformer_zoo.specialization.constraints import Bounds

        given = {name: getattr(self, name) for name in BOUNDS}
        return Bounds(**{name: value for name, value in given.items() if value is not None})

    def _reach(self, choices: Choices) -> Iterator[str]:
        reach = choices.reach(self.seed)
        if self.json:
            yield json.dumps({"space": self.space, "reach": reach})
            return
        yield f"space {self.space}, {choices.space.size:.1e} subnets: what is reachable"
        rows: list[tuple[str, ...]] = [("", "smallest", "median", "largest")]
        for name, values in reach.items():
            title, scale, digits = TITLES[name]
            rows.append((title, *(f"{value / scale:.{digits}f}" for value in values)))
        yield from _aligned(rows)
        if "latency_ms" not in reach:
            yield f"latency: not measured on this machine; `{PROGRAM} profile` measures it"
        yield "give a bound, such as --max-params 20e6 or --max-latency-ms 40, for the best subnet"

    def _draw(self, choices: Choices, profile: LatencyProfile | None) -> Iterator[str]:
        from autoformer_zoo.specialization.front import draw_front, find_front, known_points

        assert self.pareto is not None
        cost = "latency_ms" if self.against == "latency" else "params"
        front = find_front(choices, cost, self.seed)
        setting = profile.setting if profile and self.profile is None else None
        known = known_points(self.space, choices, setting)
        images = "CIFAR-10" if self.space == "nano" else "ImageNet"
        table = draw_front(self.pareto, front, known, cost, profile, images=images)
        if self.json:
            yield json.dumps(table)
            return
        yield from _result_lines(front, profile)
        yield f"{self.pareto} and {self.pareto.with_suffix('.csv')} written"

    def _document(self, found: list[Specialized], profile: LatencyProfile | None) -> dict[str, Any]:
        return {
            "space": self.space,
            "setting": None if profile is None else str(profile.setting),
            "machine": None if profile is None else profile.machine,
            "results": [each.to_dict() for each in found],
        }

    def _export(self, best: Specialized, precision: str) -> None:
        from autoformer_zoo.models.factory import create_model
        from autoformer_zoo.onnx.export import export_onnx
        from autoformer_zoo.specialization.latency.profile import export_precision

        assert self.export is not None
        model = create_model(f"autoformer_{self.space}", pretrained=True, subnet=best.subnet)
        export_onnx(model, self.export, precision=export_precision(precision))


@dataclass(frozen=True, slots=True)
class Profile:
    """Measure how long the subnets of a space take on this machine, for `specialize`."""

    space: Annotated[str, option("NAME")]
    """Measure this space: tiny, small, base, nano, or a space as JSON."""
    device: Device = "cpu"
    """Device to measure."""
    backend: Backend = "eager"
    """Library that runs the network."""
    precision: Precision = "fp32"
    """Number format of the network; int8 is for onnxruntime."""
    batch_size: int = 1
    """Images per call."""
    threads: Threads = None
    """Threads on the CPU."""
    adapt: Annotated[Path | None, option("FILE", "(default: measure all)")] = None
    """Adapt this profile of another machine, by timing ten subnets."""
    seconds: float = 120.0
    """Time networks for about this long."""
    again: bool = False
    """Measure even if there is a profile of this machine already."""
    out: Annotated[Path | None, option("FILE.json", "(default: the cache alone)")] = None
    """Write the profile to this file as well."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> Iterator[str]:
        """Measure, and yield what was found."""
        from autoformer_zoo.specialization.latency.measure import (
            profile_device,
            profile_path,
        )
        from autoformer_zoo.specialization.latency.profile import LatencyProfile
        from autoformer_zoo.weights.files import check_output
        from autoformer_zoo.weights.whole_files import write_whole

        if self.out is not None:
            check_output(self.out, [self.adapt] if self.adapt else [], (".json",))
        profile = profile_device(
            self.space,
            device=self.device,
            backend=self.backend,
            precision=self.precision,
            batch_size=self.batch_size,
            threads=self.threads,
            adapt=None if self.adapt is None else LatencyProfile.load(self.adapt),
            seconds=self.seconds,
            use_cache=not self.again,
            progress=sys.stderr.isatty(),
        )
        if self.out is not None:
            write_whole(self.out, profile.to_json() + "\n")
        if self.json:
            yield profile.to_json().replace("\n", "")
            return
        median, high = profile.error_percent
        yield f"{profile.machine}: {profile.setting}"
        yield f"  {profile.num_timed} subnets timed, standard error {profile.noise_percent:.2f} %"
        yield f"  error for subnets left out of the fit: median {median:.2f} %, 90 % < {high:.2f} %"
        cost = profile.cost(space := find_sized(self.space))
        yield (
            f"  latency from {cost.value(space.smallest):.2f} ms (smallest subnet) to "
            f"{cost.value(space.largest):.2f} ms (largest)"
        )
        yield f"  {self.out or profile_path(space, profile.setting)}"


BOUNDS = [f"{end}_{cost}" for cost in ("params", "macs", "latency_ms") for end in ("min", "max")]
# Title, scale and digits of each cost.
TITLES: dict[str, tuple[str, float, int]] = {
    "params": ("parameters, M", 1e6, 2),
    "macs": ("MACs, G", 1e9, 3),
    "latency_ms": ("latency, ms", 1, 2),
    "top1": ("predicted top-1, %", 1, 2),
}


def find_sized(name: str) -> Any:  # a SearchSpace
    """Return the space of that name."""
    from autoformer_zoo.published import find_space

    return find_space(name)


def _result_lines(found: list[Specialized], profile: LatencyProfile | None) -> Iterator[str]:
    rows = [("", "predicted top-1, %", "90 % interval", "params, M", "MACs, G", "latency, ms")]
    for rank, each in enumerate(found, start=1):
        latency = "-" if each.latency_ms is None else f"{each.latency_ms:.2f}"
        rows.append(
            (
                str(rank),
                f"{each.top1.value:.2f}",
                f"{each.top1.low:.2f} to {each.top1.high:.2f}" + "*" * each.top1.extrapolated,
                f"{each.params / 1e6:.2f}",
                f"{each.macs / 1e9:.3f}",
                latency,
            )
        )
    yield from _aligned(rows)
    if any(each.top1.extrapolated for each in found):
        yield "* a size or a depth with a width that none of the measured subnets had"
    for rank, each in enumerate(found, start=1):
        yield f"{rank}  {each.subnet.to_json()}"
    if profile is not None:
        yield f"latency: {profile.setting}, on {profile.machine}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        yield "  ".join([first.ljust(widths[0]), *cells])
