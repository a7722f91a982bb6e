"""Find the weights of a model: the user's own file, the cache, or the listed source, in this order.

`AUTOFORMER_ZOO_WEIGHTS` names a file or a folder that comes first; `AUTOFORMER_ZOO_CACHE`, or the
argument `cache_dir`, moves the cache. A download is turned into canonical safetensors once, the
original is not kept, and from then on only that file is opened. Beside it lies a record of the
original (URL, size, SHA-256): for most upstream files no hash was ever published, so the first
download is what later ones are compared with. Weights that cannot be had are an error.

Downloading proper is `download.py`, the formats are `checkpoint.py`, the addresses `sources.py`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import FileLock

from autoformer_zoo.published import SPACES, SUBNETS
from autoformer_zoo.space import SubnetConfig, misfit
from autoformer_zoo.weights.checkpoint import (
    CheckpointError,
    SubnetWeights,
    convert_supernet,
    holds_supernet,
    load_subnet,
    load_weights,
    read_tensors,
    save_subnet,
)
from autoformer_zoo.weights.download import DownloadError, Fetched, fetch
from autoformer_zoo.weights.layouts import FormatError, recognise
from autoformer_zoo.weights.sources import PRETRAINED, SOURCES, Source

WEIGHTS_VARIABLE = "AUTOFORMER_ZOO_WEIGHTS"
CACHE_VARIABLE = "AUTOFORMER_ZOO_CACHE"
SUFFIXES = (".safetensors", ".pth")

_log = logging.getLogger(__name__)


def load_pretrained_weights(
    name: str,
    subnet: SubnetConfig,
    source: Source | None = None,
    packaged: Path | None = None,
    cache_dir: str | Path | None = None,
) -> SubnetWeights:
    """Return the weights of one subnet, under the names of the static network.

    Args:
        name: model and tag, "autoformer_tiny.ms_in1k".
        subnet: which subnet; anything that fits where the source is a supernet.
        source: where to download from, if need be.
        packaged: a file that ships with the package, in place of a source.
        cache_dir: folder of the cache, in place of the usual one.

    Raises:
        ValueError: the source does not hold that subnet.
        CheckpointError: the weights cannot be had; the text says why, and the ways out.
    """
    if source is not None:
        _require_held(name, subnet, source)
    path = resolve(name, source, packaged, cache_dir)
    if source is None or path != cache_path(source, cache_dir):
        return load_named_file(path, subnet, source)
    try:
        return load_weights(path, subnet)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete it, and it will be downloaded again") from error


def load_named_file(path: Path, subnet: SubnetConfig, source: Source | None) -> SubnetWeights:
    """Load a subnet from a file of the user's, whatever its format.

    Args:
        path: the file.
        subnet: what to cut from it, or what it must hold.
        source: what the model's tag stands for: how a file is packed which does not say so itself.
    """
    layout = source.layout if source else None
    if layout is not None:
        with suppress(FormatError):  # load_weights says it better
            layout = layout if recognise(read_tensors(path)[0]) == "packed" else None
    return load_weights(path, subnet, layout)


def resolve(
    name: str,
    source: Source | None = None,
    packaged: Path | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Return the file that holds a model's weights, downloading it where that is needed.

    Arguments and errors as in `load_pretrained_weights`.
    """
    if (named := _named_by_user(name, source)) is not None:
        return named
    if packaged is not None:
        return packaged
    if source is None:
        raise CheckpointError(
            f"{name} has no weights of its own: name a file with checkpoint_path= or "
            f"{WEIGHTS_VARIABLE}, or give a published model a subnet= instead, for example "
            'create_model("autoformer_small", pretrained=True, subnet=...)'
        )
    cached = cache_path(source, cache_dir)
    if not cached.exists():
        with _explained(name, source):
            _download(source, cached)
    return cached


def source_of(name: str, url: str | None) -> Source | None:
    """Return the table's entry for a model and tag, at another address where `url` says so.

    The table's hash and kind belong to the table's address; what lies elsewhere is another file.
    """
    source = SOURCES.get(PRETRAINED.get(name, ""))
    if not url or (source is not None and source.url == url):
        return source
    if source is not None:
        return replace(source, url=url, kind="unknown", size_bytes=None, sha256=None)
    return Source(
        name=Path(urlsplit(url).path).stem or "weights",
        origin="",
        url=url,
        space="",
        kind="unknown",
        layout=None,
        size_bytes=None,
        sha256=None,
        license=None,
        license_note="not in the table of sources",
        page="",
        paper_ids=(),
    )


def cache_path(source: Source, cache_dir: str | Path | None = None) -> Path:
    """Return where a source's safetensors lie once they were downloaded.

    The folder is `cache_dir`, or `AUTOFORMER_ZOO_CACHE`, or `checkpoints/autoformer_zoo` in
    torch.hub's.
    """
    folder = cache_dir or os.environ.get(CACHE_VARIABLE)
    if not folder:
        folder = Path(torch.hub.get_dir(), "checkpoints", "autoformer_zoo")
    # Another address is another file, whatever it is called.
    digest = hashlib.sha256(source.url.encode()).hexdigest()[:8]
    return Path(folder).expanduser() / f"{source.name}-{digest}.safetensors"


def _require_held(name: str, subnet: SubnetConfig, source: Source) -> None:
    """Refuse before any download a subnet that the source cannot hold."""
    model, _, tag = name.partition(".")
    if source.kind == "subnet" and model in SUBNETS and subnet != SUBNETS[model]:
        supernets = [other for other in _tags_of(model) if _source_kind(other) == "supernet"]
        raise ValueError(
            f"the tag {tag} of {model} holds the published subnet only, got subnet={subnet}; "
            f"others can be cut from {' or '.join(supernets) or 'a supernet'}"
        )
    if source.kind == "supernet" and source.space in SPACES:
        problem = misfit(subnet, SPACES[source.space].supernet)
        if problem:
            raise ValueError(f"the subnet does not fit the supernet of {name}: {problem}")


def _named_by_user(name: str, source: Source | None) -> Path | None:
    """Return the user's own file for this model, None where there is none."""
    value = os.environ.get(WEIGHTS_VARIABLE)
    if not value:
        return None
    place = Path(value).expanduser()
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(f"{WEIGHTS_VARIABLE} names {value}, which does not exist")
    for candidate in _file_names(name, source):
        if (place / candidate).is_file():
            if source is not None and candidate.startswith("supernet-"):
                _log.warning(
                    "%s is read as %s's file; official and PreNAS files have the same name",
                    place / candidate,
                    source.origin,
                )
            return place / candidate
    _log.info("%s holds no weights of %s: none of %s", place, name, _file_names(name, source))
    return None


def _file_names(name: str, source: Source | None) -> list[str]:
    """Names under which a model's weights are looked for in the user's folder, best first."""
    stems = [name, name.partition(".")[0]]
    if source is not None:
        stems += [source.name, Path(urlsplit(source.url).path).stem]
    return [stem + suffix for stem in stems for suffix in SUFFIXES]


@contextmanager
def _explained(name: str, source: Source) -> Iterator[None]:
    """Turn whatever stopped a download into one error with its cause and the ways out."""
    try:
        yield
    except (DownloadError, CheckpointError, OSError) as error:
        model = name.partition(".")[0]
        others = [tag for tag in _tags_of(model) if tag != name]
        another = "a model that needs no download, autoformer_nano"
        if others:
            another = f"another tag, {' or '.join(others)}"
        raise CheckpointError(
            f"no weights of {name} from {source.url}: {error}. "
            f"Name a local copy with {WEIGHTS_VARIABLE}=FILE or checkpoint_path=, or take {another}"
        ) from error


def _download(source: Source, cached: Path) -> None:
    """Put `source` into the cache, unless another process does so first."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    # The lock only saves a second download: files come into place whole, under their last names, so
    # that it does no harm to remove it, or to have none where two start in that moment.
    # No time limit: its holder gives up on a silent server, and a dead one frees it by dying.
    lock = cached.with_suffix(".lock")
    original = _beside(cached, Path(urlsplit(source.url).path).suffix)
    with FileLock(lock):
        try:
            if cached.exists():
                return
            _log.info("downloading %s to %s", source.url, cached)
            fetched = fetch(source.url, original, source.name, source.size_bytes, source.sha256)
            record = cached.with_suffix(".json")
            _require_unchanged(fetched, record)
            _convert(original, source, fetched, cached)
            _write_record(source, fetched, record)
        finally:
            _remove(original)
            _remove(lock)


def _convert(original: Path, source: Source, fetched: Fetched, cached: Path) -> None:
    metadata = {
        "origin": source.origin,
        "source_url": source.url,
        "source_sha256": fetched.sha256,
        "license": source.license_text,
    }
    try:
        kind = source.kind
        if kind == "supernet" or (kind == "unknown" and holds_supernet(original)):
            convert_supernet(original, cached, source.layout, metadata)
        else:
            subnet = load_subnet(original)
            save_subnet(replace(subnet, metadata={**subnet.metadata, **metadata}), cached)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{original}: ")
        raise DownloadError(f"what came was refused, {reason}") from error
    except OSError as error:
        raise DownloadError(f"cannot write {cached}: {error.strerror}") from error


def _require_unchanged(fetched: Fetched, record: Path) -> None:
    """Compare with the first download: an error, because results would change without a word."""
    if not record.exists():
        return
    try:
        known = json.loads(record.read_text())["sha256"]
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(f"{record} is not a record of a download: delete it") from None
    if known != fetched.sha256:
        raise CheckpointError(
            f"the file changed: sha256 is {fetched.sha256}, at the first download it was {known}; "
            f"delete {record} to accept the new file"
        )


def _write_record(source: Source, fetched: Fetched, record: Path) -> None:
    values = {"url": source.url, "layout": source.layout, **asdict(fetched)}
    temporary = _beside(record, ".json")
    try:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
        os.replace(temporary, record)
    finally:
        temporary.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    with suppress(OSError):  # Windows keeps files that are open
        path.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    """Return a hidden name in the folder of `path` that no other process takes."""
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex}{suffix}")


def _tags_of(model: str) -> list[str]:
    return [tag for tag in PRETRAINED if tag.partition(".")[0] == model]


def _source_kind(name: str) -> str:
    return SOURCES[PRETRAINED[name]].kind
