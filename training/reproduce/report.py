"""Write a reproduction down: results.json, report.md, report.html and the figures (SVG)."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.reproduce.answers import Mean
from training.run.directory import write_text
from training.run.journal import write_json

FIGURES = {
    "b": ("subnets.svg", "Held-out accuracy of random subnets of one supernet."),
    "c": ("search.svg", "Best subnet so far over evaluations; a line for each seed."),
}
SEARCH_FIGURE = ("search/front.svg", "All candidates of the first search by evolution.")


def write_report(
    stages: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any], out: Path
) -> list[str]:
    """Write the report of a reproduction.

    Args:
        stages: what all stages left, by name.
        config: of the reproduction, JSON-able.
        out: its directory; environment.json is there.

    Returns:
        Names of the files written.
    """
    environment = json.loads((out / "environment.json").read_text())
    answers = stages["compare"]["answers"]
    results = {"environment": environment, "config": config, "answers": answers}
    write_json({**results, "stages": stages}, out / "results.json")
    _plot_subnets(stages["evaluate"]["random_held_out_percent"], out / FIGURES["b"][0])
    _plot_traces(stages["search"]["best_so_far"], out / FIGURES["c"][0])
    blocks = list(_blocks(stages, config, environment))
    write_text(out / "report.md", "\n\n".join(map(_markdown, blocks)) + "\n")
    write_text(out / "report.html", _page("\n".join(_html(block, out) for block in blocks)))
    return ["results.json", "report.md", "report.html", *(name for name, _ in FIGURES.values())]


Block = tuple[str, Any]
"""What a part is (title, heading, text, table, figure) and what it holds."""


def _blocks(
    stages: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> Iterator[Block]:
    train, answers = config["train"], stages["compare"]["answers"]
    yield "title", "Reproduction of AutoFormer (arXiv 2107.00651)"
    sizes = ", ".join(
        f"{s['epochs']} epoch{'s' * (s['epochs'] > 1)} at {s['img_size']} px"
        for s in train["stages"]
    )
    space = train["space"] if not train["space"].startswith("{") else "of one's own"
    yield (
        "text",
        f"Space {space}, data {train['data']['source']}, {sizes}, batch {train['batch_size']}, "
        f"seeds {config['seeds']}. Made with torch {environment['torch']}, timm "
        f"{environment['timm']}, commit {environment['commit']}, on {environment['device']} "
        f"({environment['cores']} cores, {environment['threads']} threads).",
    )
    yield (
        "text",
        "Errors are 95 % intervals by Student's t over seeds. “Undecided” means that the interval "
        "holds the rule's threshold, or that there is one seed and so no interval. Accuracies are "
        "top-1 in percent.",
    )
    rows = [(f"({k})", a["question"], a["verdict"], _headline(a)) for k, a in answers.items()]
    yield "table", (("", "question", "answer", "numbers"), rows)
    for letter, each in answers.items():
        yield "heading", f"({letter}) {each['question']}"
        yield "text", f"Answer: {each['verdict']}. Rule: {each['rule']}."
        yield "table", (("", ""), list(_details(each)))
        if letter in FIGURES:
            yield "figure", FIGURES[letter]
        if letter == "c":
            yield "figure", SEARCH_FIGURE
    yield "heading", "The winner"
    search, extracted = stages["search"], stages["extract"]
    yield (
        "text",
        f"`{json.dumps(search['winner'])}`: {extracted['params']:,} parameters, held-out top-1 "
        f"{search['held_out_percent']:.2f} %, in `{extracted['file']}`. Chosen as the best of many "
        "on these very images, so this figure is too high; "
        + ("the test set's is in (a)." if "a" in answers else "the test set was not opened."),
    )
    yield "heading", "Time"
    head = ("stage", "seconds of the call that finished it")
    yield "table", (head, [(n, f"{s['seconds']:.0f}") for n, s in stages.items()])
    runs = {**stages["train"]["runs"], **stages["retrain"]["runs"]}
    timed = [
        (name, r["steps"], f"{r['params']:,}", f"{r['seconds']:.0f}", r["skipped"])
        for name, r in runs.items()
    ]
    yield "table", (("run", "steps", "parameters", "seconds of steps", "steps skipped"), timed)


def _headline(each: Mapping[str, Any]) -> str:
    if "difference_points" in each:
        return f"{_mean(each['difference_points'])} points"
    spread = each["held_out_percent"]
    return f"{spread['least']:.2f} to {spread['most']:.2f}, mean {spread['mean']:.2f}"


def _details(each: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in each.items():
        if name in ("question", "rule", "verdict"):
            continue
        label = name.replace("_", " ").replace("percent", "%").replace("held out", "held-out")
        label = label.replace("mib", "MiB")
        if isinstance(value, dict) and "half_width" in value:
            yield label, _mean(value)
        elif isinstance(value, dict):
            yield from ((f"{label}, {k}", _number(v)) for k, v in value.items())
        else:
            yield label, _number(value)


def _mean(values: Mapping[str, Any]) -> str:
    return str(Mean(**values))


def _number(value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


def _markdown(block: Block) -> str:
    kind, content = block
    if kind == "title":
        return f"# {content}"
    if kind == "heading":
        return f"## {content}"
    if kind == "figure":
        return f"![{content[1]}]({content[0]})"
    if kind == "table":
        head, rows = content
        lines = [head, ["---"] * len(head), *rows]
        return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
    return str(content)


def _html(block: Block, out: Path) -> str:
    kind, content = block
    if kind == "figure":  # inside the page, so that it can be sent as one file
        data = base64.b64encode((out / content[0]).read_bytes()).decode()
        text = html.escape(content[1])
        return f'<p><img alt="{text}" src="data:image/svg+xml;base64,{data}"><br>{text}</p>'
    if kind == "table":
        head, rows = content
        top = "".join(f"<th>{html.escape(str(cell))}</th>" for cell in head)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        return f"<table><tr>{top}</tr>{body}</table>"
    tag = {"title": "h1", "heading": "h2", "text": "p"}[kind]
    return f"<{tag}>{html.escape(content)}</{tag}>"


def _page(body: str) -> str:
    style = (
        "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2em .6em}"
        "img{max-width:100%}"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Reproduction</title><style>{style}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _plot_subnets(scores: list[float], out: Path) -> None:
    figure, axes = _figure()
    axes.hist(scores, bins=min(30, max(5, len(scores) // 5)))
    axes.set(xlabel="held-out top-1, %, inherited weights", ylabel=f"of {len(scores)} subnets")
    _save(figure, out)


def _plot_traces(traces: Mapping[str, list[list[float]]], out: Path) -> None:
    figure, axes = _figure()
    for color, (name, each) in zip(("tab:blue", "tab:orange"), traces.items(), strict=True):
        for i, trace in enumerate(each):
            label = name if i == 0 else None
            axes.plot(range(1, len(trace) + 1), trace, color=color, linewidth=1, label=label)
    axes.set(xlabel="evaluations", ylabel="best held-out top-1 so far, %")
    axes.legend()
    _save(figure, out)


def _figure() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=(6, 3.4), layout="constrained")


def _save(figure: Any, out: Path) -> None:
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(out, metadata={"Date": None})
    plt.close(figure)
