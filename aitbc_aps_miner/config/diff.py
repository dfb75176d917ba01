"""What differs between two configurations, key by key, secrets masked; pure."""

from dataclasses import dataclass

from aitbc_aps_miner.config.keys import Key, as_toml, keys
from aitbc_aps_miner.config.model import Config
from aitbc_aps_miner.config.secrets import mask


@dataclass(frozen=True, kw_only=True)
class Change:
    """One key whose value changed; both sides as TOML, `absent` where there is none."""

    key: str
    old: str
    new: str


def difference(old: Config, new: Config) -> tuple[Change, ...]:
    """Give the changed keys in the order of the file."""
    return tuple(
        Change(key=key.dotted, old=shown(key, old), new=shown(key, new))
        for key in keys().values()
        if key.value(old) != key.value(new)
    )


def shown(key: Key, config: Config) -> str:
    """Write the value that `config` holds for `key` as TOML, a secret as ***."""
    value = key.value(config)
    if value is None:
        return "absent"
    return as_toml(key, mask(value) if key.secret else value)
