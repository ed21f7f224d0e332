"""An S3 server that breaks on demand: a proxy between a client and a real server, with rules for what goes wrong.

The Host header passes unchanged, because clients sign it: to the server the proxy's address is its own. Bodies pass whole, so
the proxy is for tests, not for traffic.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, unquote, urlsplit

_HEAD_BYTES = 1 << 16
Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """What a client asked for."""

    method: str
    target: str
    headers: Headers
    body: bytes

    @property
    def key(self) -> str:
        """`bucket/key`, unquoted."""
        return unquote(urlsplit(self.target).path).lstrip("/")

    @property
    def operation(self) -> str:
        """S3's name for it, in one word."""
        query = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        is_upload = "uploadId" in query
        if "/" not in self.key.rstrip("/"):
            return {"GET": "List", "PUT": "CreateBucket", "POST": "DeleteMany"}.get(self.method, self.method)
        if self.method == "POST":
            return "Complete" if is_upload else "CreateUpload"
        names = {"GET": "Get", "HEAD": "Head", "PUT": "UploadPart" if is_upload else "Put", "DELETE": "Delete"}
        return "Abort" if is_upload and self.method == "DELETE" else names.get(self.method, self.method)


@dataclass(frozen=True)
class Answer:
    """What goes back: whole, or cut off after `cut` bytes of the body with the connection."""

    status: int
    headers: Headers
    body: bytes = b""
    cut: int | None = None

    def with_header(self, name: str, value: str) -> Answer:
        kept = [(key, old) for key, old in self.headers if key.lower() != name.lower()]
        return replace(self, headers=[*kept, (name, value)])


Forward = Callable[[], Awaitable[Answer]]
# None: the connection breaks without an answer.
Act = Callable[[Request, Forward], Awaitable[Answer | None]]


@dataclass
class Rule:
    """`act` instead of an honest answer, from the `nth` request that fits on, `times` times (None: for ever)."""

    name: str
    act: Act
    operations: str = "Put"  # names, or *
    key: str = ""  # a regular expression that is searched in `bucket/key`
    nth: int = 1
    times: int | None = 1
    fitting: int = 0
    hits: int = 0

    def strikes(self, request: Request) -> bool:
        """Whether this request is one that goes wrong; counts it."""
        named = self.operations == "*" or request.operation in self.operations.split()
        if not named or not re.search(self.key, request.key):
            return False
        self.fitting += 1
        late = self.fitting >= self.nth and (self.times is None or self.hits < self.times)
        self.hits += late
        return late


@dataclass
class Proxy:
    """Passes requests on to `upstream` (host, port), unless a rule strikes."""

    upstream: tuple[str, int]
    rules: list[Rule] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)  # operations, struck or not
    address: tuple[str, int] = ("127.0.0.1", 0)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        """URL for clients."""
        return f"http://{self.address[0]}:{self.address[1]}"

    def obey(self, *rules: Rule) -> None:
        """These rules and no others from now on."""
        with self._lock:
            self.rules = list(rules)
            self.seen = Counter()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while (request := await _read_request(reader, writer)) is not None:
                answer = await self._answer(request)
                if answer is None:
                    break
                writer.write(_to_bytes(request, answer))
                await writer.drain()
                if answer.cut is not None:
                    break
        writer.transport.abort()

    async def _answer(self, request: Request) -> Answer | None:
        def forward() -> Awaitable[Answer]:
            return _forwarded(self.upstream, request)

        with self._lock:
            self.seen[request.operation] += 1
            rule = next((rule for rule in self.rules if rule.strikes(request)), None)
        return await (rule.act(request, forward) if rule else forward())


@contextmanager
def proxied(upstream: str) -> Iterator[Proxy]:
    """A proxy before the server at URL `upstream`, in a thread of its own, until the block ends."""
    parts = urlsplit(upstream)
    proxy = Proxy((parts.hostname or "127.0.0.1", parts.port or 80))
    loop = asyncio.new_event_loop()
    listening = socket.create_server(("127.0.0.1", 0))
    proxy.address = listening.getsockname()[:2]

    async def serve() -> None:
        async with await asyncio.start_server(proxy._serve, sock=listening, limit=_HEAD_BYTES):
            await over.wait()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    over = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="s3 proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, headers = _parse_head(head)
    method, target, _ = first.split(" ", 2)
    named = {name.lower(): value for name, value in headers}
    if named.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "transfer-encoding" in named:
        raise ValueError(f"{method} {target}: the proxy knows bodies by their length alone")
    body = await reader.readexactly(int(named.get("content-length", 0)))
    return Request(method, target, headers, body)


def _parse_head(head: bytes) -> tuple[str, Headers]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    return first, [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


async def _forwarded(upstream: tuple[str, int], request: Request) -> Answer:
    """Asks the real server, in HTTP/1.0: its answer then ends with the connection and is never chunked."""
    reader, writer = await asyncio.open_connection(*upstream)
    try:
        kept = [(name, value) for name, value in request.headers if name.lower() not in ("connection", "expect")]
        lines = [f"{request.method} {request.target} HTTP/1.0", *(f"{name}: {value}" for name, value in kept), "", ""]
        writer.write("\r\n".join(lines).encode("latin-1") + request.body)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    first, headers = _parse_head(head)
    dropped = ("connection", "keep-alive", "transfer-encoding")
    return Answer(int(first.split()[1]), [(name, value) for name, value in headers if name.lower() not in dropped], body)


def _to_bytes(request: Request, answer: Answer) -> bytes:
    headers = answer.headers
    if request.method != "HEAD" and not any(name.lower() == "content-length" for name, _ in headers):
        headers = [*headers, ("Content-Length", str(len(answer.body)))]
    lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers), "", ""]
    body = b"" if request.method == "HEAD" else answer.body[: answer.cut]
    return "\r\n".join(lines).encode("latin-1") + body


# What can go wrong.


def refused(status: int, code: str) -> Act:
    """An error of S3; nothing happens."""

    async def act(request: Request, forward: Forward) -> Answer:
        return _error(request, status, code)

    return act


def _error(request: Request, status: int, code: str) -> Answer:
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code} for {request.target}</Message></Error>'
    return Answer(status, [("Content-Type", "application/xml")], text.encode())


async def dropped_before(request: Request, forward: Forward) -> None:
    """The connection breaks, and nothing happens."""


async def dropped_after(request: Request, forward: Forward) -> None:
    """It happens, and the connection breaks before the answer."""
    await forward()


def error_after(status: int, code: str) -> Act:
    """It happens, and the answer is an error."""

    async def act(request: Request, forward: Forward) -> Answer:
        await forward()
        return _error(request, status, code)

    return act


def late(delay_s: float, *, happens: bool) -> Act:
    """An answer that comes after the client has lost patience, or would; what was asked may have happened."""

    async def act(request: Request, forward: Forward) -> Answer | None:
        answer = await forward() if happens else None
        await asyncio.sleep(delay_s)
        return answer

    return act


async def cut_body(request: Request, forward: Forward) -> Answer:
    """Half of the body, then the connection breaks."""
    answer = await forward()
    return replace(answer.with_header("Content-Length", str(len(answer.body))), cut=len(answer.body) // 2)


async def short_body(request: Request, forward: Forward) -> Answer:
    """Half of the body under a Content-Length that fits it: nothing in HTTP says that it is not whole."""
    answer = await forward()
    half = answer.body[: len(answer.body) // 2]
    return replace(answer, body=half).with_header("Content-Length", str(len(half)))


async def too_long_length(request: Request, forward: Forward) -> Answer:
    """A Content-Length that promises more than comes before the connection ends."""
    answer = await forward()
    return replace(answer.with_header("Content-Length", str(len(answer.body) + 100)), cut=len(answer.body))


async def too_short_length(request: Request, forward: Forward) -> Answer:
    """A Content-Length that is ten less than what comes."""
    answer = await forward()
    return answer.with_header("Content-Length", str(max(0, len(answer.body) - 10)))


async def error_in_200(request: Request, forward: Forward) -> Answer:
    """What S3 does when it finds out too late that it cannot complete an upload."""
    return replace(_error(request, 500, "InternalError"), status=200)


async def error_in_200_after(request: Request, forward: Forward) -> Answer:
    """The same, though it did complete it."""
    await forward()
    return await error_in_200(request, forward)


async def garbage(request: Request, forward: Forward) -> Answer:
    """An answer that is no XML, under a good status: a broken gateway."""
    return Answer(200, [("Content-Type", "application/xml")], b"<html><body>Something went<br>")


async def login_page(request: Request, forward: Forward) -> Answer:
    """Good XML under a good status, and yet nothing that S3 would say."""
    return Answer(200, [("Content-Type", "text/html")], b"<html><body>Welcome to the guest network!</body></html>")


async def redirected(request: Request, forward: Forward) -> Answer:
    """To another endpoint, where nobody listens."""
    return _error(request, 307, "TemporaryRedirect").with_header("Location", f"http://127.0.0.1:9{request.target}")


async def another_etag(request: Request, forward: Forward) -> Answer:
    """As if the object had been replaced meanwhile."""
    return (await forward()).with_header("ETag", '"00000000000000000000000000000000"')


async def emptied_list(request: Request, forward: Forward) -> Answer:
    """A listing that does not know yet what is there."""
    answer = await forward()
    body = re.sub(rb"<Contents>.*</Contents>", b"", answer.body, flags=re.DOTALL)
    return replace(answer, body=body).with_header("Content-Length", str(len(body)))
