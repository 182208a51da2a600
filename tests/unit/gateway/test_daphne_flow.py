"""A slow reader is waited for, a dead one is cut off."""

from __future__ import annotations

import pytest

# Not imported from here: daphne.server installs Twisted's reactor, with an event loop that nobody closes.
from tests.unit.gateway.subprocess_python import run_python

SETUP = """
import asyncio
from inference.gateway import daphne_flow

class Transport:
    offset = 0
    _tempDataLen = 0
    aborted = False
    def __init__(self, unsent): self.dataBuffer = b"x" * unsent
    def abortConnection(self): self.aborted = True
"""


@pytest.mark.parametrize(
    "script",
    [
        """
transport = Transport(1_000_000)
async def main():
    waiting = asyncio.create_task(daphne_flow.drained("p", transport, {"p": {}}))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    transport.dataBuffer = b""
    await asyncio.wait_for(waiting, 5)
    assert not transport.aborted
asyncio.run(main())
""",
        """
transport = Transport(1_000_000)
daphne_flow.STALLED_S = 0.05
asyncio.run(asyncio.wait_for(daphne_flow.drained("p", transport, {"p": {}}), 5))
assert transport.aborted
""",
        """
transport = Transport(1_000_000)
asyncio.run(asyncio.wait_for(daphne_flow.drained("p", transport, {"p": {"disconnected": 1.0}}), 5))
assert not transport.aborted
""",
    ],
    ids=["reads at last", "never reads", "has gone"],
)
def test_the_writer_waits_for(script):
    run_python(SETUP + script)


def test_twisted_parses_no_content_type_and_writes_no_access_log():
    """Both are for nobody, and cost more than all that the gateway does for a request that it refuses."""
    run_python(
        """
from unittest.mock import MagicMock
import twisted.web.http
from twisted.internet.testing import StringTransport
from inference.gateway import daphne_flow

def never(*args):
    raise AssertionError("Twisted does what nobody needs")

twisted.web.http._parseContentType = never
received = []
daphne_flow.BoundedRequest.process = lambda request: received.append(request.content.read())

factory = daphne_flow.BoundedFactory(MagicMock())
factory._logFile, factory._logFormatter = type("Log", (), {"write": never})(), never
channel = factory.buildProtocol(None)
channel.makeConnection(StringTransport())
channel.dataReceived(
    b"POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\n"
    b"Content-Length: 2\\r\\n\\r\\n{}"
)
assert received == [b"{}"], received
factory.log(MagicMock())
"""
    )
