"""Asks, in a process of its own, whether a Ray cluster can be attached to: `python -P probe.py ADDRESS` prints one JSON object.

Ray's own client waits for minutes for a cluster that is not there, and cannot be told to stop. `Answer` says what is printed.
"""

from __future__ import annotations

import json
import sys
from typing import Any, Literal, TypedDict

NODE_S = 10.0  # that this machine's node may take to show


class Answer(TypedDict, total=False):
    """`trouble` is None where a driver can attach. The versions are the cluster's and ours, as (Ray, Python)."""

    trouble: Literal["no cluster", "silent", "token", "versions", "no node", "crash"] | None
    said: str
    theirs: list[str]
    ours: list[str]


def ask(address: str) -> Answer:
    """The answer for HOST:PORT or `auto`. What this Ray has no means to find out, counts as good: attaching will tell."""
    from ray._private import services, utils

    try:
        found = services.canonicalize_bootstrap_address(address)
    except ValueError as error:
        return {"trouble": "no cluster", "said": str(error)}
    if found is None:
        return {"trouble": "no cluster", "said": "no cluster runs on this machine"}
    client, trouble = _connected(found, is_found=address == "auto")
    if client is None:
        return trouble
    metadata = json.loads(client.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=5) or b"{}")
    theirs = [str(metadata.get(name)) for name in ("ray_version", "python_version")]
    ours = [str(part) for part in utils.compute_version_info()]
    try:
        utils.check_version_info(metadata, "this process")
    except RuntimeError:
        return {"trouble": "versions", "theirs": theirs, "ours": ours}
    return _with_node(services, client)


def _connected(address: str, *, is_found: bool) -> tuple[Any, Answer]:
    """A client of the cluster's control store, or None and why not. A cluster found on this machine gets this user's token."""
    from ray._private.authentication import authentication_token_setup as tokens
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # its stub leaves it out
    from ray.exceptions import AuthenticationError, RpcError

    if is_found:
        tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        tokens.ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one the client would abort
        return GcsClient(address=address), {}
    except AuthenticationError:
        return None, {"trouble": "token"}
    except (RpcError, RuntimeError, ConnectionError) as error:
        return None, {"trouble": "silent", "said": str(error)}


def _with_node(services: Any, client: Any) -> Answer:
    """A driver speaks to the cluster through a node on its own machine."""
    find = getattr(services, "get_node_to_connect_for_driver", None)
    try:
        if find is not None:
            find(client, timeout_seconds=NODE_S)
    except TypeError:  # another Ray's function
        return {"trouble": None}
    except RuntimeError as error:
        if "No node info found" in str(error):
            return {"trouble": "no node", "said": str(error)}
    return {"trouble": None}


if __name__ == "__main__":
    try:
        answer = ask(sys.argv[1])
    except (ImportError, AttributeError) as error:  # another Ray, whose private parts have other names
        answer = {"trouble": None, "said": str(error)}
    print(json.dumps(answer))
