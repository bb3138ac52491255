"""The ablation: the seven rows of the paper's Table V, each a few settings away from the full method (`ablation.yaml`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_name("ablation.yaml")


@dataclass(frozen=True)
class AblationRow:
    """One row: which of the five switches it has, and the settings that turn the others off."""

    name: str
    switches: dict[str, bool]
    overrides: tuple[str, ...]  # as for -S, to apply after all others


def load_ablation() -> list[AblationRow]:
    """The rows in the order of the table; the last is the full method."""
    return [_row(row["name"], row["has"]) for row in _content()["rows"]]


def switch_titles() -> dict[str, str]:
    """Name of each switch and what the table calls it."""
    return {name: switch["title"] for name, switch in _content()["switches"].items()}


def switch_letters() -> dict[str, str]:
    """Letter of each switch, where its name takes too much room, and what the table calls it."""
    return {switch["letter"]: switch["title"] for switch in _content()["switches"].values()}


def switched_settings() -> set[str]:
    """The settings that the switches set, as ``stage.key``."""
    return {switch["setting"] for switch in _content()["switches"].values()}


def switches_of(settings: dict[str, Any]) -> dict[str, bool]:
    """What the resolved settings of a run have; a setting that they lack (of an older version) is taken for on."""
    found = {}
    for name, switch in _content()["switches"].items():
        stage, key = switch["setting"].split(".")
        found[name] = settings.get(stage, {}).get(key) not in switch["without"]
    return found


def _row(name: str, has: list[str]) -> AblationRow:
    switches = {switch: switch in has for switch in _content()["switches"]}
    return AblationRow(name, switches, tuple(_turn_off(switch) for switch, on in switches.items() if not on))


def _turn_off(switch: str) -> str:
    about = _content()["switches"][switch]
    return f"{about['setting']}={yaml.safe_dump(about['without'][0]).split()[0]}"


@cache
def _content() -> dict[str, Any]:
    return yaml.safe_load(_FILE.read_text())
