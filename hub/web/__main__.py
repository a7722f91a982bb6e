"""Build the page: `python -m hub.web`.

    python -m hub.web site                             # four subnets of nano
    python -m hub.web site autoformer_small net.onnx   # these
    python -m http.server --directory site             # look at it

Any host of static files will do: nothing runs on it.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from autoformer_zoo.cli.command import option, run_command
from hub.web.build import build_page

PROG = "python -m hub.web"


@dataclass(frozen=True, slots=True)
class WebConfig:
    """Build a static page that runs networks in the visitor's browser.

    Args:
        out: the folder to make; must not exist.
        models: models of `autoformer-zoo list`, files of weights, or exported ONNX files; four
            subnets of autoformer_nano by default.
        runtime: an unpacked onnxruntime-web (with dist/ and package.json).
    """

    out: tyro.conf.Positional[Path]
    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")] = ()
    runtime: Annotated[Path | None, option("FOLDER", "(default: fetched by npm)")] = None


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`."""
    return run_command(PROG, WebConfig, argv, _run, log_level=logging.WARNING)


def _run(config: WebConfig) -> None:
    files = build_page(config.out, config.models, config.runtime)
    print(f"{config.out}: {len(files)} files; look at it with")
    print(f"python -m http.server --directory {config.out}")
    print(json.dumps({"out": str(config.out), "files": files}))


if __name__ == "__main__":
    sys.exit(main())
