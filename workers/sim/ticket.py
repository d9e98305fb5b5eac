"""`kv_transfer_params` as vLLM's NixlConnector reads and writes them, the rough edges included.

A request may ask this engine to keep its prompt's blocks for another one (`do_remote_decode`), or
to fetch them from another one (`do_remote_prefill`, and where they are: a ticket). vLLM examines
little, and what it takes for granted kills its engine; so that a frontend can be tested against
that without vLLM, we do the same.
"""

from typing import Any

import msgspec

WHERE = ("remote_engine_id", "remote_request_id", "remote_host", "remote_port")


class MalformedError(Exception):
    """What would be an exception in vLLM's engine process: the end of it."""


class Ticket(msgspec.Struct, frozen=True):
    """Where a prompt's blocks are: `blocks` of `engine`, kept for `request`."""

    engine: str
    request: str
    host: str
    port: int
    blocks: list[int]


class Wish(msgspec.Struct, frozen=True):
    """What a request wants of the connector.

    `cached`: of the prompt's tokens, those that the other engine found in its cache.
    """

    params: dict[str, Any]
    lends: bool
    fetches: bool
    cached: int | None = None

    def ticket(self, wanted: int = 0) -> Ticket | None:
        """Read the ticket; None where vLLM waits for ever. MalformedError where it dies.

        `wanted`: how many blocks it must be for.
        """
        groups = self.params.get("remote_block_ids")
        if not groups:
            raise MalformedError("AssertionError: assert num_external_tokens == 0")
        if any(name not in self.params for name in WHERE):
            return None
        try:
            (blocks,) = msgspec.convert(groups, tuple[list[int]])
            engine, request, host, port = (self.params[name] for name in WHERE)
            ticket = Ticket(engine, str(request), str(host), int(port), blocks)
        except (msgspec.ValidationError, TypeError, ValueError) as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from error
        if len(blocks) < wanted:
            raise MalformedError("AssertionError: assert num_decode_blocks <= len(prefill_group)")
        return ticket

    def request(self) -> str:
        """Name the request that the other engine keeps blocks for, if the ticket does."""
        return str(self.params.get("remote_request_id") or "")


def wish_of(params: dict[str, Any] | None) -> Wish | None:
    """Read a request's parameters; None if they ask for nothing."""
    if not params:
        return None
    lends = bool(params.get("do_remote_decode"))
    fetches = bool(params.get("do_remote_prefill"))
    if not (lends or fetches):
        return None
    cached = params.get("remote_prefill_cached_tokens")
    known = fetches and isinstance(cached, int) and not isinstance(cached, bool)
    return Wish(params, lends, fetches, cached if known else None)


def written(ticket: Ticket, tokens: int) -> dict[str, Any]:
    """Write the answer's parameters: what the engine that decodes is to be given, as it is."""
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [ticket.blocks],
        "remote_engine_id": ticket.engine,
        "remote_request_id": ticket.request,
        "remote_host": ticket.host,
        "remote_port": ticket.port,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": tokens,
        "remote_blocks_expiry_time": None,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": 0,
    }
