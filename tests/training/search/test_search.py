"""The search command: its files, stopping and going on, several processes, limits on latency."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import autoformer_zoo as az
from autoformer_zoo.factory import extract_subnet
from autoformer_zoo.network.vit import AutoFormer
from autoformer_zoo.space import SearchSpace, SubnetConfig
from autoformer_zoo.weights.checkpoint import SupernetWeights, save_supernet
from training.config import Resources, Stage
from training.data import open as data_open
from training.data.cifar10 import Images
from training.presets import SMOKE
from training.run import plots as search_plot
from training.run.journal import Journal
from training.search import evaluation as subject_module
from training.search import search as search_module
from training.search.__main__ import main
from training.search.config import Bounds, SearchConfig
from training.search.costs import BlockLatency, LatencyTable, measure_latencies, params_cost
from training.search.evaluation import (
    MemoryBatches,
    Subject,
    accuracy,
    accuracy_on,
    inherited_accuracy,
    open_subject,
)
from training.search.evolution import EvolutionConfig
from training.search.scoring import SearchError, SpreadScore
from training.search.search import search, winner_of
from training.train import train

SPACE = SearchSpace(
    embed_dim=(64, 96),
    num_heads=(1, 2),
    mlp_ratio=(1.0, 2.0),
    depth=(1, 2),
    supernet=SubnetConfig.uniform(2, 96, 2, 2.0),
    img_size=16,
    patch_size=4,
    num_classes=10,
)
CONFIG = SearchConfig(evolution=EvolutionConfig(6, 3, 3, 2, 2))


def make_images(count: int = 40) -> Images:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return Images(images, torch.arange(count) % 10)


@pytest.fixture
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the seconds that matplotlib needs."""
    monkeypatch.setattr(search_plot, "plot_search", lambda *rest: None)


@pytest.fixture
def subject() -> Subject:
    network = AutoFormer(SPACE.supernet, img_size=16, patch_size=4, num_classes=10)
    with torch.no_grad():  # answers that differ from image to image and subnet to subnet
        network.head.weight.normal_()
        network.pos_embed.normal_()
    tensors = {name: p.detach() for name, p in network.named_parameters()}
    weights = SupernetWeights(tensors, SPACE.supernet, "prefix", (16, 16), (4, 4), 3, 10)
    return Subject(weights, SPACE, MemoryBatches(make_images(), 16), {"supernet": "made up"})


def test_search_writes_every_candidate_and_a_winner_that_opens(
    tmp_path: Path, subject: Subject
) -> None:
    result = search(subject, CONFIG, tmp_path, progress=False)
    assert json.loads((tmp_path / "search.json").read_text()) == result
    assert len(result["candidates"]) == 18
    assert max(e["score"] for e in result["candidates"]) > min(
        e["score"] for e in result["candidates"]
    )
    winner = winner_of(result)
    assert SubnetConfig.from_json((tmp_path / "subnet.json").read_text()) == winner
    best = result["candidates"][result["best"]]
    assert best["score"] == max(each["score"] for each in result["candidates"])
    assert best["params"] == params_cost(SPACE).value(winner)
    model = az.create_model(
        "autoformer_subnet", checkpoint_path=tmp_path / "subnet.safetensors"
    ).eval()
    assert accuracy(model, make_images(), 16) == best["score"]
    assert "<svg" in (tmp_path / "front.svg").read_text()
    assert not list(tmp_path.glob("*.tmp"))


def test_search_is_told_the_accuracy_of_the_extracted_subnet(subject: Subject) -> None:
    subnet = SPACE.smallest
    model = extract_subnet(subject.supernet, subnet)
    batch = next(iter(subject.batches))
    with torch.no_grad():
        right = (model(batch.x).argmax(1) == batch.labels).float().mean().item()
    assert inherited_accuracy(subject.supernet, subnet, subject.batches) == pytest.approx(
        100 * right
    )


def test_accuracy_leaves_out_images_that_could_not_be_read() -> None:
    images = make_images(8)
    images.labels[4:] = -1
    network: Callable[[torch.Tensor], torch.Tensor] = lambda x: torch.eye(10)[:1].expand(len(x), 10)  # noqa: E731
    assert accuracy_on(network, MemoryBatches(images, 16)) == 25
    with pytest.raises(
        ValueError, match="no image to classify; expected some that can be read in the split"
    ):
        accuracy_on(network, [])


@pytest.mark.usefixtures("no_plot")
@pytest.mark.parametrize("stop_after", [0, 13])
def test_search_stopped_anywhere_ends_alike(
    tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    search(subject, CONFIG, tmp_path / "whole", progress=False)
    calls: list[SubnetConfig] = []

    def stop(supernet: object, subnet: SubnetConfig, *rest: Any) -> float:
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(subnet)
        return inherited_accuracy(subject.supernet, subnet, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(subject_module, "inherited_accuracy", stop)
        with pytest.raises(KeyboardInterrupt):
            search(subject, CONFIG, tmp_path / "cut", progress=False)
    journal = tmp_path / "cut" / "journal-0.jsonl"
    assert journal.exists() == bool(stop_after)
    if stop_after:
        with journal.open("a") as file:
            file.write('{"subnet": {"dep')  # a line that a kill tore off

    def count(supernet: object, subnet: SubnetConfig, *rest: Any) -> float:
        assert subnet not in calls
        return inherited_accuracy(subject.supernet, subnet, *rest)

    monkeypatch.setattr(subject_module, "inherited_accuracy", count)
    search(subject, CONFIG, tmp_path / "cut", progress=False)
    for name in ("search.json", "subnet.json", "subnet.safetensors"):
        whole, cut = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert whole == cut
    assert (
        len(Journal(journal, json.loads(journal.read_text().splitlines()[0])["header"]).lines) == 18
    )


@pytest.mark.usefixtures("no_plot")
def test_search_refuses_to_go_on_as_another_one(tmp_path: Path, subject: Subject) -> None:
    search(subject, CONFIG, tmp_path, progress=False)
    other = replace(subject, identity={"supernet": "another"})
    with pytest.raises(ValueError, match="begun with supernet='made up', requested 'another'"):
        search(other, CONFIG, tmp_path, progress=False)
    told = r"begun with config\.method='evolution', requested 'random'.* give another --out or the"
    with pytest.raises(ValueError, match=told):
        search(subject, replace(CONFIG, method="random"), tmp_path, progress=False)


def test_damaged_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal-0.jsonl"
    path.write_text('{"header": {}}\nnonsense\n')
    with pytest.raises(ValueError, match=r"journal-0\.jsonl is damaged .*; delete it to"):
        Journal(path, {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"subnet": SPACE.smallest.to_dict()}, "'score' is missing"),
        ({"score": 1.0}, "'subnet' is missing"),
        ({"subnet": {"depth": 1}, "score": 1.0}, "SubnetConfig: unknown keys"),
        ({"subnet": SPACE.smallest.to_dict(), "score": None}, "the score is None"),
        ([1], "list indices must be integers"),
    ],
    ids=["no score", "no subnet", "half a subnet", "score of nothing", "a list"],
)
def test_journal_without_scores_is_named(tmp_path: Path, line: object, reason: str) -> None:
    path = tmp_path / "journal-3.jsonl"
    path.write_text('{"header": {}}\n' + json.dumps(line) + "\n")
    text = rf"journal-3\.jsonl is damaged \(line 2: {reason}.*\); delete it to start anew"
    with pytest.raises(ValueError, match=text):
        SpreadScore(lambda subnet: 1.0, tmp_path, {}, progress=False)


@pytest.mark.usefixtures("no_plot")
def test_limits_hold_and_impossible_ones_end_at_once(tmp_path: Path, subject: Subject) -> None:
    bounds = Bounds(max_params=1e5, min_macs=1e6)
    result = search(subject, replace(CONFIG, bounds=bounds), tmp_path / "some", progress=False)
    assert all(e["params"] <= 1e5 and e["macs"] >= 1e6 for e in result["candidates"])
    few = replace(CONFIG, bounds=Bounds(max_params=10))
    with pytest.raises(ValueError, match=r"params from 0 to 10; the space reaches"):
        search(subject, few, tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ({"max_params": float("nan")}, "bounds.max_params is nan; expected 0 or more"),
        ({"min_macs": -1}, "bounds.min_macs is -1; expected 0 or more"),
        (
            {"min_latency_ms": 5, "max_latency_ms": 4},
            "bounds.min_latency_ms is 5 and bounds.max_latency_ms 4; expected the lower end first",
        ),
    ],
    ids=["nan", "negative", "empty"],
)
def test_bounds_that_cannot_be_meant_are_refused(bounds: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Bounds(**bounds)


def test_command_refuses_such_a_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path), "--run-dir", str(tmp_path)]
    assert main([*arguments, "--bounds.max-params", "nan"]) == 2
    assert "bounds.max_params is nan" in capsys.readouterr().err


def test_supernet_of_another_space_is_refused(tmp_path: Path, subject: Subject) -> None:
    with pytest.raises(ValueError, match="the supernet is not of this space: depth 7 needs"):
        search(replace(subject, space=az.SPACES["nano"]), CONFIG, tmp_path)


@pytest.mark.usefixtures("no_plot")
def test_latency_is_measured_once_and_limits(tmp_path: Path, subject: Subject) -> None:
    table = measure_latencies(SPACE, rounds=3, seconds=0.1)
    assert LatencyTable.from_json(table.to_json()) == table
    cost = table.cost(SPACE)
    assert cost.value(SPACE.largest) > 0
    most = max(cost.value(SPACE.smallest), cost.value(SPACE.largest))
    path = tmp_path / "table.json"
    path.write_text(table.to_json())
    config = replace(CONFIG, bounds=Bounds(max_latency_ms=most), latency_table=str(path))
    result = search(subject, config, tmp_path / "out", progress=False)
    assert all(e["latency_ms"] <= most for e in result["candidates"])


def made_table(space: SearchSpace) -> LatencyTable:
    blocks = tuple(
        BlockLatency(dim, heads, ratio, int(1000 * dim * heads * ratio))
        for dim in space.embed_dim
        for heads in space.num_heads
        for ratio in space.mlp_ratio
    )
    rest = {str(dim): 500 * dim for dim in space.embed_dim}
    return LatencyTable("cpu", 1, 1, space.img_size, space.patch_size, {}, rest, blocks)


@pytest.mark.usefixtures("no_plot")
def test_latency_table_on_the_spot_is_kept(
    tmp_path: Path, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = made_table(SPACE)
    measured: list[int] = []
    monkeypatch.setattr(
        search_module, "measure_latencies", lambda *rest: measured.append(1) or table
    )
    config = replace(CONFIG, bounds=Bounds(max_latency_ms=1e9))
    one = search(subject, config, tmp_path, progress=False)
    assert search(subject, config, tmp_path, progress=False) == one
    assert measured == [1]
    with pytest.raises(ValueError, match=r"was begun with config\.half=True, requested False"):
        search(subject, replace(config, half=False), tmp_path, progress=False)


def test_latency_table_of_another_space_is_refused() -> None:
    table = measure_latencies(replace(SPACE, num_heads=(1,)), rounds=3, seconds=1)
    with pytest.raises(ValueError, match=r"lacks the block .* = \(64, 2, 1.0\); measure another"):
        table.cost(SPACE)
    with pytest.raises(ValueError, match=r"for images and patches of \(16, 4\) px, the space"):
        table.cost(az.SPACES["nano"])
    with pytest.raises(ValueError, match="not a table of block latencies"):
        LatencyTable.from_json('{"blocks": []}')


RANKS = """
import json, os, sys
from pathlib import Path
from autoformer_zoo.space import SearchSpace
from training.evolution import EvolutionConfig, evolve
from training.limits import Feasible
from training.spread import SearchError, SpreadScore, join_ranks
import logging
space = SearchSpace.from_json(sys.argv[1])
out = Path(sys.argv[2])
fails = [False]
def score_one(subnet):
    if fails[0] and rank == 1:
        raise OSError("the disk is gone")
    return subnet.embed_dim + sum(subnet.mlp_ratio) - len(subnet.num_heads) / 3
rank, world = join_ranks()
score = SpreadScore(score_one, out / "good", {"a": 1}, rank, world, False)
done = evolve(Feasible(space), score, EvolutionConfig(6, 3, 3, 2, 2))
told = [[e.subnet.to_dict(), e.score] for e in done]
(out / f"done-{rank}.json").write_text(json.dumps(told))
(out / f"here-{rank}.json").write_text(json.dumps(score.scored_here))
assert score.scored == 18
fails[0] = True
try:
    evolve(Feasible(space), SpreadScore(score_one, out / "bad", {}, rank, world, False))
except SearchError as error:
    (out / f"error-{rank}.txt").write_text(str(error))
for name, kind in (("good", ValueError), ("shut", OSError)):
    try:
        SpreadScore(score_one, out / name, {"a": 2}, rank, world, False)
    except kind as error:
        (out / f"{name}-{rank}.txt").write_text(str(error))
"""


@pytest.mark.slow
def test_two_processes_share_candidates_and_failures(tmp_path: Path) -> None:
    (tmp_path / "shut" / "journal-0.jsonl").mkdir(parents=True)  # no file to read
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-c", RANKS, SPACE.to_json(), str(tmp_path)]
    root = Path(__file__).resolve().parents[3]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            command,
            cwd=root,
            env={**os.environ, **shared, "RANK": rank, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    read = lambda name: (tmp_path / name).read_text()  # noqa: E731
    done = json.loads(read("done-0.json"))
    assert json.loads(read("done-1.json")) == done
    assert len(done) == 18
    assert sum(json.loads(read(f"here-{rank}.json")) for rank in (0, 1)) == 18
    for rank in (0, 1):
        assert json.loads(read(f"here-{rank}.json")) == 9
        assert "process 1: OSError('the disk is gone'); give the same" in read(f"error-{rank}.txt")
        assert "was begun with a=1, requested 2" in read(f"good-{rank}.txt")
        assert "Is a directory" in read(f"shut-{rank}.txt")

    # And one process alone goes on from both journals.
    score = SpreadScore(lambda subnet: 1 / 0, tmp_path / "good", {"a": 1}, progress=False)
    assert score([SubnetConfig.from_dict(done[0][0])]) == [done[0][1]]


def test_lost_process_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*rest: object) -> None:
        raise RuntimeError("Connection closed by peer\nat some address")

    monkeypatch.setattr(torch.distributed, "all_gather_object", lambda *rest: None)
    score = SpreadScore(lambda subnet: 1.0, tmp_path, {}, rank=1, world=2, progress=False)
    score._known = {}
    monkeypatch.setattr(torch.distributed, "all_gather_object", lost)
    with pytest.raises(SearchError, match=r"a process was lost \(Connection closed by peer\)"):
        score([SPACE.smallest, SPACE.largest])
    assert len(SpreadScore(lambda s: 1.0, tmp_path, {}, progress=False)._known) == 1


def test_journal_and_bar_come_with_the_first_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = SpreadScore(lambda subnet: 1.0, tmp_path / "out", {})
    assert not (tmp_path / "out").exists()
    score([SPACE.smallest])
    assert "0/1" in capsys.readouterr().err
    assert (tmp_path / "out" / "journal-0.jsonl").exists()
    assert score([SPACE.smallest]) == [1.0]
    assert (score.scored_here, score.scored) == (1, 1)
    assert capsys.readouterr().err == ""


def test_speed_is_told_by_the_first_process(
    tmp_path: Path,
    subject: Subject,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(search_module, "write_result", lambda *rest: None)
    search(subject, CONFIG, tmp_path / "0", progress=False)
    assert "18 candidates in" in caplog.text
    caplog.clear()
    score = SpreadScore(subject.accuracy, tmp_path / "1", {}, progress=False)
    monkeypatch.setattr(search_module, "SpreadScore", lambda *rest: score)
    monkeypatch.setattr(search_module, "join_ranks", lambda: (1, 1))
    search(subject, CONFIG, tmp_path / "1", progress=False)
    assert caplog.text == ""


@pytest.fixture
def made_data(monkeypatch: pytest.MonkeyPatch) -> None:
    split = lambda *rest: (make_images(40), make_images(20))  # noqa: E731
    monkeypatch.setattr(data_open, "load_train", split)


@pytest.mark.usefixtures("no_plot")
def test_command_searches_a_run_or_a_file(
    tmp_path: Path, made_data: None, subject: Subject, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(SMOKE, space=SPACE.to_json(), stages=(Stage(1, 16),), batch_size=20)
    train(config, tmp_path, tmp_path / "run", progress=False, resources=Resources(plot=False))
    sizes = "--evolution.population 4 --evolution.generations 2 --evolution.keep 2"
    few = [*sizes.split(), "--evolution.crossover", "1", "--evolution.mutation", "1"]
    common = ["--data-dir", str(tmp_path), *few, "--out"]
    assert main([*common, str(tmp_path / "a"), "--run-dir", str(tmp_path / "run")]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert SPACE.contains(SubnetConfig.from_dict(printed["subnet"]))

    assert main([*common, str(tmp_path / "b")]) == 2
    assert "give either --run-dir, a training run, or --supernet" in capsys.readouterr().err
    file = tmp_path / "supernet.safetensors"
    save_supernet(subject.supernet, file)
    wrong = [*common, str(tmp_path / "c"), "--supernet", str(file), "--preset", "smoke"]
    assert main(wrong) == 2
    assert "the supernet is not of this space" in capsys.readouterr().err


def test_subject_of_a_run_is_its_rounded_average(tmp_path: Path, made_data: None) -> None:
    config = replace(SMOKE, space=SPACE.to_json(), stages=(Stage(1, 16),), batch_size=20)
    train(config, tmp_path, tmp_path / "run", progress=False, resources=Resources(plot=False))
    opened = [open_subject(tmp_path, tmp_path / "run", half=half) for half in (True, False)]
    assert {t.dtype for t in opened[0].supernet.tensors.values()} == {torch.float16}
    assert opened[0].identity["held_out"] == 20
    assert opened[0].identity["supernet_sha256"] != opened[1].identity["supernet_sha256"]
    with pytest.raises(FileNotFoundError):
        open_subject(tmp_path, tmp_path / "nowhere")

    deeper = replace(SPACE, depth=(3,), supernet=SubnetConfig.uniform(3, 96, 2, 2.0))
    other = replace(config, space=deeper.to_json())
    (tmp_path / "run" / "config.json").write_text(other.to_json())
    text = r"not of the space in its config\.json: blocks\.2\.norm1\.weight is missing, expected"
    with pytest.raises(ValueError, match=text):
        open_subject(tmp_path, tmp_path / "run")
