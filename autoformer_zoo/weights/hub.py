"""Files of a model's folder: on a Hugging Face Hub ("hf-hub:USER/NAME"), or here ("local-dir:...").

timm reads the model itself from such a folder. Read here is what timm does not know of: the
supernet beside it, any subnet of which can be cut out. Only huggingface_hub reads a token.
"""

from __future__ import annotations

from pathlib import Path

from autoformer_zoo.weights.files import refusal

HUB, LOCAL = "hf-hub:", "local-dir:"
SUPERNET = "supernet.safetensors"


def is_folder(name: str) -> bool:
    """Return True if a name stands for a folder, not for a model of the registry or a file."""
    return _canonical(name).startswith((HUB, LOCAL))


def find_file(name: str, file: str, cache_dir: str | Path | None = None) -> Path:
    """Return a file of a folder, downloaded to huggingface_hub's cache if necessary.

    Args:
        name: "hf-hub:USER/NAME", "hf-hub:USER/NAME@REVISION" or "local-dir:FOLDER".
        file: its name in the folder.
        cache_dir: another cache than huggingface_hub's.

    Raises:
        CheckpointError: it cannot be had; the text has the reason.
    """
    name = _canonical(name)
    if name.startswith(LOCAL):
        path = Path(name.removeprefix(LOCAL), file)
        if not path.is_file():
            raise refusal(path.parent, f"has no {file}")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # 0.20 has no `errors`
        EntryNotFoundError,
        LocalEntryNotFoundError,
    )

    repo, _, revision = name.removeprefix(HUB).partition("@")
    try:
        return Path(hf_hub_download(repo, file, revision=revision or None, cache_dir=cache_dir))
    except Exception as error:  # access, network, disk, the name: of whatever library is below
        is_known = isinstance(error, EntryNotFoundError)
        if is_known and not isinstance(error, LocalEntryNotFoundError):
            raise refusal(name, f"has no {file}") from None
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())
        raise refusal(name, f"{file} cannot be downloaded: {reason}") from error


def _canonical(name: str) -> str:
    """Return a name with its source in the usual spelling; timm takes "HF_Hub:" as well."""
    source, colon, place = name.partition(":")
    return source.lower().replace("_", "-") + colon + place
