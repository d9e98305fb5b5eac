"""Units, the JSON Schema, and what is handed on to the workers."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.topology import units
from orchestrator.topology.json_schema import json_schema
from orchestrator.topology.load import parse
from orchestrator.topology.roles import Fault
from workers.frontend import options as frontend_options
from workers.sim import options as sim_options

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("250ms", 0.25), ("5m", 300), ("1h30m", 5400), ("1.5s", 1.5), ("0s", 0)],
)
def test_durations(text, seconds):
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("value", ["90", "s", "", "1 s", "-1s", "5M", "1s\n", 5, 1.0, True, None])
def test_no_durations(value):
    with pytest.raises(ValueError, match="; write"):
        units.parse_duration(value)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("20GiB", 20 * 2**30), ("50MB", 50_000_000), ("1.5KiB", 1536), ("7B", 7)],
)
def test_sizes(text, size_bytes):
    assert units.parse_size(text) == size_bytes


@pytest.mark.parametrize("value", ["20", "20G", "KiB", "0B", 5, True])
def test_no_sizes(value):
    with pytest.raises(ValueError, match="; write"):
        units.parse_size(value)


@given(st.integers(0, 10**7))
def test_written_units_parse_back(number):
    assert units.parse_duration(units.format_duration(number / 1000)) == pytest.approx(
        number / 1000
    )
    assert units.parse_size(units.format_size(number + 1)) == number + 1


class TestJsonSchema:
    SCHEMA = json_schema()

    def tables(self):
        return [
            self.SCHEMA,
            *(each for each in self.SCHEMA["$defs"].values() if "properties" in each),
        ]

    def test_every_key_is_described_and_kebab(self):
        for table in self.tables():
            assert table["additionalProperties"] is False
            for key, each in table["properties"].items():
                assert re.fullmatch("[a-z]+(-[a-z]+)*", key), key
                assert each.get("description"), key

    def test_units_are_patterns_and_defaults_have_them(self):
        drain = self.SCHEMA["$defs"]["StopPolicy"]["properties"]["drain"]
        assert drain["default"] == "30s"
        assert re.search(drain["anyOf"][0]["pattern"], "1m30s")
        assert self.SCHEMA["$defs"]["LogPolicy"]["properties"]["max-size"]["default"] == "50MiB"

    def test_the_shipped_one_is_current(self):
        shipped = ROOT / "topologies" / "topology.schema.json"
        assert shipped.read_text() == json.dumps(self.SCHEMA, indent=2) + "\n"

    def test_is_plain_and_stable(self):
        assert json.dumps(json_schema()) == json.dumps(self.SCHEMA)
        assert "null" not in json.dumps(self.SCHEMA)
        assert self.SCHEMA["required"] == ["name"]


ALL_FAULTS = """
name = "t"
model = "m"
[roles.w.sim]
startup = "1s"
faults = [
  { fault = "crash", signal = 9, times = 2 },
  { fault = "exit-0", after-tokens = 3, line = "bye" },
  { fault = "hang", after-requests = 3 },
  { fault = "engine-hang" }, { fault = "engine-stall" }, { fault = "engine-death" },
  { fault = "slow-start", delay = "1500ms" },
  { fault = "ignore-term" }, { fault = "leak-child" }, { fault = "leak-daemon" },
  { fault = "allocate", bytes = "1KiB" },
  { fault = "log", line = "CUDA out of memory" },
  { fault = "drop-answer", after-requests = 2 }, { fault = "transfer-fail" },
  { fault = "transfer-stall", after-transfers = 2 },
]
"""


def test_the_simulated_engine_takes_what_the_schema_gives():
    role = parse(ALL_FAULTS, "t.toml", {}).roles["w"]
    taken = sim_options.decode_options(role.sim.options())
    assert taken.startup == 1
    assert [each.fault for each in taken.faults] == [each.fault for each in role.sim.faults]
    assert taken.faults[6].seconds == 1.5
    assert taken.faults[10].bytes == 1024


def test_both_know_the_same_faults():
    ours = Fault.model_fields["fault"].annotation.__args__
    assert set(ours) == set(sim_options.FaultName.__args__)


def test_the_frontend_takes_what_the_schema_gives():
    frontend = parse('name = "t"\nmodel = "m"\n[roles.w]\n', "t.toml", {}).frontend
    taken = frontend_options.load(frontend.options())
    assert taken.body_max == 32 * 2**20
    assert taken.routing == "least-loaded"
    assert taken.drain_timeout_s == 30
