"""Detect if this process is the command: it starts without torch and exits quietly on Ctrl-C.

`autoformer_zoo/__init__.py` imports this first, so that no traceback of an import is printed.
"""

from __future__ import annotations

import os
import signal
import sys

_program = os.path.splitext(os.path.basename(sys.argv[0]))[0] if sys.argv else ""
# While `python -m autoformer_zoo` looks for the module, argv has only the -m.
_is_module = _program == "-m" and "autoformer_zoo" in sys.orig_argv
IS_COMMAND = _is_module or _program == "autoformer-zoo"

if IS_COMMAND:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # `main` restores Python's own handler
