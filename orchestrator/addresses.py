"""Which of a machine's addresses a node advertises; where it serves its figures.

Pure but for `own_addresses` and `mtu_of`, which ask the kernel. Source: netdevice(7), Docker's resolveSystemAddr and its texts.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import socket
import struct
import subprocess
from collections.abc import Mapping

from dnsd.errors import ConfigError as DnsConfigError
from dnsd.resolvers import parse_endpoint
from orchestrator.errors import ApiError, ConfigError

_SIOCGIFMTU = 0x8921
# addresses of these are of this machine's containers, never of the machine
_VIRTUAL = ("docker", "br-", "veth", "virbr", "mv-", "mx-", "mg-", "mi-", "mesh")


def own_addresses() -> dict[str, str]:
    """IP address -> link name of every address this machine has, but for loopback and link-local ones."""
    try:
        listing = subprocess.run(["ip", "-json", "address", "show"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"`ip address show` failed ({error}): apt-get install iproute2") from None
    return {
        address["local"]: link["ifname"]
        for link in json.loads(listing)
        if "ifname" in link
        for address in link.get("addr_info", ())
        if address.get("scope") == "global" and "local" in address
    }


def mtu_of(link: str) -> int:
    """Of the link with that name in this process's network namespace (/sys shows that of whoever mounted it). OSError: there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        answer = fcntl.ioctl(asker, _SIOCGIFMTU, struct.pack("16si12x", link.encode(), 0))
    return int(struct.unpack("16si12x", answer)[1])


_ADVERTISE = "advertise address must be a non-zero IP address or network interface (with optional port number)"
_DATA_PATH = "data path address must be a non-zero IP address or network interface (without a port number)"
_LISTEN = "listen address must be an IP address or network interface (with optional port number)"


def data_path_address(wanted: str, own: Mapping[str, str]) -> str:
    """The address that `wanted`, an address or a link's name, stands for; ApiError(400) if for none."""
    return choose_address(wanted, own, "", refusal=_DATA_PATH)


def listen_address(text: str, own: Mapping[str, str]) -> str:
    """The address that `text`, an address of any kind or a link's name, with a port or without, stands for; ApiError(400) if for none."""
    host = _host(text)
    return host if host in ("0.0.0.0", "::") else choose_address(text, own, "", refusal=_LISTEN)


def choose_address(wanted: str, own: Mapping[str, str], towards: str, *, refusal: str = _ADVERTISE) -> str:
    """The address to advertise. wanted: an address, a link's name, or "". towards: the manager that is joined, "" at init.

    ApiError(400), with Docker's words (`refusal`: where `wanted` is neither): nothing to choose from, or too much.
    """
    if wanted:
        host = _host(wanted)
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            of_link = [address for address, link in own.items() if link == host]
        else:
            of_link = [] if address.is_unspecified else [str(address)]
        if not of_link:
            raise ApiError(400, refusal)
        return sorted(of_link, key=lambda address: (":" in address, address))[0]
    real = {address: link for address, link in own.items() if not link.startswith(_VIRTUAL)}
    family = [address for address in real if ":" not in address] or list(real)
    if towards in own:
        return towards
    if len(family) == 1:
        return family[0]
    if not family:
        raise ApiError(400, "could not find the system's IP address - specify one with --advertise-addr")
    shown = " and ".join(f"{address} on {real[address]}" for address in sorted(family)[:2])
    links = {real[address] for address in family}
    where = f"on different interfaces ({shown})" if len(links) > 1 else f"on interface {links.pop()} ({shown})"
    raise ApiError(
        400,
        f"could not choose an IP address to advertise since this system has multiple addresses {where} - specify one with --advertise-addr",
    )


def _host(text: str) -> str:
    """Without brackets and port."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def metrics_endpoint(text: str) -> tuple[str, int]:
    """ConfigError: it is not "ip:port"."""
    try:
        host, port = parse_endpoint(text, 0)
    except DnsConfigError as error:
        raise ConfigError(f"--metrics {error}") from None
    if not port:
        raise ConfigError(f"--metrics {text}: give a port as well, such as {text}:9323")
    return host, port
