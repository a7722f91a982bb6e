"""Download one file over HTTP, or fail soon with the reason.

Knows nothing about weights: `pretrained.py` has the address and the place, and converts the result
to safetensors. Neither `torch.hub.download_url_to_file` nor huggingface_hub's would do: the first
waits for a silent server forever and takes a cut connection for the end of the file, the second
retries for longer than a user should wait for bad news.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub.utils.tqdm import tqdm

SILENCE_SECONDS = 8.0  # allowed for connecting, for the first header, and between two pieces
CHUNK_BYTES = 1 << 20


class DownloadError(RuntimeError):
    """Why a download failed; the caller adds model and URL."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A completed download.

    Args:
        size_bytes: size of the file.
        sha256: its digest, 64 hexadecimal digits.
    """

    size_bytes: int
    sha256: str


def fetch(
    url: str,
    path: Path,
    label: str,
    size_bytes: int | None = None,
    sha256: str | None = None,
) -> Fetched:
    """Download `url` to `path`, with a progress bar on stderr if it takes more than a second.

    A file that is refused stays at `path`: the caller removes it.

    Args:
        url: an http or https address.
        path: the file to write; replaced if it exists.
        label: text beside the progress bar.
        size_bytes: the size it must have, if known.
        sha256: the start of its digest, if known.

    Returns:
        Size and digest.

    Raises:
        DownloadError: the file did not arrive complete, or is not the expected one.
    """
    try:
        request = Request(url, headers={"User-Agent": "autoformer_zoo"})
        with urlopen(request, timeout=SILENCE_SECONDS) as response:
            length = _checked_length(response, size_bytes)
            with open(path, "wb") as file:
                fetched = _copy(response, file, length, label)
    except HTTPError as error:
        error.close()
        raise DownloadError(f"the server answered {error.code} {error.reason}") from None
    except URLError as error:
        raise DownloadError(f"{error.reason}") from error
    except TimeoutError:
        raise DownloadError(f"the server was silent for {SILENCE_SECONDS:.0f} s") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not a URL
        raise DownloadError(f"{type(error).__name__}: {error}") from error
    expected = length if size_bytes is None else size_bytes
    if expected is not None and fetched.size_bytes != expected:
        raise DownloadError(f"the connection was cut at {fetched.size_bytes} of {expected} bytes")
    if sha256 and not fetched.sha256.startswith(sha256):
        raise DownloadError(f"sha256 is {fetched.sha256}; expected one that starts with {sha256}")
    return fetched


def _checked_length(response: HTTPResponse, size_bytes: int | None) -> int | None:
    """Return the announced length; refuse what is wrong before the first byte."""
    kind = response.headers.get_content_type()
    if kind == "text/html":
        raise DownloadError("the server sent a web page (text/html) instead of weights")
    length = response.headers.get("Content-Length", "")
    if not length.isdigit():
        return None
    if size_bytes is not None and int(length) != size_bytes:
        raise DownloadError(f"the server has {length} bytes; expected {size_bytes}")
    return int(length)


def _copy(response: HTTPResponse, file: BinaryIO, length: int | None, label: str) -> Fetched:
    digest, size = hashlib.sha256(), 0
    bar = tqdm(total=length, desc=label, unit="B", unit_scale=True, delay=1)  # type: ignore[no-untyped-call]
    with bar as progress:
        while chunk := response.read(CHUNK_BYTES):
            try:
                file.write(chunk)
                file.flush()
            except OSError as error:
                raise DownloadError(f"cannot write {file.name}: {error.strerror}") from error
            digest.update(chunk)
            size += len(chunk)
            progress.update(len(chunk))
    return Fetched(size, digest.hexdigest())
