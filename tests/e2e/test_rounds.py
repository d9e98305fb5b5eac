"""What a worker finds out about its own engine, and tells with its beats."""

import json

from orchestrator.wire import messages
from orchestrator.wire.config import Checks

SLOW = json.dumps({"prompt": "a", "max_tokens": 4000, "stream": True}).encode()
SHORT = json.dumps({"prompt": "a", "max_tokens": 3}).encode()
OFTEN = Checks(ask_period_s=0.05, canary_period_s=0.05, canary_timeout_s=0.2)


def test_a_mute_engine_owes_an_answer(start, daemon, frontend):
    faults = [{"fault": "engine-hang", "after-requests": 1}]
    worker = start(options={"faults": faults}, checks=OFTEN)
    daemon.wait_for(messages.Ready)
    daemon.wait_for(messages.Beat, lambda beat: beat.seq > 20)
    assert all(beat.engine_age_s < 1 for beat in daemon.said(messages.Beat))
    frontend(worker).open(1, SLOW)
    beat = daemon.wait_for(messages.Beat, lambda beat: beat.engine_age_s > 0.3)
    assert beat.stalled_s > 0
    assert not beat.stopped


def test_an_engine_that_answers_and_makes_no_token_misses_its_canaries(start, daemon, frontend):
    faults = [{"fault": "engine-stall", "after-requests": 1}]
    worker = start(options={"faults": faults}, checks=OFTEN)
    daemon.wait_for(messages.Ready)
    client = frontend(worker)
    client.open(1, SHORT)
    daemon.wait_for(messages.Beat, lambda beat: beat.inflight == 1)
    assert not any(beat.canaries_missed for beat in daemon.said(messages.Beat)), "it was in use"
    client.cancel(1)
    beat = daemon.wait_for(messages.Beat, lambda beat: beat.canaries_missed >= 2)
    assert beat.canary_fault == "had no answer after 0.2 s"
    assert beat.inflight == 0


def test_canaries_are_nobodys_requests(start, daemon):
    start(options={"step": 0.001}, checks=OFTEN)
    ready = daemon.wait_for(messages.Ready) and daemon.wait_for(messages.Beat, lambda b: b.ready)
    daemon.wait_for(messages.Beat, lambda beat: beat.seq > ready.seq + 30)
    beats = [beat for beat in daemon.said(messages.Beat) if beat.ready]
    assert {(beat.requests, beat.inflight, beat.canaries_missed) for beat in beats} == {(0, 0, 0)}
    assert len({beat.tokens for beat in beats}) <= 2, "at most the first canary's"


def test_no_drain_waits_for_a_canary(start, daemon):
    patient = Checks(ask_period_s=60.0, canary_period_s=0.01, canary_timeout_s=60.0)
    worker = start(options={"step": 0.5}, checks=patient)
    daemon.wait_for(messages.Ready)
    daemon.tell(messages.Drain(60.0))
    daemon.wait_for(messages.Drained)
    worker.term()
    assert worker.wait() == 0
