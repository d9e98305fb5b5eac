"""What a changed file changes: of each replica, no more than its processes saw."""

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.difference import Config, difference, same_life
from orchestrator.core.plan import PlannedWorker
from orchestrator.wire.ids import ReplicaId

ZERO, ONE = ReplicaId("agg", "worker", 0), ReplicaId("agg", "worker", 1)


def worker(replica=ZERO, **facts):
    given = {"kind": "aggregated", "engine": "sim", "model": "m", "env": {"A": "1"}}
    return PlannedWorker(id=f"{replica}.0", replica=replica, member=0, **(given | facts))


def config(*members, cwd="/x", **rules):
    return Config(members=members or (worker(),), cwd=cwd, rules=rules)


def judged(old, new):
    (change,) = difference({ZERO: old}, {ZERO: new})
    return change.kind, [delta.key for delta in change.deltas]


def test_nothing_for_nothing():
    assert judged(config(), config()) == ("unchanged", [])


def test_what_a_process_was_started_with_needs_a_new_life():
    vllm = {"engine": "vllm", "entry": "e", "argv": ("vllm", "a"), "options": {"x": 1}}
    for old, new, keys in (
        ({}, {"env": {"A": "2"}}, ["env A"]),
        ({}, {"env": {}}, ["env A"]),
        ({}, {"env": {"A": "1", "B": "2"}}, ["env B"]),
        ({}, {"options": {"step": 0.1}}, ["option step"]),
        ({}, {"model": "other"}, ["model"]),
        ({"gpus": (0,), "gpu_uuids": ("a",)}, {"gpus": (1,), "gpu_uuids": ("b",)}, ["gpus"]),
        ({"argv": ("a",)}, {"argv": ("a", "b")}, ["argv"]),
        (vllm, vllm | {"argv": ("vllm", "b"), "options": {"x": 2}}, ["option x"]),
    ):
        change = judged(config(worker(**old)), config(worker(**new)))
        assert change == ("restart", keys)


def test_what_only_the_daemon_reads_restarts_nothing():
    old, new = config(**{"stop.drain_s": 1.0}), config(**{"stop.drain_s": 2.0})
    assert judged(old, new) == ("live", ["stop.drain_s"])
    assert judged(config(), config(worker(depends_on=("a",)), x=1))[0] == "live"


def test_what_follows_from_the_rules_restarts_nothing():
    """vLLM's own time-out, and the frontend's drain."""
    key = "VLLM_ENGINE_READY_TIMEOUT_S"
    old = config(worker(env={key: "60"}), **{"start.timeout_s": 60.0})
    new = config(worker(env={key: "90"}), **{"start.timeout_s": 90.0})
    assert judged(old, new) == ("live", ["start.timeout_s"])
    declared = config(worker(env={key: "7"}), **{"start.timeout_s": 60.0})
    assert judged(old, declared) == ("restart", [f"env {key}"])
    step = "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"
    old = config(worker(env={step: "120"}), **{"liveness.busy_s": 120.0})
    new = config(worker(env={step: "300"}), **{"liveness.busy_s": 300.0})
    assert judged(old, new) == ("live", ["liveness.busy_s"])
    frontends = [config(worker(kind="frontend", options={"drain-timeout": n})) for n in (1.0, 2.0)]
    assert judged(*frontends) == ("unchanged", [])


def test_the_files_directory_concerns_whom_paths_may_have_reached():
    assert judged(config(), config(cwd="/y"))[0] == "unchanged"
    process = worker(kind="process", engine="")
    assert judged(config(process), config(process, cwd="/y"))[1] == ["working directory"]
    own = worker(kind="process", engine="", cwd="/z")
    assert judged(config(own), config(own, cwd="/y"))[0] == "unchanged"


def test_no_secret_is_told():
    old = config(worker(env={"HF_TOKEN": "one"}, argv=("x", "--api-key", "k1")))
    new = config(worker(env={"HF_TOKEN": "two"}, argv=("x", "--api-key", "k2")))
    (change,) = difference({ZERO: old}, {ZERO: new})
    assert change.kind == "restart"
    said = " ".join(map(str, change.deltas))
    assert not any(secret in said for secret in ("one", "two", "k1", "k2"))


def test_what_comes_and_what_goes():
    changes = difference({ZERO: config()}, {ONE: config(worker(ONE))})
    assert [(change.replica, change.kind) for change in changes] == [(ONE, "add"), (ZERO, "remove")]


values = st.one_of(st.integers(0, 3), st.booleans(), st.sampled_from(["a", "b"]), st.none())
configs = st.builds(
    lambda env, options, rules, gpus, cwd: Config(
        members=(worker(env=env, options=options, gpus=gpus, gpu_uuids=tuple(map(str, gpus))),),
        cwd=cwd, rules=rules,
    ),
    st.dictionaries(st.sampled_from("AB"), st.sampled_from("12")),
    st.dictionaries(st.sampled_from("xy"), values),
    st.dictionaries(st.sampled_from(["stop.drain_s", "depends-on"]), values),
    st.lists(st.integers(0, 3), unique=True).map(tuple),
    st.sampled_from(["/x", "/y"]),
)  # fmt: skip
wholes = st.dictionaries(st.sampled_from([ZERO, ONE, ReplicaId("agg", "other", 0)]), configs)


@settings(max_examples=200, deadline=None)
@given(old=wholes, new=wholes)
def test_a_difference_is_whole_and_minimal(old, new):
    changes = {change.replica: change for change in difference(old, new)}
    assert set(changes) == {*old, *new}
    assert all(change.kind == "unchanged" for change in difference(new, new))
    for replica, change in changes.items():
        if replica in old and replica in new:
            lives_on = change.kind in {"unchanged", "live"}
            assert lives_on == same_life(old[replica], new[replica])
            assert bool(change.deltas) == (change.kind != "unchanged")
    back = {change.replica: change.kind for change in difference(new, old)}
    mirrored = {"add": "remove", "remove": "add"}
    assert back == {each: mirrored.get(one.kind, one.kind) for each, one in changes.items()}
