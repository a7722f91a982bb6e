"""Supernet training, search and evaluation: reproduces AutoFormer's method (arXiv 2107.00651).

Read `settings` (what can be set), then `train`: it joins `data` (batches), `engine`
(network, step, loop) and `run` (the run directory). `finetune` is a small command beside
it; `engine.teacher` stores soft answers to learn from. `search` looks for subnets of a trained
supernet and `search.choose` ships one, `reproduce` compares whole methods, `adapt` makes a front
from a folder of images.
"""

from importlib.util import find_spec

# Here, so that each command reports it in one line and not from the middle of its imports.
_EXTRA = ("pydantic", "tqdm", "matplotlib", "scipy")  # of the extra `train`
if _MISSING := [name for name in _EXTRA if find_spec(name) is None]:
    raise ModuleNotFoundError(
        f"training needs {', '.join(_MISSING)}: run pip install -e '.[train]' in the clone"
    )
