"""Images by URL: from named hosts alone, at public addresses, within limits of size and time.

A name is looked up once, and the connection is made to the address that was checked, so that it
cannot be looked up again as one of the server's own network. Redirects are not followed.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from pardalis.documents.images import media_type, to_data_uri
from pardalis.serve.errors import APIError

_TIMEOUT_S = 10.0
_MOST_BYTES = 16 << 20
_CHUNK = 1 << 16
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # addresses of IPv4 behind a translator


@dataclass(frozen=True, slots=True)
class RemoteImages:
    """Fetches images from some hosts.

    Args:
        hosts: their names; without any, URLs are refused.
        private: also at addresses that are not public. For tests.
    """

    hosts: Sequence[str] = ()
    private: bool = False

    def as_data_url(self, url: str) -> str:
        """Return the image at a URL as a ``data:`` URL.

        Raises:
            APIError: the host is not allowed, or what it sends is no image or too much.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise _refused(url, "it is no URL") from error
        if parts.scheme not in ("http", "https") or host not in self.hosts:
            raise _refused(
                url,
                "images are fetched from no host"
                if not self.hosts
                else f"images are fetched only from {', '.join(self.hosts)}",
            )
        secure = parts.scheme == "https"
        address = self._address(url, host, port or (443 if secure else 80))
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            content = _get(address, host, target, secure)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refused(url, f"it cannot be fetched ({type(error).__name__})") from error
        kind = media_type(content)
        if kind is None:
            raise _refused(url, "it is no image")
        return to_data_uri(content, kind)

    def _address(self, url: str, host: str, port: int) -> tuple[str, int]:
        """Return an address of a host; all of them must be public."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise _refused(url, "its host is unknown") from error
        addresses = [str(address[0]).split("%")[0] for *_, address in found]
        if not self.private and not all(map(_is_public, addresses)):
            raise _refused(url, "its host has an address that is not public")
        return addresses[0], port


def _is_public(address: str) -> bool:
    """Whether an address, and the one of IPv4 that it may stand for, is of the internet."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(found.packed[-4:])
        if inner is not None:
            return inner.is_global
    return found.is_global


def _get(address: tuple[str, int], host: str, target: str, secure: bool) -> bytes:
    """Return what a host answers, from one connection to a checked address."""
    deadline = time.monotonic() + _TIMEOUT_S
    connection = http.client.HTTPConnection(host, address[1], timeout=_TIMEOUT_S)
    plain = socket.create_connection(address, timeout=_TIMEOUT_S)
    try:
        connection.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=host)
            if secure
            else plain
        )
        headers = {"Accept": "image/*", "User-Agent": "pardalis"}
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        content = b""
        while chunk := response.read1(_CHUNK):
            content += chunk
            if len(content) > _MOST_BYTES or time.monotonic() > deadline:
                raise ValueError("too large or too slow")
        return content
    finally:
        connection.close()
        plain.close()


def _refused(url: str, reason: str) -> APIError:
    return APIError(
        f"The image {url[:80]!r} is not used, for {reason}; send it as a data:image/png;base64,... "
        "URL.",
        code="invalid_image_url",
    )
