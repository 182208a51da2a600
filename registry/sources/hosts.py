"""Which hosts files may come from: an allow-list, and never an address that only this machine should ask."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from mmserve.errors import InvalidRequest

# Cloud metadata services outside the link-local range (AWS over IPv6, Alibaba, Oracle).
METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("fd00:ec2::254", "100.100.100.200", "192.0.0.192")
)
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def check_url(url: str, allowed: Iterable[str], setting: str) -> SplitResult:
    """The parts of a URL whose host is allowed.

    ``allowed`` has ``host``, ``host:port``, ``*.host`` or ``http://host:port`` (the only way to speak without
    TLS). What a wildcard names must have a public address; what is named in full may be private, but never
    link-local, multicast or a metadata service. ``setting`` is what an operator would change.
    """
    parts = urlsplit(url)
    try:
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        raise InvalidRequest(f"source_uri: {url[:200]!r} is no URL", param="source_uri") from None
    if parts.username or parts.password:
        raise InvalidRequest("source_uri: a URL with a password in it is refused", param="source_uri")
    match = next((entry for entry in allowed if _matches(entry, parts.scheme, host, port)), None)
    if not host or match is None:
        where = f"{parts.scheme}://{parts.netloc}"[:200]
        raise InvalidRequest(
            f"source_uri: {where} is not allowed; {setting} lists what is", param="source_uri"
        )
    for address in addresses(host, port or (443 if parts.scheme == "https" else 80)):
        check_address(address, host, public_only=match.startswith("*."))
    return parts


def addresses(host: str, port: int) -> list[str]:
    """What a host's name resolves to; none if it does not (a proxy may know it, else connecting says so)."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(entry[4][0]) for entry in found]


def check_address(text: str, host: str, *, public_only: bool) -> None:
    """Refuse an address that is link-local, a metadata service, or private behind a wildcard."""
    address = _meant(ipaddress.ip_address(text.partition("%")[0]))
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in METADATA:
        raise InvalidRequest(f"source_uri: {host} is at {text}, which is never asked", param="source_uri")
    if public_only and not address.is_global:
        raise InvalidRequest(
            f"source_uri: {host} is at {text}, a private address; list the host in full to allow it",
            param="source_uri",
        )


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one carries: mapped, 6to4, or translated by NAT64."""
    if isinstance(address, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in NAT64 else None
        return address.ipv4_mapped or address.sixtofour or translated or address
    return address


def _matches(entry: str, scheme: str, host: str, port: int | None) -> bool:
    given = urlsplit(entry if "://" in entry else f"https://{entry}")
    if given.scheme != scheme:
        return False
    if given.port is not None and given.port != port:
        return False
    if given.port is None and port not in (None, 443, 80):
        return False
    name = (given.hostname or "").lower()
    return host == name or (name.startswith("*.") and host.endswith(name[1:]) and host != name[2:])
