"""Who gets in, what of the disk is reached, and what is left: the real command and a real browser."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path


def answer(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as reply:
            return reply.status, reply.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_a_stranger_gets_nothing(app, browser, panel):
    session = panel.page.url
    for url in (app.origin, f"{app.origin}/?token=wrong", session, session.replace("index.html", "report.html")):
        status, text = answer(url)
        assert status == 403 and "token" in text, url
    for name in ("evil.example", "127.0.0.1.evil.example"):
        assert answer(app.address, Host=name)[0] == 403  # a page elsewhere whose name leads here
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "MTIzNDU2Nzg5MDEyMzQ1Ng==",
    }
    websocket = session.replace("index.html", "ws")
    assert answer(websocket, **upgrade)[0] == 403
    cookie = "; ".join(f"{c['name']}={c['value']}" for c in panel.page.context.cookies())
    assert answer(websocket, **upgrade, Cookie=cookie, Origin="http://evil.example")[0] == 403
    assert answer(session, Cookie=cookie)[0] == 200
    cookies = panel.page.context.cookies()
    assert all(c["httpOnly"] and c["sameSite"] == "Lax" for c in cookies) and cookies


def test_two_users_have_nothing_in_common(app, browser, panel):
    from browser import Panel

    panel.choose("fixed", "scans/", "fixed.nii.gz")
    second = Panel(browser.context(), app.address)
    assert second.page.url != panel.page.url and second.page.inner_text("output >> nth=0") == "none"
    second.choose("fixed", "scans/", "moving.nii.gz")
    assert panel.page.inner_text("output >> nth=0") == "fixed.nii.gz"
    second.page.goto(panel.page.url)  # of another's session: to one's own
    second.page.wait_for_selector("#phantom")
    assert second.page.url != panel.page.url
    second.end()
    panel.page.reload()
    panel.page.wait_for_selector("#phantom")
    assert panel.page.inner_text("output >> nth=0") == "fixed.nii.gz"


def test_nothing_stays_behind(folder, browser, tmp_path):
    """After Ctrl-C in the middle of a registration: no process, no temporary file, no half-written folder."""
    from browser import App, Panel

    (temporary := tmp_path / "temporary").mkdir()
    app, before = App(folder, temporary), sorted(folder.rglob("*"))
    panel = Panel(browser.context(), app.address)
    panel.open_pair()
    panel.register("accurate")
    panel.page.wait_for_function("document.querySelector('.running progress')?.value > 1")
    processes = {pid: Path(f"/proc/{pid}/cmdline") for pid in app.processes()}
    assert len(processes) > 1 and any(temporary.iterdir())
    assert app.end() == 0
    panel.context.close()
    assert not any(temporary.iterdir()) and sorted(folder.rglob("*")) == before
    end = time.monotonic() + 30  # a question for the devices may be under way
    while left := [path for path in processes.values() if path.exists()]:
        assert time.monotonic() < end, [path.read_text(encoding="utf-8") for path in left]
        time.sleep(0.2)
