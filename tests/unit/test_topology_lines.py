"""The line indexer against tomllib: the same paths, on the lines where they stand."""

import tomllib
from textwrap import dedent

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.topology.lines import key_lines

KEYS = st.text(min_size=1, max_size=5) | st.sampled_from(["a", "b-1", 'q"', "x.y", "#", "=", "[z]"])
TEXTS = st.text(max_size=12) | st.sampled_from(['"""', "'''", "[a]\nb = 1", 'x"\\', "#no", "a\n]"])


def trees(leaves):
    return st.dictionaries(KEYS, leaves, max_size=4)


VALUES = st.recursive(
    TEXTS | st.booleans() | st.just("MARK"),
    lambda inner: trees(inner) | st.lists(inner, max_size=3),
    max_leaves=12,
)


def marked(value, count):
    if isinstance(value, dict):
        return {key: marked(each, count) for key, each in value.items()}
    if isinstance(value, list):
        return [marked(each, count) for each in value]
    if value == "MARK":
        count.append(0)
        return 7_000_000 + len(count)
    return value


def paths(value, path=()):
    pairs = []
    if isinstance(value, dict):
        pairs = list(value.items())
    elif isinstance(value, list):
        pairs = list(enumerate(value))
    for step, each in pairs:
        yield (*path, step), each
        yield from paths(each, (*path, step))


@given(trees(VALUES), st.booleans())
@settings(max_examples=60, deadline=None)
def test_agrees_with_tomllib(tree, multiline):
    text = tomli_w.dumps(marked(tree, []), multiline_strings=multiline)
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # the writer's own trouble with a bare carriage return
    lines = key_lines(text)
    assert set(lines) == {path for path, _ in paths(parsed)}
    rows = text.replace("\r\n", "\n").split("\n")
    for path, value in paths(parsed):
        if isinstance(value, int) and value > 7_000_000:
            assert str(value) in rows[lines[path] - 1]


def test_every_kind_of_key():
    text = dedent("""\
        a = 1
        b.c."d e" = 2
        [t]  # a header
        s = \"\"\"
        [not.a.table]
        k = "v\\"\"\"\"
        l = [
          1, # one
          [2,
           3],
          { x = "]", y.z = '}' },
        ]
        when = 1979-05-27 07:32:00
        [[t.many]]
        n = '''it''s'''
        [[t.many]]
        [t.many.inner]
        "q\\u0041" = true
        [u.v]
        [u]
        w = ""
        """)
    assert tomllib.loads(text)["t"]["many"][1]["inner"] == {"qA": True}
    lines = key_lines(text)
    assert lines["a",] == 1
    assert lines["b", "c", "d e"] == 2
    assert lines["t",] == 3
    assert lines["t", "s"] == 4
    assert lines["t", "l"] == 7
    assert lines["t", "l", 0] == 8
    assert lines["t", "l", 1, 1] == 10
    assert lines["t", "l", 2, "y", "z"] == 11
    assert lines["t", "when"] == 13
    assert lines["t", "many", 0, "n"] == 15
    assert lines["t", "many", 1] == 16
    assert lines["t", "many", 1, "inner", "qA"] == 18
    assert lines["u",] == 20, "a table's own header, not the first mention of it"
    assert lines["u", "w"] == 21


def test_windows_line_ends():
    assert key_lines('a = 1\r\n[b]\r\nc = """x\r\ny"""\r\nd = 2\r\n')["b", "d"] == 5
