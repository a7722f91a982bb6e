"""Command lines of this package: flags made from the dataclasses, one-line errors, exit codes."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial, wraps
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from autoformer_zoo.checkpoint import CheckpointError
from autoformer_zoo.usage import parse_arguments
from training.config import DEFAULT_RESOURCES, PRESETS, Resources, TrainConfig
from training.distributed import is_shared

EXTRA = ("tqdm", "matplotlib")  # of the extra `train`; torchvision comes with timm


def run_train(argv: list[str] | None = None) -> int:
    """Parse and run `python -m training.train`."""
    return _run_config("python -m training.train", "Train a supernet.", PRESETS, argv)


def run_finetune(argv: list[str] | None = None) -> int:
    """Parse and run `python -m training.finetune`."""
    from training.finetune import PRESETS as FINETUNE_PRESETS

    description = "Fine-tune one network on another data set."
    return _run_config("python -m training.finetune", description, FINETUNE_PRESETS, argv)


def run_choose(argv: list[str] | None = None) -> int:
    """Parse and run `python -m training.choose`."""
    from training.choose import choose
    from training.journal import write_json
    from training.plot import plot_run
    from training.run_directory import require_writable

    def command(
        run_dir: Path,
        data_dir: Path,
        out: Path,
        results: Path = Path("results.json"),
        plot: Path | None = None,
        candidates: int = 60,
        random_tested: int = 20,
    ) -> None:
        """Choose a subnet on held-out pictures and keep the supernet.

        Args:
            run_dir: run directory of training.train.
            data_dir: directory that holds cifar-10-batches-py.
            out: canonical supernet file to write, fp16.
            results: JSON file to write with everything measured.
            plot: picture to write, .svg or .png; none where it is not given.
            candidates: random subnets to choose from.
            random_tested: of these, how many are tested on the test set, beside the chosen one.
        """
        for path in (results, plot) if plot is not None else (results,):
            require_writable(path)
        measured = choose(run_dir, data_dir, out, candidates, random_tested)
        write_json(measured, results)
        if plot is not None:
            plot_run(run_dir, measured, plot)
        print(json.dumps({key: measured[key] for key in measured if key != "held_out"}))

    return run_command(command, argv, prog="python -m training.choose")


def run_command(command: Callable[..., Any], argv: list[str] | None, prog: str) -> int:
    """Run a command made from a function's signature.

    Returns:
        0; 2 after a user's mistake and 1 after another failure, each told in one line.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
    if missing := [name for name in EXTRA if find_spec(name) is None]:
        print(
            f"{prog}: {' and '.join(missing)} not installed: pip install 'autoformer_zoo[train]'",
            file=sys.stderr,
        )
        return 2

    @wraps(command)  # the parser reads its signature and docstring
    def bind(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return partial(command, *args, **kwargs)

    try:
        parse_arguments(lambda: tyro.cli(bind, args=argv, prog=prog), prog)()
    except (ValueError, OSError, CheckpointError) as error:
        _tell(prog, error)
        return 2
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] != "training":
            raise  # a fault of ours: its traceback is wanted
        _tell(prog, error)
        return 1
    return 0


def _tell(prog: str, error: Exception) -> None:
    """Print an error in a line; one that all processes raise, in the first one only."""
    if os.environ.get("RANK", "0") == "0" or not is_shared(error):
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)


def _run_config(
    prog: str, description: str, presets: Mapping[str, TrainConfig], argv: list[str] | None
) -> int:
    words = sys.argv[1:] if argv is None else argv
    default = next(iter(presets))
    base = presets.get(value_of("--preset", words) or default, presets[default])

    def command(
        data_dir: Path,
        out: Path,
        preset: str = default,
        stop_at: int | None = None,
        config: Annotated[TrainConfig, tyro.conf.arg(name="")] = base,
        resources: Annotated[Resources, tyro.conf.arg(name="")] = DEFAULT_RESOURCES,
    ) -> None:
        from training.train import train

        state = train(config, data_dir, out, stop_at=stop_at, resources=resources)
        if os.environ.get("RANK", "0") == "0":
            done = {name: getattr(state, name) for name in ("step", "skipped", "broken")}
            print(json.dumps({**done, "seconds": round(state.seconds, 1), "out": str(out)}))

    command.__annotations__["preset"] = Literal[tuple(presets)]  # for the parser to check
    command.__doc__ = f"""{description}

        Args:
            data_dir: root of the data: holds cifar-10-batches-py, or train/CLASS/PICTURE.
            out: run directory; an unfinished run in it goes on.
            preset: which config to start from; every other flag changes it.
            stop_at: step to stop at, with a checkpoint; to the end where it is not given.
        """
    return run_command(command, words, prog)


def value_of(flag: str, words: list[str]) -> str | None:
    """Find a flag's value before the rest is parsed, as --flag VALUE or --flag=VALUE."""
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word == flag:
            return following
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None
