"""One error for whatever the Hub client raises: :class:`HubError`, in one sentence and without secrets."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

_CREDENTIALS = re.compile(r"(\w://)[^/?#\s]*@")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{12,}")


class HubError(RuntimeError):
    """A repository of the Hugging Face Hub could not be read or written.

    Attributes:
        repo: The repository, ``org/name``.
        revision: What was asked for; None is the default branch.
        file: The file that was read; empty where a whole folder was written.
    """

    def __init__(self, message: str, *, repo: str = "", revision: str | None = None, file: str = "") -> None:
        super().__init__(message)
        self.repo, self.revision, self.file = repo, revision, file


@dataclass(frozen=True)
class HubCall:
    """A read from the Hub or a write to it, as its error describes it.

    Attributes:
        repo: ``org/name``.
        repo_type: ``"model"`` or ``"dataset"``.
        revision: Branch, tag or commit; None: the default branch.
        file: File that is read; empty: a folder is written.
        unknown: Advice if the Hub knows no such repository.
        instead: Advice that works without the Hub.
    """

    repo: str
    repo_type: str
    revision: str | None
    file: str
    unknown: str
    instead: str

    def error(self, hint: str) -> HubError:
        """The error for this call; ``hint`` tells what happened and what to try."""
        action = f"read {self.file} of" if self.file else "write to"
        message = f"cannot {action} the Hub {self.repo_type} {self.repo} (revision {self.revision or 'main'}): {hint}"
        return HubError(without_secrets(message), repo=self.repo, revision=self.revision, file=self.file)

    @contextmanager
    def one_error(self) -> Iterator[None]:
        """Turn whatever the client raises inside into a :class:`HubError`."""
        try:
            yield
        except HubError:
            raise
        except Exception as error:  # the client's errors have no common base: OSError, ValueError, KeyError, its own
            found = self.error(_hint(_root(error), self))
            _hide_secrets(error)
            raise found from error


def without_secrets(text: str) -> str:
    """Mask tokens, and user and password in URLs (of ``HF_ENDPOINT``, of a proxy)."""
    return _TOKEN.sub("hf_***", _CREDENTIALS.sub(r"\1***@", text))


def _hide_secrets(error: BaseException | None) -> None:
    """Mask secrets in an error and in its causes, which a traceback shows as well."""
    while error is not None:
        error.args = tuple(without_secrets(part) if isinstance(part, str) else part for part in error.args)
        error = error.__cause__ or error.__context__


def is_unreachable(error: BaseException | None) -> bool:
    """Whether an error of the client means that no Hub answered, or that it failed (5xx)."""
    from huggingface_hub import errors

    cause = _root(error) if isinstance(error, Exception) else error
    if isinstance(cause, errors.HfHubHTTPError):
        return cause.response.status_code >= 500
    return isinstance(cause, _http().TransportError) and not isinstance(cause, _http().ProxyError)


def _root(error: Exception) -> Exception:
    """The cause that the client hides behind "not in the cache" or "error while uploading"."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError | RuntimeError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def _http() -> ModuleType:
    """The client's HTTP library: httpx for huggingface_hub 1, httpx2 for later versions."""
    from huggingface_hub import errors

    base = next(base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError")
    return sys.modules[base.__module__.partition(".")[0]]


def _hint(error: Exception, call: HubCall) -> str:
    """What happened and what to try, in half a sentence; subclasses stand before their bases."""
    from huggingface_hub import constants, errors

    http, instead = _http(), call.instead
    hints: list[tuple[type[Exception] | tuple[type[Exception], ...], str]] = [
        (errors.GatedRepoError, f"access is gated, ask for it at {constants.ENDPOINT}/{call.repo} and set HF_TOKEN"),
        (errors.RevisionNotFoundError, "the repository has no such revision, name a branch, tag or commit of it"),
        (errors.RepositoryNotFoundError, call.unknown),
        (errors.DisabledRepoError, f"the Hub has disabled the repository, {instead}"),
        (errors.EntryNotFoundError, "the repository lacks the file, check its name and the revision"),
        (errors.HFValidationError, "this is not a valid repository id, it looks like org/repo"),
        (errors.LocalTokenNotFoundError, "no token is stored, run `hf auth login` or set HF_TOKEN"),
        (errors.HfHubHTTPError, _status_hint(error)),
        (
            http.TimeoutException,
            "the server did not answer in time, try again or raise HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT",
        ),
        (http.ProxyError, f"the proxy failed ({_first_line(error)}), check HTTPS_PROXY"),
        (http.ConnectError, f"{_host(error)} cannot be reached, go online or {instead}"),
        (http.TransportError, "the connection broke off, try again"),
        (http.TooManyRedirects, "the server redirects for ever, check HF_ENDPOINT"),
        (
            (errors.FileMetadataError, ValueError, KeyError, TypeError, AttributeError, AssertionError),
            "the answer is not one of a Hub, check HF_ENDPOINT and the proxy",
        ),
    ]
    for kind_of_error, hint in hints:
        if isinstance(error, kind_of_error):
            return hint
    return f"{_first_line(error)}, check the connection and the disk, then try again"


def _status_hint(error: Exception) -> str:
    """What to try, by HTTP status."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    hints = {
        401: "no valid token came with it (401), set HF_TOKEN or run `hf auth login`",
        403: "the token does not allow it (403), set HF_TOKEN to one of somebody who may",
        409: "somebody else is writing to it (409), try again",
        412: "somebody else has written to it (412), try again",
        429: "there were too many requests (429), try again in some minutes, with HF_TOKEN set",
    }
    if status >= 500:
        return f"the server failed ({status}), try again later"
    return hints.get(status, f"the server refused ({status}), check the name and HF_ENDPOINT")


def _host(error: Exception) -> str:
    """The server of a request; large files have another than the Hub itself."""
    from huggingface_hub import constants

    try:
        url = error.request.url  # type: ignore[attr-defined]
    except (AttributeError, RuntimeError):  # the libraries below the client need not say
        return constants.ENDPOINT
    return f"{url.scheme}://{url.netloc.decode()}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
