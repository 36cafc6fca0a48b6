"""What does not pass: keys, hosts, media types, headers, bodies, JSON; and every error has one form."""

import hmac
import json
import socket
import time

import pytest

from exlstm.serve import keys as keys_module
from exlstm.serve.body import nesting, parsed
from exlstm.serve.errors import Refusal
from exlstm.serve.keys import Keys, keys_in
from serving_tools import JSON, serving

KEYS = {"first-key-of-ann-0123": "ann", "second-key-of-bob-4567": "bob"}
OPEN = ["/health", "/v1/health", "/health/live", "/version"]
CLOSED = ["/v1/models", "/metrics", "/openapi.json", "/v1/states", "/tokenizer_info", "/nothing"]


@pytest.fixture(scope="module")
def locked():
    with serving(keys=KEYS, limits={"body_bytes": 10_000, "body_seconds": 0.5}) as found:
        yield found


def error_of(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert "Traceback" not in response.text
    return error


@pytest.mark.parametrize("headers", [
    {}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first-key-of-ann-0123"}, {"x-api-key": ""},
    {"authorization": "first-key-of-ann-0123"},
], ids=str)  # fmt: skip
def test_without_a_key_only_open_paths_answer(locked, headers):
    for path in OPEN:
        assert locked.get(path, headers=headers).status_code == 200
    for path in CLOSED:
        response = locked.get(path, headers=headers)
        assert error_of(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    for path in ("/v1/completions", "/health", "/tokenize", "/v1/states/content"):
        error_of(locked.post(path, {"prompt": "a"}, headers=headers), 401)


@pytest.mark.parametrize("key", KEYS)
def test_a_key_opens_in_both_headers(locked, key):
    for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}, {"authorization": f"bearer {key}"}):
        assert locked.get("/v1/models", headers=headers).status_code == 200
        assert error_of(locked.get("/nothing", headers=headers), 404)
        error_of(locked.get("/v1/completions", headers=headers), 405)


def test_every_key_is_compared_whatever_matches(monkeypatch):
    """Time must not tell which key is near, or first."""
    compared, plain = [], hmac.compare_digest

    def compare(a, b):
        compared.append((len(a), len(b)))
        return plain(a, b)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", compare)
    known = Keys(KEYS)
    for key, owner in [
        *((key.encode(), name) for key, name in KEYS.items()),
        (b"", None),
        (None, None),
        (b"x" * 999, None),
    ]:
        compared.clear()
        assert known.owner(key) == owner
        assert compared == [(32, 32)] * 2


def test_files_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# users\n\nann:0123456789abcdef\nbob:fedcba9876543210\n")
    file.chmod(0o600)
    assert keys_in(file) == {"0123456789abcdef": "ann", "fedcba9876543210": "bob"}
    file.chmod(0o644)
    with pytest.raises(ValueError, match="chmod 600"):
        keys_in(file)
    file.chmod(0o600)
    for text, words in {
        "ann:short": "line 1",
        "a:0123456789abcdef\na:1123456789abcdef": "line 2",
        "# none": "no key",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            keys_in(file)
    with pytest.raises(ValueError, match="cannot be read"):
        keys_in(tmp_path / "missing")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:8000", "[::2]:8000"])
def test_another_host_is_refused_on_this_machine(served, host):
    error_of(served.get("/health", headers={"host": host}), 403)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "LOCALHOST:80", "[::1]:8000"])
def test_names_of_this_machine_pass(served, host):
    assert served.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "", "multipart/form-data"])
def test_a_page_elsewhere_cannot_post(served, media):
    """A cross-site form cannot send application/json."""
    error_of(served.post("/v1/completions", {"prompt": "a"}, headers={"content-type": media}), 415)


def test_headers_have_bounds(served):
    error_of(served.get("/health", headers={f"x-{n}": "1" for n in range(80)}), 431)
    error_of(served.get("/health", headers={"x-long": "a" * 20_000}), 431)


BAD = {
    "not JSON": b"{", "not UTF-8": b'{"prompt": "\xff"}', "a list": b"[]", "a number": b"3", "empty": b"",
    "a key twice": b'{"prompt": "a", "prompt": "b"}', "NaN": b'{"temperature": NaN}',
    "infinity": b'{"top_p": Infinity}',
    "half a pair": b'{"prompt": "\\ud800"}', "half a pair in a key": b'{"\\udfff": 1}',
    "a huge float": b'{"temperature": 1e999}',
    "deep": b'{"a":' * 100 + b"1" + b"}" * 100, "deeper": b"[" * 100_000 + b"]" * 100_000,
    "a huge int": b'{"seed": ' + b"9" * 5_000 + b"}",
    "a word for a number": b'{"max_tokens": "5"}', "a float for an int": b'{"max_tokens": 5.5}',
    "true for an int": b'{"n": true}',
}  # fmt: skip


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_bad_bodies(served, data):
    error_of(served.post("/v1/completions", data), 400)


def test_depth_of_json_leaves_strings_out():
    assert nesting('{"a": "[[[[{{{{", "b": [1, "\\"]]"]}') == 2
    with pytest.raises(Refusal):
        parsed(b"[[[]]]", 2)
    assert parsed(b'{"a": "\\ud83d\\ude00"}', 2) == {"a": "\U0001f600"}


def test_bodies_have_bounds(locked):
    headers = {"x-api-key": next(iter(KEYS))}
    error_of(locked.post("/v1/completions", {"prompt": "a" * 20_000}, headers=headers), 413)
    with locked.client() as client:
        parts = (b" " * 5_000 for _ in range(4))
        response = client.post("/v1/completions", content=parts, headers={**JSON, **headers})
    error_of(response, 413)


def raw(served, data, wait=5.0):
    """What a server says to these bytes, until it closes or nothing comes."""
    with socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1])), timeout=wait) as sock:
        sock.sendall(data)
        found = b""
        try:
            while part := sock.recv(65_536):
                found += part
                if b"\r\n\r\n" in found:
                    break
        except TimeoutError:
            pass
        return found


def test_a_body_that_does_not_come_is_given_up(locked):
    key = next(iter(KEYS)).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: %s\r\n" % key
    began = time.monotonic()
    found = raw(locked, head + b"content-type: application/json\r\ncontent-length: 50\r\n\r\n{")
    assert found.startswith(b"HTTP/1.1 408")
    assert 0.4 < time.monotonic() - began < 4


def test_errors_name_the_field(served):
    for body, param in (
        ({"temperature": 3}, "temperature"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"n": 99}, "n"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"functions": [{}]}, "functions"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": [[1], [300]]}, "prompt"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"state": "st_1"}, "state"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"min_p": -1}, "min_p"),
        ({"stop_token_ids": [257]}, "stop_token_ids"),
    ):
        response = served.post("/v1/completions", {"prompt": "a", **body})
        error = error_of(response, 404 if param == "state" else 400)
        assert error["param"] == param, (body, error)
    assert error_of(served.post("/v1/completions", {"model": "other"}), 404)["code"] == "model_not_found"
    # at the limits
    for body in ({"n": 16}, {"stop": ["a"] * 16}, {"stop": "a" * 256}, {"logprobs": 20}, {"seed": 2**64 - 1},
                 {"prompt": ["a"] * 128, "max_tokens": 0}):  # fmt: skip
        response = served.post("/v1/completions", {"prompt": "a", "max_tokens": 1, **body})
        assert response.status_code == 200, (body, response.text)


def test_harmless_and_unknown_fields_are_taken(served):
    body = {
        "prompt": "a",
        "max_tokens": 1,
        "user": "x",
        "store": True,
        "nonsense": [1],
        "temperature": None,
        "stop": None,
    }
    assert served.post("/v1/completions", body).status_code == 200
    assert b"exlstm_unknown_fields_total" in served.get("/metrics").content


def test_logs_have_no_bodies_and_no_line_of_a_client(capfd):
    with serving(log_requests=True) as found:
        found.post("/v1/completions", {"prompt": "a secret", "max_tokens": 1, "user": "x\ny"})
        found.get("/a%0Ab")
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [(line["path"], line["status"]) for line in lines] == [("/v1/completions", 200), ("/a\nb", 404)]
    assert "secret" not in json.dumps(lines)
