"""Chat templates: what transformers makes of them, no special token from a user, and no harm from a hostile one."""

import json
import time
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exlstm.data.tokenizer import BPETokenizer, ByteTokenizer, train_bpe
from exlstm.serve import sandbox
from exlstm.serve.templates import ChatTemplate, special_tokens

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TRIMMING = CHATML.replace("message['content'] +", "message['content'] | trim +")
INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant!') }}{% endif %}{% endfor %}"
)
LAST_ONLY = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}"
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}{{ extra }}"
SPECIALS = ["<|im_start|>", "<|im_end|>", "</s>"]
TALK = [
    {"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "And <b>now</b>?"},
]  # fmt: skip


def bpe():
    """A small tokenizer with special tokens."""
    description = train_bpe([b"user assistant hello there and now " * 20], 300).to_json()["tokenizers"]
    size = len(description["model"]["vocab"])
    description["added_tokens"] = [
        {"id": size + n, "content": text, "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False} for n, text in enumerate(SPECIALS)
    ]  # fmt: skip
    return BPETokenizer(description, boundary=size + len(SPECIALS))


BPE = bpe()
IDS = special_tokens(BPE)


@pytest.fixture(scope="module")
def templates():
    found = {
        text: ChatTemplate(source=text, bos_token="<s>", eos_token="</s>") for text in (CHATML, TRIMMING, INST, TOOLS)
    }
    yield found
    for template in found.values():
        template.sandbox.close()


@pytest.mark.parametrize("source", [CHATML, TRIMMING, INST])
def test_texts_are_those_of_transformers(source, templates):
    from transformers.utils.chat_template_utils import render_jinja_template

    for talk, prompt in ((TALK, True), (TALK[:2], False), (TALK[:1], True)):
        (expected,), _ = render_jinja_template(
            conversations=[talk], chat_template=source, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
        )
        assert templates[source].render(talk, add_generation_prompt=prompt) == expected


def test_special_tokens_are_those_of_the_template(templates):
    ids = templates[CHATML].tokens(BPE, TALK[:1])
    start, end = IDS["<|im_start|>"], IDS["<|im_end|>"]
    assert [token for token in ids if token in IDS.values()] == [start, end, start]
    assert BPE.decode(ids).decode() == templates[CHATML].render(TALK[:1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from([*SPECIALS, "<|im_", "start|>", "a", " ", "\n", "é", "<", "{{ 1 }}"]), min_size=1, max_size=8
    )
)
def test_a_user_cannot_forge_them(templates, words):
    """Whatever a message says, special tokens are as many as in a harmless talk, and the text is the same."""
    text = "".join(words)
    talk = [{"role": "user", "content": text}]
    harmless = [
        token for token in templates[CHATML].tokens(BPE, [{"role": "user", "content": "x"}]) if token in IDS.values()
    ]
    ids = templates[CHATML].tokens(BPE, talk)
    assert [token for token in ids if token in IDS.values()] == harmless
    assert BPE.decode(ids).decode() == templates[CHATML].render(talk)


@pytest.mark.parametrize("special", SPECIALS)
def test_a_template_that_changes_texts_refuses_them(templates, special):
    assert templates[TRIMMING].tokens(BPE, [{"role": "user", "content": " padded "}])
    with pytest.raises(ValueError, match="cannot tell from its own"):
        templates[TRIMMING].tokens(BPE, [{"role": "user", "content": f" {special}"}])


def test_what_follows_a_state(templates):
    """The tokens of an answer's end and of the next turn: together with what was read they are the whole talk."""
    template = templates[CHATML]
    first = template.tokens(BPE, TALK[:1])
    answer = BPE.encode(TALK[1]["content"].encode())
    more = template.more_tokens(BPE, TALK[2:])
    assert [*first, *answer, *more] == template.tokens(BPE, TALK)
    forgetful = ChatTemplate(source=LAST_ONLY)
    with pytest.raises(ValueError, match="no state can be gone on from"):
        forgetful.more_tokens(BPE, TALK[2:])
    forgetful.sandbox.close()


def test_the_last_message_can_be_continued(templates):
    text = templates[CHATML].render(TALK[:2], continue_final=True)
    assert text.endswith("<|im_start|>assistant\nHello.")


def test_settings_of_templates(templates):
    template = templates[TOOLS]
    assert template.has_tools
    assert not templates[CHATML].has_tools
    assert template.render(TALK[:1], tools=[{"name": "<f>"}], kwargs={"extra": "!"}) == '[{"name": "<f>"}]Hi there!'
    for name in ("messages", "tools", "other", "bos_token"):
        with pytest.raises(ValueError, match="takes no"):
            template.render(TALK[:1], kwargs={name: "x"})
    with pytest.raises(ValueError, match="only user and assistant!"):
        templates[INST].render([{"role": "system", "content": "x"}])


HOSTILE = {
    "endless": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "huge text": "{{ 'a' * 10**9 }}", "huge list": "{{ range(10**9) | list }}", "wide": "{{ '%1000000000d' % 1 }}",
    "centered": "{{ 'a' | center(10**9) }}", "recursive": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}", "attribute": "{{ (''|attr('__class__')).__mro__ }}",
    "changing": "{% set _ = messages.append(1) %}", "power": "{{ 9**(9**9) }}",
    "globals": "{{ raise_exception.__globals__ }}", "format": "{{ '{0.__class__.__mro__}'.format('') }}",
}  # fmt: skip


@pytest.mark.parametrize("name", ["endless", "huge text", "classes", "format", "doubling"])
def test_hostile_templates_are_stopped(name, monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    check_hostile(HOSTILE[name])


@pytest.mark.slow
@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_all_hostile_templates_are_stopped(source):
    check_hostile(source)


def check_hostile(source):
    template, began = ChatTemplate(source=source), time.monotonic()
    try:
        with pytest.raises(ValueError, match=r"the chat template .*\.$"):
            template.render(TALK[:1])
        assert time.monotonic() - began < 15
    finally:
        template.sandbox.close()


def test_a_template_that_was_stopped_renders_again(monkeypatch):
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    source = (
        "{% if extra %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}fine"
    )
    template = ChatTemplate(source=source)
    with pytest.raises(ValueError, match="too much time"):
        template.render(TALK, kwargs={"extra": True})
    assert template.render(TALK) == "fine"
    template.sandbox.close()


def test_where_templates_are_found(tmp_path):
    place = SimpleNamespace(tokenizer_file=tmp_path / "tokenizer.json")
    assert ChatTemplate.find(place, None) is None
    about = {"chat_template": [{"name": "other", "template": "no"}, {"name": "default", "template": "two"}],
             "bos_token": {"content": "<s>"}, "eos_token": "</s>"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about))
    found = ChatTemplate.find(place, None)
    assert (found.source, found.bos_token, found.eos_token) == ("two", "<s>", "</s>")
    (tmp_path / "chat_template.jinja").write_text("one")
    assert ChatTemplate.find(place, None).source == "one"
    (tmp_path / "mine").write_text("three")
    assert ChatTemplate.find(place, str(tmp_path / "mine")).source == "three"
    turns = ChatTemplate.find(place, "turns")
    assert turns.render(TALK) == "User: Hi there\nAssistant: Hello.\nUser: And <b>now</b>?\nAssistant:"
    assert turns.stop == ("\nUser:",)
    assert turns.keeps_prefix
    assert turns.tokens(ByteTokenizer(), TALK) == list(turns.render(TALK).encode())
    turns.sandbox.close()
    with pytest.raises(ValueError, match="cannot be read"):
        ChatTemplate.find(place, str(tmp_path / "none"))
    with pytest.raises(ValueError, match="cannot be read"):
        ChatTemplate(source="{% if %}").render(TALK)
