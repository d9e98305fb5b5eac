"""What lies between a simulated prefill and a decode: leases, beats, transfers, faults."""

import asyncio

import pytest

from orchestrator.core.reasons import Cause
from orchestrator.wire.config import Gang
from tests.asgi import call
from tests.unit.core_driver import Driver
from tests.unit.transfer_stage import (
    ASK_PREFILL,
    OTHER,
    POLICIES,
    PROMPT,
    as_configured,
    outcome,
    played,
    unanswered,
)
from tests.virtual_loop import let_pass

# ---- the prefill side --------------------------------------------------------------------------


def test_the_ticket_has_the_shape_of_nixl():
    async def scene(stage):
        prefill = await stage.start("prefill")
        answer = await prefill.complete(PROMPT, ASK_PREFILL, max_tokens=1)
        return answer.json["kv_transfer_params"], prefill.agent, prefill.lender.port

    (ticket, agent, port), _ = played(scene)
    request = ticket.pop("remote_request_id")
    assert request.startswith("cmpl-")
    assert ticket == {
        "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2]],
        "remote_engine_id": agent, "remote_host": "127.0.0.1", "remote_port": port, "tp_size": 1,
        "dcp_size": 1, "pp_size": 1, "remote_num_tokens": len(PROMPT),
        "remote_blocks_expiry_time": None, "transfer_mode": "pull",
        "remote_prefill_cached_tokens": 0,
    }  # fmt: skip


def test_a_streamed_prefill_keeps_the_blocks_and_does_not_say_where():
    """So vLLM: the parameters are in whole answers only."""

    async def scene(stage):
        prefill = await stage.start("prefill")
        answer = await prefill.complete(PROMPT, ASK_PREFILL, max_tokens=1, stream=True)
        assert b"kv_transfer_params" not in answer.body
        assert len(prefill.lender._pins) == 1

    played(scene)


def test_a_chat_is_lent_and_fetched_too():
    async def scene(stage):
        prefill, decode = await stage.pair()
        body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}
        path = "/v1/chat/completions"
        one = body | {"kv_transfer_params": ASK_PREFILL, "max_tokens": 1}
        first = await call(prefill.app, path, one)
        ticket = first.json["kv_transfer_params"]
        second = await call(decode.app, path, body | {"kv_transfer_params": ticket})
        alone = await call((await stage.start()).app, path, body)
        assert second.json["choices"] == alone.json["choices"]
        assert second.json["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
        assert "prompt_tokens_details" not in alone.json["usage"]

    played(scene)


def test_who_generates_more_than_one_token_lends_the_wrong_end():
    """As vLLM pairs blocks from the end: another reason to ask prefill for one token."""

    async def scene(stage):
        prefill, decode = await stage.pair()
        answer = await prefill.complete(PROMPT, ASK_PREFILL, max_tokens=40)
        ticket = answer.json["kv_transfer_params"]
        assert (len(ticket["remote_block_ids"][0]), ticket["remote_num_tokens"]) == (4, 62)
        return await outcome(stage, await decode.complete(PROMPT, ticket))

    assert played(scene)[0] == "wrong"


def test_prefills_that_nobody_fetches_fill_the_memory_until_their_leases_end():
    async def scene(stage):
        prefill = await stage.start("prefill", lease=30.0, **{"kv-blocks": 16})
        loop = asyncio.get_running_loop()
        for _ in range(8):
            await prefill.prefill()
        assert loop.time() < 0.1, "eight times two blocks: there was room"
        await prefill.prefill()
        return loop.time()

    assert 30.0 <= played(scene)[0] < 30.1


def test_a_drain_waits_for_what_is_to_be_fetched():
    async def scene(stage):
        prefill, decode = await stage.pair()
        await prefill.engine.wait_fetched()
        ticket = await prefill.prefill()
        waiting = await unanswered(prefill.engine.wait_fetched(), within_s=10)
        await decode.complete(PROMPT, ticket)
        await waiting

    assert played(scene)[1] < 11


def test_a_port_that_is_taken_stops_the_start_for_ever(capsys):
    async def scene(stage):
        first = await stage.start("prefill")
        starting = await unanswered(stage.start("decode", port=first.lender.port), within_s=300)
        starting.cancel()
        return first.lender.port

    port, _ = played(scene)
    said = capsys.readouterr().err
    assert "nixl_handshake_listener" in said
    assert f"zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:{port}')" in said


# ---- the decode side ---------------------------------------------------------------------------


def test_a_transfer_takes_its_time_and_the_batch_goes_on():
    async def scene(stage):
        _, decode, ticket = await stage.lent(step=1.0, **{"transfer-rate": len(PROMPT) / 20})
        loop = asyncio.get_running_loop()
        began = loop.time()
        fetching = asyncio.ensure_future(decode.complete(PROMPT, ticket, max_tokens=1))
        await decode.complete(OTHER, max_tokens=10)
        others = loop.time() - began
        await fetching
        return others, loop.time() - began

    (others, whole), _ = played(scene)
    assert 10 <= others < 10.1
    assert 21 <= whole < 21.1


def test_beats_keep_the_blocks_while_a_request_waits_in_the_queue():
    async def scene(stage):
        prefill, decode, ticket = await stage.lent(lease=30.0, step=1.0, **{"batch-max": 1})
        long = asyncio.ensure_future(decode.complete(OTHER, max_tokens=200))
        answer = await decode.complete(PROMPT, ticket)
        await long
        assert await prefill.figure("vllm:nixl_num_kv_expired_reqs_total") == 0
        assert prefill.stepper.blocks.free == 16_384
        return await outcome(stage, answer)

    found, took_s = played(scene)
    assert found == "right"
    assert took_s > 200


def test_a_client_that_leaves_the_queue_frees_the_blocks_at_once():
    async def scene(stage):
        prefill, decode, ticket = await stage.lent(**{"transfer-rate": 0.001})
        leave = asyncio.Event()
        asking = await unanswered(decode.complete(PROMPT, ticket, leave=leave), within_s=1)
        leave.set()
        assert await asking is None
        await prefill.engine.wait_fetched()
        assert (decode.stepper.blocks.free, decode.stepper.waiting) == (16_384, 0)

    assert played(scene)[1] < 2


def test_a_request_that_decode_refuses_frees_the_blocks_too():
    async def scene(stage):
        prefill, decode = await stage.pair()
        answer = await decode.complete(PROMPT, await prefill.prefill(), max_tokens=-1)
        assert answer.status == 400
        await prefill.engine.wait_fetched()

    assert played(scene)[1] < 1


def test_an_incomplete_ticket_waits_for_ever(caplog):
    async def scene(stage):
        _, decode, ticket = await stage.lent()
        del ticket["remote_host"]
        leave = asyncio.Event()
        asking = await unanswered(decode.complete(PROMPT, ticket, leave=leave), within_s=300)
        leave.set()
        await asking

    played(scene)
    assert "Got invalid KVTransferParams" in caplog.text


@pytest.mark.parametrize("policy", POLICIES)
def test_another_machine_is_never_called(policy):
    async def scene(stage):
        prefill, decode = await stage.pair(policy)
        ticket = await prefill.prefill() | {"remote_host": "192.0.2.1"}
        return await outcome(stage, await decode.complete(PROMPT, ticket))

    assert played(scene)[0] == as_configured(policy)


def test_engines_of_different_models_do_not_go_together(caplog):
    async def scene(stage):
        prefill = await stage.start("prefill")
        decode = await stage.start("decode", **{"block-size": 32})
        return await outcome(stage, await decode.complete(PROMPT, await prefill.prefill()))

    assert played(scene)[0] == "right"
    assert "NIXL compatibility hash mismatch" in caplog.text


def test_cached_tokens_are_prefills():
    async def scene(stage):
        prefill, decode = await stage.pair()
        ticket = await prefill.prefill() | {"remote_prefill_cached_tokens": 16}
        return (await decode.complete(PROMPT, ticket)).json["usage"]

    usage, _ = played(scene)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 16}


def test_without_a_connector_a_ticket_is_ignored(caplog):
    async def scene(stage):
        alone = await stage.start()
        answer = await alone.complete(PROMPT, {"do_remote_prefill": True})
        assert "kv_transfer_params" not in answer.json
        return await outcome(stage, answer)

    assert played(scene)[0] == "right"
    assert "no KVConnector found" in caplog.text


# ---- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["prefill", "decode"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_transfer_that_fails(side, policy):
    async def scene(stage):
        faults = [{"fault": "transfer-fail", "after-transfers": 2}]
        prefill = await stage.start("prefill", faults=faults if side == "prefill" else [])
        decode = await stage.start(
            "decode", on_failure=policy, faults=faults if side == "decode" else []
        )
        return [
            await outcome(stage, await decode.complete(PROMPT, await prefill.prefill()))
            for _ in range(3)
        ]

    assert played(scene)[0] == ["right", as_configured(policy), "right"]


@pytest.mark.parametrize("side", ["prefill", "decode"])
def test_a_transfer_that_never_ends(side):
    async def scene(stage):
        faults = [{"fault": "transfer-stall"}]
        prefill = await stage.start("prefill", faults=faults if side == "prefill" else [])
        decode = await stage.start("decode", faults=faults if side == "decode" else [])
        leave = asyncio.Event()
        asking = decode.complete(PROMPT, await prefill.prefill(), leave=leave)
        asking = await unanswered(asking, within_s=300)
        assert decode.engine.busy()
        leave.set()
        await asking
        return await outcome(stage, await decode.complete(PROMPT, await prefill.prefill()))

    assert played(scene)[0] == "right"


def test_an_answer_that_is_lost():
    async def scene(stage):
        prefill = await stage.start("prefill", faults=[{"fault": "drop-answer"}])
        asking = await unanswered(prefill.prefill(), within_s=10)
        assert len(prefill.lender._pins) == 1, "it was served"
        asking.cancel()
        return await prefill.prefill()

    assert played(scene)[0]["do_remote_prefill"]


@pytest.mark.parametrize(
    "words",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, b"\0\0\0\1\xc1"],
    ids=["nothing", "http", "too long", "no message"],
)
def test_strangers_at_the_side_channel_are_cut_off(words):
    async def scene(stage):
        prefill, decode = await stage.pair()
        reader, writer = await asyncio.open_connection("127.0.0.1", prefill.lender.port)
        writer.write(words)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        return await outcome(stage, await decode.complete(PROMPT, await prefill.prefill()))

    assert played(scene)[0] == "right"


def test_a_choice_that_is_admitted_late_reads_blocks_that_are_kept_no_more():
    """Each choice reads for itself, and the first to have read frees the blocks: so it does in
    vLLM's code, too. One ticket is for one choice, unless all of them are admitted together."""

    async def scene(stage):
        prefill = await stage.start("prefill", **{"kv-blocks": 16})
        decode = await stage.start("decode", step=1.0, **{"batch-max": 1, "kv-blocks": 16})
        ticket = await prefill.prefill()
        asking = asyncio.ensure_future(decode.complete(PROMPT, ticket, n=2, max_tokens=200))
        await let_pass(20)
        for number in range(10):
            await prefill.complete(f"{OTHER} {number}", max_tokens=1)
        first, second = (each["text"] for each in (await asking).json["choices"])
        truth = await stage.truth(max_tokens=200)
        return first == truth, second == truth

    assert played(scene)[0] == (True, False)


def test_ranks_of_a_gang_lend_under_names_of_their_own():
    async def scene(stage):
        prefill = await stage.start(
            "prefill", gang=Gang(member=0, size=1, host="127.0.0.1", port=0)
        )
        ticket = await prefill.prefill()
        assert ticket["remote_engine_id"].endswith("_dp0")
        decode = await stage.start("decode")
        return await outcome(stage, await decode.complete(PROMPT, ticket))

    assert played(scene)[0] == "right"


def test_the_daemon_explains_a_side_channel_that_is_taken(capsys):
    """What the engine says last is what the table of failures looks for."""

    async def scene(stage):
        first = await stage.start("prefill")
        starting = await unanswered(stage.start("decode", port=first.lender.port), within_s=1)
        starting.cancel()

    played(scene)
    driver = Driver().start().born().deadline()
    driver.empty(status=9, tail=capsys.readouterr().err)
    reason = driver.state.last_failure
    assert reason.cause is Cause.START_TIMEOUT
    assert "NIXL's port is taken: 127.0.0.1:" in reason.sentence
