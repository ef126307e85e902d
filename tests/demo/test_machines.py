"""Several processes and machines: what is refused before anything is started, and what PyTorch's launcher is told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from lora_atelier.demo import machines
from lora_atelier.demo.launcher import of_process
from lora_atelier.demo.machines import Machines
from lora_atelier.demo.server import free_port
from lora_atelier.demo.workflow import WorkflowError

LAUNCHER = Path(machines.__file__).with_name("launcher.py")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0,), "count from 1"),
        ((-1,), "count from 1"),
        ((1, 0), "count from 1"),
        ((1, 2), "--rendezvous HOST:PORT"),
        ((2, 1, "10.0.0.5:29500"), "--nodes"),
        ((1, 2, "10.0.0.5"), "write HOST:PORT"),
        ((1, 2, "10.0.0.5:0"), "write HOST:PORT"),
        ((1, 2, "10.0.0.5:70000"), "write HOST:PORT"),
        ((1, 2, "http://10.0.0.5:29500"), "write HOST:PORT"),
        ((1, 2, ":29500"), "write HOST:PORT"),
        ((1, 2, "a b:29500"), "write HOST:PORT"),
    ],
)
def test_what_makes_no_sense_is_refused(given: tuple[int, int, str], said: str) -> None:
    with pytest.raises(WorkflowError, match=said):
        Machines(*given)


def test_more_processes_than_a_machine_has_a_use_for_are_refused() -> None:
    with pytest.raises(WorkflowError, match="9999"):
        Machines(9999).check(None)
    with pytest.raises(WorkflowError, match="torch sees 1 GPU"):
        Machines(2).check(1)
    Machines(2).check(2)
    Machines(4).check(None)


@pytest.mark.parametrize(("text", "place"), [("host-1.lan:29500", ("host-1.lan", 29500)), ("[fe80::1]:8", ("fe80::1", 8))])
def test_a_meeting_place_is_a_host_and_a_port(text: str, place: tuple[str, int]) -> None:
    assert Machines(1, 2, text).place() == place


def test_a_name_that_nobody_knows_is_told(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"finds no address for there\.invalid"):
        Machines(1, 2, "there.invalid:29500").launcher(tmp_path / "told")


def test_one_machine_holds_the_meeting_unless_its_port_is_taken(tmp_path: Path) -> None:
    def line(port: int) -> str:
        return " ".join(Machines(1, 2, f"127.0.0.1:{port}").launcher(tmp_path / "told"))

    assert "is_host=true" in line(free_port())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "is_host=false" in line(taken.getsockname()[1])
    assert "is_host=false" in " ".join(Machines(1, 2, f"192.0.2.7:{free_port()}").launcher(tmp_path / "told"))
    assert Machines(1).launcher(tmp_path / "told") == []


def test_what_somebody_has_said_of_the_network_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PET_LOCAL_ADDR", "10.0.0.5")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    two = Machines(1, 2, "192.0.2.7:29500")
    assert "--local-addr" not in two.launcher(tmp_path / "told") and two.variables() == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_interfaces_are_known_by_their_addresses() -> None:
    assert machines.interface_of("127.0.0.1") == "lo" and machines.interface_of("192.0.2.7") == ""
    assert machines.is_own("127.0.0.1") and not machines.is_own("192.0.2.7")


def test_how_a_process_ended_is_told() -> None:
    assert "process 3 was killed (SIGKILL; the system does that where main memory runs out)" in of_process(3, -9)
    assert "process 1 has failed (exit code 5)" in of_process(1, 5)


def launched(told: Path, script: str, *arguments: str) -> int:
    work = told.with_name("work.py")
    work.write_text(script, encoding="utf-8")
    line = [sys.executable, str(LAUNCHER), str(told), *arguments, str(work)]
    return subprocess.run(line, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120).returncode


def test_the_launcher_says_what_no_process_has_said(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    told, why = tmp_path / "told", tmp_path / "told.why"
    killed = "import os, time\nos.kill(os.getpid(), 9) if os.environ['RANK'] == '1' else time.sleep(60)"
    assert launched(told, killed, "--standalone", "--nproc-per-node", "2") == 1
    assert "process 1 was killed (SIGKILL" in why.read_text(encoding="utf-8")
    why.unlink()
    told.write_text("", encoding="utf-8")
    assert launched(told, "import sys; sys.exit(130)", "--standalone", "--nproc-per-node", "2") == 130
    assert not why.exists(), "a process has spoken"


def test_machines_that_do_not_meet_are_told(tmp_path: Path) -> None:
    told = tmp_path / "told"
    meet = Machines(1, 2, f"127.0.0.1:{free_port()}").launcher(told)[3:]
    meet[meet.index("--rdzv-conf") + 1] = "is_host=true,join_timeout=2,read_timeout=5"
    assert launched(told, "", *meet) == 1
    said = (tmp_path / "told.why").read_text(encoding="utf-8")
    assert said.startswith("the machines did not meet (") and "--rendezvous" in said and "\n" not in said, said
