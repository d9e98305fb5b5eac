"""Whether the parts of a topology fit together: each rule broken once, alone."""

from textwrap import dedent

import pytest

from orchestrator.topology.load import Invalid, parse

HEAD = 'name = "t"\nmodel = "m"\n'
PAIR = (
    '[kv-transfer]\nconnector = "nixl"\n[roles.p]\nkind = "prefill"\n[roles.d]\nkind = "decode"\n'
)


def said(text, head=HEAD):
    try:
        parse(head + dedent(text), "t.toml", {})
    except Invalid as invalid:
        return [str(each).removeprefix("t.toml:") for each in invalid.complaints]
    return []


def role(text, name="w"):
    return f"[roles.{name}]\n{text}\n"


def grouped(members: str, more: str = "", strategy: str = "rest-for-one") -> str:
    """Three commands, of which `a` depends on `c`, and a group."""
    group = f'groups.g = {{ members = {members}, strategy = "{strategy}" }}\n{more}\n'
    return group + "".join(
        f"[processes.{name}]\ncommand = ['x']\n{rest}\n"
        for name, rest in (("a", "depends-on = ['c']"), ("b", ""), ("c", ""))
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # names
        (role("", "Big"), '3: roles.Big: "Big" is no name: a name has lower-case letters'),
        (role("", "frontend"), '"frontend" is the name of the HTTP server itself; rename it, or'),
        (role("", "a") + "[processes.a]\ncommand = ['x']", 'a role is called "a" too; rename'),
        ("[frontend]\nport = 9000", "1: roles: nothing would run; add a role"),
        (role("env = { DYNORCH_X = '1' }"), "not a variable to set here: names that begin with"),
        (role("env = { CUDA_VISIBLE_DEVICES = '1' }"), "the placement sets it; write gpus"),
        (role("env = { VLLM_NIXL_SIDE_CHANNEL_PORT = '5600' }"), "has its own, from the port"),
        ("env = { VLLM_PORT = '30000' }\n" + role(""), "3: env.VLLM_PORT: not a variable to set"),
        (role("env = { 'a b' = '1' }"), "this is no name for a variable"),
        (role("python = 'bin/python'"), 'roles.w.python: "bin/python" depends on where one stan'),
        ("python = '~/v/bin/python'\n" + role(""), '3: python: "~/v/bin/python" depends on'),
        # groups
        (grouped('["a", "x"]'), 'groups.g.members[1]: nothing is called "x"; there are: a, b, c'),
        (grouped('["a", "frontend"]'), "the frontend belongs to no group; leave it out"),
        (grouped('["a"]'), "groups.g.members: a group has at least two members; write"),
        (grouped('["a", "b", "a"]'), "groups.g.members[2]: a is twice; name it once"),
        (grouped('["a", "b"]', 'groups.h = { members = ["c", "a"], strategy = "one-for-one" }'),
         "groups.h.members[1]: a is in group g too; name it once"),
        (grouped('["a", "c"]'), "nothing in a -> c -> a could ever start"),
        (grouped('["a", "b"]', strategy="all-for-one"), "one-for-all"),
        ("[processes.p]\ncommand = ['x']\non-dependency-restart = 'restart'",
         "processes.p.on-dependency-restart: it depends on nothing; add depends-on"),
        # models
        (role("") + role("model = 'o'\nserved-model-name = 'm'", "x"), '"m" is m in role w and o'),
        # vLLM flags
        (role("vllm = { port = 1 }"), "roles.w.vllm.port: not a flag to set here: a worker has no"),
        (role("vllm = { tensor-parallel-size = 2 }"), "write tensor-parallel"),
        (role("vllm = { data-parallel-rank = 1 }"), "write data-parallel"),
        (role("vllm = { no-enable-expert-parallel = true }"), "write expert-parallel"),
        (role("vllm = { max_model_len = 1 }"), "this isn't how a flag is written here; write max-"),
        (role("vllm = { '--seed' = 1 }"), "write seed"),
        (role("vllm = { seed = 1979-05-27 }"), "a flag can't have this value"),
        # disaggregation
        (PAIR.replace('kind = "decode"', 'kind = "aggregated"'), "no decode role serves m, so no"),
        (PAIR.replace('kind = "prefill"', 'kind = "aggregated"'), "no prefill role serves m"),
        (PAIR + 'model = "other"', "no decode role serves m"),
        (PAIR[PAIR.index("[roles"):], 'add [kv-transfer] with connector = "nixl"'),
        (role("") + PAIR[: PAIR.index("[roles")], "kv-transfer: no role would use it"),
        (PAIR.replace("nixl", "nixll"), "isn't one of its values; write \"nixl\""),
        # KV-aware routing
        ("[frontend]\nrouting = 'kv'\n" + role("vllm = { enable-prefix-caching = false }"),
         "without prefix caching there are no KV events"),
        ("[frontend]\nrouting = 'kv'\n" + role("vllm = { no-enable-prefix-caching = true }"),
         "without prefix caching there are no KV events"),
        ("[frontend]\nrouting = 'kv'\n" + role("vllm = { block-size = 16 }") + role("", "x"),
         "block size None here, 16 in role w"),
        # GPUs
        (role("gpus = 1\ntensor-parallel = 4"), "makes 4 GPUs per worker, not 1; write 4"),
        (role("gpus = 3\npipeline-parallel = 2"), "3 GPUs per worker can't be cut into 2 stages"),
        (role("gpus = 0.5\ntensor-parallel = 2"), "needs 2 whole GPUs per worker"),
        (role("gpus = [0, 1, 2]\nreplicas = 2"), "3 GPUs can't be dealt evenly to 2 workers"),
        (role("gpus = [0, 1]\ntensor-parallel = 4"), "makes 4 GPUs per worker, not 2; list 4"),
        (role("gpus = [0, 0]"), "4: roles.w.gpus[1]: GPU 0 is listed twice, by roles.w;"),
        (role("gpus = [0]") + role("gpus = [0]", "x"), "twice, by roles.w and roles.x;"),
        (role("gpus = [0]") + "[processes.p]\ncommand = ['x']\ngpus = [0]", "and processes.p;"),
        (role("gpus = 0.4\nvllm = { gpu-memory-utilization = 0.9 }"), "share of 0.4; write at mos"),
        (role("gpus = 3\ndata-parallel = 2\ndata-parallel-balancing = 'internal'"),
         "3 GPUs per worker can't be cut into 2 parts: tensor-parallel 1 x pipeline"),
        (role("gpus = 1\ntensor-parallel = 1\ndata-parallel = 2\n"
              "data-parallel-balancing = 'hybrid'"), "makes 2 GPUs per worker, not 1; write 2"),
        # times
        (role("stop = { grace = '40s' }"), "grace 40s is less than drain + 15s, so the kill"),
        (role("stop = { drain = '50s' }"), "roles.w.stop.drain: grace 60s is less than drain + 1"),
        (role("engine = 'sim'\nstop = { grace = '29s' }"), "grace 29s is less than drain, so"),
        (role("liveness = { expire = '5s' }"),
         "4: roles.w.liveness.expire: expire 5s isn't more than the 5 beats that may be missed"),
        (role("liveness = { beat = '6s' }"), "4: roles.w.liveness.beat: expire 30s isn't more"),
        ("[liveness]\nhang = '10s'\n" + role(""),
         'liveness.hang: hang 10s is less than unready, 15s; write hang = "15s" or more'),
        (role("liveness = { hang = '3m' }"), "busy 120s is less than hang, 180s; write busy = "),
        ("frontend.liveness = { misses = 40 }\n" + role("liveness = { canary = '0s' }"),
         "3: frontend.liveness.misses: "),
        (role("restart = { backoff-max = '500ms' }"), "the first delay, 1s, is longer than backo"),
        # processes
        (role("") + "[processes.p]\ncommand = ['x']\nready = { http = 'http://h/', tcp = 'h:1' }",
         "http and tcp together; write one of http, tcp, exec, log and notify"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = {}", "nothing to look at"),
        (role("") + "[processes.p]\ncommand = ['x']\nlive = { misses = 2 }",
         "nothing to look at; write one of http, tcp and exec, or no live"),
        (role("") + "[processes.p]\ncommand = ['x']\nlive = { log = 'x' }", "unknown key"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { log = 'x', misses = 2 }",
         "processes.p.ready.misses: log isn't asked"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { log = '' }", "match any line"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { notify = 'some' }", 'nor "all"'),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { notify = false }", 'nor "all"'),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { exec = 'true' }", "is a list"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { exec = [] }", "not a list of stri"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { tcp = 'h:70000' }", "no address"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { tcp = '::1:80' }", "no address"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { http = 'http://h:99999/' }",
         "is no URL"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { http = 'http://u:p@h/' }",
         "no credentials here"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { tcp = 'h:1', period = '0s' }",
         "no time at all"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { tcp = 'h:1', misses = 0 }",
         "processes.p.ready.misses"),
        (role("") + "[processes.p]\ncommand = ['x']\noneshot = true\nready = { tcp = 'h:1' }",
         "nobody asks it before"),
        (role("") + "[processes.p]\ncommand = ['x']\noneshot = true\nwatchdog = '5s'",
         "processes.p.watchdog: a oneshot"),
        (role("") + "[processes.p]\ncommand = ['x']\nstart = {timeout='9s', timeout-max='8s'}",
         "timeout-max 8s is less than timeout, 9s"),
        (role("") + "[processes.p]\ncommand = ['x']\nstop = { grace = '9s', grace-max = '8s' }",
         'stop.grace-max: grace-max 8s is less than grace, 9s; write grace-max = "9s" or more'),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { log = '(' }", "not a regular expre"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { http = '/health' }", "is no URL"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { tcp = '9000' }", "is no address"),
        (role("") + "[processes.p]\ncommand = ['x']\nready = { tcp = '127.0.0.1:8000' }",
         "port 8000 is wanted by both frontend and p; give each a port"),
        (role("") + "[processes.p]\ncommand = ['x']\nstop = { drain = '5s' }", "can't be asked to"),
        (role("") + "[processes.p]\ncommand = ['x']\noneshot = true\nrestart = {policy='always'}",
         "a oneshot ends on purpose"),
        (role("") + "[processes.p]\ncommand = ['x']\ndepends-on = ['p']", "wait for itself"),
        (role("") + "[processes.p]\ncommand = ['x']\ndepends-on = ['frontent']", "mean frontend?"),
        (role("") + "[processes.p]\ncommand = ['x']\ndepends-on = ['w', 'w']", "w is there twi"),
        (role("") + "[processes.p]\ncommand = ['x']\ndepends-on = { p = 'ready' }",
         "7: processes.p.depends-on.p: it would wait for itself"),
        (role("") + "[processes.p]\ncommand = ['x']\ndepends-on = { x = 'ready' }",
         'processes.p.depends-on.x: nothing is called "x"; there are: w, frontend'),
        (role("depends-on.p = 'started'") + "[processes.p]\ncommand = ['x']\ndepends-on = ['w']",
         "roles.w.depends-on: nothing in w -> p -> w could ever start"),
        (role("depends-on.p = 'ready'") + "[processes.p]\ncommand = ['x']\noneshot = true",
         '4: roles.w.depends-on.p: p is a oneshot: it is never ready, it ends; write "completed"'),
        (role("depends-on.p = 'completed'") + "[processes.p]\ncommand = ['x']",
         'p never completes: it is restarted also after an exit with 0; write "ready", or make it'),
        (role("depends-on.frontend = 'completed'"), 'with 0; write "ready"'),
        (role("depends-on = ['p']") + "[processes.p]\ncommand = ['x']\ndepends-on = ['w']",
         "roles.w.depends-on: nothing in w -> p -> w could ever start"),
        # the simulated engine
        (role("sim = { kv-blocks = 2 }"), "2 blocks of 16 can't hold max-model-len"),
        (role("sim = { faults = [{ fault = 'allocate' }] }"), 'fault = "allocate" needs bytes'),
        (role("sim = { faults = [{ fault = 'log' }] }"), "needs line; add line ="),
        (role("sim = { faults = [{ fault = 'hang', bytes = '1MB' }] }"), "faults[0].bytes: only"),
        (role("sim = { faults = [{ fault = 'crash', after-tokens = 1, after-transfers = 1 }] }"),
         "faults[0].after-transfers: it can't wait for transfers and another count"),
        (role("sim = { faults = [{ fault = 'crsh' }] }"), 'did you mean "crash"?'),
    ],
)  # fmt: skip
def test_each_rule(text, expected):
    found = said(text)
    assert len(found) == 1, "\n".join(found)
    assert expected in found[0]


@pytest.mark.parametrize(
    "text",
    [
        PAIR,
        role("gpus = 2"),
        role("gpus = 0\ntensor-parallel = 2"),
        role("gpus = [0, 1, 2, 3]\nreplicas = 2\ntensor-parallel = 2"),
        role("gpus = [0, 1]") + role("gpus = ['GPU-0']", "x"),
        role("engine = 'sim'\nstop = { grace = '2s', drain = '1s' }"),
        role("stop = { drain = '0s', grace = '15s' }"),
        role("", "a") + role("", "b"),
        "[processes.p]\ncommand = ['x']\nstop = { grace = '1s' }",
        "[processes.p]\ncommand = ['x']\nenv = { VLLM_PORT = '1' }",
        role("") + "[processes.p]\ncommand = ['x']\ndepends-on = ['w', 'frontend']",
        role("") + "[processes.p]\ncommand = ['x']\noneshot = true",
        role("depends-on.p = 'completed'") + "[processes.p]\ncommand = ['x']\noneshot = true",
        role("depends-on.p = 'started'") + "[processes.p]\ncommand = ['x']\noneshot = true",
        role("depends-on = { p = 'completed', frontend = 'ready' }")
        + "[processes.p]\ncommand = ['x']\nrestart.policy = 'on-failure'",
        grouped('["c", "a", "b"]'),
        grouped('["a", "c"]', strategy="one-for-all"),
        role("") + "[processes.p]\ncommand = ['x']\nstart = { timeout = '9h' }",
        role("") + "[processes.p]\ncommand = ['x']\nstop = { grace = '9h' }",
        role("") + "[processes.p]\ncommand = ['x']\nready = { tcp = 'elsewhere:8000' }",
        role("") + "[processes.p]\ncommand = ['x']\nready = { tcp = '[::1]:9000' }",
        role("") + "[processes.p]\ncommand = ['x']\nready = { notify = true }\nwatchdog = '30s'",
        role("") + "[processes.p]\ncommand = ['x']\nready = { notify = 'all' }",
        role("") + "[processes.p]\ncommand = ['x']\nready = { exec = ['x'], period = '9s' }",
        role("vllm = { lora-modules = [{ name = 'a' }], 'compilation-config.level' = 3 }"),
    ],
)
def test_what_fits(text):
    assert said(text) == []


def test_statement_51_a_grace_that_kills_in_the_middle_of_the_drain_is_refused_by_line_and_key():
    text = HEAD + role("stop = { drain = '50s', grace = '60s' }")
    with pytest.raises(Invalid) as refused:
        parse(text, "t.toml", {})
    (complaint,) = map(str, refused.value.complaints)
    assert complaint.startswith("t.toml:4: roles.w.stop.grace: grace 60s is less than drain + 15s")
    assert "kill" in complaint


def test_no_model_anywhere_is_one_mistake():
    found = said(role("", "a") + role("", "b"), head='name = "t"\n')
    assert found == ['1: model: no model is named; add model = "Qwen/Qwen3-0.6B"']


def test_a_role_without_a_model():
    found = said(role("", "a") + role("model = 'm'", "b"), head='name = "t"\n')
    assert found == [
        '2: roles.a: no model is named; add model = "Qwen/Qwen3-0.6B" here or at the top'
    ]


@pytest.mark.parametrize(
    "text",
    [
        role("gpus = 'x'\ntensor-parallel = 4"),
        role("kind = 'prefil'"),
        "[frontend]\nport = 'x'\n[processes.p]\ncommand = ['x']\nready = { tcp = '[::1]:8000' }",
        "[role.w]\ngpus = 1",
        role("stop = { grace = 5 }"),
    ],
)
def test_no_guesswork_on_top_of_a_mistake(text):
    assert len(said(text)) == 1
