"""Fetch one file over HTTP, or fail soon and say why.

Knows nothing of weights: `pretrained.py` says where from and where to, and turns the result into
safetensors. Neither `torch.hub.download_url_to_file` nor huggingface_hub's would do: the first
waits for a silent server without end and takes a cut connection for the end of the file, the
second keeps trying for longer than a user should wait for bad news.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from huggingface_hub.utils.tqdm import tqdm

CONNECT_SECONDS = 8.0  # name lookup, every address, every redirect, up to the first header
SILENCE_SECONDS = 6.0  # between two pieces of the file; with the above an error comes in under 15 s
CHUNK_BYTES = 1 << 20


class DownloadError(RuntimeError):
    """The cause of a failed download, in words; who catches it knows what for and from where."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came.

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
    """Download `url` to `path`, showing progress on stderr where it takes more than a second.

    A file that is refused stays at `path`: the caller removes it.

    Args:
        url: where from, http or https.
        path: where to; replaced if it is there.
        label: what to call it beside the progress bar.
        size_bytes: the size it must have, where it is known.
        sha256: how its digest must start, where it is known.

    Returns:
        Size and digest.

    Raises:
        DownloadError: the file did not come, or not whole, or is not the one expected.
    """
    try:
        with _open(url) as response:
            length = _checked_length(response, size_bytes)
            with open(path, "wb") as file:
                fetched = _copy(response, file, length, label)
    except HTTPError as error:
        error.close()
        raise DownloadError(f"the server answered {error.code} {error.reason}") from None
    except URLError as error:
        raise DownloadError(f"{error.reason}") from error
    except TimeoutError:
        raise DownloadError(f"nothing came for {SILENCE_SECONDS:.0f} s") from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: not a URL
        raise DownloadError(f"{type(error).__name__}: {error}") from error
    expected = length if size_bytes is None else size_bytes
    if expected is not None and fetched.size_bytes != expected:
        raise DownloadError(f"the connection was cut at {fetched.size_bytes} of {expected} bytes")
    if sha256 and not fetched.sha256.startswith(sha256):
        raise DownloadError(f"sha256 is {fetched.sha256}; expected one that starts with {sha256}")
    return fetched


def _open(url: str) -> HTTPResponse:
    """Ask for `url` under one deadline: urlopen's own timeout leaves out the name lookup."""
    answers: queue.SimpleQueue[HTTPResponse | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = Request(url, headers={"User-Agent": "autoformer_zoo"})
            answers.put(urlopen(request, timeout=SILENCE_SECONDS))
        except Exception as error:  # whatever it is, the caller's thread raises it
            answers.put(error)

    threading.Thread(target=ask, name="autoformer_zoo-connect", daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise DownloadError(f"no answer in {CONNECT_SECONDS:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _checked_length(response: HTTPResponse, size_bytes: int | None) -> int | None:
    """Return the announced length, having looked at what can be told before the first byte."""
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
    # Nothing is shown of a download that takes less than a second.
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
