"""A request's course: every stage's every end, the budget, and what `enforce` forbids."""

import itertools

import pytest

from workers.frontend.course import TABLE, Course, Event, Move, Stage, event_of
from workers.frontend.retries import Failure

STAGE_OF = {Move.PREFILL: Stage.PREFILL, Move.DECODE: Stage.DECODE, Move.ALONE: Stage.ALONE}
POSSIBLE = [(stage, event) for stage in Stage for event in Event if TABLE[stage][event] is not None]


def go(course: Course, *events: Event) -> list[Move]:
    return [course.step(event).move for event in events]


def test_two_stages():
    course = Course(Stage.PREFILL, 2)
    assert go(course, Event.TICKETED) == [Move.DECODE]
    assert course.stage is Stage.DECODE


def test_a_drained_worker_costs_no_retry():
    for stage, again in ((Stage.ALONE, Move.ALONE), (Stage.DECODE, Move.DECODE)):
        course = Course(stage, 0)
        assert go(course, Event.UNSTARTED, Event.UNSTARTED) == [again, again]
    assert go(Course(Stage.PREFILL, 0), Event.UNSTARTED) == [Move.PREFILL]


def test_a_worker_that_had_begun_costs_one():
    course = Course(Stage.ALONE, 1)
    assert course.step(Event.FAILED, "it died").move is Move.ALONE
    step = course.step(Event.FAILED, "it died")
    assert step == (Move.END, "it died, and 1 retries are used up")


@pytest.mark.parametrize("event", [Event.FAILED, Event.UNSTARTED])
@pytest.mark.parametrize("stage", [Stage.ALONE, Stage.DECODE])
def test_nothing_is_retried_without_another_worker(stage, event):
    step = Course(stage, 9).step(event, "it died", others=False)
    assert step == (Move.END, "it died, and no other serves this model")


@pytest.mark.parametrize("failure", [Failure.TIMEOUT, Failure.STOPPING, Failure.SLOW_READER])
@pytest.mark.parametrize("stage", Stage)
def test_what_no_other_would_do_better(stage, failure):
    assert Course(stage, 9).step(event_of(failure)).move is Move.END


def test_an_application_that_fails_alone_is_told():
    assert Course(Stage.ALONE, 9).step(event_of(Failure.APP_ERROR)).move is Move.END


def test_a_spent_ticket_leads_back_to_prefill():
    course = Course(Stage.PREFILL, 1)
    moves = go(course, Event.TICKETED, Event.FAILED, Event.TICKETED, Event.FAILED)
    assert moves == [Move.DECODE, Move.PREFILL, Move.DECODE, Move.END]


def test_a_void_ticket_leads_back_to_prefill_and_in_the_end_to_decode_alone():
    course = Course(Stage.DECODE, 1)
    assert go(course, Event.VOID, Event.TICKETED, Event.VOID) == [
        Move.PREFILL, Move.DECODE, Move.ALONE,
    ]  # fmt: skip


def test_both_stages_are_made_again_once_for_a_5xx():
    course = Course(Stage.DECODE, 5)
    assert go(course, Event.BROKEN, Event.TICKETED) == [Move.PREFILL, Move.DECODE]
    step = course.step(Event.BROKEN, "a 500")
    assert step == (Move.END, "a 500, and it was made again once")


def test_a_poisonous_request_does_not_get_to_decode():
    """Who may have killed every prefill worker it was sent to could kill decode next."""
    course = Course(Stage.PREFILL, 1)
    assert go(course, Event.FAILED, Event.FAILED) == [Move.PREFILL, Move.END]


@pytest.mark.parametrize(
    ("events", "moves"),
    [
        ([Event.NOBODY], [Move.ALONE]),
        ([Event.REFUSED], [Move.ALONE]),
        ([Event.FAILED, Event.NOBODY], [Move.PREFILL, Move.ALONE]),
        ([Event.BARE, Event.BARE], [Move.PREFILL, Move.ALONE]),
        ([Event.BROKEN, Event.BROKEN], [Move.PREFILL, Move.ALONE]),
    ],
)
def test_decode_alone_is_the_way_out(events, moves):
    assert go(Course(Stage.PREFILL, 1), *events) == moves


def test_enforced_there_is_no_such_way():
    for stage, event in POSSIBLE:
        for retries in (0, 1):
            course = Course(stage, retries, enforce=True)
            if course.step(event).move is Move.ALONE:
                assert stage is Stage.ALONE
    assert Course(Stage.PREFILL, 1, enforce=True).step(Event.NOBODY).move is Move.WAIT


@pytest.mark.parametrize("retries", [0, 1, 2])
@pytest.mark.parametrize("enforce", [False, True])
def test_every_course_ends(retries, enforce):
    """Three workers of each kind; each that failed isn't asked again: any course of events ends."""
    for order in itertools.product([1, 2, 3, 5, 7], repeat=4):
        course = Course(Stage.PREFILL, retries, enforce=enforce)
        asked = dict.fromkeys(Stage, 0)
        for turn in itertools.count():
            assert turn < 20
            possible = [event for event in Event if TABLE[course.stage][event]]
            event = possible[order[turn % 4] % len(possible)]
            if event is Event.UNSTARTED:
                asked[course.stage] += 1
                if asked[course.stage] > 3:
                    event = Event.NOBODY
            was = course.stage
            move = course.step(event).move
            assert course.stage is STAGE_OF.get(move, was)
            if move in (Move.END, Move.WAIT):
                break


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_is_an_event_in_every_stage(failure):
    """Only a ticket's holder can be late."""
    stages = {Stage.DECODE} if failure is Failure.LATE else set(Stage)
    assert {stage for stage in Stage if TABLE[stage][event_of(failure)]} == stages
