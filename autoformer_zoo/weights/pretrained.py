"""From a model's name to its weights: the user's own file, the cache, or the listed source.

`AUTOFORMER_ZOO_WEIGHTS` names a file or a folder that comes first; `AUTOFORMER_ZOO_CACHE`, or the
argument `cache_dir`, moves the cache. A download is converted to canonical safetensors once, and
only that file is kept and opened from then on. Beside it is a record of the original (URL, size,
SHA-256): for most upstream files no hash was ever published, so later downloads are compared with
the first one. Missing weights are an error.

`download.py` transfers the file, `checkpoint.py` reads the formats, `sources.py` has the addresses.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import FileLock

from autoformer_zoo.published import MODELS, SPACES, find_model, without_slice
from autoformer_zoo.space import SubnetConfig, misfit
from autoformer_zoo.weights.checkpoint import (
    Checkpoint,
    CheckpointError,
    FileOrState,
    SubnetWeights,
    SupernetWeights,
    open_checkpoint,
    save_subnet,
    save_supernet,
)
from autoformer_zoo.weights.download import DownloadError, Fetched, fetch
from autoformer_zoo.weights.files import is_finite, refusal
from autoformer_zoo.weights.header import cfg_to_notes
from autoformer_zoo.weights.hub import SUPERNET, find_file, is_folder
from autoformer_zoo.weights.sources import NANO_WEIGHTS, SOURCES, UpstreamFile

WEIGHTS_VARIABLE = "AUTOFORMER_ZOO_WEIGHTS"
CACHE_VARIABLE = "AUTOFORMER_ZOO_CACHE"
ABANDONED_SECONDS = 3600.0  # since the last write; a running download gives up much sooner

_log = logging.getLogger(__name__)


def load_supernet(source: FileOrState, layout: str | None = None) -> SupernetWeights:
    """Load a supernet: official, PreNAS or canonical.

    Args:
        source: a file, a state dict, the name of a model, or a folder on the Hub
            ("hf-hub:USER/NAME"), as in `open_weights`.
        layout: packing of q, k and v in an official-shaped file, see `open_checkpoint`.

    Raises:
        ValueError: `layout` is unknown.
        CheckpointError: the weights are missing or refused, or they are a subnet's.
    """
    return open_weights(source, layout).supernet()


def open_weights(source: FileOrState, layout: str | None = None) -> Checkpoint:
    """Open a checkpoint, or the weights of a model by its name.

    Args:
        source: a file or a state dict, as for `open_checkpoint`; or a model's name
            ("autoformer_nano"), whose weights are taken from where
            `create_model(name, pretrained=True)` takes them. Files come before names. Of
            "hf-hub:USER/NAME" and "local-dir:FOLDER" it is the supernet.
        layout: packing of q, k and v in an official-shaped file.

    Raises:
        ValueError: `layout`, or the tag in a name, is unknown; or a layout is given with a name.
        CheckpointError: the weights are missing or refused.
    """
    name = "" if isinstance(source, Mapping) else os.fspath(source)
    if is_folder(name):
        return open_checkpoint(find_file(name, SUPERNET), layout)
    is_name = name.partition(".")[0] in MODELS or (name.isidentifier() and "_" in name)
    if not is_name or Path(name).is_file():
        return open_checkpoint(source, layout)
    try:
        model, spec, tag = find_model(without_slice(name))
    except ValueError as error:
        raise CheckpointError(f"{name}: no such file; {error}") from None
    if layout is not None:
        raise ValueError(f"layout={layout!r} describes a file: give its path, not the name {name}")
    tag = tag or next(iter(spec.weights), "")
    checkpoint = find_checkpoint(f"{model}.{tag}" if tag else model)
    return replace(checkpoint, metadata={**cfg_to_notes(spec.data), **checkpoint.metadata})


def find_checkpoint(
    name: str,
    subnet: SubnetConfig | None = None,
    url: str | None = None,
    file: str | Path | None = None,
    cache_dir: str | Path | None = None,
) -> Checkpoint:
    """Open the weights of a model, downloading them if necessary.

    Args:
        name: model and tag, "autoformer_tiny.ms_in1k".
        subnet: which subnet will be wanted; refused here if the source cannot hold it.
        url: another address than the listed one.
        file: a file to open instead of any other.
        cache_dir: folder of the cache, instead of the usual one.

    Raises:
        ValueError: the source does not hold that subnet.
        CheckpointError: the weights are missing; the text has the reason, and what would work.
    """
    model, _, tag = name.partition(".")
    weights = MODELS[model].weights.get(tag)  # of this project's tags; a caller may bring others
    source = _source_of(weights.source if weights else None, url)
    if source is not None and subnet is not None:
        _require_held(model, tag, subnet, source)
    own = None if file is None or Path(file) == NANO_WEIGHTS else file
    own = own or _named_by_user(name, source)
    if own is not None:
        return _assuming(open_checkpoint(own), source)
    if source is None and weights is not None:
        return open_checkpoint(NANO_WEIGHTS)
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
    try:
        return open_checkpoint(cached)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete it, and it will be downloaded again") from error


def assuming_listed(checkpoint: Checkpoint, model: str, tag: str = "") -> Checkpoint:
    """Return a user's checkpoint, read by the rule of a model's listed file if it records none.

    Args:
        checkpoint: for the model.
        model: name without tag; for one that has no listed file nothing is assumed.
        tag: whose file is meant; the default one's if it is none of the model's.
    """
    weights = MODELS[model].weights if model in MODELS else {}
    listed = weights.get(tag) or next(iter(weights.values()), None)
    return _assuming(checkpoint, SOURCES.get(listed.source or "") if listed else None)


def cache_path(source: UpstreamFile, cache_dir: str | Path | None = None) -> Path:
    """Return the file in the cache that a source is kept in after its download."""
    # Another address is another file, whatever it is called.
    digest = hashlib.sha256(source.url.encode()).hexdigest()[:8]
    return cache_folder(cache_dir) / f"{source.name}-{digest}.safetensors"


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Return `cache_dir`, else `AUTOFORMER_ZOO_CACHE`, else a folder in torch.hub's."""
    folder = cache_dir or os.environ.get(CACHE_VARIABLE)
    if not folder:
        folder = Path(torch.hub.get_dir(), "checkpoints", "autoformer_zoo")
    return Path(folder).expanduser()


def convert(
    checkpoint: Checkpoint,
    out: Path,
    notes: Mapping[str, str],
    subnet: SubnetConfig | None = None,
    dtype: torch.dtype | None = None,
) -> SupernetWeights | SubnetWeights:
    """Write what a checkpoint holds as a canonical file, and return it.

    Args:
        checkpoint: an opened one.
        out: the file to write.
        notes: origin, license and the like, added to what the checkpoint's header has.
        subnet: write this subnet of a supernet.
        dtype: round all values to this type; None keeps the stored ones.

    Raises:
        ValueError: the subnet does not fit.
        CheckpointError: the values are refused, or do not fit the type.
        OSError: the file cannot be written.
    """
    noted = replace(checkpoint, metadata={**checkpoint.metadata, **notes})
    whole = subnet is None and checkpoint.is_supernet
    weights = noted.supernet() if whole else noted.subnet(subnet)
    if dtype is not None:
        rounded = {name: tensor.to(dtype) for name, tensor in weights.tensors.items()}
        for name, tensor in rounded.items():
            if not is_finite(tensor):
                raise refusal(checkpoint.source, f"{name} has values beyond the range of {dtype}")
        weights = replace(weights, tensors=rounded)
    if isinstance(weights, SupernetWeights):
        save_supernet(weights, out)
    else:
        save_subnet(weights, out)
    return weights


def _source_of(key: str | None, url: str | None) -> UpstreamFile | None:
    """Return the table's entry, or one for another address that `url` gives.

    The table's hash and kind belong to the table's address.
    """
    listed = SOURCES.get(key or "")
    if not url or (listed is not None and listed.url == url):
        return listed
    if listed is not None:
        return replace(listed, url=url, kind=None, size_bytes=None, sha256=None)
    return UpstreamFile(name=Path(urlsplit(url).path).stem or "weights", url=url)


def _require_held(model: str, tag: str, subnet: SubnetConfig, source: UpstreamFile) -> None:
    """Refuse before any download a subnet that the source cannot hold."""
    spec = MODELS[model]
    if source.kind == "subnet" and subnet != spec.subnet:
        sources = {other: SOURCES[weights.source or ""] for other, weights in spec.weights.items()}
        supernets = [f"{model}.{other}" for other in sources if sources[other].kind == "supernet"]
        raise ValueError(
            f"the tag {tag} of {model} holds the published subnet only, got subnet={subnet}; "
            f"others can be cut from {' or '.join(supernets)}"
        )
    if source.kind == "supernet" and (problem := misfit(subnet, SPACES[source.space].supernet)):
        raise ValueError(f"the subnet does not fit the supernet of {model}.{tag}: {problem}")


def _assuming(checkpoint: Checkpoint, source: UpstreamFile | None) -> Checkpoint:
    if source is None or source.layout is None:
        return checkpoint
    assumed = checkpoint.assuming(source.layout)
    if assumed is not checkpoint:
        _log.warning(
            "%s is read as %s's file; official and PreNAS files look the same",
            checkpoint.source,
            source.origin,
        )
    return assumed


def _named_by_user(name: str, source: UpstreamFile | None) -> Path | None:
    """Return the user's own file for this model, or None."""
    value = os.environ.get(WEIGHTS_VARIABLE)
    if not value:
        return None
    place = Path(value).expanduser()
    if place.is_file():
        return place
    if not place.is_dir():
        raise CheckpointError(f"{WEIGHTS_VARIABLE} names {value}, which does not exist")
    file_names = [f"{name}.safetensors"]
    if source is not None:  # the canonical name, then the upstream one
        file_names = [f"{source.name}.safetensors", Path(urlsplit(source.url).path).name]
    for file in (place / file_name for file_name in file_names):
        if file.is_file():
            return file
    _log.info("%s holds no weights of %s: none of %s", place, name, file_names)
    return None


@contextmanager
def _explained(name: str, source: UpstreamFile) -> Iterator[None]:
    """Turn whatever stopped a download into one error with the reason and what would work."""
    try:
        yield
    except (DownloadError, CheckpointError, OSError) as error:
        model, _, tag = name.partition(".")
        others = [f"{model}.{other}" for other in MODELS[model].weights if other != tag]
        another = "a model that needs no download, autoformer_nano"
        if others:
            another = f"another tag, {' or '.join(others)}"
        raise CheckpointError(
            f"no weights of {name} from {source.url}: {error}. "
            f"Name a local copy with {WEIGHTS_VARIABLE}=FILE or checkpoint_path=, or take {another}"
        ) from error


def _download(source: UpstreamFile, cached: Path) -> None:
    """Put `source` into the cache, unless another process does so first."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    # The lock only saves a second download: files get their final names when they are complete, so
    # it does no harm to remove it, or if two start in that moment. It has no time limit: its holder
    # gives up on a silent server, and a dead holder frees it.
    lock = cached.with_suffix(".lock")
    original = _beside(cached, Path(urlsplit(source.url).path).suffix)
    with FileLock(lock):
        try:
            if cached.exists():
                return
            _remove_abandoned(cached)
            _log.info("downloading %s to %s", source.url, cached)
            fetched = fetch(source.url, original, source.name, source.size_bytes, source.sha256)
            record = cached.with_suffix(".json")
            _require_unchanged(fetched, record)
            _convert(original, source, fetched, cached)
            _write_record(source, fetched, record)
        finally:
            _remove(original)
            _remove(lock)


def _convert(original: Path, source: UpstreamFile, fetched: Fetched, cached: Path) -> None:
    notes = {
        "source_url": source.url,
        "source_sha256": fetched.sha256,
        "license": source.license_text,
    }
    if source.origin:
        notes["origin"] = source.summary
    try:
        convert(open_checkpoint(original).assuming(source.layout), cached, notes)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{original}: ")
        raise DownloadError(f"the downloaded file was refused, {reason}") from error
    except OSError as error:
        raise DownloadError(f"cannot write {cached}: {error.strerror}") from error


def _require_unchanged(fetched: Fetched, record: Path) -> None:
    """Compare with the first download: results must not change silently."""
    if not record.exists():
        return
    try:
        known = json.loads(record.read_text())["sha256"]
    except Exception:  # whatever a damaged record breaks
        raise CheckpointError(f"{record} is not a record of a download: delete it") from None
    if known != fetched.sha256:
        raise CheckpointError(
            f"the file changed: sha256 is {fetched.sha256}, at the first download it was {known}; "
            f"delete {record} to accept the new file"
        )


def _write_record(source: UpstreamFile, fetched: Fetched, record: Path) -> None:
    values = {"url": source.url, "layout": source.layout, **asdict(fetched)}
    temporary = _beside(record, ".json")
    try:
        temporary.write_text(json.dumps(values, indent=2) + "\n")
        os.replace(temporary, record)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(cached: Path) -> None:
    """Remove what downloads of this file left behind whose process was killed."""
    for path in cached.parent.glob(f".{cached.stem}-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _remove(path: Path) -> None:
    with suppress(OSError):  # Windows keeps files that are open
        path.unlink(missing_ok=True)


def _beside(path: Path, suffix: str) -> Path:
    """Return a hidden name in the folder of `path` that no other process takes."""
    return path.with_name(f".{path.stem}-{uuid.uuid4().hex}{suffix}")
