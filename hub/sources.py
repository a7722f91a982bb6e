"""List the upstream weight files: `python -m hub.sources`."""

from __future__ import annotations

import json
from dataclasses import asdict

from autoformer_zoo.weights.sources import SOURCES


def main() -> int:
    """Print a table, and as the last line all of it as one JSON object."""
    print(f"{'name':<16}{'kind':<10}{'layout':<20}{'sha256':<12}{'license':<14}url")
    for name, source in SOURCES.items():
        sha256, license = source.sha256 or "unknown", source.license or "unknown"
        layout = source.layout or "by its names"
        print(f"{name:<16}{source.kind:<10}{layout:<20}{sha256:<12}{license:<14}{source.url}")
    print(json.dumps({name: asdict(source) for name, source in SOURCES.items()}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
