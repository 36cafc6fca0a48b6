"""Requests made from the server's own description: none gives 5xx, and every error has OpenAI's form."""

import json
import re
from contextlib import suppress
from unittest import SkipTest

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from serving_tools import serving

FAST, THOROUGH = 2, 300


@pytest.fixture(scope="module")
def fuzzed():
    limits = {"request_seconds": 5.0, "max_tokens": 64, "default_tokens": 4, "default_chat_tokens": 4}
    with serving(chat_template="turns", limits=limits) as found:
        yield found


def check(response):
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        error = json.loads(response.content)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert "Traceback" not in error["message"]


def operations(served):
    """Every path with its methods, but the pages."""
    description = served.get("/openapi.json").json()
    found = schemathesis.openapi.from_dict(description)
    found.config.update(base_url=served.url)
    return [each.ok() for each in found.get_all_operations()]


def run(served, examples, paths=None):
    """So many examples of each operation, half of them against its description. paths: None for all."""
    for operation in operations(served):
        if paths is not None and operation.path not in paths:
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            cases = operation.as_strategy(generation_mode=mode)

            @settings(
                max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=cases)
            def call(case):
                check(case.call(base_url=served.url, headers={"host": "localhost"}))

            # nothing of an operation without fields can be wrong
            with suppress(Unsatisfiable, SkipTest):
                call()
    assert served.get("/health").status_code == 200


def test_the_description_is_whole(fuzzed):
    paths = fuzzed.get("/openapi.json").json()["paths"]
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/states", "/v1/sessions", "/tokenize"):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"], path
    assert re.match(r"3\.", fuzzed.get("/openapi.json").json()["openapi"])


def test_requests_from_the_description(fuzzed):
    run(fuzzed, FAST, {"/v1/completions", "/v1/sessions/{session}/rewind", "/v1/states/{state}/content"})


@pytest.mark.slow
def test_many_requests_from_the_description(fuzzed):
    run(fuzzed, THOROUGH)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4), max_leaves=8,
)  # fmt: skip
FIELDS = [
    "prompt", "max_tokens", "temperature", "top_p", "n", "best_of", "stop", "seed",
    "logprobs", "echo", "logit_bias", "stream", "stream_options", "state", "session", "keep_state",
    "grammar", "timeout", "logprobs_from", "min_tokens", "stop_token_ids", "tokens", "block", "from",
    "messages", "pinned",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/states", "/v1/inspect"])
def test_any_values_in_known_fields(fuzzed, path):
    """Bodies that are JSON, of fields that are known, with values of any kind."""

    @settings(max_examples=25, deadline=None, database=None)
    @given(
        st.dictionaries(st.sampled_from([*FIELDS, "tokens", "block", "from", "messages", "pinned"]), values, max_size=5)
    )
    def send(body):
        check(fuzzed.post(path, json.dumps(body).encode("utf-8", "surrogatepass")))

    send()
    assert fuzzed.get("/health").status_code == 200
