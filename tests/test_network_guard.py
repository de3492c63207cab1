import socket
import urllib.request

import pytest


@pytest.mark.expects_network_refused
def test_reaching_beyond_this_machine_is_an_error():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s, pytest.raises(OSError, match="no network"):
        s.connect(("192.0.2.1", 80))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s, pytest.raises(OSError, match="no network"):
        s.sendto(b"x", ("192.0.2.1", 80))
    with pytest.raises(OSError, match="no network"):
        urllib.request.urlopen("http://example.invalid/", timeout=1)


def test_loopback_is_allowed():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        other, _ = server.accept()
        client.sendall(b"hi")
        assert other.recv(2) == b"hi"
        other.close()


def test_a_swallowed_refusal_still_fails_the_test(pytester_like):
    assert pytester_like["failed"] and "192.0.2.1" in pytester_like["text"]


@pytest.fixture
def pytester_like(tmp_path):
    """One test that swallows the error, run by a pytest of its own beside this folder's conftest."""
    import pathlib
    import subprocess
    import sys

    (tmp_path / "conftest.py").write_text((pathlib.Path(__file__).parent / "conftest.py").read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    expects_network_refused: x\n")
    (tmp_path / "test_quiet.py").write_text(
        "import socket\n"
        "def test_quiet():\n"
        "    try:\n        socket.create_connection(('192.0.2.1', 80), 1)\n    except OSError:\n        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    return {"failed": done.returncode == 1, "text": done.stdout}
