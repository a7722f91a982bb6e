"""The process that `startup.py` times: imports, model, predictions, or a supernet's extraction.

Only the standard library is imported before the first phase. Prints the ms of each phase as one
JSON object.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Do the phases of the kind that the first argument names: zoo, timm or extract."""
    kind, name, weights = sys.argv[1:]
    clock = PhaseClock()
    import torch

    clock.end("import_torch")
    import timm

    clock.end("import_timm")
    if kind != "timm":
        import autoformer_zoo

        clock.end("import_autoformer_zoo")
    if kind == "extract":
        supernet = autoformer_zoo.load_supernet(weights)
        clock.end("load_supernet")
        autoformer_zoo.extract_subnet(supernet, autoformer_zoo.SPACES[name].smallest)
        clock.end("extract_subnet")
        clock.print()
        return
    os.environ["AUTOFORMER_ZOO_WEIGHTS"] = weights
    overlay: Any = {"file": weights} if kind == "timm" else None
    model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    clock.end("create_model")
    image = torch.zeros(1, *model.pretrained_cfg["input_size"])
    with torch.inference_mode():
        for phase in ("first_prediction", "later_prediction"):
            model(image)
            clock.end(phase)
    clock.print()


class PhaseClock:
    """A clock that is read at the end of each phase."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._ms: dict[str, float] = {}

    def end(self, phase: str) -> None:
        """Record how long a phase took; the next one starts."""
        now = time.perf_counter()
        self._ms[phase] = 1e3 * (now - self._last)
        self._last = now

    def print(self) -> None:
        """Print all phases, and the total up to the first answer."""
        total = sum(ms for phase, ms in self._ms.items() if phase != "later_prediction")
        print(json.dumps({**self._ms, "total": total}))


if __name__ == "__main__":
    main()
