"""The model card of a network: metadata that the Hub checks, and a text made of known figures.

The text is `card.md`. Its figures come from the table of models and from the benchmarks' rows:
published, measured and predicted ones stay apart, and what is not known is said to be unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from autoformer_zoo.network.complexity import count_macs, count_params
from autoformer_zoo.published import MODELS, Accuracy
from autoformer_zoo.space import SubnetConfig
from autoformer_zoo.weights.layouts import Architecture
from autoformer_zoo.weights.sources import SOURCES, UpstreamFile
from benchmarks.measure.results import read_rows
from benchmarks.measure.rows import Row

TEMPLATE = Path(__file__).parent / "card.md"
LATENCY = Path(__file__).parents[1] / "benchmarks" / "results" / "latency.csv"

_DATASETS = {"ImageNet-1k validation": "imagenet-1k", "CIFAR-10 test": "cifar10"}
_LICENSES = ("mit", "apache-2.0")  # the Hub's identifiers of what occurs here


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says about a network.

    Args:
        name: model.tag of the registry, or any title of another subnet.
        repo: USER/NAME on the Hub.
        net: the architecture.
        has_supernet: the folder has the supernet too.
        origin: who trained the weights; "" if unknown.
        license: of the weights, as the header has it; "" if unknown.
        published: accuracy stated by the authors.
        measured: accuracy measured with this project.
        predicted: accuracy that a formula gives.
    """

    name: str
    repo: str
    net: Architecture
    has_supernet: bool = False
    origin: str = ""
    license: str = ""
    published: Accuracy | None = None
    measured: Accuracy | None = None
    predicted: Accuracy | None = None


def make_card(facts: CardFacts, rows: Sequence[Row] | None = None) -> str:
    """Return the text of README.md.

    Args:
        facts: about the network.
        rows: of the benchmarks; by default those of this project. Only rows of `facts.name` are
            used.
    """
    model = facts.name.partition(".")[0]
    rows = read_rows(LATENCY) if rows is None else rows
    values = {
        "metadata": card_data(facts).to_yaml().strip(),
        "title": facts.name,
        "name": facts.name if model in MODELS else "FILE.safetensors",
        "summary": _summary(facts),
        "architecture": "\n".join(f"| {what} | {value} |" for what, value in _architecture(facts)),
        "accuracy": _accuracy_table(facts),
        "speed": _speed_table([row for row in rows if row.model == model]),
        "use_az": _use_az(facts),
        "use_timm": _use_timm(facts),
        "use_onnx": _use_onnx(facts),
        "use_js": _use_js(),
        "oddities": "\n".join(f"- {text}" for text in _oddities(facts)),
        "license": _license_text(facts),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def card_data(facts: CardFacts) -> ModelCardData:
    """Return the metadata of a card; measured accuracies become its `model-index`."""
    stated = [each for each in (facts.published, facts.measured) if each]
    datasets = list(dict.fromkeys(_DATASETS.get(each.dataset, "") for each in stated))
    results = list(_eval_results(facts.measured)) if facts.measured else None
    arguments: dict[str, Any] = {
        "license": facts.license if facts.license in _LICENSES else "unknown",
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "transformers", "autoformer"],
        "datasets": [name for name in datasets if name] or None,
    }
    if results:
        arguments |= {"model_name": facts.name, "eval_results": results, "metrics": ["accuracy"]}
    return ModelCardData(**arguments)


def _eval_results(accuracy: Accuracy) -> Iterator[EvalResult]:
    for top, value in ((1, accuracy.top1_percent), (5, accuracy.top5_percent)):
        if value is not None:
            yield EvalResult(
                task_type="image-classification",
                dataset_type=_DATASETS.get(accuracy.dataset, "other"),
                dataset_name=accuracy.dataset,
                metric_type="accuracy",
                metric_value=value,
                metric_name=f"top-{top} accuracy, %",
            )


def _summary(facts: CardFacts) -> str:
    text = "A vision transformer of AutoFormer's search space (ICCV 2021) for image classification."
    if facts.has_supernet:
        text += " Its supernet is in `supernet.safetensors`: any other subnet can be cut from it."
    return text


def _architecture(facts: CardFacts) -> Iterator[tuple[str, str]]:
    net, sizes = facts.net, facts.net.sizes
    params = count_params(sizes, net.img_size, net.patch_size, net.num_classes, net.in_chans)
    macs = count_macs(sizes, net.img_size, net.patch_size, net.num_classes, net.in_chans)
    yield "parameters", f"{params:,}"
    yield "multiply-adds", f"{macs:,}"
    yield "input", f"{net.img_size[0]} x {net.img_size[1]} pixels, patches of {net.patch_size[0]}"
    yield "classes", str(net.num_classes)
    yield "depth, width", f"{sizes.depth} blocks, {sizes.embed_dim} channels"
    yield "heads", ", ".join(map(str, sizes.num_heads))
    yield "MLP ratios", ", ".join(f"{ratio:g}" for ratio in sizes.mlp_ratio)
    yield "weights", facts.origin or "of unknown origin"


def _accuracy_table(facts: CardFacts) -> str:
    lines = ["| | top-1, % | top-5, % | images | by |", "|---|---|---|---|---|"]
    for kind in ("published", "measured", "predicted"):
        accuracy: Accuracy | None = getattr(facts, kind)
        if accuracy is None:
            lines.append(f"| {kind} | - | - | | |")
            continue
        top5 = "-" if accuracy.top5_percent is None else f"{accuracy.top5_percent:.2f}"
        mark = "about " if kind == "predicted" else ""
        lines.append(
            f"| {kind} | {mark}{accuracy.top1_percent:.2f} | {top5} | {accuracy.dataset} "
            f"| {accuracy.by} |"
        )
    return "\n".join(lines)


def _speed_table(rows: Iterable[Row]) -> str:
    latency = [row for row in rows if row.what == "latency" and row.value and not row.baseline]
    if not latency:
        return "Not measured."
    lines = ["| backend | format | batch | threads | ms | machine |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {row.backend} | {row.precision} | {row.batch} | {row.threads} | {row.value:.3g} "
        f"| {row.machine}, {row.date[:10]} |"
        for row in latency
    ]
    return "\n".join(lines)


def _use_az(facts: CardFacts) -> str:
    lines = ["import autoformer_zoo as az", ""]
    lines += [f'model = az.create_model("hf-hub:{facts.repo}", pretrained=True).eval()']
    lines += ['print(az.predict(model, "image.jpg", top_k=3)[0])']
    if facts.has_supernet:
        sizes = _shallower(facts.net.sizes)
        lines += [f"subnet = az.SubnetConfig.from_json('{sizes.to_json()}')"]
        lines += [f'other = az.create_model("hf-hub:{facts.repo}", pretrained=True, subnet=subnet)']
    return "\n".join(lines)


def _shallower(sizes: SubnetConfig) -> SubnetConfig:
    depth = max(1, sizes.depth - 1)
    return SubnetConfig(depth, sizes.embed_dim, sizes.num_heads[:depth], sizes.mlp_ratio[:depth])


def _use_timm(facts: CardFacts) -> str:
    return "\n".join(
        [
            "import autoformer_zoo, timm",
            "from transformers import pipeline",
            "",
            f'model = timm.create_model("hf-hub:{facts.repo}", pretrained=True)',
            f'print(pipeline("image-classification", model="{facts.repo}")("image.jpg"))',
        ]
    )


def _use_onnx(facts: CardFacts) -> str:
    name = facts.name if facts.name.partition(".")[0] in MODELS else "FILE.safetensors"
    return (
        f"autoformer-zoo export {name} model.onnx\n"
        "autoformer-zoo predict image.jpg --backend onnxruntime --checkpoint model.onnx"
    )


def _use_js() -> str:
    return "\n".join(
        [
            'import { env, pipeline } from "@huggingface/transformers";',
            'env.localModelPath = "./";',
            "env.allowRemoteModels = false;",
            'const classify = await pipeline("image-classification", "web", { dtype: "q8" });',
            'console.log(await classify("image.jpg"));',
        ]
    )


def _oddities(facts: CardFacts) -> Iterator[str]:
    source = _source(facts)
    if source and source.name.startswith("official"):
        yield (
            "The bias of q, k and v is packed so that the number of heads decides which numbers "
            "are the bias of v: readers that slice it like the weight are wrong."
        )
        if source.space == "tiny":
            yield "The supernet is uneven: subnets with an embed_dim of 240 lose four points."
    if source and source.verified:
        yield f"The released file was {source.verified}."
    yield "Heads are 64 channels wide whatever the width, and the class token is not pooled."
    if max(facts.net.grid_size) <= 14:
        yield (
            "Inputs with more than 14 patches on a side read rows of the relative position tables "
            "that training never reached: fine-tune before you rely on them."
        )
    yield "transformers.js resizes without antialiasing: its probabilities differ on large images."


def _source(facts: CardFacts) -> UpstreamFile | None:
    model, _, tag = facts.name.partition(".")
    weights = MODELS[model].weights.get(tag) if model in MODELS else None
    return SOURCES.get(weights.source or "") if weights else None


def _license_text(facts: CardFacts) -> str:
    if re.fullmatch(r"[\w.+-]+", facts.license):
        return f"Weights: {facts.license}. Code of autoformer_zoo: MIT."
    reason = facts.license.removeprefix("unknown: ") or "none is recorded"
    return (
        f"The license of the weights is unknown ({reason}): ask their authors before you "
        "distribute them. Code of autoformer_zoo: MIT."
    )
