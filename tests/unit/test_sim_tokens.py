"""The tokenizer loses nothing, and the model is a function of what came before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.sim import tokens
from workers.sim.sequence import Limits, Sequence

ids = st.lists(st.integers(0, tokens.VOCABULARY - 1), max_size=40)
words = st.sampled_from(list(tokens.TEXTS[tokens.FIRST_WORD :]))
texts = st.lists(st.one_of(words, st.text(max_size=6))).map("".join)


def generate(prompt, count, **limits):
    sequence = Sequence(0, prompt, Limits(max_tokens=count, **limits))
    sequence.go_on_from(prompt)
    deltas = []
    while sequence.finish is None:
        deltas.append(sequence.advance())
    return deltas


def said(deltas):
    return "".join(delta.text for delta in deltas)


def test_vocabulary_is_distinct():
    assert len(set(tokens.PIECES)) == tokens.VOCABULARY == 256 + 6 + 1024


@given(texts)
def test_text_comes_back_exactly(text):
    assert tokens.decode(tokens.encode(text)) == text


def test_what_is_not_unicode_is_replaced_not_lost():
    assert tokens.decode(tokens.encode("a\ud800b")) == "a?b"


def test_text_never_makes_special_tokens():
    assert max(tokens.encode("<|assistant|><|end|>")) < 256


@given(texts, st.integers(1, 30), st.data())
def test_a_stream_continues_exactly_from_text(text, count, data):
    prompt = tokens.encode(text)
    whole = generate(prompt, count)
    cut = data.draw(st.integers(0, count - 1))
    resumed = tokens.encode(text + said(whole[:cut]))
    assert resumed == prompt + [delta.token for delta in whole[:cut]]
    if resumed:
        assert said(generate(resumed, count - cut)) == said(whole[cut:])


@given(ids.filter(bool), st.integers(2, 20))
def test_a_stream_continues_exactly_from_ids(prompt, count):
    whole = [delta.token for delta in generate(prompt, count)]
    for cut in range(1, count):
        rest = generate(prompt + whole[:cut], count - cut)
        assert [delta.token for delta in rest] == whole[cut:]


def test_a_chat_continues_exactly():
    chat = [("system", "be kind"), ("user", "hi")]
    prompt = tokens.render_chat(chat, open_end=False, generate=True)
    whole = generate(prompt, 10)
    partial = [*chat, ("assistant", said(whole[:4]))]
    resumed = tokens.render_chat(partial, open_end=True, generate=False)
    assert said(generate(resumed, 6)) == said(whole[4:])


def test_different_prompts_get_different_answers():
    answers = {said(generate(tokens.encode(f"prompt {n}"), 8)) for n in range(200)}
    assert len(answers) == 200


@given(texts.filter(bool), st.data())
def test_stop_string_cuts_and_never_shows(text, data):
    prompt = tokens.encode(text)
    free = said(generate(prompt, 20))
    begin = data.draw(st.integers(0, len(free) - 1))
    stop = free[begin : begin + data.draw(st.integers(1, 12))]
    deltas = generate(prompt, 20, stop=(stop,))
    assert said(deltas) == free[: free.find(stop)]
    assert (deltas[-1].finish, deltas[-1].stop_reason) == ("stop", stop)
    kept = generate(prompt, 20, stop=(stop,), keep_stop=True)
    assert said(kept) == free[: free.find(stop) + len(stop)]


def test_earliest_of_several_stops_wins():
    free = said(generate([1], 20))
    deltas = generate([1], 20, stop=(free[30:33], free[12:14]))
    assert said(deltas) == free[: free.find(free[12:14])]


def test_stop_token_id():
    free = generate([1], 20)
    deltas = generate([1], 20, stop_token_ids=frozenset({free[7].token}))
    assert said(deltas) == said(free[:7])
    assert (deltas[-1].finish, deltas[-1].stop_reason) == ("stop", free[7].token)


def test_min_tokens_ignores_stops():
    free = generate([1], 20)
    deltas = generate([1], 20, stop_token_ids=frozenset({free[3].token}), min_tokens=10)
    assert len(deltas) >= 10


def test_an_unbounded_answer_ends_itself():
    lengths = [len(generate([1, n], 4096, ends_itself=True)) for n in range(100)]
    assert max(lengths) < 1000
    assert min(lengths) >= 1
    last = generate([1], 4096, ends_itself=True)[-1]
    assert (last.token, last.finish, last.stop_reason) == (tokens.EOS, "stop", None)


def test_candidates_begin_with_the_chosen():
    rivals = tokens.candidates(12345, 5)
    assert rivals[0][0] == tokens.next_token(12345)
    assert len({token for token, _ in rivals}) == 5
    assert [p for _, p in rivals] == sorted((p for _, p in rivals), reverse=True)
    assert all(p < 0 for _, p in rivals)


def test_decode_refuses_what_is_no_token():
    with pytest.raises(IndexError):
        tokens.decode([tokens.VOCABULARY])
