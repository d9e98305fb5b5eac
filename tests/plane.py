"""A frontend as a test needs one: a DEALER that opens requests and keeps what comes back."""

import asyncio
import json

import zmq

from orchestrator.wire import plane
from orchestrator.wire.sockets import Reader, make_socket

ENDS = plane.End | plane.Fail


class Client:
    """Use within a running loop. `messages` counts ZeroMQ messages, not items."""

    def __init__(self, context, endpoint, hwm=1000, identity=b""):
        self.socket = make_socket(context, zmq.DEALER, hwm=hwm)
        if identity:
            self.socket.routing_id = identity
        self.socket.connect(endpoint)
        self.items = {}
        self.messages = 0
        self._ends = {}
        self._reader = Reader(self.socket, self._on_message)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if not self.socket.closed:
            self._reader.stop()
            self.socket.close(linger=0)

    def pause(self):
        self._reader.stop()

    def resume(self):
        self._reader.start()

    def open(self, request_id, path="/", body=b"", method="POST"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.items[request_id] = []
        self._ends[request_id] = asyncio.Event()
        self.say(plane.Open(request_id, method, path, b"", [], data))

    def cancel(self, request_id):
        self.say(plane.Cancel(request_id))

    def say(self, *items):
        self.socket.send(plane.encode(list(items)), zmq.NOBLOCK)
        self._reader.kick()

    async def end(self, request_id, within_s=5.0):
        """Wait for the request's end; all its items."""
        async with asyncio.timeout(within_s):
            await self._ends[request_id].wait()
        return self.items[request_id]

    async def ask(self, request_id, path="/", body=b"", method="POST"):
        self.open(request_id, path, body, method)
        return await self.end(request_id)

    def _on_message(self, frames):
        self.messages += 1
        for item in plane.decode_up(frames[-1]):
            assert not self._ends[item.id].is_set(), f"{item} after the end"
            self.items[item.id].append(item)
            if isinstance(item, ENDS):
                self._ends[item.id].set()


def body_of(items):
    return b"".join(item.data for item in items if isinstance(item, plane.Chunk))
