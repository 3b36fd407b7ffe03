"""Which interface gloo is told to take."""

from __future__ import annotations

import psutil
import pytest

from nemo_sdg.parallel import interface

JOB = {"MASTER_ADDR": "somewhere", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture
def told(monkeypatch):
    def told(found: str | None = "eth7", **changes: str) -> str | None:
        monkeypatch.setenv(interface.VARIABLE, "")  # so that what `settle` puts there is taken back, too
        monkeypatch.delenv(interface.VARIABLE)
        for name, value in {**JOB, **changes}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(interface, "towards", lambda host: found)
        interface.settle()
        return interface.os.environ.get(interface.VARIABLE)

    return told


def test_the_way_to_the_first_node_is_taken_where_there_are_several(told):
    assert told() == "eth7"
    assert told(found=None) is None
    assert told(LOCAL_WORLD_SIZE="4") is None, "one node needs no network"


def test_what_the_user_says_stands(told, monkeypatch):
    assert told(**{interface.VARIABLE: "mine"}) == "mine"


def test_a_loopback_address_is_never_the_way_to_other_nodes():
    found = interface.towards("localhost")
    own = interface._own_address("192.0.2.1")
    assert (found is None) == (own is None)
    if found is not None:
        assert own in [address.address for address in psutil.net_if_addrs()[found]] and found != "lo"


def test_a_name_that_nobody_knows_leaves_the_way_out():
    assert interface.towards("no-such-host.invalid") == interface.towards("localhost")
