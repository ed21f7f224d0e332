"""What must never be written down: credentials in URLs, and what the environment holds of them."""

from __future__ import annotations

import os
import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>|]*[^\s'\"<>|:;,.)\]]")
_TOLD_BY_NAME = re.compile(
    r"([?&;](?:[^=&#\s]*(?:sig|signature|token|secret|credential|password|passwd|api_?key|accesskeyid|auth))=)", re.I
)
_KEYS_IN_TEXT = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|\bhf_[A-Za-z0-9]{16,}\b|(?<=X-Amz-Signature=)[0-9a-fA-F]+")
_WEB = frozenset({"http", "https"})
_PORT = re.compile(r"[^:]*:\d*|\[[0-9A-Fa-f:.]*\](:\d*)?")
_SECRET_VARIABLE = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|ACCESS_KEY|API_KEY|CREDENTIAL", re.I)
_NO_SECRET_VARIABLE = re.compile(r"(FILE|PATH|DIR|URI|URL|ARN|PARALLELISM)\Z", re.I)
_SHORTEST_SECRET = 8  # characters; a shorter one would blot out words


def has_credentials(uri: str) -> bool:
    """Whether a URL carries a user, a password or a signature; a web address with any query counts: who knows what it is."""
    match = _SCHEME.match(uri)
    if match is None:
        return False
    scheme, rest = match.group(1).lower(), uri[match.end() :]
    if (scheme in _WEB and re.search("[?#]", rest)) or _TOLD_BY_NAME.search(rest):
        return True
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, _ = host.rpartition("@")
    if at:
        return ":" in user or scheme in _WEB or scheme.startswith("s3")
    # A password may hold a slash: `s3://key:pass/word@bucket`.
    is_odd = ":" in host and not host.startswith("arn:") and (scheme.startswith("s3") or not _PORT.fullmatch(host))
    return is_odd or (":" in host and "@" in rest)


def redacted(uri: str) -> str:
    """A URL for people: without user, password and the query of a signed link. Anything else as it is."""
    match = _SCHEME.match(uri)
    if match is None:
        return uri
    scheme, rest = match.group(1).lower(), uri[match.end() :]
    signed = re.search("[?#]", rest) if scheme in _WEB else _TOLD_BY_NAME.search(rest)
    if signed:
        rest = f"{rest[: signed.start()]}?***"
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if ":" in host and "@" in rest:
        rest = f"***@{rest.rpartition('@')[2]}"
    elif "@" in host:
        rest = f"***@{rest.partition('@')[2]}"
    elif scheme.startswith("s3") and ":" in host and not host.startswith("arn:"):
        rest = f"***{rest[len(host) :]}"
    return f"{uri[: match.end()]}{rest}"


def hidden(text: str) -> str:
    """A text for people: its URLs `redacted`, and access keys and values of the environment's secrets blotted out."""
    found = _URL_IN_TEXT.sub(lambda match: redacted(match.group()), text)
    for name, value in os.environ.items():
        is_secret = _SECRET_VARIABLE.search(name) and not _NO_SECRET_VARIABLE.search(name)
        if is_secret and len(value) >= _SHORTEST_SECRET and value in found:
            found = found.replace(value, "***")
    return _KEYS_IN_TEXT.sub("***", found)
