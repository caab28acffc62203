"""Machines on this one, each with a network, a name and mounts of its own: for root on Linux, with ip and unshare."""

import os
import shutil
import subprocess
import time
from contextlib import suppress


def missing():
    """Why there can be none here; None where there can."""
    if os.getuid() != 0:
        return "network namespaces need root"
    absent = [name for name in ("ip", "unshare", "hostname") if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed"
    return None if _ip("link", "add", "ga-probe", "type", "bridge") and _ip("link", "del", "ga-probe") else "no rights"


def _ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


class Machine:
    """One of a network: what is started on it sees its own address, its own host name and its own mounts."""

    def __init__(self, space, name, address, own=()):
        self.space, self.name, self.address, self.own = space, name, address, own

    def words(self, *words, before="true"):
        """A command on it, after a line of shell in a mount namespace of its own."""
        own = " && ".join(f"mkdir -p {one}/{self.name} && mount --bind {one}/{self.name} {one}" for one in self.own)
        script = f'hostname {self.name} && {own or "true"} && {before} && exec "$@"'
        alone = ["unshare", "--uts", "--mount", "sh", "-c", script, "sh"]
        return ["ip", "netns", "exec", self.space, *alone, *map(str, words)]

    def pids(self):
        """Every process on it."""
        found = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def power_off(self):
        """Everything on it ends at once, unasked."""
        for _ in range(100):
            if not (pids := self.pids()):
                return
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, 9)
            time.sleep(0.1)
        raise AssertionError(f"{self.name} does not die")


class Network:
    """Machines that reach each other and this one, as long as it is entered."""

    def __init__(self):
        self.mark = f"ga{os.getpid() % 10000}"
        self.prefix = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.machines = []

    def __enter__(self):
        self._must("link", "add", self.mark, "type", "bridge")
        self._must("addr", "add", f"{self.prefix}.254/24", "dev", self.mark)
        self._must("link", "set", self.mark, "up")
        return self

    def machine(self, name, *own):
        """A new one; folders of its ``own`` are others than those of the same name elsewhere."""
        number = len(self.machines) + 1
        space, here, there = f"{self.mark}n{number}", f"{self.mark}v{number}", f"{self.mark}w{number}"
        one = Machine(space, name, f"{self.prefix}.{number}", own)
        self._must("netns", "add", space)
        self.machines.append(one)
        self._must("link", "add", here, "type", "veth", "peer", "name", there)
        self._must("link", "set", there, "netns", space)
        self._must("link", "set", here, "master", self.mark)
        self._must("link", "set", here, "up")
        inside = ("netns", "exec", space, "ip")
        self._must(*inside, "addr", "add", f"{one.address}/24", "dev", there)
        self._must(*inside, "link", "set", there, "up")
        self._must(*inside, "link", "set", "lo", "up")
        return one

    def __exit__(self, *_):
        for one in self.machines:
            one.power_off()
            _ip("netns", "del", one.space)
        _ip("link", "del", self.mark)

    def _must(self, *words):
        subprocess.run(["ip", *words], check=True, capture_output=True)
