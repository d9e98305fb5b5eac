"""Blocks hold what was written, go round in order, and what goes on from wrong ones is wrong."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.asgi import call, sim_app
from workers.sim import tokens
from workers.sim.blocks import Blocks
from workers.sim.sequence import Limits, Sequence

PROMPT = tokens.encode("the prompt of somebody")


def filled(blocks, prompt, promised=0):
    count = blocks.needed(len(prompt))
    assert blocks.promise(count + promised)
    taken = blocks.take(count)
    blocks.write(taken, prompt)
    return taken


def first_token(read):
    sequence = Sequence(0, read, Limits(max_tokens=1))
    sequence.go_on_from(read)
    return sequence.advance().token


def test_a_prompt_is_read_as_it_was_written():
    blocks = Blocks(8, 4)
    taken = filled(blocks, PROMPT)
    assert taken == [1, 2, 3, 4, 5, 6]
    assert blocks.read(taken) == PROMPT
    assert [len(each) for each in blocks.contents(taken)] == [4, 4, 4, 4, 4, 2]


def test_what_was_given_back_stays_until_it_is_taken_again():
    blocks = Blocks(8, 4)
    taken = filled(blocks, PROMPT)
    blocks.give_back(taken)
    assert blocks.read(taken) == PROMPT, "nobody has written over it"
    other = filled(blocks, [7] * 12)
    assert other == [7, 8, 1]
    assert blocks.read(taken) == [7, 7, 7, 7, *PROMPT[4:]]
    assert first_token(blocks.read(taken)) != first_token(PROMPT)


def test_what_is_promised_cannot_be_taken_by_others():
    blocks = Blocks(8, 4)
    taken = filled(blocks, PROMPT, promised=2)
    assert blocks.free == 0
    assert not blocks.promise(1)
    blocks.give_back(taken, promised=2)
    assert (blocks.free, blocks.promise(8)) == (8, True)


def test_giving_back_twice_is_a_bug():
    blocks = Blocks(8, 4)
    taken = filled(blocks, PROMPT)
    blocks.give_back(taken)
    with pytest.raises(AssertionError, match="twice"):
        blocks.give_back(taken)


def test_there_are_no_blocks_beyond_the_last():
    blocks = Blocks(8, 4)
    assert blocks.contents([0, 8]) == [(), ()]
    for number in (9, -1):
        with pytest.raises(IndexError):
            blocks.contents([number])


@given(st.lists(st.integers(1, 40), max_size=60))
def test_nothing_is_lost_whatever_the_order(lengths):
    """Everybody reads its own prompt as long as it has the blocks, and at the end all are free."""
    blocks, held = Blocks(16, 4), []
    for number, length in enumerate(lengths):
        prompt = [number] * length
        while not blocks.promise(blocks.needed(length)):
            taken, before = held.pop(0)
            assert blocks.read(taken) == before
            blocks.give_back(taken)
        taken = blocks.take(blocks.needed(length))
        blocks.write(taken, prompt)
        held.append((taken, prompt))
    for taken, prompt in held:
        assert blocks.read(taken) == prompt
        blocks.give_back(taken)
    assert blocks.free == 16


def test_a_full_memory_gives_every_request_the_same_answer():
    async def run():
        app = await sim_app(**{"kv-blocks": 9, "max-model-len": 128})
        asks = [{"prompt": f"prompt {n}" * 5, "max_tokens": 40} for n in range(12)]
        alone = [await call(app, "/v1/completions", each) for each in asks]
        together = await asyncio.gather(*(call(app, "/v1/completions", each) for each in asks))
        assert [a.json["choices"] for a in alone] == [a.json["choices"] for a in together]
        return app._stepper

    stepper = asyncio.run(run())
    assert (stepper.blocks.free, stepper.running, stepper.waiting) == (9, 0, 0)
