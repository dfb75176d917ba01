"""The adapters of one child process, built from the snapshot it was given.

Shared by the ticks (tasks.py, sweep.py) and the job process (job.py); decides nothing.
"""

import fcntl
import os
import ssl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from aitbc_aps_miner import __version__
from aitbc_aps_miner.channel import Channel
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.model import Coordinator as CoordinatorSection
from aitbc_aps_miner.config.secrets import is_reference, resolve
from aitbc_aps_miner.coordinator import NodeApi, Registration, open_coordinator
from aitbc_aps_miner.coordinator.tls import build_ssl_context
from aitbc_aps_miner.errors import ConfigError, UnauthorizedError
from aitbc_aps_miner.identity import load_or_create
from aitbc_aps_miner.models import Gpu, Origin
from aitbc_aps_miner.probe.capabilities import capabilities
from aitbc_aps_miner.probe.host import HostFacts, probe_host
from aitbc_aps_miner.runners import enabled_kinds
from aitbc_aps_miner.tokens import ChannelTokens
from aitbc_aps_miner.util import log
from aitbc_aps_miner.util.clock import SystemClock
from aitbc_aps_miner.workspace import Workspaces

TLS_ENV = "AITBC_MINER_ZYGOTE_TLS"

_warm_tls: tuple[tuple[bool, Path | None], ssl.SSLContext] | None = None


class Line(Protocol):
    """The part of a Channel that ticks use."""

    @property
    def closed(self) -> bool:
        """Whether no daemon is there."""
        ...

    def send(self, kind: str, payload: Any = None) -> None:
        """Tell the daemon."""
        ...

    def ask(self, kind: str, payload: Any = None, timeout_s: float = 30) -> Any:
        """Ask the daemon."""
        ...


def warm() -> None:
    """Build the TLS context once, in the zygote: it costs a child 20 to 44 ms."""
    global _warm_tls  # noqa: PLW0603  handed down to every fork, never changed there
    section = CoordinatorSection.model_validate_json(os.environ[TLS_ENV])
    try:
        _warm_tls = _tls_key(section), build_ssl_context(section)
    except ConfigError:
        _warm_tls = None  # the CA file is bad just now: each tick says so itself


def tls_environ(section: CoordinatorSection) -> dict[str, str]:
    """Give the environment through which a zygote learns what to trust."""
    fields = section.model_dump_json(include={"base_url", "tls_verify", "ca_file"})
    return {TLS_ENV: fields}


def _tls_key(section: CoordinatorSection) -> tuple[bool, Path | None]:
    return section.tls_verify, section.ca_file


def ssl_context_of(section: CoordinatorSection) -> ssl.SSLContext:
    """Give the TLS context for a coordinator; the inherited one where it fits."""
    if _warm_tls is not None and _warm_tls[0] == _tls_key(section):
        return _warm_tls[1]
    return build_ssl_context(section)


def origin_of(config: Config) -> Origin:
    """Give the coordinator of a configuration as the origin of its jobs."""
    section = config.coordinator
    return Origin(
        api=section.api,
        base_url=section.base_url,
        node_id=config.node_id,
        auth=section.auth_token if is_reference(section.auth_token) else None,
    )


class World:
    """What one child works with."""

    def __init__(
        self,
        channel: Channel | Line,
        config: str,
        token: str | None,
        extensions: list[str] | None = None,
        root: str | None = None,
    ) -> None:
        """Build on a snapshot; `root` is the workspace root in force.

        The configured one may belong to another daemon, or not be there.
        """
        self.channel = channel
        self.config = Config.model_validate_json(config)
        self.clock = SystemClock()
        self._root = Path(root or self.config.workspace.root)
        self._token = token
        self._extensions = None if extensions is None else frozenset(extensions)
        log.configure_child(lambda event: channel.send("log", event))

    @property
    def origin(self) -> Origin:
        """Where new jobs come from now."""
        return origin_of(self.config)

    @contextmanager
    def coordinator(self, origin: Origin | None = None) -> Iterator[NodeApi]:
        """Open the coordinator of `origin`, by default today's."""
        place = origin or self.origin
        # Another coordinator's token is not ours to offer here, nor ours to offer it.
        is_todays = place == self.origin
        tokens = ChannelTokens(
            self.channel,
            self._token if is_todays else None,
            lambda: self._register_alone(place),
            place=f"{place.api} {place.base_url} {place.node_id}",
        )
        opened = open_coordinator(
            self.config,
            tokens,
            ssl_context_of(self.config.coordinator),
            origin=place,
            extensions=self._extensions if is_todays else None,
        )
        with closing(opened):
            yield opened

    def workspaces(self, root: str | None = None) -> Workspaces:
        """Give the workspaces under `root`, by default the one in force."""
        return Workspaces(Path(root or self._root), self.clock)

    def register(
        self, host: HostFacts, gpus: tuple[Gpu, ...], origin: Origin | None = None
    ) -> Registration:
        """Register this node. Raises CoordinatorError."""
        config = self.config
        try:
            bootstrap = resolve(self._bootstrap(origin or self.origin))
        except ConfigError as error:
            raise UnauthorizedError(str(error)) from error
        descriptor = capabilities(
            config,
            host,
            gpus,
            version=__version__,
            runners=enabled_kinds(config),
            public_key=load_or_create(config.identity_path).public_key_b64url,
        )
        if origin is not None:
            descriptor["node_id"] = origin.node_id
        opened = open_coordinator(
            config, None, ssl_context_of(config.coordinator), origin=origin
        )
        with closing(opened):
            return opened.register(descriptor, bootstrap)

    def _bootstrap(self, origin: Origin) -> str:
        """Give where the bootstrap token for `origin` is; never another origin's."""
        if origin == self.origin:
            return self.config.coordinator.auth_token
        if origin.auth is None:
            raise UnauthorizedError(
                f"the bootstrap token of {origin.base_url} was a literal, which is "
                "never written down; deliver while that is the configured coordinator"
            )
        return origin.auth

    def _register_alone(self, origin: Origin) -> str:
        """Register without a daemon; one process of this root at a time."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / ".register.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self.register(probe_host(self._root), (), origin).token
