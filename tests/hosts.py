"""Several hosts on one machine: network namespaces with addresses of their own on one bridge. Needs root, iproute2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs import ENVIRON

ADDRESSES = {"env": "10.77.0.1", "inference": "10.77.0.2", "replay": "10.77.0.3", "learner": "10.77.0.4"}


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Host:
    """One namespace: a place to run a service, whose network can be cut, made lossy or narrow."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.name = f"hr-{role}"
        self.address = ADDRESSES[role]
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", f"{self.name}-b", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        run("ip", "link", "set", f"{self.name}-b", "netns", "hr-hub")
        run("ip", "-n", "hr-hub", "link", "set", f"{self.name}-b", "master", "br0", "up")
        run("ip", "-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run("ip", "-n", self.name, "link", "set", "eth0", "up")
        run("ip", "-n", self.name, "link", "set", "lo", "up")

    def inside(self, *command: str) -> None:
        run("ip", "netns", "exec", self.name, *command)

    def start(self, config: Path, run_dir: Path) -> subprocess.Popen[bytes]:
        """Starts the host's service."""
        arguments = ["--config", str(config), "--run-dir", str(run_dir), "--index", "0"]
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", f"services.{self.role}_server", *arguments]
        with (run_dir / f"{self.role}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRON)

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Drops every packet to and from this host."""
        with self._rule("INPUT"), self._rule("OUTPUT"):
            yield

    @contextmanager
    def lossy(self, share: float) -> Iterator[None]:
        """Drops this share of the packets that come in."""
        with self._rule("INPUT", "-m", "statistic", "--mode", "random", "--probability", str(share)):
            yield

    @contextmanager
    def narrow(self, rate: str) -> Iterator[None]:
        """Limits what this host sends to `rate`, like 10mbit."""
        self.inside(
            "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "200ms"
        )
        try:
            yield
        finally:
            self.inside("tc", "qdisc", "del", "dev", "eth0", "root")

    @contextmanager
    def _rule(self, chain: str, *match: str) -> Iterator[None]:
        rule = [chain, "!", "-i" if chain == "INPUT" else "-o", "lo", *match, "-j", "DROP"]
        self.inside("iptables", "-A", *rule)
        try:
            yield
        finally:
            self.inside("iptables", "-D", *rule)


@contextmanager
def hosts() -> Iterator[dict[str, Host]]:
    """Makes one host per role; takes everything away at the end."""
    names = ["hr-hub", *(f"hr-{role}" for role in ADDRESSES)]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    try:
        run("ip", "netns", "add", "hr-hub")
        run("ip", "-n", "hr-hub", "link", "add", "br0", "type", "bridge")
        run("ip", "-n", "hr-hub", "link", "set", "br0", "up")
        yield {role: Host(role) for role in ADDRESSES}
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
