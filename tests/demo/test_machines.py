"""Several processes and machines: what is refused before anything is started, and what PyTorch's launcher is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from lora_atelier.demo import machines
from lora_atelier.demo.launcher import IN_EARNEST, first_of, of_error, of_process
from lora_atelier.demo.machines import Machines
from lora_atelier.demo.workflow import WorkflowError

LAUNCHER = Path(machines.__file__).with_name("launcher.py")
ROOT = LAUNCHER.parents[1]


def free_port() -> int:
    """One that nobody is given by the system meanwhile, which takes those from 32768 (Linux) or 49152 on."""
    return next(port for port in range(20000 + os.getpid() % 10000, 32000) if machines.is_free(port))


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
        ((1, 2, "-a:29500"), "write HOST:PORT"),
        ((1, 2, "10.0.5:29500"), "write HOST:PORT"),
        ((1, 2, "10.0.0.500:29500"), "write HOST:PORT"),
        ((1, 2, "[xyz]:29500"), "write HOST:PORT"),
        ((1, 2, "[abc]:29500"), "write HOST:PORT"),
        ((1, 2, "[fe80::1%eth0]:29500"), "write HOST:PORT"),
        ((1, 2, "[fe80::1]:29500"), "no address by which others find"),
        ((1, 2, "0.0.0.0:29500"), "no address by which others find"),
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


@pytest.mark.parametrize(("text", "place"), [("host-1.lan:29500", ("host-1.lan", 29500)), ("[fd00::1]:8", ("fd00::1", 8))])
def test_a_meeting_place_is_a_host_and_a_port(text: str, place: tuple[str, int]) -> None:
    assert Machines(1, 2, text).place() == place


def test_a_name_that_nobody_knows_is_told(tmp_path: Path) -> None:
    name = 64 * "a"  # longer than a label may be, so that no name server is asked, of which some answer everything
    with pytest.raises(WorkflowError, match=f"finds no address for {name}"):
        Machines(1, 2, f"{name}:29500").launcher(tmp_path / "told")


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
    for variable in ("PET_LOCAL_ADDR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(variable, raising=False)
    two = Machines(2)
    line = two.launcher(tmp_path / "told")
    assert line[line.index("--local-addr") + 1] == "127.0.0.1"
    assert two.variables() == ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform.startswith("linux") else {})
    monkeypatch.setenv("PET_LOCAL_ADDR", "10.0.0.5")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert "--local-addr" not in two.launcher(tmp_path / "told") and two.variables() == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_interfaces_are_known_by_their_addresses() -> None:
    assert machines.interface_of("127.0.0.1") == "lo" and machines.interface_of("192.0.2.7") == ""
    assert machines.is_own("127.0.0.1") and machines.is_own("127.0.1.1") and not machines.is_own("192.0.2.7")


NETWORK = """
set -e
mount --bind "$1" /etc/hosts
ip link set lo up
ip link add at0 type veth peer name at1
ip link set at0 up
ip link set at1 up
ip addr add 10.78.0.1/24 dev at0
ip addr add 10.78.0.2/24 dev at0
ip addr add fd78::1/64 dev at0 nodad
ip route add default via 10.78.0.9
echo 1 > /proc/sys/net/ipv4/ip_nonlocal_bind
touch "$2"
"""
ASKED = """
import json, sys
from pathlib import Path
from types import ModuleType
package = ModuleType("lora_atelier")
package.__path__ = [sys.argv[1]]
sys.modules["lora_atelier"] = package
from lora_atelier.demo import machines
from lora_atelier.demo.workflow import WorkflowError
try:
    refused = machines.addresses_of("wire.test")
except WorkflowError as error:
    refused = str(error)
print(json.dumps({
    "interfaces": [machines.interface_of(one) for one in ("10.78.0.1", "10.78.0.2", "fd78::1", "10.78.0.3")],
    "own": [machines.is_own(one) for one in ("10.78.0.2", "fd78::1", "10.78.0.3", "192.0.2.7")],
    "both": machines.addresses_of("both.test"), "refused": refused,
    "toward": [machines.address_toward(one) for one in ("10.78.0.5", "fd78::5", "both.test", "loop.test")],
    "variables": machines.Machines(1, 2, "[fd78::5]:29500").variables(),
}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux")
def test_second_addresses_and_names_of_both_kinds(tmp_path: Path) -> None:
    """In a network and with a list of names of its own."""
    if not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("ip or unshare is missing")
    hosts, made = tmp_path / "hosts", tmp_path / "made"
    names = {"both.test": ("fd78::9", "10.78.0.9"), "wire.test": ("fe80::9",), "loop.test": ("127.0.1.1",)}
    hosts.write_text("".join(f"{one} {name}\n" for name, all_of in names.items() for one in all_of), encoding="ascii")
    environment = {name: value for name, value in os.environ.items() if name not in ("PET_LOCAL_ADDR", "GLOO_SOCKET_IFNAME")}
    script = NETWORK + 'exec "$3" -c "$4" "$5"'
    line = ["unshare", "--net", "--mount", "sh", "-c", script, "sh", str(hosts), str(made), sys.executable, ASKED, str(ROOT)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120)
    if not made.exists():
        pytest.skip(f"no network of its own here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "only fe80::9" in found.pop("refused")
    assert found == {
        "interfaces": ["at0", "at0", "at0", ""],
        "own": [True, True, False, False],
        "both": ["10.78.0.9", "fd78::9"],
        "toward": ["10.78.0.1", "fd78::1", "10.78.0.1", "10.78.0.1"],
        "variables": {"GLOO_SOCKET_IFNAME": "at0"},
    }


def test_how_a_process_ended_is_told() -> None:
    assert "process 3 was killed (SIGKILL; the system does that where main memory runs out)" in of_process(3, -9)
    assert "process 1 has failed (exit code 5)" in of_process(1, 5)


def test_the_first_to_fail_is_the_one_that_was_killed() -> None:
    errors = pytest.importorskip("torch.distributed.elastic.multiprocessing.errors")

    def first(*ends: tuple[int, int]) -> int:
        failures = {rank: errors.ProcessFailure(rank, 1, code, "") for rank, (code, _) in enumerate(ends)}
        for rank, (_, when) in enumerate(ends):
            failures[rank].timestamp = when
        return first_of(failures)

    assert first((1, 100), (-9, 100)) == 1, "the other one's error follows from it"
    assert first((1, 100), (-9, 101)) == 1, "in one look, as the second changed"
    assert first((1, 100), (-9, 130)) == 0, "killed by the launcher, since it did not end"
    assert first((-15, 100), (1, 100)) == 1, "the launcher has asked it to end"
    assert first((3, 101), (4, 100)) == 1


def test_what_the_launcher_itself_fails_by_is_told_as_what_it_is() -> None:
    rendezvous = pytest.importorskip("torch.distributed.elastic.rendezvous")
    lost = rendezvous.RendezvousConnectionError("The connection has failed.\nSee inner exception.")
    assert of_error(lost, 2, False).startswith("the machines did not meet (The connection has failed)")
    assert of_error(lost, 2, True).startswith("the machine at the rendezvous is gone (The connection has failed)")
    full = OSError(12, "Cannot allocate memory")
    assert (
        of_error(full, 2, True) == of_error(full, 1, True) == "PyTorch's launcher has failed ([Errno 12] Cannot allocate memory)"
    )
    assert of_error(KeyError(), 1, False) == "PyTorch's launcher has failed (KeyError)"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells what is open")
def test_connections_are_looked_at_and_none_is_left_open() -> None:
    team = pytest.importorskip("lora_atelier.training.performance.team")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as there:
        before = len(os.listdir("/proc/self/fd"))
        assert [team.keep_alive() for _ in range(3)] == 3 * [team.keep_alive()]
        assert len(os.listdir("/proc/self/fd")) == before
        assert there.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def begun(told: Path, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    work = told.with_suffix(".py")
    work.write_text(script, encoding="utf-8")
    line = [sys.executable, str(LAUNCHER), str(told), *arguments, str(work)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **Machines(2).variables()}
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def launched(told: Path, script: str, *arguments: str) -> int:
    process = begun(told, script, *arguments)
    try:
        return process.wait(timeout=120)
    finally:
        process.kill()


def until(there: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


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


def test_what_cannot_be_started_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    told = tmp_path / "told"
    assert launched(told, "", "--standalone", "--nproc-per-node", "2", "--no-python", str(tmp_path / "nowhere")) == 1
    said = (tmp_path / "told.why").read_text(encoding="utf-8")
    assert said.startswith("PyTorch's launcher has failed (") and "nowhere" in said, said


def test_machines_that_do_not_meet_are_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    told = tmp_path / "told"
    meet = Machines(1, 2, f"127.0.0.1:{free_port()}").launcher(told)[3:]
    meet[meet.index("--rdzv-conf") + 1] = "is_host=true,join_timeout=2,read_timeout=5"
    assert launched(told, "", *meet) == 1
    said = (tmp_path / "told.why").read_text(encoding="utf-8")
    assert said.startswith("the machines did not meet (") and "--rendezvous" in said and "\n" not in said, said


def test_a_port_of_another_program_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    told = tmp_path / "told"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert launched(told, "", *Machines(1, 2, f"127.0.0.1:{port}").launcher(told)[3:]) == 1
    assert f"another program has port {port}" in (tmp_path / "told.why").read_text(encoding="utf-8")


WAITS = """
import os, signal, sys, time
from pathlib import Path
for name in ("SIGINT", "SIGTERM"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
own = Path(__file__).with_name(f"began-{Path(__file__).stem}-{os.environ['LOCAL_RANK']}")
own.with_suffix(".new").write_text(str(os.getpid()))
own.with_suffix(".new").rename(own)
time.sleep(200)
"""


def alive(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for processes")
def test_ctrl_c_once_more_ends_processes_that_do_not_listen(tmp_path: Path) -> None:
    """PyTorch's launcher alone would wait for them twice thirty seconds."""
    pytest.importorskip("torch")
    marks = [tmp_path / f"began-told-{rank}" for rank in range(2)]
    process = begun(tmp_path / "told", WAITS, "--standalone", "--nproc-per-node", "2")
    try:
        until(lambda: all(one.exists() for one in marks), process)
        process.send_signal(signal.SIGINT)
        time.sleep(IN_EARNEST + 0.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=25) == 130
        assert not [one for one in marks if alive(int(one.read_text(encoding="utf-8")))]
    finally:
        process.kill()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for processes")
def test_a_rendezvous_that_is_lost_is_told(tmp_path: Path) -> None:
    """Two launchers on one machine; the second one finds the port taken, and the first one there."""
    pytest.importorskip("torch")
    port = free_port()
    here = Machines(1, 2, f"127.0.0.1:{port}")
    told = [tmp_path / "first", tmp_path / "second"]
    marks = [tmp_path / f"began-{one.name}-0" for one in told]
    both = [begun(told[0], WAITS, *here.launcher(told[0])[3:])]
    try:
        until(lambda: not machines.is_free(port), both[0])
        line = here.launcher(told[1])[3:]
        assert "is_host=false" in " ".join(line)
        both.append(begun(told[1], WAITS.replace("SIG_IGN", "SIG_DFL"), *line))
        until(lambda: all(one.exists() for one in marks), both[1])
        both[0].kill()
        assert both[1].wait(timeout=120) == 1
        said = (tmp_path / "second.why").read_text(encoding="utf-8")
        assert said.startswith("the machine at the rendezvous is gone ("), said
    finally:
        for process in both:
            process.kill()
        for mark in marks:
            with suppress(OSError):
                os.kill(int(mark.read_text(encoding="utf-8")), signal.SIGKILL)
