"""Tables in Markdown from rows: the text between the markers of README and docs.

Below each table stands on which machine, when and with which versions its figures were measured.
Several machines make several tables. The package writes no figure into a page in any other way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from autoformer_zoo.published import MODELS, PUBLISHED
from autoformer_zoo.specialization.front import DEIT
from autoformer_zoo.specialization.predictor import load_predictor, predict_top1
from autoformer_zoo.specialization.slices import load_slices
from benchmarks import search
from benchmarks.budgets import checked, profiles
from benchmarks.footprint.startup import PHASES
from benchmarks.measure.models import DEIT_OF_SIZE
from benchmarks.measure.results import read_rows
from benchmarks.measure.rows import Row
from benchmarks.training import train_step

NOT_MEASURED = "Not measured yet on such a device."
PARETO = "pareto"  # a file of latencies: all models with a published accuracy, interleaved
PREDICTED = ("tiny", "small", "base", "nano")  # spaces with an accuracy predictor in the package
FORMS = ("plain", "explicit", "decomposed", "augmented")
COMPETITOR = [
    *("model", "backend", "precision", "batch", "threads", "input"),
    *("device", "machine"),
]
"""Columns that all figures of one model in one setting on one machine share."""


def make_table(name: str, results: Path) -> str:
    """Return the table of a name in `TABLES`, from the files in a folder.

    Raises:
        ValueError: there is no such table, or a file is refused.
    """
    if name not in TABLES:
        raise ValueError(f"no table {name!r}; expected one of {', '.join(TABLES)}")
    return TABLES[name](results)


def published_top1() -> Mapping[str, float]:
    """Return published ImageNet top-1 in percent by model, without tags."""
    zoo = {name.partition(".")[0]: stated.top1_percent for name, stated in PUBLISHED.items()}
    return {**zoo, **dict(DEIT.values())}


def caption(rows: pd.DataFrame) -> str:
    """Return where, when and with what rows were measured."""
    days = sorted(rows.date.str[:10].unique())
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    threads = " or ".join(str(number) for number in sorted(rows.threads.unique()))
    versions = "; or ".join(rows.versions.unique())
    commits = ", ".join(rows.commit.unique())
    machines = ", ".join(rows.machine.unique())
    return f"{machines}, {threads} threads; {when}; {versions}; commit {commits}."


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return rows as a table, one column a field."""
    names = [field.name for field in fields(Row)]
    return pd.DataFrame([asdict(row) for row in rows], columns=names)


def _latency(results: Path, device: str) -> str:
    rows = _read(results, "latency", device)
    columns = {
        "model": "code",
        **_same("backend", "precision", "input", "batch"),
        "ms, median (p10 to p90)": "spread",
        "images/s": "throughput",
        "GMACs": "macs",
        "% of peak": "share_of_peak",
        "peak MiB": "peak_memory",
    }
    return _by_machine(rows, _by_competitor(rows, "latency"), columns)


def _onnx(results: Path, device: str) -> str:
    rows = _read(results, "latency", device)
    rows = rows[rows.backend == "onnxruntime"]
    ratios = _read(results, "latency_ratios", device)[[*COMPETITOR, "interval"]]
    lines = _by_competitor(rows, "latency").drop(columns="interval")
    columns = {
        "model": "code",
        **_same("precision", "batch"),
        "ms, median": "median",
        "images/s": "throughput",
        "peak MiB": "peak_memory",
        "time / DeiT's": "interval",
    }
    return _by_machine(rows, lines.merge(ratios, on=COMPETITOR, how="left"), columns)


def _engines(results: Path, device: str) -> str:
    """Compare engines: each size at batch 1, and in brackets its time over that of DeiT."""
    plain = "what == 'latency' and batch == 1 and input == '224x224'"
    rows = _read(results, "latency", device).query(plain)
    rows = rows[rows.model.isin(list(DEIT_OF_SIZE))]
    ratios = _read(results, "latency_ratios", device)
    ratios = ratios[ratios.model.map(DEIT_OF_SIZE) == ratios.baseline]
    over = ratios.assign(over=_texts(ratios, " ({value})", "{:.2f}".format))[[*COMPETITOR, "over"]]
    cells = rows.merge(over, on=COMPETITOR, how="left")
    cells["cell"] = cells["median"] + cells.over.fillna("")
    place = ["machine", "backend", "precision"]
    lines = cells.pivot_table(index=place, columns="model", values="cell", aggfunc="last")
    sizes = {f"{name}, ms (over DeiT's)": name for name in DEIT_OF_SIZE}
    columns = {**{"engine": "backend"}, **_same("precision"), **sizes}
    return _by_machine(rows, lines.reset_index(), columns)


def _ratios(results: Path, device: str) -> str:
    rows = _read(results, "latency_ratios", device)
    columns = {
        **{"time of": "code", "over": "baseline_code"},
        **_same("backend", "precision", "input", "batch"),
        "ratio (95 % interval)": "interval",
    }
    return _by_machine(rows, rows, columns)


def _speed(results: Path, device: str) -> str:
    """Compare each size with DeiT of that size: the short table of the README."""
    plain = "what == 'latency' and backend == 'eager' and precision == 'fp32'"
    plain += " and input == '224x224'"
    place = ["batch", "threads", "machine"]
    ms = _read(results, "latency", device).query(plain).set_index(["model", *place])["median"]
    rows = _read(results, "latency_ratios", device).query(plain)
    rows = rows[rows.model.map(DEIT_OF_SIZE) == rows.baseline]
    if len(rows):  # of one machine, the last one measured
        rows = rows[rows.machine == max(zip(rows.date, rows.machine, strict=True))[1]]
    lines = rows.merge(ms.rename("ours").reset_index(), on=["model", *place], how="left")
    theirs = ms.rename("theirs").rename_axis(index={"model": "baseline"}).reset_index()
    lines = lines.merge(theirs, on=["baseline", *place], how="left")
    order = {name: place for place, name in enumerate(DEIT_OF_SIZE)}
    by_size = ["model", "batch"]
    lines = lines.sort_values(by_size, key=lambda column: column.map(lambda v: order.get(v, v)))
    columns = {
        **{"model": "code", "batch": "batch", "ms": "ours", "DeiT of that size, ms": "theirs"},
        "time / DeiT's (95 % interval)": "interval",
    }
    return _by_machine(rows, lines, columns)


def _attention(results: Path, device: str) -> str:
    rows = _read(results, "attention", device)
    estimated = "(" + rows["median"] + ")"
    cells = rows.assign(cell=rows["median"].where(rows.repeats > 0, estimated))
    place = ["machine", "input"]
    cells = cells.drop_duplicates([*place, "what", "model"], keep="last")
    wide = cells.pivot(index=place, columns=["what", "model"], values="cell")
    wide.columns = [f"{what} {form}" for what, form in wide.columns]
    lines = rows[place].drop_duplicates().merge(wide.reset_index(), on=place)
    columns = {
        "input": "input",
        **{f"{form}, ms": f"latency {form}" for form in FORMS},
        **{f"{form}, MiB": f"peak_memory {form}" for form in FORMS},
    }
    return _by_machine(rows, lines, columns)


def _startup(results: Path) -> str:
    rows = _read(results, "startup")
    phases = {heading: what for what, heading in PHASES.items() if (rows.what == what).any()}
    columns = {"ms": "code", "bytecode": "input", **phases}
    return _by_machine(rows, _by_competitor(rows, "total"), columns)


def _accuracy(results: Path, part_of_name: str) -> str:
    rows = _read(results, "accuracy")
    rows = rows[rows.model.str.contains(part_of_name, regex=False)]
    columns = {
        "model": "code",
        **_same("backend", "precision"),
        **{"data": "input", "images": "repeats"},
        **{"top-1 %": "top1", "top-5 %": "top5", "ReaL %": "real_top1"},
    }
    return _by_machine(rows, _by_competitor(rows, "top1", "{:.2f}".format), columns)


def _pareto(results: Path, device: str) -> str:
    rows = _read(results, PARETO, device)
    top1 = rows.model.map(published_top1()).map("{:.1f}".format)
    lines = rows.assign(top1=top1).query("what == 'latency'").sort_values("value", kind="stable")
    columns = {
        "model": "code",
        **_same("batch"),
        "ms, median": "median",
        "ImageNet top-1 %, published, not measured here": "top1",
    }
    return _by_machine(rows, lines, columns)


def _operators(results: Path, device: str) -> str:
    rows = _read(results, "operators", device)
    group = ["machine", "input", "batch"]
    cells = rows.assign(
        median=rows["median"].where(rows.value > 0),
        group=rows.groupby(group, sort=False).ngroup(),
        longest=rows.groupby([*group, "what"]).value.transform("max"),
    )
    index = ["group", "longest", *group, "what"]
    lines = cells.pivot(index=index, columns="model", values="median").reset_index()
    lines = lines.sort_values(["group", "longest"], ascending=[True, False], kind="stable")
    models = {f"`{model}`": model for model in rows.model.unique()}
    columns = {**_same("input", "batch"), "ms of": "what", **models}
    return _by_machine(rows, lines, columns)


def _training(results: Path, device: str) -> str:
    rows = _read(results, train_step.FILE, device)
    ratios = _read(results, f"{train_step.FILE}_ratios", device)
    ratios = ratios.assign(over=ratios.baseline + ": " + ratios.interval)
    ratios = ratios.groupby(["what", *COMPETITOR], sort=False).over.agg("; ".join).reset_index()
    speeds = rows.query("what == 'throughput'")
    speeds = speeds.assign(speed=speeds["median"] + " " + speeds.unit.str.removesuffix("/s"))
    peaks = rows.query("what == 'peak_memory'").rename(columns={"median": "peak"})
    lines = rows.query("unit == 'ms'").merge(speeds[[*COMPETITOR, "speed"]], on=COMPETITOR)
    lines = lines.merge(peaks[[*COMPETITOR, "peak"]], on=COMPETITOR, how="left")
    lines = lines.merge(ratios, on=["what", *COMPETITOR], how="left")
    columns = {
        **{"time of a": "what", "space": "model", "input": "input", "way": "backend"},
        **_same("precision", "batch"),
        "ms, median (p10 to p90)": "spread",
        "a second": "speed",
        "peak MiB": "peak",
        "time over (95 % interval)": "over",
    }
    return _by_machine(rows, lines, columns)


def _search(results: Path) -> str:
    rows = _read(results, search.NAME)
    regrets = rows.query("what == 'regret'")
    cells = regrets.assign(cell=_texts(regrets, "{value} ({low} to {high})", "{:.3f}".format))
    index = ["machine", "input", "model"]
    wide = cells.pivot(index=index, columns="batch", values="cell")
    lines = regrets[index].drop_duplicates().merge(wide.reset_index(), on=index)
    columns = {"subnets, accuracies": "input", "method": "model"}
    return _by_machine(rows, lines, columns | {f"{count}": count for count in wide.columns})


def _same_size(results: Path) -> str:
    rows = _read(results, search.NAME)
    top1 = rows.query("what == 'predicted_top1'")
    params = rows.query("what == 'params'").set_index(["machine", "model"]).value
    places = zip(top1.machine, top1.model, strict=True)
    lines = top1.assign(params=[f"{params[place]:,.0f}" for place in places])
    columns = {"subnet": "model", "parameters": "params", "predicted top-1 %": "interval"}
    return _by_machine(rows, lines, columns)


def _profiles(results: Path) -> str:
    """Show the errors of latency profiles for unseen subnets."""
    rows = _read(results, "profiles")
    lines = _by_competitor(rows, profiles.MEDIAN)
    names = {f"{what}, %": what for what in profiles.FIGURES}
    columns = {"space": "model", **_same("backend", "precision", "threads"), **names}
    return _by_machine(rows, lines, columns)


def _checked(results: Path) -> str:
    """Show predicted and measured figures of what was found under latency budgets."""
    rows = _read(results, "checked")
    lines = _by_competitor(rows, "budget").drop(columns="interval")
    intervals = rows[rows.what == checked.PREDICTED][[*COMPETITOR, "interval"]]
    top1 = rows[rows.what == "top-1"].assign(top1=rows.value.map("{:.2f}".format))
    for column in (intervals, top1[[*COMPETITOR, "top1"]]):
        lines = lines.merge(column, on=COMPETITOR)
    columns = {
        **_same("backend", "precision"),
        **{f"{what}, ms": what for what in ("budget", "predicted latency", "latency")},
        "parameters": "parameters",
        "predicted top-1 % (90 % interval)": "interval",
        "top-1 %": "top1",
    }
    return _by_machine(rows, lines, columns)


def _slices(results: Path) -> str:
    """Show the catalogue of named subnets."""
    lines = [
        {
            "name": f"`{name}`",
            "parameters, M": f"{each.params / 1e6:.2f}",
            "MACs, G": f"{each.macs / 1e9:.2f}",
            "predicted top-1 % (90 % interval)": (
                f"{each.top1_percent:.2f} ({each.top1_low:.2f} to {each.top1_high:.2f})"
                + " extrapolated" * each.extrapolated
            ),
            **{f"ms, {setting}": f"{ms:.1f}" for setting, ms in each.latency_ms.items()},
        }
        for name, each in load_slices().items()
    ]
    table = pd.DataFrame(lines)
    return _markdown(table, list(table.columns))


def _predictor(results: Path) -> str:
    """Show the errors of the package's accuracy predictors in cross-validation."""
    lines = []
    for space in PREDICTED:
        for figures in load_predictor(space).facts["figures"]:
            part = {"table": figures["file"], "embed_dim": figures["embed_dim"]}
            error = f"{figures['rmse']:.3f}"
            ranks = [f"{figures[name]:.3f}" for name in ("spearman", "kendall")]
            rest = {
                "Spearman by parameters": f"{figures['spearman_of_params']:.3f}",
                "covered by 90 % intervals": f"{100 * figures['coverage']:.1f} %",
                "lost under budgets": f"{figures['lost_under_budgets']:.3f}",
            }
            line = {"space": space, **part, "subnets": figures["subnets"], "RMSE": error}
            lines.append({**line, **dict(zip(("Spearman", "Kendall"), ranks, strict=True)), **rest})
    table = pd.DataFrame(lines)
    return _markdown(table, list(table.columns))


def _published(results: Path) -> str:
    """Show predictions for AutoFormer's published subnets beside what the authors state."""
    lines = []
    for space in DEIT:  # the sizes of ImageNet
        name = f"autoformer_{space}"
        (top1,) = predict_top1(space, [MODELS[name].subnet])
        interval = f"{top1.value:.2f} ({top1.low:.2f} to {top1.high:.2f})"
        lines.append(
            {
                "subnet": f"`{name}`",
                "predicted top-1 % (90 % interval)": interval,
                "extrapolated": "yes" if top1.extrapolated else "no",
                "published top-1 %": f"{published_top1()[name]:.1f}",
            }
        )
    table = pd.DataFrame(lines)
    return _markdown(table, list(table.columns))


TABLES: Mapping[str, Callable[[Path], str]] = MappingProxyType(
    {
        **{
            f"{name}-{device}": partial(table, device=device)
            for name, table in (
                ("latency", _latency),
                ("ratios", _ratios),
                ("speed", _speed),
                ("onnx", _onnx),
                ("engines", _engines),
                ("attention", _attention),
                ("operators", _operators),
                ("training", _training),
                ("pareto", _pareto),
            )
            for device in ("cpu", "cuda")
        },
        "startup": _startup,
        "profiles": _profiles,
        "checked": _checked,
        "slices": _slices,
        "predictor": _predictor,
        "predictor-published": _published,
        "search": _search,
        "search-same-size": _same_size,
        "accuracy": partial(_accuracy, part_of_name=""),
        "accuracy-nano": partial(_accuracy, part_of_name="nano"),
    }
)
"""Names that a marker may hold, and what makes each table."""


def _read(results: Path, name: str, device: str | None = None) -> pd.DataFrame:
    """Read rows as a table, with further columns of names and figures as Markdown."""
    rows = to_frame(read_rows(results / f"{name}.csv"))
    rows = rows if device is None else rows[rows.device == device]
    return rows.assign(
        code="`" + rows.model + "`",
        baseline_code="`" + rows.baseline + "`",
        median=_texts(rows, "{value}", _short),
        spread=_texts(rows, "{value} ({low} to {high})", _short),
        interval=_texts(rows, "{value} ({low} to {high})", "{:.2f}".format),
    )


def _texts(rows: pd.DataFrame, form: str, show: Callable[[float], str]) -> pd.Series:
    figures = zip(rows.value, rows.low, rows.high, strict=True)
    texts = [form.format(value=show(v), low=show(a), high=show(b)) for v, a, b in figures]
    return pd.Series(texts, index=rows.index, dtype=str)


def _short(value: float) -> str:
    """Return three significant digits, and all digits before the point."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _by_competitor(
    rows: pd.DataFrame, needed: str, show: Callable[[float], str] = _short
) -> pd.DataFrame:
    """Return the rows of one figure, with all figures of the competitor as columns of text."""
    wide = rows.pivot(index=COMPETITOR, columns="what", values="value")
    wide = wide.map(show, na_action="ignore").reset_index()
    return rows[rows.what == needed].merge(wide, on=COMPETITOR, how="left")


def _by_machine(rows: pd.DataFrame, lines: pd.DataFrame, columns: Mapping[str, str]) -> str:
    """Return a table with its caption for each machine, in the order of the rows.

    Args:
        rows: all that was measured.
        lines: one for each line of the tables.
        columns: heading, and the column of `lines` below it.
    """
    parts = []
    for machine, there in rows.groupby("machine", sort=False):
        cells = lines[lines.machine == machine].reindex(columns=list(columns.values()))
        parts += [_markdown(cells, list(columns)), caption(there)]
    return "\n\n".join(parts) or NOT_MEASURED


def _markdown(cells: pd.DataFrame, header: Sequence[str]) -> str:
    # Not `DataFrame.to_markdown`: it pads cells, so that one wider figure would change every line.
    text = cells.astype(object).where(cells.notna(), "-").astype(str).values.tolist()
    lines = [header, ["---"] * len(header), *text]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}
