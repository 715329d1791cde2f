"""JSON over HTTP with everything bounded: time, size, retries; nothing about teachers.

Standard library alone. Redirects are not followed: they could carry the key elsewhere.
"""

import http.client
import json
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from compress.errors import BadInput

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PIECE = 1 << 16


class _Again(Exception):
    """Worth another attempt, perhaps only after a while."""

    def __init__(self, message: str, *, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


def is_local(url: str) -> bool:
    """Whether this address never leaves the machine.

    >>> is_local("http://127.0.0.1:8000"), is_local("http://127.0.0.1.example.org")
    (True, False)
    """
    try:
        return urlsplit(url).hostname in LOOPBACK
    except ValueError:  # half a bracket: no address at all
        return False


def without_secrets(url: str) -> str:
    """An address as it may be shown: no user, no password, no query.

    >>> without_secrets("https://me:pw@host:8000/v1?token=t")
    'https://***@host:8000/v1'
    """
    return re.sub(r"//.*@", "//***@", re.split(r"[?#]", url)[0])


def url_problem(url: str) -> str | None:
    """What is wrong with a server's address; None where nothing is.

    >>> url_problem("http://127.0.0.1:8000")
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        return "must look like http://host:8000"
    if parts.query or parts.fragment or parts.username is not None:
        return (
            "has a user, a password or a query, and none of them is sent: leave them out, and name "
            "the environment variable that holds the key: teacher.served.api_key_env=..."
        )
    return None


@dataclass(frozen=True, kw_only=True)
class JsonClient:
    """Asks one server.

    Args:
        url: `http://host:port` or `https://...`, without a user, a password or a query;
            certificates are always verified.
        api_key: sent as a bearer token; refused over plain http to another machine.
        timeout: seconds that one attempt may take, connecting and dripping included.
        retries: further attempts after a refused connection, a stall, 429 or 5xx; 0 is one attempt.
        backoff: seconds before the second attempt; doubles each time, with jitter, up to 60.
        ca_file: certificate authority of a private server; None takes the system's.

    Raises:
        BadInput: the URL cannot be used, or the key would travel unencrypted.
    """

    url: str
    api_key: str | None = None
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5
    ca_file: str | None = None

    def __post_init__(self) -> None:
        if problem := url_problem(self.url):
            raise BadInput(f"teacher url {without_secrets(self.url)} {problem}")
        if self.api_key and urlsplit(self.url).scheme == "http" and not is_local(self.url):
            raise BadInput(f"{self.url}: an API key would travel in clear; use https://")

    def ask(self, method: str, path: str, body: Any = None, *, max_bytes: int) -> Any:
        """The server's JSON answer.

        Raises:
            BadInput: it refuses, answers too much or no JSON, or fails `retries + 1` times.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._once(method, path, body, max_bytes)
            except _Again as error:
                failure, wait = error, min(60.0, self.backoff * 2**attempt)
            if attempt < self.retries:
                time.sleep(max(min(failure.after, 60.0), wait * random.uniform(0.5, 1.0)))
        raise BadInput(
            f"the teacher server {self.url} failed {self.retries + 1} times, last: {failure}"
        ) from failure

    def _once(self, method: str, path: str, body: Any, max_bytes: int) -> Any:
        connection, cut = self._connection(), threading.Event()
        try:
            with _cut_after(self.timeout, connection, cut) as sockets:
                connection.connect()
                sockets.append(connection.sock)
                answer, received = self._exchange(connection, method, path, body, max_bytes)
        except ssl.SSLCertVerificationError as error:
            raise BadInput(
                f"{self.url}: its certificate is not trusted ({error.verify_message}); "
                "name the authority's file with teacher.ca_file=..."
            ) from error
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            if cut.is_set() or isinstance(error, TimeoutError):
                raise self._late() from error
            if isinstance(error, ValueError | AttributeError):
                raise  # only a socket cut by another thread may raise these
            raise _Again(f"{type(error).__name__}: {error}") from error
        finally:
            connection.close()
        if cut.is_set():  # a body of unannounced length ends without an error when it is cut
            raise self._late()
        return self._judged(answer, received, path)

    def _late(self) -> _Again:
        return _Again(f"no answer within {self.timeout:g} s")

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=self.timeout)
        context = ssl.create_default_context(cafile=self.ca_file)
        return http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=self.timeout, context=context
        )

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: Any,
        max_bytes: int,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        content = None if body is None else json.dumps(body)
        connection.request(method, urlsplit(self.url).path.rstrip("/") + path, content, headers)
        answer = connection.getresponse()
        return answer, _read(answer, max_bytes, self.url)

    def _judged(self, answer: http.client.HTTPResponse, received: bytes, path: str) -> Any:
        if answer.status in RETRIED:
            raise _Again(_told(answer.status, received), after=_retry_after(answer))
        if answer.status != 200:
            raise BadInput(
                f"the teacher server {self.url} refuses {path}: {_told(answer.status, received)}"
            )
        try:
            return json.loads(received)
        except ValueError as error:
            raise BadInput(f"the teacher server {self.url} answers {path} without JSON") from error


@contextmanager
def _cut_after(
    seconds: float, connection: http.client.HTTPConnection, cut: threading.Event
) -> Iterator[list[socket.socket]]:
    """Ends the connection: a socket's own timeout starts anew with every byte that drips in.

    The caller adds the socket once there is one: a connection forgets its own where the server
    means to close it, and the answer goes on reading from it all the same.
    """
    sockets: list[socket.socket] = []

    def stop() -> None:
        cut.set()
        with suppress(OSError, AttributeError):  # not connected yet: connecting has a timeout
            opened = sockets[0] if sockets else connection.sock
            opened.shutdown(socket.SHUT_RDWR)  # close() would not wake a reader

    watch = threading.Timer(seconds, stop)
    watch.daemon = True
    watch.start()
    try:
        yield sockets
    finally:
        watch.cancel()


def _read(answer: http.client.HTTPResponse, max_bytes: int, url: str) -> bytes:
    pieces, total = [], 0
    while piece := answer.read(PIECE):
        pieces.append(piece)
        total += len(piece)
        if total > max_bytes:
            raise BadInput(f"the teacher server {url} sends more than {max_bytes:,} bytes")
    if answer.length:  # bytes that were announced and never came
        raise http.client.IncompleteRead(b"", answer.length)
    return b"".join(pieces)


def _told(status: int, body: bytes) -> str:
    return f"{status} {body[:300].decode(errors='replace').strip()}"


def _retry_after(answer: http.client.HTTPResponse) -> float:
    try:
        return max(0.0, float(answer.headers.get("Retry-After", 0)))
    except ValueError:  # a date: our own backoff will do
        return 0.0
