"""Write a reproduction down: results.json, report.md and the figures (SVG)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from autoformer_zoo.published import SPACES
from training.reproduce.answers import inherited_means
from training.reproduce.config import ReproduceConfig
from training.reproduce.intervals import Mean, RankCorrelation
from training.run.directory import write_text
from training.run.journal import read_json, write_json
from training.run.plots import figure
from training.settings.config import TrainConfig, space_of

FIGURES = {
    "b": "![Held-out accuracy of random subnets of one supernet.](subnets.svg)",
    "c": "![Best subnet so far over evaluations; a line for each seed.](search.svg)\n\n"
    "![All candidates of the first search by evolution.](search/front.svg)",
    "f": "![Inherited minus alone over the epochs of both.](gap.svg)",
    "g": "![Held-out accuracy of random subnets, alone over inherited.](ranking.svg)",
}

# What an answer's difference is of.
DIFFERENCES = {
    "a": "inherited minus alone, winner",
    "a2": "inherited minus alone, random subnets",
    "c": "evolution minus random search",
    "d": "entangled minus separate weights",
    "e": "sandwich minus uniform, as many steps",
    "e2": "sandwich minus uniform, as many images",
    "e3": "as (e2), without the smallest subnet",
    "e4": "sandwich without minus with the smallest",
    "f": "gap of (a), longest minus shortest",
    "h": "with minus without a teacher",
    "i": "fine-tuned minus alone",
}

# What to keep in mind with an answer, or with any of several.
NOTES = {
    "a": "The winner of (a) was chosen by its inherited accuracy on held-out images, which favours "
    "inherited weights.",
    "a2": "The subnets of (a2) were drawn at random and trained alone once each.",
    "d e e2 e3 e4 h": "“Steps to match” are those of the first evaluation at which the mean of the "
    "smallest and the largest subnet is at least the other's last one; evaluations are whole "
    "epochs apart, at the input size of their stage.",
    "e2 e3 e4": "The sandwiches of (e2) to (e4) have whole epochs, at least one, so networks see "
    "only about as many images: the numbers are below.",
    "g": "Tau in (g) is lowered by the noise of training each subnet alone only once.",
    "h": "The networks trained alone had no teacher, also where (h) ranks those of taught "
    "supernets.",
    "i": "Fine-tuning in (i) comes after the whole training, so these weights were trained a tenth "
    "longer than those that they are compared with.",
}


def write_report(
    results: Mapping[str, Mapping[str, Any]], config: ReproduceConfig, out: Path
) -> list[str]:
    """Write the report of a reproduction.

    Args:
        results: of all phases before, by name.
        config: of the reproduction.
        out: its directory, which has environment.json.

    Returns:
        Names of the files written.
    """
    environment = read_json(out / "environment.json")
    document = {
        "environment": environment,
        "config": config.to_dict(),
        "answers": results["compare"]["answers"],
        "stages": results,
    }
    write_json(document, out / "results.json")
    evaluated, answers = results["evaluate"], results["compare"]["answers"]
    _plot_subnets(evaluated["random_held_out_percent"], out / "subnets.svg")
    _plot_traces(results["search"]["best_so_far"], out / "search.svg")
    _plot_differences(answers, out / "differences.svg")
    written = ["results.json", "report.md", "subnets.svg", "search.svg", "differences.svg"]
    if "f" in answers:
        _plot_gap(answers["f"]["gap_points_by_epochs"], out / "gap.svg")
        written.append("gap.svg")
    if alone := evaluated.get("alone_held_out_percent"):
        scores = evaluated["compared_held_out_percent"]
        inherited = inherited_means(scores, "uniform", config.seeds, len(alone))
        _plot_ranking(inherited, alone, out / "ranking.svg")
        written.append("ranking.svg")
    write_text(out / "report.md", "\n\n".join(_paragraphs(results, config, environment)) + "\n")
    return written


def _paragraphs(
    results: Mapping[str, Mapping[str, Any]],
    config: ReproduceConfig,
    environment: Mapping[str, Any],
) -> Iterator[str]:
    train, answers = config.train, results["compare"]["answers"]
    yield "# Reproduction of AutoFormer (arXiv 2107.00651)"
    sizes = ", ".join(
        f"{stage.epochs} epoch{'s' * (stage.epochs > 1)} at {stage.img_size} px"
        for stage in train.stages
    )
    yield (
        f"Space {_describe_space(train)}, data {train.data.source}, {sizes}, batch "
        f"{train.batch_size}, {train.opt}, learning rate {train.lr:g}, seeds "
        f"{config.seeds}. Made with torch {environment['torch']}, timm "
        f"{environment['timm']}, commit {environment['commit']}, on {environment['device']} "
        f"({environment['cores']} cores, {environment['threads']} threads)."
    )
    yield (
        "Errors are 95 % intervals by Student's t over seeds, or over subnets in (a2); those of "
        "Kendall's tau are by resampling subnets. “Undecided” means that the interval includes the "
        "rule's threshold, or that there are too few values for one. Accuracies are top-1 in "
        "percent."
    )
    if config.search.half:
        yield (
            "Entangled and inherited weights are rounded to fp16, as a published file has them; "
            "networks trained alone or fine-tuned, and separate weights, are not."
        )
    yield _table(
        ("", "question", "answer", "numbers"),
        ((f"({k})", a["question"], a["verdict"], _headline(a)) for k, a in answers.items()),
    )
    yield "![Differences that the answers rest on, with 95 % intervals.](differences.svg)"
    if notes := [text for letters, text in NOTES.items() if answers.keys() & set(letters.split())]:
        yield " ".join(notes)
    for letter, answer in answers.items():
        yield f"## ({letter}) {answer['question']}"
        yield f"Answer: {answer['verdict']}. Rule: {answer['rule']}."
        yield _table(("", ""), _details(answer))
        if letter in FIGURES:
            yield FIGURES[letter]
    yield "## By seed"
    yield "Top-1 in percent, and the standard deviation over seeds in points."
    yield _table(("", "each seed", "mean", "deviation"), _by_seed(results["evaluate"]))
    yield "## The winner"
    search, extracted = results["search"], results["extract"]
    yield (
        f"`{json.dumps(search['winner'])}`: {extracted['params']:,} parameters, held-out top-1 "
        f"{search['held_out_percent']:.2f} %, in `{extracted['file']}`. It was chosen as the best "
        "of many on these very images, so this figure is too high; "
        + ("that of the test set is in (a)." if "a" in answers else "the test set was not opened.")
    )
    yield "## Time"
    yield _table(
        ("phase", "seconds of the call that finished it"),
        ((name, f"{result['seconds']:.0f}") for name, result in results.items()),
    )
    yield _table(
        ("run", "steps", "parameters", "seconds of steps", "steps skipped"),
        (
            (name, r["steps"], f"{r['params']:,}", f"{r['seconds']:.0f}", r["skipped"])
            for name, r in {**results["train"]["runs"], **results["retrain"]["runs"]}.items()
        ),
    )


def _describe_space(train: TrainConfig) -> str:
    """Return a space's name, or the choices of one that has none."""
    if train.space in SPACES:
        return train.space
    space = space_of(train)
    choices = {
        "embed dim": space.embed_dim,
        "heads": space.num_heads,
        "MLP ratio": space.mlp_ratio,
        "depth": space.depth,
        "patch": (space.patch_size,),
    }
    texts = (f"{name} {', '.join(f'{c:g}' for c in values)}" for name, values in choices.items())
    return f"of its own ({'; '.join(texts)})"


def _by_seed(evaluated: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each quantity that was measured for several seeds."""
    rows: dict[str, list[float]] = {}
    for name, scores in evaluated["compared_held_out_percent"].items():
        kind = name.rpartition("-")[0].replace("_", " ")
        rows.setdefault(f"{kind}: mean of random subnets, held out", []).append(fmean(scores))
    test = evaluated.get("test_percent", {})
    for epochs, pair in {"": test, **test.get("lengths", {})}.items():
        length = f", {epochs} epochs" if epochs else ""
        for way in pair.keys() & {"inherited", "alone", "finetuned"}:
            rows[f"winner, {way}{length}: test"] = pair[way]
    for name, values in sorted(rows.items()):
        deviation = f"{stdev(values):.2f}" if len(values) > 1 else "-"
        yield name, ", ".join(f"{v:.2f}" for v in values), f"{fmean(values):.2f}", deviation


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _headline(answer: Mapping[str, Any]) -> str:
    if "difference_points" in answer:
        return f"{Mean(**answer['difference_points'])} points"
    if "kendall_tau" in answer:
        return f"tau {RankCorrelation(**answer['kendall_tau'])}"
    spread = answer["held_out_percent"]
    return f"{spread['min']:.2f} to {spread['max']:.2f}, mean {spread['mean']:.2f}"


def _details(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the numbers of an answer, each with its name as text."""
    for name, value in answer.items():
        label = name.replace("_", " ").replace("percent", "%").replace("held out", "held-out")
        label = label.replace("mib", "MiB")
        if name in ("question", "rule", "verdict"):
            continue
        if isinstance(value, dict) and not value.keys() & {"ci95", "tau"}:
            yield from ((f"{label}, {part}", _text(number)) for part, number in value.items())
        else:
            yield label, _text(value)


def _text(value: float | dict[str, Any] | None) -> str:
    if isinstance(value, dict):
        return str(RankCorrelation(**value) if "tau" in value else Mean(**value))
    if value is None:
        return "never"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _plot_subnets(scores: list[float], out: Path) -> None:
    with figure(out, 1, width=6) as (axes,):
        axes.hist(scores, bins=min(30, max(5, len(scores) // 5)))
        axes.set(xlabel="held-out top-1, %, inherited weights", ylabel=f"of {len(scores)} subnets")


def _plot_traces(traces: Mapping[str, list[list[float]]], out: Path) -> None:
    with figure(out, 1, width=6) as (axes,):
        for color, (name, seeds) in zip(("tab:blue", "tab:orange"), traces.items(), strict=True):
            for i, trace in enumerate(seeds):
                label = name if i == 0 else None
                axes.plot(range(1, len(trace) + 1), trace, color=color, linewidth=1, label=label)
        axes.set(xlabel="evaluations", ylabel="best held-out top-1 so far, %")
        axes.legend()


def _plot_differences(answers: Mapping[str, Any], out: Path) -> None:
    shown = {k: a["difference_points"] for k, a in answers.items() if "difference_points" in a}
    names = [f"{DIFFERENCES[letter]} ({letter})" for letter in shown]
    with figure(out, 1, width=8, height=1 + 0.3 * len(shown)) as (axes,):
        _draw_means(axes, list(shown.values()), range(len(shown)), along="x")
        axes.axvline(0, color="gray", linewidth=0.8)
        axes.set_yticks(range(len(shown)), names)
        axes.invert_yaxis()
        axes.set(xlabel="difference, points of top-1")


def _plot_gap(gaps: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    from matplotlib.ticker import NullLocator

    epochs = [int(name) for name in gaps]
    with figure(out, 1, width=6) as (axes,):
        axes.set_xscale("log")
        axes.set_xticks(epochs, epochs)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.plot(epochs, [gap["mean"] for gap in gaps.values()], color="tab:blue", linewidth=1)
        _draw_means(axes, list(gaps.values()), epochs, along="y")
        axes.axhline(0, color="gray", linewidth=0.8)
        axes.set(xlabel="epochs", ylabel="inherited minus alone, points of test top-1")


def _plot_ranking(inherited: Sequence[float], alone: Sequence[float], out: Path) -> None:
    with figure(out, 1, width=4) as (axes,):
        axes.scatter(inherited, alone, s=16)
        axes.set(xlabel="held-out top-1, %, inherited", ylabel="held-out top-1, %, alone")


def _draw_means(
    axes: Any, means: Sequence[Mapping[str, Any]], positions: Sequence[int], along: str
) -> None:
    """Draw means with their intervals; one of a single value has none."""
    values, errors = [m["mean"] for m in means], [m["ci95"] or 0.0 for m in means]
    style = {"fmt": "o", "color": "tab:blue", "capsize": 3, "markersize": 4}
    if along == "x":
        axes.errorbar(values, positions, xerr=errors, **style)
    else:
        axes.errorbar(positions, values, yerr=errors, **style)
