"""The playground in a real browser: streams, branches, states, keyboard, no foreign request, accessible."""

import json
import re
import shutil

import pytest

from serving_tools import serving

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium; on Debian: apt-get install chromium", allow_module_level=True)
from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import expect, sync_playwright  # noqa: E402

FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


@pytest.fixture(scope="module")
def talking():
    with serving(chat_template="turns", slots=4) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as library:
        found = library.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser, talking):
    """A page on the playground; no error, no violation of its policy, and no request to another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    page, wrong = context.new_page(), []

    def routed(route):
        if route.request.url.startswith((talking.url, "blob:", "data:")):
            route.continue_()
        else:
            wrong.append(route.request.url)
            route.abort()

    context.route("**/*", routed)
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(talking.url)
    expect(page.locator("#model")).to_contain_text("tiny")
    yield page
    context.close()
    # a status of 4xx that a test asks for is an error of the console, too
    assert [each for each in wrong if "status of 4" not in each and "ERR_CONNECTION" not in each] == []


def settle(page):
    """Waits for the end of an answer."""
    expect(page.locator("#generate")).to_be_enabled(timeout=20_000)


def write(page, text, tokens=12):
    page.fill("#max_tokens", str(tokens))
    page.fill("#text", text)
    page.click("#generate")
    settle(page)


def endless(page):
    """Begins an answer that does not end by itself."""
    page.fill("#max_tokens", "20000")
    page.check("#ignore_eos")
    page.fill("#text", "Once")
    page.click("#generate")
    expect(page.locator("#tokens .token").first).to_be_attached()


def head_of(page):
    tree = json.loads(page.evaluate("localStorage.getItem('exlstm-tree')"))
    return next((node for node in tree["nodes"] if node["id"] == tree["head"]), None)


def test_generate_undo_branch_and_reload(page, talking):
    page.fill("#seed", "7")
    page.check("#lock")
    write(page, "Once")
    first = head_of(page)
    assert len(first["tokens"]) in range(1, 13)
    info = talking.get(f"/v1/states/{first['state']}").json()
    assert info["tokens"] == first["count"]
    assert re.search(r"tokens/s, first after \d+ ms", page.locator("#speed").inner_text())
    # the same request over HTTP has the same text
    body = {"prompt": "Once", "max_tokens": 12, "seed": first["seed"], "temperature": 0.8, "top_p": 0.95}
    expected = talking.post("/v1/completions", body).json()["choices"][0]["text"]
    assert "".join(token["text"] for token in first["tokens"]) == expected
    write(page, " and")
    second = head_of(page)
    assert second["parent"] == first["id"]
    page.click("#undo")
    assert head_of(page)["id"] == first["id"]
    # the card is what the logprobs of the stream said, and another token there is a branch
    part = page.locator("#tokens .token").nth(1)
    part.click()
    rows = page.locator("#card button")
    assert rows.count() == len(first["tokens"][1]["top"])
    other = first["tokens"][1]["top"][-1]
    rows.last.click()
    expect(page.locator("#tree [role=treeitem]")).to_have_count(3)
    third = head_of(page)
    assert third["parent"] is None
    assert third["tokens"][0]["id"] == first["tokens"][0]["id"]
    assert third["tokens"][1]["id"] == other["id"]
    page.reload()
    expect(page.locator("#tree [role=treeitem]")).to_have_count(3)
    assert head_of(page)["id"] == third["id"]


def test_stop_frees_the_slot_and_changes_nothing(page, talking):
    endless(page)
    page.click("#stop")
    settle(page)
    expect(page.locator("#tree [role=treeitem]")).to_have_count(0)
    page.wait_for_function("document.getElementById('stop').disabled")
    for _ in range(100):
        if not talking.service.jobs and not talking.service.engine.busy:
            return
        page.wait_for_timeout(20)
    raise AssertionError("the slot is still in use")


def test_states_go_down_and_come_up(page, tmp_path):
    write(page, "Once", 5)
    with page.expect_download() as waiting:
        page.click("#download")
    file = tmp_path / "state.safetensors"
    waiting.value.save_as(file)
    page.set_input_files("#upload", file)
    expect(page.locator("#tree [role=treeitem]")).to_have_count(2)
    before, after = (node for node in json.loads(page.evaluate("localStorage.getItem('exlstm-tree')"))["nodes"])
    assert after["count"] == before["count"]
    file.write_bytes(b"no state")
    page.set_input_files("#upload", file)
    expect(page.locator("#error")).to_be_visible()
    page.click("#delete")
    expect(page.locator("#tree [role=treeitem]")).to_have_count(1)


def test_text_of_a_model_is_text(page):
    """Markup, right-to-left text and characters of four bytes stand as they are."""
    text = "<script>window.hacked = 1</script><img src=x onerror=alert(1)> \u05e9\u05dc\u05d5\u05dd \U0001f600"
    write(page, text, 3)
    assert text in page.locator("#tokens").inner_text()
    assert page.evaluate("window.hacked") is None


def test_keyboard_alone(page):
    page.fill("#max_tokens", "6")
    page.locator("#text").focus()
    page.keyboard.type("Once")
    page.keyboard.press("Control+Enter")
    settle(page)
    write(page, " and", 4)
    page.locator("#tree [role=treeitem]").last.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    assert head_of(page)["parent"] is None
    page.locator("#tokens").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#card")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#card")).to_be_hidden()


def test_memory_and_code(page):
    write(page, "Once", 10)
    page.click("#memory summary")
    page.click("#look")
    expect(page.locator("#strip")).to_have_attribute("aria-label", re.compile("^Of 1[0-9] tokens: kept"))
    page.click("#code summary")
    expect(page.locator("#snippet")).to_contain_text("curl http")
    page.click("#as-python")
    expect(page.locator("#snippet")).to_contain_text("openai.OpenAI")


def test_chat(page):
    page.click("#view-chat")
    page.fill("#max_tokens", "8")
    page.fill("#line", "Hi")
    page.click("#generate")
    settle(page)
    expect(page.locator("#talk li")).to_have_count(2)
    page.fill("#line", "And?")
    page.click("#generate")
    settle(page)
    expect(page.locator("#talk li")).to_have_count(4)
    assert head_of(page)["parent"] is not None


@pytest.mark.breadth(1)
@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1280, "light"), (1280, "dark")])
def test_accessible_at_any_width_in_both_schemes(browser, talking, width, scheme, tmp_path):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    page.goto(talking.url)
    expect(page.locator("#model")).to_contain_text("tiny")
    write(page, "Once", 20)
    for each in ("#memory summary", "#code summary"):
        page.click(each)
    # axe puts its script into the page, which the policy forbids others
    context.set_extra_http_headers({})
    found = Axe().run(page)
    serious = [each["id"] for each in found.response["violations"] if each["impact"] in ("serious", "critical")]
    assert serious == [], found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    context.close()


def test_a_key_is_asked_for_and_an_error_is_shown_as_it_is(browser):
    key = "a-key-of-the-playground"
    with serving(keys={key: "ann"}) as locked:
        context = browser.new_context()
        page = context.new_page()
        page.goto(locked.url)
        expect(page.locator("#error")).to_contain_text("the API key is missing or wrong")
        page.locator("summary", has_text="API key").click()
        page.fill("#key", key)
        page.locator("#key").blur()
        expect(page.locator("#model")).to_contain_text("tiny")
        write(page, "Once", 3)
        assert key not in page.url
        context.close()


def test_a_server_that_is_lost_is_told(browser):
    context = browser.new_context()
    page = context.new_page()
    with serving() as served:
        page.goto(served.url)
        expect(page.locator("#model")).to_contain_text("tiny")
        endless(page)
    expect(page.locator("#error")).to_be_visible(timeout=10_000)
    page.click("#generate")
    expect(page.locator("#error")).to_contain_text("does not answer")
    context.close()
