"""Write a folder that can be pushed as a Space: `python -m hub.space OUT`.

In it are app.py, requirements.txt and README.md, and the package itself, which is on no index.
`python app.py` in the folder runs the app as the Space does.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

import autoformer_zoo
from autoformer_zoo.cli.command import run_command

PROG = "python -m hub.space"
FILES = ("app.py", "requirements.txt", "README.md")


@dataclass(frozen=True, slots=True)
class SpaceConfig:
    """Write a folder that can be pushed as a Space.

    Args:
        out: the folder to make; must not exist.
    """

    out: tyro.conf.Positional[Path]


def write_space(out: Path) -> None:
    """Write the folder.

    Raises:
        ValueError: `out` exists, or the folder that it would be in does not.
        OSError: a file cannot be written.
    """
    if out.exists() or not out.parent.is_dir():
        raise ValueError(f"{out} cannot be made; give the name of a new folder in one that exists")
    package = Path(autoformer_zoo.__file__).parent
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        folder = Path(work, "folder")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, folder / package.name, ignore=ignored)
        for name in FILES:
            shutil.copyfile(Path(__file__).with_name(name), folder / name)
        folder.rename(out)


def main(argv: list[str] | None = None) -> int:
    """Run the command; exit codes as in `run_command`."""
    return run_command(PROG, SpaceConfig, argv, _run, log_level=logging.WARNING)


def _run(config: SpaceConfig) -> None:
    write_space(config.out)
    print(f"{config.out}: try it with `python app.py` in it, then push it as a Space")
    print(json.dumps({"out": str(config.out), "files": [*FILES, "autoformer_zoo"]}))


if __name__ == "__main__":
    sys.exit(main())
