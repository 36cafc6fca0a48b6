"""Text to ids and back over HTTP, in the forms of vLLM and of llama.cpp."""

import base64
from typing import Any

from exlstm.serve.chat import rendered, template_of
from exlstm.serve.errors import bad_field
from exlstm.serve.prompts import flattened
from exlstm.serve.schemas import DetokenizeBody, TokenizeBody
from exlstm.serve.service import Service
from exlstm.serve.templates import special_tokens


async def tokenized(service: Service, body: TokenizeBody) -> dict[str, Any]:
    """The ids of a text. One exact special token is read as itself, for lm-eval asks for its id."""
    text = body.prompt if body.prompt is not None else body.content
    if (text is None) == (body.messages is None):
        raise bad_field("prompt", "send prompt, content or messages, and one of them.")
    if body.messages is not None:
        ids = await rendered(service, template_of(service), flattened(body.messages), {}, go_on=False)
    else:
        assert text is not None
        specials = named_specials(service)
        # vLLM adds special tokens unless told not to, llama.cpp does not
        adds = body.prompt is not None if body.add_special_tokens is None else body.add_special_tokens
        if text in specials and (body.parse_special or body.add_special_tokens is False):
            return answer(service, [specials[text]], body)
        ids = await service.prompts.ids(text, "prompt", boundary=adds or body.add_special)
    return answer(service, ids.tolist(), body)


def answer(service: Service, ids: list[int], body: TokenizeBody) -> dict[str, Any]:
    """The answer for these ids."""
    found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": service.limits.prompt_tokens}
    if body.return_token_strs or body.with_texts:
        found["token_strs"] = [service.token_names.name(token) for token in ids]
    return found


def detokenized(service: Service, body: DetokenizeBody) -> dict[str, Any]:
    """The text of ids under both names; the bytes as well, where they are no UTF-8."""
    if wrong := [token for token in body.tokens if token >= service.tokenizer.vocab_size]:
        raise bad_field("tokens", f"token {wrong[0]} is outside the vocabulary of {service.tokenizer.vocab_size}.")
    data = service.tokenizer.decode(body.tokens)
    text = data.decode("utf-8", "replace")
    found = {"prompt": text, "content": text}
    return found if text.encode() == data else found | {"bytes": base64.b64encode(data).decode()}


def named_specials(service: Service) -> dict[str, int]:
    """Special tokens by their text; the boundary has one, even where the tokenizer gives it none."""
    found = special_tokens(service.tokenizer)
    return found if service.tokenizer.boundary in found.values() else found | {BOUNDARY: service.tokenizer.boundary}


BOUNDARY = "<|endoftext|>"


def tokenizer_info(service: Service) -> dict[str, Any]:
    """What lm-eval's remote tokenizer reads."""
    name = next(text for text, token in named_specials(service).items() if token == service.tokenizer.boundary)
    template = None if service.template is None else service.template.source
    return {"eos_token": name, "bos_token": name, "pad_token": name, "chat_template": template}
