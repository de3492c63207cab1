"""What holds in every test: no network, one thread for torch, the libraries' own downloads switched off."""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.update(TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", ""))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts background jobs so; the tests send this signal to themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)

_reached: list[str] = []


class NetworkInTest(OSError):
    """A test tried to reach beyond this machine."""


def _is_local(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if host is None or host in ("", "localhost", os.uname().nodename):
        return True
    try:
        return ipaddress.ip_address(str(host).split("%")[0]).is_loopback
    except ValueError:
        return False


def _no_network(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if not isinstance(address, tuple) or _is_local(address[0]):
            return
        target = f"{address[0]}:{address[1]}"
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        if _is_local(args[0]):
            return
        target = str(args[0])
    else:
        return
    _reached.append(target)
    raise NetworkInTest(f"a test tried to reach {target}; tests use no network")


sys.addaudithook(_no_network)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fails a test that tried to reach the network, also where the code under test swallowed the error."""
    _reached.clear()
    result = yield
    if _reached and "expects_network_refused" not in item.keywords:
        pytest.fail(f"tried to reach {', '.join(_reached)}; tests use no network")
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests of each kernel's back ends passed; those of triton ran under its interpreter, not on a GPU."""
    passed = terminalreporter.stats.get("passed", [])
    counts = Counter(value for report in passed for name, value in report.user_properties if name == "kernel")
    by_name: dict[str, list[str]] = {}
    for key in sorted(counts):
        name, backend = key.split()
        by_name.setdefault(name, []).append(f"{backend} {counts[key]}")
    if by_name:
        terminalreporter.write_line("kernel tests passed, triton under its interpreter:")
        for name, parts in by_name.items():
            terminalreporter.write_line(f"  {name:<16} {', '.join(parts)}")


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Two test processes share two cores."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Any]:
    """tiny(pattern, heads={...}, **backbone): a small double-precision model that reads everything, the same for the same arguments."""
    import torch

    from mmlm.model import MultimodalLM
    from mmlm.model_config import ModelConfig

    def build(
        pattern: list[Any], heads: dict[str, Any] | None = None, vocabulary: dict[str, int] | None = None, **backbone: Any
    ) -> MultimodalLM:
        config = {
            "schema": 1,
            "vocabulary": vocabulary or {"text": 20, "label": 5, "codec.0": 6, "codec.1": 7, "mask": 1},
            "encoders": {"cell": {"type": "table_cells", "hidden": 6}},
            "features": {"cell": 3},
            "channels": {"speed": {"size": 2}, "speaker": {"kind": "ids", "size": 4}},
            "backbone": {"width": 16, "num_layers": 2, "pattern": pattern, "feed_forward": {"type": "swiglu", "hidden": 24}, **backbone},
            "heads": heads or {"language_model": {"type": "language_model"}},
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return MultimodalLM(ModelConfig.model_validate(config)).double().eval()

    return build


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small decoder of texts with first weights, and its tokenizer."""
    import torch

    from mmlm.model import MultimodalLM
    from mmlm.model_config import ModelConfig
    from mmlm.tokenizers.config import TextConfig
    from mmlm.tokenizers.text import TextTokenizer

    folder = tmp_path_factory.mktemp("decoder")
    tokenizer = TextTokenizer(TextConfig(vocabulary_size=300)).fit(["The age is 3. The name is Ann.", "two dogs and a cat"])
    tokenizer.save(folder / "tokenizers" / "text")
    config = {
        "schema": 1,
        "vocabulary": tokenizer.sizes,
        "backbone": {"width": 16, "num_layers": 2, "pattern": [{"type": "attention", "num_heads": 2}], "feed_forward": {"type": "swiglu"}},
        "heads": {"language_model": {"type": "language_model"}},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MultimodalLM(ModelConfig.model_validate(config)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """How an encoder is told of two small towers of open_clip with first weights."""
    pytest.importorskip("open_clip")
    import torch

    import mmlm

    picture, text = "{image_size: 32, width: 24, layers: 2, heads: 2}", "{context: 16, width: 16, layers: 2, heads: 2}"
    sizes, path = f"{{size: 12, picture: {picture}, text: {text}}}", tmp_path_factory.mktemp("towers") / "towers.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(mmlm.encoder(f"{{type: open_clip, sizes: {sizes}}}").encoder.model.state_dict(), path)
    return f"{{type: open_clip, path: {path}, sizes: {sizes}}}"


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that code that reads what it never wrote shows it."""
    import torch

    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
