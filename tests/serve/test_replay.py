"""Answers with a certificate repeat; those of other weights and those that were changed are found out."""

import json

import pytest

import exlstm
from exlstm.cli import main
from exlstm.data.tokenizer import ByteTokenizer
from serving_tools import build, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    exlstm.save(build(), place)
    (place / "tokenizer.json").write_text(json.dumps(ByteTokenizer().to_json()))
    return place


def bodies(count):
    for number in range(count):
        body = {"prompt": ["Once", "upon"][: number % 2 + 1], "max_tokens": 4 + number % 9, "certificate": True}
        yield body | {"temperature": number % 3 / 2, "n": number % 2 + 1, "logprobs": number % 4, "top_p": 0.9}


def replayed(answer, folder, tmp_path, capsys):
    file = tmp_path / "answer.json"
    file.write_text(json.dumps(answer))
    code = main(["replay", str(file), "--model", str(folder), "--chat-template", "turns"])
    return code, capsys.readouterr()


def test_answers_repeat(folder, tmp_path, capsys):
    with serving(exlstm.load(folder).eval(), chat_template="turns") as served:
        answers = [served.post("/v1/completions", body).json() for body in bodies(3)]
        talk = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "certificate": True}
        answers.append(served.post("/v1/chat/completions", talk).json())
    for answer in answers:
        code, printed = replayed(answer, folder, tmp_path, capsys)
        assert (code, printed.out) == (0, "the same answer, to the last character\n"), printed
    changed = answers[0]
    changed["choices"][0]["text"] += "!"
    code, printed = replayed(changed, folder, tmp_path, capsys)
    assert code == 1
    assert "choice 0: text was" in printed.out


@pytest.mark.slow
def test_a_thousand_answers_repeat(folder):
    """In any company: they were recorded while others ran, and are repeated alone."""
    from concurrent.futures import ThreadPoolExecutor

    from exlstm.serve.replay import differences

    model = exlstm.load(folder).eval()
    with serving(model, slots=16) as served, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda body: served.post("/v1/completions", body).json(), bodies(1_000)))
    with serving(model, slots=16) as served:
        for answer in answers:
            again = served.post("/v1/completions", answer["certificate"]["request"]).json()
            assert differences(answer, again) == []


def test_what_cannot_be_repeated(folder, tmp_path, capsys):
    with serving() as served:
        answer = served.post("/v1/completions", {"prompt": "a", "max_tokens": 2, "certificate": True}).json()
        for body in ({"stream": True}, {"state": "st_1"}):
            response = served.post("/v1/completions", {"prompt": "a", "certificate": True, **body})
            assert response.json()["error"]["param"] == "certificate"
    for change, words in (
        ({"fingerprint": "0" * 64}, "the answer has the fingerprint"),
        ({"tokenizer": "x"}, "the answer has the tokenizer"),
    ):  # fmt: skip
        other = answer | {"certificate": answer["certificate"] | change}
        code, printed = replayed(other, folder, tmp_path, capsys)
        assert code == 2
        assert words in printed.err
    code, printed = replayed({"choices": []}, folder, tmp_path, capsys)
    assert code == 2
    assert "no answer with a certificate" in printed.err
