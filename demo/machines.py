"""How many processes train together, on which machines, and how PyTorch's launcher is told. Standard library only."""

from __future__ import annotations

import array
import ipaddress
import os
import re
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .workflow import WorkflowError

LAUNCHER = Path(__file__).with_name("launcher.py")
MEETING = 600
"""Seconds in which the machines have to be there; in any order."""
ELSEWHERE = "192.0.2.1"
"""An address of nobody's (RFC 5737), which lies where every other machine does. Nothing is sent to it."""
LOOPBACK = "127.0.0.1"
AT_LEAST = 8
"""So many processes are let start on any CPU."""


@dataclass(frozen=True)
class Machines:
    """How many processes train together, and where."""

    processes: int = 1
    """On each machine."""
    nodes: int = 1
    rendezvous: str = ""
    """``host:port`` of one of the machines, which the others can reach; only for several."""
    shard: bool = False
    """Whether each process holds a part of the model's blocks."""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.nodes < 1:
            raise WorkflowError("--processes and --nodes count from 1")
        if self.nodes > 1 and not self.rendezvous:
            raise WorkflowError(
                "--nodes: say where the machines meet, with --rendezvous HOST:PORT of one of them, on each of them"
            )
        if self.rendezvous and self.nodes == 1:
            raise WorkflowError("--rendezvous is where several machines meet: say how many, with --nodes")
        if self.rendezvous:
            self.place()
        if self.shard and self.processes * self.nodes == 1:
            raise WorkflowError(
                "--shard: one process has nobody to share the model with; add --processes 2 or more, with a GPU each, or set "
                "offload_blocks, which keeps a part of the model in main memory"
            )

    def place(self) -> tuple[str, int]:
        """Host and port of the rendezvous."""
        found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|(\w[\w-]*(?:\.\w[\w-]*)*)):(\d{1,5})", self.rendezvous, re.ASCII)
        host = "" if found is None else found[1] or found[2]
        numbers = found is not None and (found[1] or re.fullmatch(r"[\d.]+", host))
        address = None
        with suppress(ValueError):
            address = ipaddress.ip_address(host)
        if found is None or not 0 < int(found[3]) < 65536 or (numbers and address is None):
            raise WorkflowError(
                f"--rendezvous {self.rendezvous}: write HOST:PORT, as in 10.0.0.5:29500 or [fd00::5]:29500, with a port from 1 "
                "to 65535 that no other program has"
            )
        if address is not None and (address.is_unspecified or address.is_multicast or is_link_local(str(address))):
            raise WorkflowError(
                f"--rendezvous {self.rendezvous}: {address} is no address by which others find one machine; write another one of "
                "the machine, as in 10.0.0.5:29500"
            )
        return host, int(found[3])

    def check(self, gpus: int | None) -> None:
        """WorkflowError for more processes than this machine has room for; ``gpus``: how many there are, None on the CPU."""
        if gpus is not None and 0 < gpus < self.processes:
            there = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
            raise WorkflowError(f"--processes {self.processes}: torch sees {there} here, and each process needs one of its own")
        most = max(AT_LEAST, os.cpu_count() or 1)
        if self.processes > most:
            raise WorkflowError(
                f"--processes {self.processes}: each loads the whole model, and this machine has no use for more than {most}"
            )

    def launcher(self, told: Path) -> list[str]:
        """What comes between Python and the script: PyTorch's own engine for several processes, and nothing for one.

        ``told``: as ``launcher.py`` has it. WorkflowError where the other machines cannot be found by what the network says now.
        """
        if self.processes * self.nodes == 1:
            return []
        line = ["-u", str(LAUNCHER), str(told), "--nproc-per-node", str(self.processes), "--nnodes", str(self.nodes)]
        mine = LOOPBACK if self.nodes == 1 else address_toward(self.place()[0])
        address = ["--local-addr", mine] if mine and "PET_LOCAL_ADDR" not in os.environ else []
        if self.nodes == 1:
            return [*line, "--standalone", *address]
        conf = f"is_host={'true' if self._hosts() else 'false'},join_timeout={MEETING},read_timeout={MEETING}"
        line += ["--rdzv-backend", "c10d", "--rdzv-endpoint", self.rendezvous, "--rdzv-id", "lora-atelier", "--rdzv-conf", conf]
        return [*line, *address]

    def _hosts(self) -> bool:
        """Whether the rendezvous is held here: it is an address of this machine's, and nothing has that port yet."""
        host, port = self.place()
        return is_here(host) and is_free(port)

    def variables(self) -> dict[str, str]:
        """Of the environment: by which network the processes talk, where nobody has said so. Otherwise gloo and the launcher ask
        for the machine's own name, which many networks do not know, or take for another machine's."""
        if self.processes * self.nodes == 1 or "GLOO_SOCKET_IFNAME" in os.environ:
            return {}
        name = interface_of(LOOPBACK if self.nodes == 1 else address_toward(self.place()[0]))
        return {"GLOO_SOCKET_IFNAME": name} if name else {}


ALONE = Machines()


def addresses_of(host: str) -> list[str]:
    """IPv4 first, which networks have more often; without those of IPv6 that hold on one wire only, since torch takes no wire.
    WorkflowError where there is none."""
    try:
        every = list(dict.fromkeys(str(one[4][0]) for one in socket.getaddrinfo(host, None, proto=socket.IPPROTO_TCP)))
    except (OSError, UnicodeError) as error:
        raise WorkflowError(
            f"--rendezvous: this machine finds no address for {host} ({error}). Write the address itself, as in 10.0.0.5:29500"
        ) from error
    found = sorted((one for one in every if not is_link_local(one)), key=lambda one: ":" in one)
    if not found:
        raise WorkflowError(
            f"--rendezvous: this machine finds for {host} only {every[0]}, which holds on one wire. Write another address of "
            "that machine, as in 10.0.0.5:29500"
        )
    return found


def address_toward(host: str) -> str:
    """This machine's address in the network by which it reaches ``host``; empty where that is the machine itself alone."""
    for one in (*addresses_of(host), ELSEWHERE):
        with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((one, 9))  # sends nothing, but chooses a way
            found = str(probe.getsockname()[0])
            if not ipaddress.ip_address(found).is_loopback and not is_link_local(found):
                return found
    return ""


def is_link_local(address: str) -> bool:
    """Whether it is one of IPv6's that tell nothing without the name of a wire."""
    return ":" in address and ipaddress.ip_address(address).is_link_local


def is_here(host: str) -> bool:
    """Whether a name or an address is this machine's. WorkflowError where nobody knows the name."""
    return host == socket.gethostname() or any(map(is_own, addresses_of(host)))


def is_own(address: str) -> bool:
    """Whether an address is one of this machine's."""
    if ipaddress.ip_address(address).is_loopback:
        return True
    if there := interfaces():  # a system can be told to let addresses be bound that it does not have
        return address in there
    with suppress(OSError), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def interface_of(address: str) -> str:
    """The network interface that has an address; empty where the system does not tell."""
    return interfaces().get(address, "")


def interfaces() -> dict[str, str]:
    """Every address of this machine's, and the name of the interface that has it (Linux); empty where the system does not tell.

    Of IPv4 by SIOCGIFCONF (netdevice(7)), which tells second addresses too; of IPv6 by ``/proc/net/if_inet6`` (proc(5)).
    """
    found: dict[str, str] = {}
    if not sys.platform.startswith("linux"):
        return found
    from fcntl import ioctl

    entry = 40 if struct.calcsize("P") == 8 else 32
    room = array.array("B", bytes(entry * 1024))
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        length = struct.unpack("iP", ioctl(probe.fileno(), 0x8912, struct.pack("iP", len(room), room.buffer_info()[0])))[0]
        for start in range(0, length, entry):
            one = room[start : start + entry].tobytes()
            name = one[:16].partition(b"\0")[0].decode(errors="replace").partition(":")[0]  # eth0:1 is a label of eth0
            found.setdefault(socket.inet_ntoa(one[20:24]), name)
    with suppress(OSError, ValueError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii", errors="replace").splitlines():
            number, *_, name = line.split()
            found.setdefault(str(ipaddress.IPv6Address(int(number, 16))), name)
    return found


def is_free(port: int) -> bool:
    """Whether no program of this machine listens at a port."""
    with suppress(OSError), socket.socket() as probe:
        # Windows would share a taken port with SO_REUSEADDR; elsewhere that only passes over connections that have ended.
        probe.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR), 1)
        probe.bind(("", port))
        return True
    return False
