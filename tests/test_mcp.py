"""The page as an MCP server: agents see the two public endpoints, and nothing of the page's own handlers."""

import asyncio
import base64
from pathlib import Path

import pytest
from test_editing import some_directions, tiny_model

import app
from editing import Editor
from page.page import Page
from page.studio import Studio

ASTRONAUT = Path(__file__).resolve().parents[1] / "examples" / "astronaut.png"


def test_without_the_package_the_option_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert app.main(["--mcp"]) == 2
    error = capsys.readouterr().err
    assert "gradio[mcp]" in error and len(error.splitlines()) == 1


def test_agents_have_two_tools_and_use_them(monkeypatch, tmp_path):
    mcp = pytest.importorskip("mcp", reason="needs pip install 'gradio[mcp]'")
    from mcp.client.streamable_http import streamable_http_client

    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    page = Page(Studio("tiny", Editor(tiny_model(), some_directions())), "tiny")
    _, address, _ = page.blocks.queue().launch(
        server_name="127.0.0.1",
        quiet=True,
        prevent_thread_lock=True,
        run_history=False,
        ssr_mode=False,
        mcp_server=True,
    )

    async def use() -> None:
        async with (
            streamable_http_client(f"{address}gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            assert set(tools) == {"directions", "edit"}
            assert tools["edit"].inputSchema["properties"]["strengths"]["type"] == "object"
            sliders = await session.call_tool("directions", {})
            assert "'smile'" in sliders.content[0].text
            photo = f"data:image/png;base64,{base64.b64encode(ASTRONAUT.read_bytes()).decode()}"
            edited = await session.call_tool("edit", {"photo": photo, "strengths": {"smile": 1}})
            assert not edited.isError and "'faces': 1" in edited.content[0].text
            for wrong, sentence in (({}, "There is no photo"), ({"photo": "/etc/passwd"}, "provide a url")):
                refused = await session.call_tool("edit", wrong)
                assert refused.isError and sentence in refused.content[0].text

    try:
        asyncio.run(use())
    finally:
        page.blocks.close()
