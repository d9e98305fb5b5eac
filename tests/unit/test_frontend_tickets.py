"""Tickets: no parameters without one, none twice, none late, none of the dead, none of others."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.topology.advice import frozen_found_s
from orchestrator.topology.policies import LivenessPolicy
from orchestrator.topology.schema import KvTransfer
from workers.frontend.tickets import Ticket, Void, issue, margin

PARAMS = {
    "do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2, 3]],
    "remote_engine_id": "6f0c", "remote_request_id": "cmpl-1-0-8d92", "remote_host": "127.0.0.1",
    "remote_port": 26700, "tp_size": 1, "remote_num_tokens": 151, "transfer_mode": "pull",
    "remote_blocks_expiry_time": None,
}  # fmt: skip
LEASE_S = 120.0


def answer(**changes: object) -> bytes:
    return json.dumps({"id": "x", "choices": [], "kv_transfer_params": PARAMS | changes}).encode()


def ticket(digest: bytes = b"mine", now: float = 0.0) -> Ticket:
    made = issue(answer(), life="t/p-0.0#1", digest=digest, now=now, lease_s=LEASE_S)
    assert isinstance(made, Ticket)
    return made


def test_parameters_come_out_as_they_came_in():
    text = b'{"do_remote_prefill" : true,"remote_block_ids":[1,2], "remote_engine_id":"e",'
    text += b'"remote_request_id":"r","remote_host":"localhost","remote_port":9,"new\\u0020":1.50}'
    made = issue(
        b'{"kv_transfer_params":' + text + b"}", life="l", digest=b"d", now=0, lease_s=LEASE_S
    )
    assert isinstance(made, Ticket)
    assert made.spend(b"d", 1.0, alive=True) == text


@pytest.mark.parametrize("body", ['"prompt_token_ids":[5, 6]', '"prompt_token_ids" : [5, 6] '])
def test_the_prompt_s_tokens_come_out_with_them(body):
    text = f'{{{body},"kv_transfer_params":{json.dumps(PARAMS)}}}'.encode()
    made = issue(text, life="l", digest=b"d", now=0, lease_s=LEASE_S)
    assert isinstance(made, Ticket)
    spent = made.spend(b"d", 1.0, alive=True)
    assert json.loads(spent) == PARAMS | {"prompt_token_ids": [5, 6]}


@pytest.mark.parametrize("ids", ["null", "[]", '"x"', "{}", "7"])
def test_what_is_no_list_of_tokens_is_kept_from_decode(ids):
    text = f'{{"prompt_token_ids":{ids},"kv_transfer_params":{json.dumps(PARAMS)}}}'.encode()
    made = issue(text, life="l", digest=b"d", now=0, lease_s=LEASE_S)
    assert isinstance(made, Ticket)
    assert json.loads(made.spend(b"d", 1.0, alive=True)) == PARAMS


def test_once():
    one = ticket()
    assert isinstance(one.spend(b"mine", 1.0, alive=True), bytes)
    assert one.used
    assert one.spend(b"mine", 1.0, alive=True) is Void.USED


def test_not_for_another_request():
    one = ticket()
    assert one.spend(b"yours", 1.0, alive=True) is Void.FOREIGN
    assert not one.used


def test_not_after_the_deadline():
    one = ticket(now=10.0)
    assert one.deadline == 10.0 + LEASE_S / 2
    assert one.spend(b"mine", one.deadline, alive=True) is Void.EXPIRED
    assert isinstance(one.spend(b"mine", one.deadline - 0.001, alive=True), bytes)


def test_not_of_a_life_that_has_gone():
    assert ticket().spend(b"mine", 1.0, alive=False) is Void.ORPHANED


def test_given_back_by_who_never_began_it_is_good_again():
    one = ticket()
    one.spend(b"mine", 1.0, alive=True)
    one.give_back()
    assert isinstance(one.spend(b"mine", 2.0, alive=True), bytes)
    assert one.spend(b"mine", 2.0, alive=True) is Void.USED


@given(st.lists(st.tuples(st.sampled_from([b"mine", b"yours"]), st.floats(0, 300), st.booleans())))
def test_at_most_one_gets_the_parameters(tries):
    one = ticket()
    got = [one.spend(digest, now, alive=alive) for digest, now, alive in tries]
    given_to = [number for number, what in enumerate(got) if isinstance(what, bytes)]
    assert len(given_to) <= 1
    for number in given_to:
        digest, now, alive = tries[number]
        assert (digest, alive) == (b"mine", True)
        assert now < one.deadline


def test_a_frozen_decode_worker_is_found_within_the_default_margin():
    alive, lease_s = LivenessPolicy(), KvTransfer(connector="nixl").lease_s
    assert margin(lease_s) > frozen_found_s(alive)


@pytest.mark.parametrize(
    "changes",
    [
        {"remote_engine_id": None}, {"remote_engine_id": ""}, {"remote_engine_id": 1},
        {"remote_request_id": None}, {"remote_request_id": ""},
        {"remote_host": None}, {"remote_host": "10.0.0.1"}, {"remote_host": "0.0.0.0"},
        {"remote_port": None}, {"remote_port": 0}, {"remote_port": 65536}, {"remote_port": "1"},
        {"remote_port": True},
        {"remote_block_ids": None}, {"remote_block_ids": []}, {"remote_block_ids": [[]]},
        {"remote_block_ids": [[-1]]}, {"remote_block_ids": ["1"]}, {"remote_block_ids": [[1.5]]},
        {"do_remote_prefill": False}, {"do_remote_prefill": None}, {"do_remote_decode": True},
    ],
)  # fmt: skip
def test_parameters_that_would_harm_decode_make_no_ticket(changes):
    made = issue(answer(**changes), life="l", digest=b"d", now=0, lease_s=LEASE_S)
    assert isinstance(made, str)
    assert "can't be used" in made


@pytest.mark.parametrize("key", [key for key in PARAMS if key.startswith("remote_")][:5])
def test_each_must_be_there(key):
    params = {name: value for name, value in PARAMS.items() if name != key}
    body = json.dumps({"kv_transfer_params": params}).encode()
    assert isinstance(issue(body, life="l", digest=b"d", now=0, lease_s=LEASE_S), str)


@pytest.mark.parametrize("body", [b'{"kv_transfer_params":null}', b"{}", b"", b"[]", b"\xff", b"{"])
def test_an_answer_without_parameters_makes_no_ticket(body):
    assert isinstance(issue(body, life="l", digest=b"d", now=0, lease_s=LEASE_S), str)
