"""A network of its own for each device and for the server, and the relay between them.

    device-0 | tun ]---[ relay ]---[ tun | server
    device-1 | tun ]---'

Each is a Linux network namespace in which a TUN device is the only way out; what the kernel sends
there the relay reads. Kernels differ in what they can shape (`tc` often lacks netem), so there is
one way for all, in user space. Namespaces bear the lab's process id, and those of labs that are no
more are removed when the next one starts.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from draftgym.decoding.errors import DraftgymError
from draftgym.serving.edge.lab.relay import Config

PREFIX = "draftgym-lab-"
SERVER_ADDRESS = "10.77.0.1"
TUN = Path("/dev/net/tun")
NAMESPACES = Path("/run/netns")
SET_TUN, PLAIN_TUN = 0x400454CA, 0x1001
"""TUNSETIFF, and IFF_TUN | IFF_NO_PI, of linux/if_tun.h."""
MOST_DEVICES = 250
WAIT = 10.0
"""Seconds that what is asked to end may take."""


def check_possible() -> None:
    """Whether namespaces and TUN devices can be made here.

    Raises:
        DraftgymError: They cannot.
    """
    if sys.platform != "linux" or shutil.which("ip") is None:
        raise DraftgymError(
            "links are shaped in Linux network namespaces, which are made by `ip`",
            "run the lab on Linux, with iproute2 installed",
        )
    if os.geteuid() != 0:
        raise DraftgymError(
            "only root may make network namespaces",
            "run the lab as root, or in a container as root",
        )
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError as error:
        raise DraftgymError(
            f"{TUN} cannot be opened: {error.strerror}",
            "load the kernel module tun; in a container, allow --device /dev/net/tun and "
            "--cap-add NET_ADMIN,SYS_ADMIN",
        ) from error


def remove_leftovers() -> list[str]:
    """Removes the namespaces of labs that are no more, and ends what still runs in them.

    Returns:
        Their names.
    """
    found = []
    for path in sorted(NAMESPACES.glob(f"{PREFIX}*")):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if not owner.isdigit() or not Path(f"/proc/{owner}").exists():
            _remove(path.name)
            found.append(path.name)
    return found


def _remove(name: str) -> None:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
    for one in listed.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(one), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


class Network:
    """Namespaces, TUN devices and the relay; a context manager.

    Args:
        devices: How many.
        bands: See `Config.bands`.
        options: The rest of `Config` that is not of this process: `least_bits`, `delay`, ...

    Attributes:
        relay: The relay's process.
        radio: Where the server sends its plans.
        counts: When it is over, what happened on each link.

    Raises:
        DraftgymError: See `check_possible`; or making something failed.
    """

    def __init__(self, devices: int, bands: Sequence[Any], **options: Any) -> None:
        check_possible()
        if devices > MOST_DEVICES:
            raise DraftgymError(f"{devices} devices", f"a lab has room for {MOST_DEVICES}")
        remove_leftovers()
        self._bands, self._options = bands, options
        self._names = ["server", *(str(i) for i in range(devices))]
        self.addresses = [SERVER_ADDRESS, *(f"10.77.1.{i + 1}" for i in range(devices))]
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        self.radio = Path(self._folder.name) / "radio"
        self.counts: list[dict[str, Any]] = []

    def __enter__(self) -> Network:
        """Makes everything; nothing is left behind if that fails."""
        try:
            self._begin()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Removes everything."""
        self._end()

    def inside(self, index: int | None, command: Sequence[str]) -> list[str]:
        """A command as it runs where a device is, or the server (None)."""
        return [
            "ip",
            "netns",
            "exec",
            self._name("server" if index is None else str(index)),
            *command,
        ]

    def tell(self, **command: Any) -> None:
        """Sends the relay a command; see `Relay.obey`."""
        assert self.relay.stdin is not None  # it was started with a pipe
        self.relay.stdin.write(json.dumps(command).encode() + b"\n")
        self.relay.stdin.flush()

    def _begin(self) -> None:
        tuns = [self._namespace(i) for i in range(len(self._names))]
        plans = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        plans.bind(str(self.radio))
        try:
            config = Config(
                server=tuns[0],
                devices=tuns[1:],
                addresses=self.addresses[1:],
                radio=plans.fileno(),
                bands=self._bands,
                **self._options,
            )
            self.relay = subprocess.Popen(
                [sys.executable, "-m", "draftgym.serving.edge.lab.relay"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[*tuns, plans.fileno()],
                start_new_session=True,  # Ctrl-C is for the lab, which ends the relay last
            )
        finally:
            plans.close()
            for one in tuns:
                os.close(one)
        self.tell(**asdict(config))

    def _namespace(self, index: int) -> int:
        """Makes a namespace with its way out; the file descriptor of the relay's end."""
        name, interface = self._name(self._names[index]), f"dg{os.getpid()}t{index}"
        _ip("netns", "add", name)
        tun = os.open(TUN, os.O_RDWR)
        try:
            fcntl.ioctl(tun, SET_TUN, struct.pack("16sH22x", interface.encode(), PLAIN_TUN))
            _ip("link", "set", interface, "netns", name)
            _ip("-n", name, "addr", "add", f"{self.addresses[index]}/16", "dev", interface)
            for each in ("lo", interface):
                _ip("-n", name, "link", "set", each, "up")
        except BaseException:
            os.close(tun)
            raise
        return tun

    def _end(self) -> None:
        relay = getattr(self, "relay", None)
        if relay is not None:
            try:
                told, _ = relay.communicate(timeout=WAIT)
                self.counts = json.loads(told or "[]")
            except (subprocess.TimeoutExpired, ValueError):
                relay.kill()
                relay.wait()
        for name in self._names:
            _remove(self._name(name))
        self._folder.cleanup()

    def _name(self, name: str) -> str:
        return f"{PREFIX}{os.getpid()}-{name}"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise DraftgymError(
            f"`ip {' '.join(words)}` failed: {done.stderr.strip()}",
            "check that this user may make network namespaces (CAP_SYS_ADMIN, CAP_NET_ADMIN)",
        )
