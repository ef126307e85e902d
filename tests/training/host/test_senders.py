"""Who may ask: what browsers send in each situation, and whether it is let in."""

from __future__ import annotations

from typing import Any

import pytest

PAGE = {"Sec-Fetch-Site": "same-origin"}
ALL = "0.0.0.0,::"


def refusal(headers: Any, listen: str = "127.0.0.1", allowed: str | None = None) -> str | None:
    from lora_atelier.training.host import senders
    from multidict import CIMultiDict, CIMultiDictProxy

    return senders.refusal(CIMultiDictProxy(CIMultiDict(headers)), listen, allowed)


@pytest.fixture(autouse=True)
def _host(comfyui: object) -> None:
    """ComfyUI's own modules are there."""


@pytest.mark.parametrize(
    "name", ["127.0.0.1:8188", "localhost:8188", "[::1]:8188", "LOCALHOST", "localhost.:8188", "a.localhost", "127.9.9.9"]
)
@pytest.mark.parametrize("listen", ["127.0.0.1", "localhost", "::1,127.0.0.1", ALL])
def test_a_page_of_this_computer_may_ask(name: str, listen: str) -> None:
    assert refusal({"Host": name}, listen) is None
    assert refusal({"Host": name, "Origin": f"http://{name}", **PAGE}, listen) is None
    assert refusal({}, listen) is None, "a program that is no browser may leave Host out"


REBOUND = [
    "evil.example:8188", "evil.example", "127.0.0.1.evil.example:8188", "localhost.evil.example", "notlocalhost",
    "127.0.0.1.nip.io", "box.local",
]  # fmt: skip


@pytest.mark.parametrize("name", REBOUND)
def test_a_name_that_was_made_to_lead_here_is_refused(name: str) -> None:
    """Over http browsers send no Sec-Fetch-Site for such a name, and no Origin with reading requests."""
    forged = {"X-Forwarded-Host": name, "X-Forwarded-Proto": "https", "Forwarded": f"host={name};proto=https", "Via": "1.1 proxy"}
    for headers in ({"Host": name}, {"Host": name, "Origin": f"http://{name}"}, {"Host": name, **forged}):
        assert "listens to its own computer only" in str(refusal(headers))
        assert refusal(headers, "127.0.0.1,::1") and refusal(headers, "localhost")
        assert refusal(headers, ALL) is None, "a server for others has names that nobody here knows"
        assert refusal(headers, "127.0.0.1,192.168.1.5") is None


@pytest.mark.parametrize(
    "host",
    ["localhost@evil.example", "evil.example/localhost", "localhost:1:2", "[::1", "localhost#", "a b", "", ":8188",
     "localhost:99999999", "[evil]"],
)  # fmt: skip
def test_what_is_no_address_is_refused(host: str) -> None:
    for listen in ("127.0.0.1", ALL):
        assert refusal({"Host": host}, listen) == "Host: this is no address."


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example", "https://evil.example", "null", "", "http://localhost:3000", "http://127.0.0.1", "file://", "http://[bad",
        "http://127.0.0.1:8188@evil.example", "http://127.0.0.1:8188.evil.example", "ws://127.0.0.1:8188", "127.0.0.1:8188",
    ],
)  # fmt: skip
@pytest.mark.parametrize("listen", ["127.0.0.1", ALL])
def test_another_sites_page_may_not_ask(origin: str, listen: str) -> None:
    assert "not from this server" in str(refusal({"Host": "127.0.0.1:8188", "Origin": origin}, listen))


@pytest.mark.parametrize("site", ["cross-site", "same-site", "odd", ""])
def test_the_browsers_own_word_counts(site: str) -> None:
    """Also where no Origin is sent, as with a picture in another site's page."""
    for listen in ("127.0.0.1", ALL):
        assert refusal({"Host": "127.0.0.1:8188", "Sec-Fetch-Site": site}, listen)
    assert refusal({"Host": "127.0.0.1:8188", "Sec-Fetch-Site": "none"}) is None, "an address that was typed"


def test_two_hosts_are_refused() -> None:
    assert refusal([("Host", "127.0.0.1:8188"), ("Host", "evil.example")])
    assert refusal([("Host", "127.0.0.1:8188"), ("Origin", "http://127.0.0.1:8188"), ("Origin", "http://evil.example")])


def test_proxies_in_front_of_a_local_server_work() -> None:
    """With https browsers send Sec-Fetch-Site, older ones at least an Origin with what writes; no page can change either."""
    assert refusal({"Host": "art.example", **PAGE}) is None
    assert refusal({"Host": "art.example", "Origin": "https://art.example", **PAGE}) is None
    assert refusal({"Host": "art.example", "Origin": "https://art.example"}) is None
    assert refusal({"Host": "art.example", "Origin": "https://art.example:8443", **PAGE}) is None, "nginx' $host has no port"
    assert refusal({"Host": "127.0.0.1:8188", **PAGE}) is None, "a proxy that asks in its own name"
    assert refusal({"Host": "192.168.1.5:9000", "Origin": "http://192.168.1.5:9000"}) is None, "a forwarded port"
    assert refusal({"Host": "art.example", "Origin": "https://evil.example"})
    assert refusal({"Host": "art.example", "Sec-Fetch-Site": "cross-site"})


def test_the_hosts_option_for_other_origins_is_followed() -> None:
    far = {"Host": "127.0.0.1:8188", "Origin": "http://art.example:3000", "Sec-Fetch-Site": "cross-site"}
    assert refusal(far)
    assert refusal(far, allowed="*") is None and refusal({"Host": "evil.example"}, allowed="*") is None
    assert refusal(far, allowed="http://art.example:3000") is None and refusal(far, allowed="http://art.example:3000/") is None
    assert refusal(far, allowed="http://other.example")
    assert refusal({"Host": "box.lan:8188"}, allowed="http://box.lan:8188") is None, "a name that the person has vouched for"
    assert refusal({"Host": "evil.example:8188"}, allowed="http://box.lan:8188")
