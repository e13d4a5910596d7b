"""Configuration of the server."""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from pardalis.config import check_above, check_at_least, check_types
from pardalis.errors import ConfigError
from pardalis.origin import Credentials, OriginWriter
from pardalis.serve.filters.names import Filters


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """Where the server listens, who may use it, and what a request may cost.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
    """

    host: str = "127.0.0.1"  # 0.0.0.0: reachable from other machines
    port: int = 8000  # 0: a free one
    api_keys: tuple[str, ...] = ()  # any of them opens the API; none: it is open
    cors_origins: tuple[
        str, ...
    ] = ()  # pages of these origins may use the API, such as "https://a.b"
    # Domain names under which requests may call the server, besides addresses, names without a dot
    # and localhost; None: any. Without keys, a page of a name that its owner leads to this machine
    # could call a server which is open to this machine alone (DNS rebinding).
    hosts: tuple[str, ...] | None = None
    image_hosts: tuple[str, ...] = ()  # images by URL are fetched from these hosts alone
    max_body_mib: int = 32  # bytes of a request's body
    body_timeout_s: float = 30.0  # until a body has arrived
    max_images: int = 32  # images in a request
    max_turns: int = 512  # messages or input items in a request
    max_choices: int = 8  # answers to one request
    partial_interval_s: float = 0.05  # between two views of an image that is being written
    ping_s: float = 15.0  # between comments that keep a silent stream open
    stop_timeout_s: float = 30.0  # that open requests have to finish when the server stops
    request_filters: tuple[str, ...] = ()  # judge prompts: module:function, or blocklist, nsfw
    answer_filters: tuple[str, ...] = ()  # judge the texts and images of answers
    filter_timeout_s: float = 30.0  # that one filter has for one judgement
    watermark: bool = False  # a mark in the pixels of all images
    c2pa_certificate: Path | None = None  # PEM; with a key: whole images have a signed manifest
    c2pa_key: Path | None = None  # PEM

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, port=0, max_body_mib=1, max_images=0, max_turns=1, max_choices=1)
        check_at_least(self, partial_interval_s=0, stop_timeout_s=0)
        check_above(self, body_timeout_s=0, ping_s=0, filter_timeout_s=0)
        if self.port > 65_535:
            raise ConfigError(f"port must be at most 65535, got {self.port}.")
        if (self.c2pa_certificate is None) != (self.c2pa_key is None):
            raise ConfigError("c2pa_certificate and `c2pa_key` belong together; give both.")
        if "" in self.api_keys:
            raise ConfigError("api_keys must not hold an empty key; leave it out to need none.")

    @staticmethod
    def local_hosts(
        host: str, api_keys: tuple[str, ...], allowed: tuple[str, ...]
    ) -> tuple[str, ...] | None:
        """Return ``hosts`` for a command: restricted if some are named, or if it is local and open.

        Args:
            host: address to listen on.
            allowed: names that the user gives.
        """
        is_local = host == "localhost" or (is_address(host) and ip_address(host).is_loopback)
        return allowed if allowed or (is_local and not api_keys) else None

    def origin(self) -> OriginWriter:
        """Load what encodes images; raises ConfigError."""
        if self.c2pa_certificate is None or self.c2pa_key is None:
            return OriginWriter(self.watermark)
        return OriginWriter(self.watermark, Credentials(self.c2pa_certificate, self.c2pa_key))

    def filters(self) -> Filters:
        """Load the filters that the config names; raises ConfigError."""
        return Filters(self.request_filters, self.answer_filters)


def is_address(host: str) -> bool:
    """Whether a host is an IP address and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
