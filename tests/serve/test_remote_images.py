"""Images by URL: only from hosts that are allowed, at public addresses, and within limits."""

import http.server
import io
import threading
import time

import PIL.Image
import pytest

from pardalis.serve import remote_images
from pardalis.serve.errors import APIError
from pardalis.serve.remote_images import RemoteImages

BUFFER = io.BytesIO()
PIL.Image.new("RGB", (2, 2), "red").save(BUFFER, format="PNG")
PNG = BUFFER.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        self.send_response(302 if path == "/moved" else 404 if path == "/none" else 200)
        if path == "/moved":
            self.send_header("Location", "http://127.0.0.1/secret")
        self.end_headers()
        if path == "/slow":
            for _ in range(40):
                time.sleep(0.05)
                self.wfile.write(PNG[:1])
        elif path == "/large":
            for _ in range(40):
                self.wfile.write(b"\x89PNG\r\n\x1a\n" * 100)
        else:
            self.wfile.write(b"<html>" if path == "/page" else PNG)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def host():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"localhost:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_is_fetched(host):
    found = RemoteImages(["localhost"], private=True).as_data_url(f"http://{host}/a.png?b=c")
    assert found.startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none", "cannot be fetched"),
        ("/moved", "cannot be fetched"),  # redirects could lead anywhere
        ("/page", "no image"),
        ("/slow", "cannot be fetched"),
        ("/large", "cannot be fetched"),
    ],
)
def test_what_is_no_image(host, path, reason, monkeypatch):
    monkeypatch.setattr(remote_images, "_TIMEOUT_S", 0.5)
    monkeypatch.setattr(remote_images, "_MOST_BYTES", 20_000)
    with pytest.raises(APIError, match=reason):
        RemoteImages(["localhost"], private=True).as_data_url(f"http://{host}{path}")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/a.png",
        "http://localhost:80/a.png",
        "https://localhost/a.png",
        "http://127.0.0.1/a.png",
        "http://[::1]/a.png",
        "http://[::ffff:127.0.0.1]/a.png",
        "http://2130706433/a.png",
        "http://0x7f.1/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://0.0.0.0/a.png",
        "http://10.0.0.1/a.png",
        "http://[fd00::1]/a.png",
        "http://[64:ff9b::7f00:1]/a.png",
        "http://[2002:7f00:1::]/a.png",
    ],
)
def test_private_addresses_are_refused_even_if_the_host_is_allowed(url):
    hosts = ["localhost", "127.0.0.1", "::1", "::ffff:127.0.0.1", "2130706433", "0x7f.1",
             "169.254.169.254", "0.0.0.0", "10.0.0.1", "fd00::1", "64:ff9b::7f00:1",
             "2002:7f00:1::"]  # fmt: skip
    with pytest.raises(APIError, match=r"not public|host is unknown"):
        RemoteImages(hosts).as_data_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org.evil.com/a.png",
        "http://example.org@evil.com/a.png",
        "http://evil.com/?example.org",
        "http://EXAMPLE.org.:80@evil.com/",
        "ftp://example.org/a.png",
        "file://example.org/etc/passwd",
        "gopher://example.org/",
        "//example.org/a.png",
        "http://",
        "http://[::1",
        "http://example.org:99999/a.png",
    ],
)
def test_other_hosts_and_schemes_are_refused(url):
    with pytest.raises(APIError, match=r"only from example\.org|no URL"):
        RemoteImages(["example.org"]).as_data_url(url)


def test_the_address_that_was_checked_is_the_one_that_is_used(host, monkeypatch):
    """A name that is looked up again could lead elsewhere by then."""
    asked = []
    real = remote_images.socket.getaddrinfo

    def once(name, *arguments, **options):
        asked.append(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(remote_images.socket, "getaddrinfo", once)
    RemoteImages(["localhost"], private=True).as_data_url(f"http://{host}/a.png")
    assert asked.count("localhost") == 1
