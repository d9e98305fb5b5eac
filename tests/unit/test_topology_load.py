"""Loading: every mistake at once, on the right line, with what would be right."""

import re
import time
import tomllib
from pathlib import Path
from textwrap import dedent

import pytest

from orchestrator.topology.advice import advice
from orchestrator.topology.complaints import Complaint, shown_path
from orchestrator.topology.load import FILE_BYTES_MAX, Invalid, load, parse, referenced_variables
from orchestrator.topology.not_built import not_built

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "topologies").glob("*.toml"))
MINIMAL = 'name = "t"\nmodel = "m"\n[roles.w]\n'


def complaints(text, **variables) -> list[Complaint]:
    with pytest.raises(Invalid) as invalid:
        parse(dedent(text), "t.toml", variables)
    return invalid.value.complaints


def said(text, **variables) -> list[str]:
    return [str(each) for each in complaints(text, **variables)]


def only(text, **variables) -> str:
    found = said(text, **variables)
    assert len(found) == 1, "\n".join(found)
    return found[0]


EIGHT = """\
    name = "Chat Server"
    model = "m"

    [frontend]
    prot = 8000
    routing = "round-robbin"

    [roles.worker]
    kind = "aggregated"
    vllm = { chat-template = '''
    [roles.fake]
    ''', max-model-len = 4096, port = 9000 }
    gpus = 1
    tensor-parallel = 2

    [roles.worker.start]
    timeout = 90

    [processes.cache]
    command = ["cache"]
    depends-on = [
      "worker",
      "wrker",
    ]
    env = { HOME = "${NOWHERE}" }
    """


def test_eight_mistakes_eight_complaints():
    started = time.perf_counter()
    found = complaints(EIGHT)
    assert time.perf_counter() - started < 1
    assert [(each.line, shown_path(each.path)) for each in found] == [
        (1, "name"),
        (5, "frontend.prot"),
        (6, "frontend.routing"),
        (12, "roles.worker.vllm.port"),
        (13, "roles.worker.gpus"),
        (17, "roles.worker.start.timeout"),
        (23, "processes.cache.depends-on[1]"),
        (25, "processes.cache.env.HOME"),
    ]
    text = [str(each) for each in found]
    assert text[0].endswith('at most 32; write "chat-server"')
    assert text[1] == "t.toml:5: frontend.prot: unknown key; did you mean port?"
    assert 'did you mean "round-robin"?' in text[2]
    assert "2 GPUs per worker, not 1" in text[4]
    assert text[5].endswith('90 has no unit; write "90s" if seconds are meant')
    assert text[6].endswith('nothing is called "wrker"; did you mean worker?')
    assert "NOWHERE isn't set" in text[7]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_topology_loads(path):
    topology = load(path, {})
    assert topology.name == path.stem


def test_shipped_set():
    stems = {path.stem for path in SHIPPED}
    assert {"agg", "agg-2", "disagg", "dep", "processes"} <= stems


@pytest.mark.parametrize("stem", ["agg", "agg-2", "dep", "disagg", "processes"])
def test_what_runs_today_is_built(stem):
    path = next(each for each in SHIPPED if each.stem == stem)
    assert not_built(load(path, {})) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_needs_no_advice(path):
    assert advice(load(path, {})) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[frontend]\nport = true", "4: frontend.port: expected an integer, got true; write a wh"),
        ('[frontend]\nport = "80"', '4: frontend.port: expected an integer, got "80"; write 80,'),
        ("[frontend]\nport = 80", "4: frontend.port: 80 is too small; write at least 1024"),
        ("[frontend]\nhost = 3", '4: frontend.host: expected a string, got 3; write "3"'),
        ("[frontend]\nreplicas = 1.5", "expected an integer, got 1.5"),
        ("frontend = []", "3: frontend: expected a table, got a list"),
        ('[log]\nmax-size = "5"', '"5" is not a size; write one like "20GiB"'),
        ('[log]\nmax-size = "0B"', '4: log.max-size: "0B" is no size at all; write more'),
        ("[roles.w.env]\nA = 1", '4: roles.w.env.A: expected a string, got 1; write "1"'),
        ('[roles.w]\nexpert-parallel = "yes"', "expected true or false"),
        ('[roles.w]\nkind = "prefil"', 'did you mean "prefill"?'),
        ("[roles.w]\nkind = 3", "3 isn't one of its values; write one of"),
        ("[roles.w]\ngpus = 1.5", "a fraction of a GPU lies between 0 and 1, not 1.5"),
        ("[roles.w]\ngpus = -1", "-1 GPUs; write a count"),
        ('[roles.w]\ngpus = ["zero"]', "a list names no GPUs"),
        ("[roles.w]\nmax_model_len = 3", "a vLLM flag belongs in vllm"),
        ("[roles.w]\ntensor_parallel = 3", "did you mean tensor-parallel?"),
        ("[roles.w]\nport = 3", "it belongs in frontend = { port = ... }"),
        ("[roles.w]\nmodel = ''", "it is empty"),
        ("[roles.w]\nserved-model-name = []", "a list is not a name"),
        ('[roles.w]\ndepends-on = "x"', 'expected a list, got "x"; write ["x"]'),
        ("[roles.w]\ndepends-on = 3", 'expected a list, got 3; write ["..."]'),
        ("[roles.w]\ndepends-on = [3]", '3 is not a name; write one like "cache"'),
        (
            "[roles.w]\ndepends-on = { x = 'redy' }",
            'depends-on.x: "redy" isn\'t one of its values; did you mean "ready"? It is one of',
        ),
        ("[roles.w.sim]\nfaults = [{ times = 1 }]", "faults[0].fault: this key is required"),
        ("[processes.p]", '3: processes.p.command: this key is required; add command = ["program'),
        ('[processes.p]\ncommand = "a b"', "a command is a list, no shell reads it"),
        ("[processes.p]\ncommand = [1]", "not a list of strings"),
        ("[processes.p]\ncomand = ['x']", "4: processes.p.comand: unknown key; did you mean comm"),
        (
            "[processes.p]\ncommand = ['x']\nserves = { url = 'http://10.0.0.1:9', models = 'm' }",
            'serves.url: "http://10.0.0.1:9" is not on this machine',
        ),
        (
            "[processes.p]\ncommand = ['x']\nserves = { url = 'http://[::1]:9/v1', models = 'm' }",
            'says more than where it listens; write one like "http://127.0.0.1:9000"',
        ),
        (
            "[processes.p]\ncommand = ['x']\nserves = { url = 'http://127.0.0.1:9' }",
            "serves.models: this key is required",
        ),
        ("[kv-transfr]\nconnector = 'nixl'", "3: kv-transfr: unknown key; did you mean kv-trans"),
    ],
)
def test_one_wrong_key(text, expected):
    role = "" if "[roles.w" in text else "[roles.w]\n"
    found = only(f'name = "t"\nmodel = "m"\n{text}\n{role}')
    assert expected in found.removeprefix("t.toml:")


def test_two_typos_of_one_key_and_the_key_itself():
    text = MINIMAL + "replicas = 0\nreplica = 2\n"
    assert [each.line for each in complaints(text)] == [4, 5]


def test_a_missing_name():
    assert only("[processes.p]\ncommand = ['x']") == (
        't.toml:1: name: this key is required; add name = "my-topology"'
    )


def test_a_wrong_default_is_one_mistake():
    text = 'name = "t"\nmodel = "m"\n[stop]\ngrace = "1s"\n[roles.a]\n[roles.b]\n'
    found = only(text)
    assert found.startswith("t.toml:4: stop.grace: grace 1s is less than drain + 15s")
    assert found.endswith('write grace = "45s" or more, or a shorter drain')


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ('name = "t"\nmodel = \n', 2, "not TOML: Invalid value"),
        ('name = "t"\n[a]\n[a]\n', 3, "not TOML: Cannot declare"),
        ('name = "t"\nname = "u"\n', 2, "not TOML: Cannot overwrite"),
        ('name = "t"\nx = [1,\n', 3, "not TOML"),
        ("x = " + "[" * 5000, 0, "nested too deeply"),
    ],
)
def test_syntax_is_one_complaint(text, line, expected):
    (found,) = complaints(text)
    assert found.line == line
    assert expected in found.wrong


def test_unreadable_files(tmp_path):
    def only_of(path):
        with pytest.raises(Invalid) as invalid:
            load(path, {})
        (found,) = invalid.value.complaints
        return str(found)

    missing = tmp_path / "no.toml"
    assert only_of(missing) == (
        f"{missing}: the file: can't be read: No such file or directory; check the path"
    )
    assert "Is a directory" in only_of(tmp_path)
    binary = tmp_path / "b.toml"
    binary.write_bytes(b'name = "t"\nmodel = "\xff"\n')
    assert f"{binary}:2: the file: isn't UTF-8" in only_of(binary)
    binary.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    assert "larger than 1 MiB" in only_of(binary)
    binary.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert load(binary, {}).name == "t"


class TestVariables:
    TEXT = MINIMAL + (
        'replicas = "${N:-2}"\ngpus = "${GPUS}"\nenv = { A = "$${B} ${C:-}", D = "x${E}y" }\n'
        'expert-parallel = "${EP}"\nstart = { timeout = "${T}s" }\n'
    )

    def test_are_expanded_also_where_a_number_is_wanted(self):
        values = {"GPUS": "0.5", "E": "-", "EP": "true", "T": "7"}
        role = parse(self.TEXT, "t.toml", values).roles["w"]
        assert (role.replicas, role.gpus, role.expert_parallel) == (2, 0.5, True)
        assert role.env == {"A": "${B} ", "D": "x-y"}
        assert role.start.timeout_s == 7

    def test_empty_counts_as_unset_for_a_default(self):
        values = {"N": "", "GPUS": "1", "E": "", "EP": "false", "T": "7"}
        role = parse(self.TEXT, "t.toml", values).roles["w"]
        assert role.replicas == 2
        assert role.env["D"] == "xy"

    def test_a_bad_value_is_a_complaint(self):
        found = said(self.TEXT, N="two", GPUS="1", E="", EP="no", T="7")
        assert len(found) == 2
        assert found[0].startswith('t.toml:4: roles.w.replicas: expected an integer, got "two"')

    def test_unset_and_malformed(self):
        found = said(self.TEXT + 'model = "${"\n', N="0", E="")
        assert [each.split(": ")[1] for each in found] == [
            "roles.w.replicas", "roles.w.gpus", "roles.w.expert-parallel",
            "roles.w.start.timeout", "roles.w.model",
        ]  # fmt: skip
        assert "the variable GPUS isn't set; set it, or write ${GPUS:-default}" in found[1]

    def test_a_text_stays_a_text(self):
        assert parse(MINIMAL + 'model = "${M}"', "t.toml", {"M": "1"}).roles["w"].model == "1"

    def test_referenced(self):
        assert referenced_variables(self.TEXT) == {"N", "GPUS", "C", "E", "EP", "T"}
        assert referenced_variables("# ${X}\na = ") == set()


def test_defaults_flow_inwards_and_the_inner_wins():
    topology = parse(
        dedent("""\
        name = "t"
        model = "m"
        served-model-name = "chat"
        env = { A = "1", B = "1" }
        restart = { intensity = 9, jitter = 0.5 }
        stop = { drain = "3s", linger = "1s" }
        [roles.a]
        env = { B = "2" }
        restart = { jitter = 0.0 }
        [roles.b]
        model = "other"
        [processes.p]
        command = ["x"]
        stop = { grace = "0s" }
        """),
        "t.toml",
        {},
    )
    a, b, p = topology.roles["a"], topology.roles["b"], topology.processes["p"]
    assert a.env == {"A": "1", "B": "2"}
    assert (a.restart.intensity, a.restart.jitter) == (9, 0.0)
    assert (a.model, a.served_names) == ("m", ("chat",))
    assert (b.model, b.served_names) == ("other", ("other",))
    assert (a.stop.drain_s, p.stop.drain_s, p.stop.grace_s, p.stop.linger_s) == (3, 0, 0, 1)
    assert topology.frontend.env == {"A": "1", "B": "1"}
    assert topology.frontend.options()["drain-timeout"] == 3


def test_where_it_was_written_is_no_part_of_the_value():
    one = parse(MINIMAL, "a.toml", {})
    other = parse("# moved\n" + MINIMAL, "b.toml", {})
    assert one == other
    assert one.source.file == "a.toml"


def test_not_built_yet_is_said_with_its_line():
    text = MINIMAL + "[frontend]\nport = 8000\nrouting = 'kv'\n"
    (routing,) = [str(each) for each in not_built(parse(text, "t.toml", {}))]
    assert routing == (
        't.toml:6: frontend.routing: KV routing: not built yet; write routing = "prefix"'
    )


ODD = ["0", "-1", "1.5", "true", "''", "'x'", "[]", "[[]]", "[1, 'x']", "{}", "{ a = 1 }", "nan",
       "1979-05-27", "'${X}'", "'${'", "[{}]", "99999999999999999999999999"]  # fmt: skip
EVERY_KEY = dedent("""\
    name = "t"
    model = "m"
    frontend = { port = 8000, body-max = "1MiB", env = { A = "1" } }
    restart = { policy = "always", jitter = 0.1, attempts = 3, half-life = "1s" }
    stop = { drain = "1s", grace = "20s" }
    kv-transfer = { connector = "nixl", lease = "1s" }
    groups.g = { members = ["d", "p"], strategy = "rest-for-one" }
    [roles.p]
    kind = "prefill"
    gpus = [0, 1]
    tensor-parallel = 2
    vllm = { block-size = 16 }
    sim = { step = "1ms", faults = [{ fault = "crash", times = 1 }] }
    depends-on = ["c"]
    on-dependency-restart = "restart"
    [roles.d]
    kind = "decode"
    served-model-name = "m"
    [processes.c]
    command = ["x"]
    ready = { http = "http://h:1/" }
    oneshot = false
    """)


def explained(text):
    try:
        parse(text, "t.toml", {})
    except Invalid as invalid:
        return invalid.complaints
    return []


def test_whatever_stands_there_it_loads_or_is_explained():
    """Every key of a whole file, in turn, with a value nobody would write."""
    starts = [match.start(1) for match in re.finditer(r"= (?=(\S))", EVERY_KEY)]
    tried = 0
    for start in starts:
        (end,) = _value_ends(EVERY_KEY, start)
        for value in ODD:
            text = EVERY_KEY[:start] + value + EVERY_KEY[end:]
            found = explained(text)
            assert all(each.line >= 1 for each in found), text
            assert len(found) < 8, "\n".join(str(each) for each in found)
            tried += 1
    assert tried > 400


def _value_ends(text, start):
    """Where the TOML value that begins at `start` ends: the shortest piece that parses alone."""
    for end in range(start + 1, len(text) + 1):
        piece, after = text[start:end], text[end : end + 1]
        if after.isalnum() or after in set(".'\"-"):
            continue
        try:
            tomllib.loads(f"v = {piece}")
        except tomllib.TOMLDecodeError:
            continue
        return (end,)
    return ()
