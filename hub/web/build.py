"""Put the page together: networks as ONNX files, what is known of them, runtime, service worker.

`page/` has the page with gaps (@NAME@); what fills them is written here, so that nothing moves when
the page is opened. models.json is what the page's program reads.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

from tqdm import tqdm

from autoformer_zoo.network.complexity import count_macs, count_params
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.onnx.classifier import OnnxClassifier
from autoformer_zoo.onnx.export import export_onnx
from autoformer_zoo.onnx.metadata import OnnxMetadata, Precision
from autoformer_zoo.published import SUBNETS
from hub.web.networks import NANO, ShownNetwork, has_predictor, nano_front, open_networks
from hub.web.runtime import PACKAGE, download_runtime, place_runtime

PAGE = Path(__file__).parent / "page"
SAMPLE = Path(__file__).parents[2] / "docs" / "cat.jpg"
PRECISIONS: Mapping[str, Precision] = {"int8": "int8-dynamic", "fp32": "fp32"}
ANSWERS = 5


@dataclass(frozen=True, slots=True)
class ShownFile:
    """One ONNX file of a network.

    Args:
        precision: as the page calls it.
        path: from the page.
        size_bytes: of the file.
    """

    precision: str
    path: str
    size_bytes: int


def build_page(out: Path, sources: tuple[str, ...] = (), runtime: Path | None = None) -> list[str]:
    """Make the folder under a temporary name, and rename it when it is complete.

    Args:
        out: the folder; must not exist.
        sources: models, files of weights or ONNX files; by default nano's front.
        runtime: an unpacked onnxruntime-web; fetched by npm if None.

    Returns:
        The paths of its files.

    Raises:
        ValueError: an argument is refused, `out` exists, or the runtime cannot be had.
        CheckpointError: weights are missing or refused.
        OSError: a file cannot be read or written.
    """
    if out.exists():
        raise ValueError(f"{out} exists; give the name of a new folder")
    if not out.parent.is_dir():
        raise ValueError(f"the folder {out.parent} does not exist; make it first")
    networks = list(open_networks(sources)) if sources else nano_front()
    names = [network.name for network in networks]
    if len(set(names)) != len(names):
        raise ValueError(f"networks have the same name: {', '.join(names)}; rename a file")
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        folder = Path(work, "folder")
        placed = folder / "runtime"
        version = download_runtime(placed) if runtime is None else place_runtime(runtime, placed)
        written = _write_networks(networks, folder / "models")
        _write_page(folder, written, note_of(sources), f"Runtime: {PACKAGE} {version} (MIT).")
        files = sorted(path.relative_to(folder).as_posix() for path in _files_in(folder))
        folder.rename(out)
    return files


def note_of(sources: tuple[str, ...]) -> str:
    """Return what the page says about the choice of networks and the figures."""
    drawn = "Each is drawn at the accuracy of fp32."
    if sources:
        return drawn
    published = SUBNETS[NANO]
    last = f"The last is {NANO}, {published.depth} blocks of {published.embed_dim}"
    if has_predictor("nano"):
        return (
            "Subnets of one supernet, those of the highest predicted accuracy for their "
            f"multiply-adds. {last}; its accuracy was measured on CIFAR-10's test images, and the "
            f"predictions are relative to it. {drawn}"
        )
    return (
        "Subnets of one supernet, evenly spaced in multiply-adds: there is no accuracy predictor "
        f"for this space. {last}, the only one whose accuracy is stated. {drawn}"
    )


def fill(template: str, values: Mapping[str, str]) -> str:
    """Fill the gaps of a template; each value keeps the indentation of its gap's line."""

    def filled(gap: re.Match[str]) -> str:
        return values[gap[2]].replace("\n", "\n" + gap[1])

    return re.sub(r"((?:(?<=\n) +)?)@([A-Z]+)@", lambda gap: gap[1] + filled(gap), template)


def service_worker(folder: Path, stored: Sequence[str]) -> str:
    """Return the program of the service worker.

    Args:
        folder: the finished page but for it; its content is the version.
        stored: paths of the files that the first visit stores.
    """
    digest = hashlib.sha256()
    for path in _files_in(folder):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    template = (PAGE / "sw.js").read_text(encoding="utf-8")
    version, files = json.dumps(digest.hexdigest()[:16]), json.dumps(list(stored))
    return template.replace('"@VERSION@"', version).replace('["@FILES@"]', files)


def describe_input(metadata: OnnxMetadata) -> dict[str, Any]:
    """Return what `page/prepare.js` prepares an image by."""
    return {
        "size": metadata.input_size,
        "mean": metadata.mean,
        "std": metadata.std,
        "interpolation": metadata.interpolation,
        "crop_pct": metadata.crop_pct,
        "crop_mode": metadata.crop_mode,
    }


def _write_networks(networks: Sequence[ShownNetwork], folder: Path) -> dict[str, Any]:
    """Write the ONNX files, and return the content of models.json."""
    folder.mkdir(parents=True)
    labels: list[list[str]] = []
    shown = []
    for network in tqdm(networks, desc="networks", unit="network"):
        files = list(_export(network, folder))
        metadata = OnnxClassifier(folder.parent / files[0].path).metadata
        names = list(metadata.labels or ())
        if names not in labels:
            labels.append(names)
        shown.append(
            {
                "name": network.name,
                "about": _about(network, metadata),
                "top1": asdict(network.top1) if network.top1 else None,
                "input": describe_input(metadata),
                "softmax": metadata.softmax,
                "labels": labels.index(names),
                "files": [asdict(file) for file in files],
                "origin": metadata.origin,
                "license": metadata.license,
            }
        )
    return {"networks": shown, "labels": labels}


def _export(network: ShownNetwork, folder: Path) -> list[ShownFile]:
    """Write the files of a network, or copy the one that it is."""
    slug = re.sub(r"[^\w.]+", "-", network.name)
    if isinstance(network.source, Path):
        out = folder / f"{slug}.onnx"
        shutil.copyfile(network.source, out)
        precision = OnnxClassifier(out).metadata.precision.partition("-")[0]
        return [_shown(precision, out)]
    files = []
    for name, precision in PRECISIONS.items():
        out = folder / f"{slug}-{name}.onnx"
        export_onnx(network.source, out, precision=precision)
        files.append(_shown(name, out))
    return files


def _shown(precision: str, path: Path) -> ShownFile:
    return ShownFile(precision, f"{path.parent.name}/{path.name}", path.stat().st_size)


def _about(network: ShownNetwork, metadata: OnnxMetadata) -> str:
    """Return blocks and width, parameters, multiply-adds, as far as they are known."""
    model = network.source
    if not isinstance(model, AutoFormer):
        subnet = metadata.subnet or {}
        return f"{subnet['depth']} blocks of {subnet['embed_dim']}" if subnet else ""
    sizes = (metadata.input_size, model.patch_embed.patch_size, metadata.num_classes)
    params, macs = count_params(model.cfg, *sizes), count_macs(model.cfg, *sizes)
    return (
        f"{model.cfg.depth} blocks of {model.cfg.embed_dim}, {params / 1e6:.1f} M parameters, "
        f"{macs / 1e9:.2f} G MACs"
    )


def _write_page(folder: Path, written: dict[str, Any], note: str, runtime: str) -> None:
    for path in PAGE.iterdir():
        if path.name not in ("index.html", "sw.js"):
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(SAMPLE, folder / "sample.jpg")
    (folder / "models.json").write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
    values = _values(written) | {"NOTE": escape(note), "RUNTIME": escape(runtime)}
    template = (PAGE / "index.html").read_text(encoding="utf-8")
    (folder / "index.html").write_text(fill(template, values), encoding="utf-8")
    others = {file["path"] for each in written["networks"] for file in each["files"][1:]}
    found = (path.relative_to(folder).as_posix() for path in _files_in(folder))
    stored = ["./", *(name for name in found if name not in others)]
    (folder / "sw.js").write_text(service_worker(folder, stored), encoding="utf-8")


def _values(written: Mapping[str, Any]) -> dict[str, str]:
    networks = written["networks"]
    precisions = list(dict.fromkeys(f["precision"] for each in networks for f in each["files"]))
    answers = min(ANSWERS, *(len(names) for names in written["labels"]))
    licenses = dict.fromkeys(
        f"{each['origin'] or each['name']} (license: {each['license']})" for each in networks
    )
    count = "One network" if len(networks) == 1 else f"{len(networks)} networks"
    return {
        "TITLE": "AutoFormer",
        "LEAD": f"{count}, as {' and '.join(precisions)}. Give an image, and see what each answers "
        "and how long it takes here.",
        "ANSWERS": "\n".join(
            ['<li><span class="label">&nbsp;</span><span class="percent"></span>'
             '<span class="bar"></span></li>'] * answers
        ),
        "HEADINGS": "\n".join(f'<th scope="col">{escape(name)}, ms</th>' for name in precisions),
        "NETWORKS": "\n".join(
            _row(each, precisions, is_last=each is networks[-1]) for each in networks
        ),
        "LICENSE": escape(f"Weights: {'; '.join(licenses)}."),
    }  # fmt: skip


def _row(network: Mapping[str, Any], precisions: Sequence[str], is_last: bool) -> str:
    """Return the row of a network; the first file of the last network is chosen at the start."""
    name, top1 = escape(network["name"]), network["top1"]
    files = {file["precision"]: file for file in network["files"]}
    cells = []
    for precision in precisions:
        if precision not in files:
            cells.append("<td></td>")
            continue
        is_chosen = is_last and not any("checked" in cell for cell in cells)
        path = escape(files[precision]["path"])
        cells.append(
            f'<td><label class="choice"><input type="radio" name="file" value="{path}" '
            f'aria-label="{name}, {escape(precision)}"{" checked" * is_chosen} />'
            "<span>&ndash;</span></label></td>"
        )
    known = "<td>&ndash;</td>"
    if top1:
        known = f"<td>{top1['percent']:.1f}<small>{top1['kind']}</small></td>"
    return "\n".join(
        [
            "<tr>",
            f'  <th scope="row">{name}<small>{escape(network["about"])}</small></th>',
            f"  {known}",
            *(f"  {cell}" for cell in cells),
            "</tr>",
        ]
    )


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
