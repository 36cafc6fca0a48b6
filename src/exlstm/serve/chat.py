"""POST /v1/chat/completions: messages through the model's template, tools and structured answers."""

import json
from typing import Any

from torch import Tensor

from exlstm.serve.choices import ChoiceOptions, ChoiceProgress
from exlstm.serve.completions import keeper, parts_of, reply_of
from exlstm.serve.errors import bad_field
from exlstm.serve.formats import ChatFormat
from exlstm.serve.grammar import GrammarSpec, tool_schema
from exlstm.serve.plan import check_samples, check_top_logprobs, engine_settings, seeds_of, tokens_of
from exlstm.serve.prompts import elsewhere, flattened, tensor_of
from exlstm.serve.replies import Reply
from exlstm.serve.schemas import ChatBody, NamedTool, TemplateBody, grammar_spec
from exlstm.serve.service import Service, StartingPoint
from exlstm.serve.templates import ChatTemplate
from exlstm.serve.token_names import ChatLogprobs
from exlstm.serve.tool_calls import ToolCalls

NO_TEMPLATE = "this model has no chat template; use /v1/completions, or start the server with --chat-template turns."


async def chat(service: Service, owner: str, body: ChatBody) -> Reply:
    """The reply to a chat. Refusal, before anything is computed, for one that cannot be done."""
    service.check_ready()
    model, limits = service.check_model(body.model), service.limits
    template = template_of(service)
    settings = engine_settings(body, service.vocab_size, limits)
    check_samples(1, body.n, body.n, limits)
    check_top_logprobs(body.top_logprobs, "top_logprobs", limits)
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_field("top_logprobs", "top_logprobs are given with logprobs only; send logprobs: true as well.")
    if body.session is not None and body.n > 1:
        raise bad_field("session", "a turn of a session has one choice; leave out n.")
    settings["max_tokens"] = chat_tokens(body, service)
    settings["logprobs"] = (body.top_logprobs or 0) if body.logprobs else None
    settings["stop"] = (*settings["stop"], *template.stop)
    if (spec := spec_of(body)) is not None:
        settings["constraint"] = await service.constraint(spec)
    start = await service.start_of(owner, body)
    try:
        ids = await chat_ids(service, template, body, start)
        seed, seeds = seeds_of(body, body.n)
        parts = parts_of(service, owner, start, [ids], seeds, settings)
        keep = keeper(service, owner, start, ids) if settings["keep_snapshot"] else None
        logprobs = ChatLogprobs(service.token_names) if body.logprobs else None
        wanted = ChoiceOptions(
            tokenizer=service.tokenizer, logprobs=logprobs, token_ids=body.return_token_ids, keep=keep
        )
        progress = [ChoiceProgress(index, wanted) for index in range(body.n)]
        change = ToolCalls.of(body)
        form = ChatFormat(service.heading("chatcmpl", model))
        return reply_of(service, owner, body, start, parts, progress, form, seed, change=change)
    except BaseException:
        service.leave(start)
        raise


def template_of(service: Service) -> ChatTemplate:
    """The template; Refusal if the model has none: it has not learnt to talk."""
    if service.template is None:
        raise bad_field(None, NO_TEMPLATE, "no_chat_template")
    return service.template


def chat_tokens(body: ChatBody, service: Service) -> int:
    """Most tokens of an answer."""
    new, old = body.max_completion_tokens, body.max_tokens
    if new is not None and old is not None and new != old:
        raise bad_field("max_tokens", f"max_completion_tokens is {new} and max_tokens {old}; send the first alone.")
    field = "max_tokens" if new is None else "max_completion_tokens"
    return tokens_of(old if new is None else new, service.limits.default_chat_tokens, service.limits, field)


def spec_of(body: ChatBody) -> GrammarSpec | None:
    """The grammar of the answer, if it has one."""
    choice, names = body.tool_choice, [tool.function.name for tool in body.tools]
    wants_tool = choice == "required" or isinstance(choice, NamedTool)
    form = body.response_format
    has_form = form is not None and form.type != "text"
    if wants_tool + has_form + (body.grammar is not None) > 1:
        raise bad_field("response_format", "an answer follows one of response_format, grammar and tool_choice.")
    if choice == "auto" or (choice is None and body.tools):
        raise bad_field("tool_choice", "no parser for this model's calls is known; send 'none', 'required' or a name.")
    if wants_tool:
        if not names:
            raise bad_field("tools", "there are no tools to call; send some.")
        name = choice.function.name if isinstance(choice, NamedTool) else "required"
        if isinstance(choice, NamedTool) and name not in names:
            raise bad_field("tool_choice", f"there is no tool {name[:64]!r}; name one of tools.")
        tools = [tool.model_dump(exclude_unset=False) for tool in body.tools]
        try:
            return tool_schema(tools, name if isinstance(choice, NamedTool) else None)
        except ValueError as error:
            raise bad_field("tools", str(error)) from None
    if has_form:
        assert form is not None
        if form.type == "json_object":
            return GrammarSpec(kind="json_object")
        if form.json_schema is None:
            raise bad_field("response_format", "the form json_schema needs a json_schema; send it.")
        return GrammarSpec(kind="json_schema", text=json.dumps(form.json_schema.schema_))
    return None if body.grammar is None else grammar_spec(body.grammar)


async def chat_ids(service: Service, template: ChatTemplate, body: ChatBody, start: StartingPoint) -> Tensor:
    """Ids of the messages, [T]: all of them, or what they add to a state."""
    messages = flattened(body.messages)
    if len(messages) > service.limits.messages:
        raise bad_field("messages", f"{len(messages)} messages; send {service.limits.messages} or fewer.")
    settings = {
        "tools": [tool.model_dump() for tool in body.tools] if body.tool_choice != "none" and body.tools else None,
        "kwargs": body.chat_template_kwargs,
        "add_generation_prompt": body.add_generation_prompt,
        "continue_final": body.continue_final_message,
    }
    found = await rendered(service, template, messages, settings, go_on=start.snapshot is not None)
    if len(found) > service.limits.prompt_tokens:
        raise service.prompts.too_long(len(found), "messages")
    return found


async def rendered(
    service: Service, template: ChatTemplate, messages: list[dict[str, Any]], settings: dict[str, Any], *, go_on: bool
) -> Tensor:
    """Ids that a template makes of messages, [T]. A talk begins with the boundary; what goes on does not."""
    tokenizer = service.tokenizer
    make = template.more_tokens if go_on else template.tokens
    try:
        # always elsewhere: the template is the model's, and may take its time
        ids = await elsewhere(True, lambda: make(tokenizer, messages, **settings))
    except ValueError as error:
        raise bad_field("messages", str(error)) from None
    if not go_on and ids[:1] != [tokenizer.boundary]:
        ids = [tokenizer.boundary, *ids]
    return tensor_of(ids)


async def applied(service: Service, body: TemplateBody) -> str:
    """The prompt that a chat becomes, as text."""
    template = template_of(service)
    messages = flattened(body.messages)
    try:
        return str(
            await elsewhere(
                True,
                lambda: template.render(
                    messages,
                    tools=[tool.model_dump() for tool in body.tools] or None,
                    kwargs=body.chat_template_kwargs,
                    add_generation_prompt=body.add_generation_prompt,
                    continue_final=body.continue_final_message,
                ),
            )
        )
    except ValueError as error:
        raise bad_field("messages", str(error)) from None
