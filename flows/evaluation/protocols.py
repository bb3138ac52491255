"""Protocols: which views of a dataset are given and which are scored, and on what terms (`protocols/*.yaml`)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flows.execution.plan import with_split
from reconx_core.errors import UserError
from reconx_core.io.files import write_json
from reconx_core.io.json_files import read_json
from reconx_core.settings import Settings, parse_settings, read_yaml

PROTOCOLS = Path(__file__).with_name("protocols")
INDEX = "index.json"  # in a run's folder, where its protocol makes one
TERMS = ("views", "metrics")  # sections of settings that belong to a protocol
Chosen = list[tuple[str, str, Settings, str]]  # name, source, settings, bin or nothing


class Protocol(BaseModel):
    """A file of ``protocols/``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    table: str = Field("", description="The table of the paper to which it belongs.")
    set: str = Field("", description="The table's name for the dataset.")
    views: tuple[int, ...] = Field(description="Allowed numbers of input views; the first is the default.")
    split: str = Field("", description="Rule of the split; {views} stands for the number of inputs.")
    index: dict[int, str] = Field(default_factory=dict, description="Published file of views per scene, by number of inputs.")
    source: str = Field("", description="Where the index files are published.")
    bins: dict[str, tuple[float, float]] = Field(
        default_factory=dict, description="Of the overlap that the index says of each pair: above the first, up to the second."
    )
    make_index: bool = Field(False, description="The rule's views are listed in OUT/index.json; scenes too short are left out.")
    lpips: Literal["vgg", "alex"] = Field("vgg", description="The network of LPIPS that tables show.")
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict, description="Of the sections views and metrics.")

    def record(self) -> dict[str, Any]:
        """The protocol as it stands in a run's record."""
        rule = self.split.format(views=self.views[0]) or self.index[self.views[0]]
        count = self.views[0] or None  # a user's own index does not say
        return {
            "name": self.name, "title": f"{self.title}, {count} views" if count else self.title,
            "table": self.table, "set": self.set, "views": count, "lpips": self.lpips, "split": rule,
            **({"bins": self.bins} if self.bins else {}),
        }  # fmt: skip

    def applied(self, settings: Settings, overrides: list[str]) -> Settings:
        """The settings on the protocol's terms; what the user overrides comes last."""
        base = settings.model_dump()
        for section, values in self.settings.items():
            base[section] |= values
        if self.split:
            base["views"]["split"] = self.split.format(views=self.views[0])
        return parse_settings(base, overrides)


def load_protocol(name: str, views: int | None = None) -> Protocol:
    """A protocol by its name or from a YAML file, with the requested number of input views.

    Raises:
        UserError: no such protocol, a malformed file, or not with so many views.
    """
    path = next((p for p in (PROTOCOLS / f"{name}.yaml", Path(name)) if p.is_file()), None)
    if path is None:
        names = ", ".join(sorted(p.stem for p in PROTOCOLS.glob("*.yaml")))
        raise UserError(f"There is no protocol '{name}'; there are posed, intrinsics, unposed, {names}, or give a YAML file.")
    protocol = _parse(path)
    if views is None:
        return protocol
    if views not in protocol.views:
        known = ", ".join(map(str, sorted(protocol.views)))
        raise UserError(f"The protocol {protocol.name} is for {known} input views, not {views}.")
    return protocol.model_copy(update={"views": (views, *(n for n in protocol.views if n != views))})


def _parse(path: Path) -> Protocol:
    try:
        protocol = Protocol.model_validate({"name": path.stem, **(read_yaml(path.read_text(encoding="utf-8-sig")) or {})})
    except (OSError, TypeError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is no protocol ({reason}); see docs/protocols.md.") from None
    if set(protocol.settings) - set(TERMS):
        raise UserError(f"{path}: a protocol sets views and metrics; the rest is the method's.")
    if protocol.bins and not protocol.index:
        raise UserError(f"{path} has bins of the overlap, which an index says; name one.")
    if bool(protocol.split) == bool(protocol.index) or (protocol.index and set(protocol.index) != set(protocol.views)):
        raise UserError(f"{path} should have either a split or, for each number of views, an index.")
    return protocol


def plan_protocol(
    protocol: Protocol, scenes: list[tuple[str, str]], settings: Settings, index: Path | None, out: Path
) -> Chosen:
    """The scenes that the protocol scores, each with its views in its settings.

    Raises:
        UserError: the index is not there or not one, or has none of the scenes.
    """
    if protocol.make_index and index is None:
        return _made(protocol, scenes, settings, out)
    if index is None and not protocol.index:
        return [(name, source, settings, "") for name, source in scenes]
    file = index or find_index(protocol, scenes)
    listed = read_json(file)
    splits, bins = splits_of(listed, file, protocol.views[0]), bins_of(protocol, listed, file)
    chosen = [(name, source, rule) for name, source in scenes if (rule := _rule_of(name, splits)) is not None]
    if not chosen:
        raise UserError(f"{file} lists none of the {len(scenes)} scenes; is it for another dataset?")
    return [(name, source, with_split(settings, rule), bins.get(name, "")) for name, source, rule in chosen]


def bins_of(protocol: Protocol, listed: Any, file: Path) -> dict[str, str]:
    """The bin of every scene that is in one, by the overlap of its views as the index (``listed``, of ``file``) says it.

    Raises:
        UserError: it is no index, or says no overlap.
    """
    from reconx_core.datasets.realestate import overlaps_of

    if not protocol.bins:
        return {}
    overlaps = overlaps_of(listed, file)
    if not overlaps:
        raise UserError(f"{file} says no 'overlap' of its pairs, by which {protocol.name} sorts them; is it another index?")
    return {name: chosen for name, overlap in overlaps.items() if (chosen := bin_of(overlap, protocol.bins))}


def bin_of(overlap: float, bins: Mapping[str, tuple[float, float]]) -> str:
    """The bin's name; of two that meet at ``overlap`` the lower one, empty where there is none."""
    lowest = min((low for low, _ in bins.values()), default=0.0)
    return next((name for name, (low, high) in bins.items() if low < overlap <= high or overlap == low == lowest), "")


def find_index(protocol: Protocol, scenes: list[tuple[str, str]]) -> Path:
    """The protocol's published file: beside the dataset's scenes or above, or in RECONX_DATA/eval_index.

    Raises:
        UserError: it is not there.
    """
    name = protocol.index[protocol.views[0]]
    near = Path(scenes[0][1]).absolute().parents if scenes else []
    data = os.environ.get("RECONX_DATA")
    places = [*list(near)[:3], *([Path(data) / "eval_index"] if data else [])]
    found = next((folder / name for folder in places if (folder / name).is_file()), None)
    if found is None:
        raise UserError(
            f"The protocol {protocol.name} needs {name} ({protocol.source}); put it beside the dataset or give --index FILE."
        )
    return found


def splits_of(listed: Any, file: Path, views: int) -> dict[str, str]:
    """Rule of the split per scene, from pixelSplat's format or from lists ``train_N`` and ``test`` per scene.

    ``listed``: what ``file`` holds.

    Raises:
        UserError: neither of them.
    """
    from reconx_core.datasets import Split
    from reconx_core.datasets.realestate import as_indices, published_splits
    from reconx_core.views.splits import explicit

    if isinstance(listed, dict) and isinstance(listed.get("scenes"), dict):
        try:
            named = {name: (lists.get(f"train_{views}"), lists.get("test")) for name, lists in listed["scenes"].items()}
            return {name: explicit(Split(as_indices(i), as_indices(t))) for name, (i, t) in named.items() if i and t}
        except (AttributeError, TypeError):
            lists = f"'train_{views}' and 'test' views by their numbers"
            raise UserError(f"{file} should list each scene's {lists}, such as [0, 1, 2], under 'scenes'.") from None
    return {name: explicit(split) for name, split in published_splits(listed, file).items()}


def _rule_of(scene: str, splits: Mapping[str, str]) -> str | None:
    """A scene's entry; DTU's have one for each target, ``scan1_train_00``, which together are one split."""
    if scene in splits:
        return splits[scene]
    parts = [splits[key] for key in sorted(splits) if re.fullmatch(rf"{re.escape(scene)}(_train)?_\d\d", key)]
    if not parts:
        return None
    inputs = {part.split(":")[1] for part in parts}
    if len(inputs) > 1:
        raise UserError(f"The index has several choices of inputs for scene {scene}; name one by -S views.split=...")
    targets = dict.fromkeys(target for part in parts for target in part.split(":")[2].split(","))
    return f"views:{inputs.pop()}:{','.join(targets)}"


def _made(protocol: Protocol, scenes: list[tuple[str, str]], settings: Settings, out: Path) -> Chosen:
    """The rule's views of every scene that is long enough, and their list beside the results, in pixelSplat's format."""
    from reconx_core.datasets import read
    from reconx_core.views import frame_count
    from reconx_core.views.splits import explicit, split_by_rule

    rule, chosen = settings.views.split, []
    index: dict[str, dict[str, tuple[int, ...]] | None] = {}
    for name, source in scenes:
        try:
            split = split_by_rule(rule, frame_count(read(Path(source))))
        except UserError:
            index[name] = None
            continue
        index[name] = {"context": split.inputs, "target": split.targets}
        chosen.append((name, source, with_split(settings, explicit(split)), ""))
    if not chosen:
        raise UserError(f"None of the {len(scenes)} scenes is long enough for {rule}.")
    write_json(out / INDEX, index)
    return chosen
