"""A client of `browse` that has been let in, and runs as stages write them."""

import datetime
import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from pages import ROOT
from prefloop.relabel.annotate.browse import browse_app
from prefloop.relabel.annotate.config import BrowseConfig
from prefloop.relabel.annotate.security import InviteLinks
from prefloop.store import PairStore
from starlette.testclient import TestClient


def entered(store: PairStore) -> TestClient:
    tokens: list[str] = []
    invites: InviteLinks[str] = InviteLinks(lambda token, _: tokens.append(token))
    invites.create()
    client = TestClient(browse_app(BrowseConfig(), store, invites, 8420), base_url=ROOT, follow_redirects=False)
    assert client.post("/enter", data={"token": tokens[0]}, headers={"origin": ROOT}).status_code == 303
    return client


def add_run(
    store: PairStore,
    kind: str = "eval",
    *,
    config: Mapping[str, Any] = {},
    summary: Mapping[str, Any] = {},
    status: str = "done",
    seconds: float = 0,
) -> UUID:
    """A run that began on the first day of 2026."""
    run, start = uuid4(), datetime.datetime(2026, 1, 1)
    row = {
        "run_id": run,
        "kind": kind,
        "status": status,
        "started": start,
        "updated": start + datetime.timedelta(seconds=seconds),
        "config": json.dumps(dict(config)),
        "versions": "{}",
        "summary": json.dumps(dict(summary)),
        "parents": [],
    }
    store.append("runs", [row])
    store.ingest()
    return run
