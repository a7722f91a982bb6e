"""Fit the accuracy predictor of a space to subnets whose accuracy was measured, and validate it.

    python -m training.fit_predictor DATA.json [MORE.json ...] --out FILE.npz

A DATA file is what `training.search.accuracies` writes: {"space": NAME, "columns": [...], "rows":
[...]} with the columns depth, embed_dim, num_heads, mlp_ratio and one whose name has "top1" in it,
in percent. All is computed in one thread of PyTorch, in float64, and coefficients are rounded: the
same data give the same file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from autoformer_zoo.weights.files import check_output
from benchmarks.measure.text_table import align
from training.fit_predictor.fit import fit_predictor, save_predictor
from training.fit_predictor.measured import read_measured
from training.fit_predictor.validation import DEFAULT_VALIDATION, Validation
from training.run.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command(
        data: Annotated[tuple[Path, ...], tyro.conf.Positional],
        out: Path,
        validation: Validation = DEFAULT_VALIDATION,
    ) -> None:
        """Fit the accuracy predictor of a space to measured subnets, and cross-validate it.

        Args:
            data: files of measured subnets of one space.
            out: file to write: NAME.npz.
            validation: how errors are found.
        """
        check_output(out, data, (".npz",))
        predictor, figures = fit_predictor(read_measured(data), validation)
        save_predictor(predictor, out)
        names = list(figures[0])
        print(align([names, *([str(line[name]) for name in names] for line in figures)]))
        print(json.dumps({"out": str(out), "bytes": out.stat().st_size, "figures": figures}))

    return run_command("python -m training.fit_predictor", command, argv)


if __name__ == "__main__":
    sys.exit(main())
