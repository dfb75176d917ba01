"""Whom the miner trusts as coordinator: the SSL context, built once before any fork."""

import ssl

import certifi

from aitbc_aps_miner.config.model import Coordinator
from aitbc_aps_miner.errors import ConfigError, Problem


def build_ssl_context(config: Coordinator) -> ssl.SSLContext:
    """Build the context every HTTP client is handed; it costs tens of milliseconds.

    Trusts `ca_file` alone where it is set, else the system's store (certifi's where
    the system has none). Raises ConfigError when `ca_file` cannot be used.
    """
    if not config.tls_verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if config.ca_file is None:
        paths = ssl.get_default_verify_paths()
        own = paths.cafile or paths.capath
        return ssl.create_default_context(cafile=None if own else certifi.where())
    try:
        return ssl.create_default_context(cafile=str(config.ca_file))
    except (OSError, ValueError) as error:  # SSLError is an OSError
        problem = Problem(
            key="coordinator.ca_file",
            line=None,
            expected="a readable PEM file with the CA's certificate",
            given=f"{str(config.ca_file)!r} ({error})",
            remedy="name the CA's PEM file, or leave the key out for the system's CAs",
        )
        raise ConfigError((problem,)) from error
