"""The process that `startup.py` times: imports, model, predictions, or a supernet's extraction.

Nothing but the standard library is imported before the first stage. Prints the ms
of each stage as one JSON object.
"""

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Do the stages of the kind that the first argument names: zoo, timm or extract."""
    kind, name, weights = sys.argv[1:]
    stages = Stages()
    import torch

    stages.end("import_torch")
    import timm

    stages.end("import_timm")
    if kind != "timm":
        import autoformer_zoo

        stages.end("import_autoformer_zoo")
    if kind == "extract":
        supernet = autoformer_zoo.load_supernet(weights)
        stages.end("load_supernet")
        autoformer_zoo.extract_subnet(supernet, autoformer_zoo.SPACES[name].smallest)
        stages.end("extract_subnet")
        stages.print()
        return
    os.environ["AUTOFORMER_ZOO_WEIGHTS"] = weights
    overlay: Any = {"file": weights} if kind == "timm" else None
    model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    stages.end("create_model")
    image = torch.zeros(1, *model.pretrained_cfg["input_size"])
    with torch.inference_mode():
        for stage in ("first_prediction", "later_prediction"):
            model(image)
            stages.end(stage)
    stages.print()


class Stages:
    """A clock that is read at the end of each stage."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._ms: dict[str, float] = {}

    def end(self, stage: str) -> None:
        """Note how long a stage took; the next one starts."""
        now = time.perf_counter()
        self._ms[stage] = 1e3 * (now - self._last)
        self._last = now

    def print(self) -> None:
        """Print all stages, and the total up to the first answer."""
        total = sum(ms for stage, ms in self._ms.items() if stage != "later_prediction")
        print(json.dumps({**self._ms, "total": total}))


if __name__ == "__main__":
    main()
