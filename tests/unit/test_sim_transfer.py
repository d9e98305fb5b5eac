"""Every row of vLLM's measured failure matrix, asked of two simulated engines.

Each row says what vLLM answers: right, wrong without a word, or an error.
"""

import pytest

from tests.asgi import call
from tests.unit.transfer_stage import (
    LOST,
    OTHER,
    POLICIES,
    PROMPT,
    as_configured,
    outcome,
    played,
)
from tests.virtual_loop import let_pass


@pytest.mark.parametrize("policy", POLICIES)
def test_an_undisturbed_transfer_is_right(policy):
    async def scene(stage):
        prefill, decode = await stage.pair(policy)
        answer = await decode.complete(PROMPT, await prefill.prefill())
        assert await decode.figure("vllm:nixl_xfer_time_seconds_count") == 1
        assert await decode.figure("vllm:nixl_bytes_transferred_sum") > 1e6
        assert answer.json["kv_transfer_params"] is None
        return await outcome(stage, answer)

    assert played(scene)[0] == "right"


@pytest.mark.parametrize("policy", POLICIES)
def test_prefill_killed_decode_knows_it(policy):
    async def scene(stage):
        prefill, decode = await stage.pair(policy)
        await decode.complete(OTHER, await prefill.prefill(OTHER))
        ticket = await prefill.prefill()
        await prefill.kill()
        answer = await decode.complete(PROMPT, ticket)
        assert await decode.figure("vllm:nixl_num_failed_transfers_total") == 1
        again = await decode.complete(OTHER)
        assert await outcome(stage, again, OTHER) == "right", "decode itself is well"
        return await outcome(stage, answer)

    found, took_s = played(scene)
    assert found == as_configured(policy)
    assert took_s < 0.1


@pytest.mark.parametrize("policy", POLICIES)
def test_prefill_killed_decode_never_met_it(policy):
    async def scene(stage):
        prefill, decode, ticket = await stage.lent(policy)
        await prefill.kill()
        return await outcome(stage, await decode.complete(PROMPT, ticket))

    found, took_s = played(scene)
    assert found == as_configured(policy)
    assert 5.0 <= took_s < 5.2


@pytest.mark.parametrize("policy", POLICIES)
def test_prefill_restarted_on_the_same_port(policy):
    async def scene(stage):
        prefill, decode, ticket = await stage.lent(policy)
        await prefill.kill()
        new = await stage.start("prefill", port=ticket["remote_port"])
        old = await outcome(stage, await decode.complete(PROMPT, ticket))
        fresh = await outcome(stage, await decode.complete(PROMPT, await new.prefill()))
        return old, fresh

    found, took_s = played(scene)
    assert found == (as_configured(policy), "right")
    assert took_s < 0.1


def test_lease_expired_and_nobody_wrote_over_it(caplog):
    async def scene(stage):
        prefill, decode, ticket = await stage.lent(lease=30.0)
        await let_pass(31)
        assert await prefill.figure("vllm:nixl_num_kv_expired_reqs_total") == 1
        answer = await decode.complete(PROMPT, ticket)
        assert await prefill.figure("vllm:nixl_num_notifications_after_expiry_total") == 1
        return await outcome(stage, answer)

    assert played(scene)[0] == "right"
    assert "Releasing expired KV blocks for request cmpl-" in caplog.text
    assert "Potentially invalid KV blocks for unrecognized request cmpl-" in caplog.text


@pytest.mark.parametrize("policy", POLICIES)
def test_lease_expired_and_the_blocks_were_reused(policy):
    async def scene(stage):
        prefill, decode, ticket = await stage.lent(policy, **{"kv-blocks": 16})
        await let_pass(31)
        for number in range(10):
            await prefill.complete(f"{OTHER} {number}", max_tokens=1)
        return await outcome(stage, await decode.complete(PROMPT, ticket))

    assert played(scene)[0] == "wrong"


@pytest.mark.parametrize("policy", POLICIES)
def test_a_consumed_ticket_used_for_another_prompt(policy):
    async def scene(stage):
        _, decode, ticket = await stage.lent(policy)
        first = await outcome(stage, await decode.complete(PROMPT, ticket))
        return first, await outcome(stage, await decode.complete(OTHER, ticket), OTHER)

    assert played(scene)[0] == ("right", "wrong")


@pytest.mark.parametrize("policy", POLICIES)
def test_one_ticket_for_two_prompts(policy):
    async def scene(stage):
        _, decode, ticket = await stage.lent(policy)
        answer = await decode.complete([PROMPT, OTHER], ticket)
        said = [choice["text"] for choice in answer.json["choices"]]
        return said, [await stage.truth(PROMPT), await stage.truth(OTHER)]

    (said, truths), _ = played(scene)
    assert said[0] == truths[0]
    assert said[1] != truths[1]


def test_one_ticket_for_a_second_prompt_that_is_longer_kills_the_engine():
    async def scene(stage):
        prefill, decode = await stage.pair()
        answer = await decode.complete([PROMPT, PROMPT * 3], await prefill.prefill())
        assert answer.status == 500
        return (await decode.engine.wait_dead()).text

    assert "assert num_decode_blocks <= len(prefill_group)" in played(scene)[0]


@pytest.mark.parametrize("policy", POLICIES)
def test_one_ticket_for_two_choices(policy):
    async def scene(stage):
        prefill, decode = await stage.pair(policy)
        answer = await decode.complete(PROMPT, await prefill.prefill(), n=2)
        return [choice["text"] for choice in answer.json["choices"]], await stage.truth()

    (said, truth), _ = played(scene)
    assert said == [truth, truth]


@pytest.mark.parametrize("policy", POLICIES)
def test_blocks_that_do_not_exist(policy):
    async def scene(stage):
        prefill, decode = await stage.pair(policy)
        ticket = await prefill.prefill() | {"remote_block_ids": [[999_998, 999_999]]}
        return await outcome(stage, await decode.complete(PROMPT, ticket))

    assert played(scene)[0] == as_configured(policy)


def test_a_wrong_request_id_leaks_the_blocks_until_the_lease_ends():
    async def scene(stage):
        prefill, decode, ticket = await stage.lent(lease=30.0, **{"kv-blocks": 32})
        free = prefill.stepper.blocks.free
        answer = await decode.complete(PROMPT, ticket | {"remote_request_id": "nobody"})
        assert prefill.stepper.blocks.free == free < 32
        await prefill.engine.wait_fetched()
        assert prefill.stepper.blocks.free == 32
        return await outcome(stage, answer)

    found, took_s = played(scene)
    assert found == "right"
    assert 30.0 <= took_s < 30.1


@pytest.mark.parametrize("kind", ["prefill", "decode"])
@pytest.mark.parametrize(
    "params",
    [
        {"do_remote_prefill": True},
        {"do_remote_prefill": True, "remote_block_ids": [], "remote_engine_id": "x"},
        {"do_remote_prefill": True, "do_remote_decode": True},
    ],
    ids=str,
)
def test_a_ticket_that_says_nothing_kills_the_engine(kind, params):
    async def scene(stage):
        worker = await stage.start(kind)
        answer = await worker.complete(PROMPT, params)
        assert answer.status == 500
        assert (await call(worker.app, "/health")).status == 503
        return (await worker.engine.wait_dead()).text

    assert "AssertionError: assert num_external_tokens == 0" in played(scene)[0]


def test_a_failure_in_a_stream_is_said_in_it():
    async def scene(stage):
        prefill, decode, ticket = await stage.lent("fail")
        await prefill.kill()
        return await decode.complete(PROMPT, ticket, stream=True)

    answer, _ = played(scene)
    assert answer.status == 200
    assert answer.events == [{"error": LOST}]
