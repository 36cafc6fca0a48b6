"""States and sessions over HTTP: what comes out is what one request with everything gives."""

import json
import os
import signal
import subprocess
import sys
import time

import httpx
import pytest

import exlstm
from exlstm.data.tokenizer import ByteTokenizer
from exlstm.infer.generate import generate
from exlstm.infer.requests import Request
from exlstm.infer.sampling import GREEDY
from serving_tools import JSON, build, serving

OCTETS = {"content-type": "application/octet-stream"}
GO = {"temperature": 0, "ignore_eos": True, "keep_state": True}
KEYS = {"the-key-of-ann-01234567": "ann", "the-key-of-bob-01234567": "bob"}
ANN, BOB = ({"x-api-key": key} for key in KEYS)


@pytest.fixture(scope="module")
def locked():
    with serving(keys=KEYS) as found:
        yield found


def complete(served, body, headers=ANN):
    response = served.post("/v1/completions", GO | body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def expected(served, ids, tokens):
    request = Request(prompt=ids, max_tokens=tokens, sampling=GREEDY, stop_at_boundary=False)
    return generate(served.model, [request], tokenizer=served.tokenizer)[0]


def test_going_on_is_one_request_with_everything(locked):
    whole = expected(locked, [256, *b"Once"], 24)
    first = complete(locked, {"prompt": "Once", "max_tokens": 8, "return_token_ids": True})
    second = complete(locked, {"prompt": [], "state": first["state"]["id"], "max_tokens": 16, "return_token_ids": True})
    assert [*first["token_ids"], *second["token_ids"]] == list(whole.tokens)
    assert second["state"]["tokens"] == 5 + 24
    assert second["state"]["parent"] == first["state"]["id"]


def test_forks_and_siblings_do_not_see_each_other(locked):
    first = complete(locked, {"prompt": "Once", "max_tokens": 4, "return_token_ids": True})
    body = {"state": first["state"]["id"], "prompt": " a", "max_tokens": 6, "return_token_ids": True}
    before = complete(locked, body)
    complete(locked, {**body, "prompt": " quite another text"})
    assert complete(locked, body)["token_ids"] == before["token_ids"]
    ids = [256, *b"Once", *first["token_ids"], *b" a"]
    assert before["token_ids"] == list(expected(locked, ids, 6).tokens)
    assert locked.get(f"/v1/states/{first['state']['id']}", headers=ANN).json()["children"] >= 3


def test_a_stop_string_leaves_the_state_of_the_text(locked):
    free = complete(locked, {"prompt": "Once", "max_tokens": 30, "logit_bias": dict.fromkeys(map(str, b"abc"), 100)})
    stop = free["text"][10:13]
    body = {"prompt": "Once", "max_tokens": 30, "stop": stop, "logit_bias": dict.fromkeys(map(str, b"abc"), 100)}
    found = complete(locked, body)
    assert found["text"] == free["text"][: free["text"].index(stop)]
    assert found["state"]["tokens"] == 5 + len(found["text"])
    more = complete(locked, {"state": found["state"]["id"], "prompt": [], "max_tokens": 5, "return_token_ids": True})
    assert more["token_ids"] == list(expected(locked, [256, *b"Once", *found["text"].encode()], 5).tokens)


def test_download_upload_and_go_on(locked):
    first = complete(locked, {"prompt": "Once", "max_tokens": 8})
    place = f"/v1/states/{first['state']['id']}/content"
    whole = locked.get(place, headers=ANN)
    assert int(whole.headers["content-length"]) == len(whole.content)
    with locked.client(headers={**BOB, **OCTETS}) as client:
        uploaded = client.post("/v1/states/content", content=whole.content)
    assert uploaded.status_code == 201
    body = {"prompt": " and", "max_tokens": 10, "return_token_ids": True, "logprobs": 0}
    ours = complete(locked, {**body, "state": first["state"]["id"]})
    theirs = complete(locked, {**body, "state": uploaded.json()["id"]}, BOB)
    assert ours["token_ids"] == theirs["token_ids"]
    assert ours["logprobs"] == theirs["logprobs"], "to the last bit"
    part = locked.get(place, headers={**ANN, "range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert locked.get(place, headers={**ANN, "if-none-match": whole.headers["etag"]}).status_code == 304
    assert locked.get(place, headers={**ANN, "range": "bytes=99999999-"}).status_code == 416
    small = locked.get(f"{place}?dtype=bfloat16", headers=ANN)
    assert len(small.content) < len(whole.content)


def test_what_is_another_s_is_not_there(locked):
    first = complete(locked, {"prompt": "Once", "max_tokens": 2})["state"]["id"]
    session = locked.post("/v1/sessions", {}, headers=ANN).json()["id"]
    for path in (
        f"/v1/states/{first}",
        f"/v1/states/{first}/content",
        f"/v1/sessions/{session}",
        f"/v1/sessions/{session}/tree",
    ):
        assert locked.get(path, headers=ANN).status_code == 200
        assert locked.get(path, headers=BOB).status_code == 404
    for body in ({"state": first}, {"session": session}):
        response = locked.post("/v1/completions", {"prompt": "x", **body}, headers=BOB)
        assert response.status_code == 404
    with locked.client(headers=BOB) as client:
        assert client.delete(f"/v1/states/{first}").status_code == 404
        assert client.delete(f"/v1/sessions/{session}").status_code == 404
    assert first not in locked.get("/v1/states", headers=BOB).text


def test_prefixes_of_another_are_not_known(locked):
    prompt = "A prompt of some length, which is read once for each key. "
    seen = []
    for headers in (ANN, ANN, BOB, BOB):
        answer = locked.post("/v1/completions", {"prompt": prompt, "max_tokens": 1}, headers=headers).json()
        seen.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert seen == [0, len(prompt) + 1, 0, len(prompt) + 1]


def test_uploads_that_are_no_states(locked):
    first = complete(locked, {"prompt": "Once", "max_tokens": 2})["state"]["id"]
    data = locked.get(f"/v1/states/{first}/content", headers=ANN).content
    with serving(build(pattern="sm")) as other, other.client(headers=OCTETS) as client:
        response = client.post("/v1/states/content", content=data)
        assert (response.status_code, response.json()["error"]["code"]) == (412, "state_mismatch")
    with locked.client(headers={**ANN, **OCTETS}) as client:
        for bad, status in ((b"", 400), (data[:-1], 400), (data[:100], 400), (bytes(100), 400), (data * 9, 413)):
            assert client.post("/v1/states/content", content=bad).status_code == status
        assert client.post("/v1/states/content", content=(part for part in [data])).status_code == 411


def test_sessions_move_on_and_back(locked):
    session = locked.post("/v1/sessions", {"name": "talk", "transcript": True}, headers=ANN).json()["id"]
    place = f"/v1/sessions/{session}"
    ids, heads = [256], []
    for text in ("Once", " upon", " a"):
        found = complete(locked, {"session": session, "prompt": text, "max_tokens": 5, "return_token_ids": True})
        ids += [*text.encode(), *found["token_ids"]]
        heads.append(found["state"]["id"])
    about = locked.get(place, headers=ANN).json()
    assert (about["head"], about["tokens"], about["busy"]) == (heads[-1], len(ids), False)
    stale = locked.post("/v1/completions", {"session": session, "if_state": heads[0], "prompt": "x"}, headers=ANN)
    assert (stale.status_code, stale.json()["error"]["code"]) == (412, "session_conflict")
    fork = locked.post(f"{place}/fork", {"at": heads[0]}, headers=ANN).json()
    assert fork["head"] == heads[0]
    back = locked.post(f"{place}/rewind", {"turns": 1}, headers=ANN).json()
    assert back["head"] == heads[1]
    exact = locked.post(f"{place}/rewind", {"tokens": 7}, headers=ANN).json()
    assert exact["tokens"] == 7
    more = complete(locked, {"session": session, "prompt": " b", "max_tokens": 6, "return_token_ids": True})
    assert more["token_ids"] == list(expected(locked, [*ids[:7], *b" b"], 6).tokens)
    tree = locked.get(f"{place}/tree", headers=ANN).json()
    assert tree["head"] == more["state"]["id"]
    assert more["state"]["id"] in {node["id"] for node in tree["nodes"]}
    for body, status in (
        ({}, 400),
        ({"turns": 1, "tokens": 3}, 400),
        ({"to": "st_" + "0" * 32}, 409),
        ({"turns": 99}, 409),
    ):
        assert locked.post(f"{place}/rewind", body, headers=ANN).status_code == status, body


def test_a_session_has_one_turn_at_a_time(locked):
    session = locked.post("/v1/sessions", {}, headers=ANN).json()["id"]
    body = {"session": session, "prompt": "a", "max_tokens": 30_000, "ignore_eos": True, "stream": True}
    with locked.client(headers={**ANN, **JSON}) as client:
        with client.stream("POST", "/v1/completions", content=json.dumps(body)) as first:
            reads = first.iter_raw()  # held: a reader that is dropped ends the request
            next(reads)
            second = locked.post("/v1/completions", {"session": session, "prompt": "b"}, headers=ANN)
            assert (second.status_code, second.json()["error"]["code"]) == (409, "session_busy")
        for _ in range(200):
            if not locked.get(f"/v1/sessions/{session}", headers=ANN).json()["busy"]:
                break
            time.sleep(0.02)
    assert locked.get(f"/v1/sessions/{session}", headers=ANN).json()["head"] is None, "what was cut off changed nothing"


def started(folder, *options):
    """A server as a user starts it, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "exlstm", "serve", str(folder), "--port", "0", "--slots", "1", *options],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = []
    for line in process.stderr:
        lines.append(line)
        if " at http://" in line:
            return process, line.split(",")[0].rpartition(" ")[2]
    process.wait()
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    exlstm.save(build(), place)
    (place / "tokenizer.json").write_text(json.dumps(ByteTokenizer().to_json()))
    return place


def test_states_survive_a_kill(folder, tmp_path):
    options = ("--state-folder", str(tmp_path / "states"))
    process, url = started(folder, *options)
    try:
        body = {"prompt": "Once", "max_tokens": 6, **GO}
        state = httpx.post(f"{url}/v1/completions", json=body, timeout=30).json()["choices"][0]["state"]["id"]
        more = {"prompt": " and", "max_tokens": 9, "state": state, "return_token_ids": True, **GO}
        before = httpx.post(f"{url}/v1/completions", json=more, timeout=30).json()["choices"][0]["token_ids"]
        time.sleep(0.5)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    process, url = started(folder, *options)
    try:
        after = httpx.post(f"{url}/v1/completions", json=more, timeout=30).json()["choices"][0]["token_ids"]
        assert after == before
        # and a stream that runs completes, with its end, while the server drains
        long = {"prompt": "Once", "max_tokens": 2_000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=long, timeout=30) as response:
            reads = response.iter_bytes()
            data = next(reads)
            process.send_signal(signal.SIGTERM)
            data += b"".join(reads)
        assert data.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason":"length"' in data
    finally:
        process.communicate(timeout=30)
    assert process.returncode == 0


@pytest.mark.parametrize(("options", "words"), [
    (["--host", "0.0.0.0"], "is open to others, and there is no key"),
    (["--port", "99999"], "a port is a number"),
    (["--api-key-file", "missing"], "cannot be read"),
    (["--state", "x"], "is not NAME=FILE"),
])  # fmt: skip
def test_mistakes_are_one_sentence(folder, options, words, capsys):
    from exlstm.cli import main

    assert main(["serve", str(folder), "--port", "0", *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error


def test_an_address_in_use(folder, served, capsys):
    from exlstm.cli import main

    port = served.url.rsplit(":", 1)[1]
    assert main(["serve", str(folder), "--port", port]) == 2
    assert f"{port} cannot be used" in capsys.readouterr().err
