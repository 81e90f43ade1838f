"""From `conf/` and the overrides on a command line to one checked `Config`, with the origin of every value.

Hydra composes (groups, defaults, interpolation) and nothing more: the result is bound to frozen dataclasses, and a
configuration that carries `_target_`, Hydra's way to name code, is refused.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from sovfed.federation import plugins
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import bind, nearest
from sovfed.federation.text import ARCHIVE

PACKAGED: Final = Path(__file__).parent.parent / "conf"
STRATEGIES: Final = "sovfed.strategies"  # entry points of packages that bring strategies
PARTITIONS: Final = "sovfed.partitions"  # and of packages that bring partitions
GROUP: Final = "sovfed.conf"  # entry points of packages that bring settings of their own: a module beside them
OWN: Final = "own"  # the option of `task` and `data` for a task that brings no settings
BASE: Final = "task.base"
START: Final = "start"  # a key that stands for the model that a run begins with
STATISTICS: Final = "statistics"  # a key that stands for a run which counts
ONCE: Final = (
    "privacy.sampling_rate=1.0", "privacy.spare_steps=0", "privacy.grid_bits=8", "privacy.epsilon=0.5",
    "strategy=fedavg",
)  # fmt: skip
COUNTING: Final = (
    *ONCE, "privacy=distributed", "rounds=1", "simulation.engine=inprocess", "simulation.workers=0",
)  # fmt: skip
SCORES: Final = "evaluate"  # a key that stands for a run which scores models
ONE_RUN: Final = (STATISTICS, SCORES)  # whose commas are between columns or models of one run
SCORING: Final = (*ONCE, "privacy=none")
BROUGHT: Final = {"strategy": STRATEGIES, "partition": PARTITIONS}  # which need no settings of their own
SCHEDULING: Final = ("task.schedule", "task.cooldown")
SUFFIXES: Final = (".yaml", ".yml")
DEFAULT: Final = "default"
OVERRIDE: Final = "override"
_NO_CODE: Final = "configuration chooses values and never names code"
_KEY: Final = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*")


@dataclass(frozen=True)
class Composed:
    """A checked configuration; `origins` tells for each dotted key who chose it: a file, `override` or `default`."""

    config: Config
    origins: Mapping[str, str]


def compose(overrides: Sequence[str] = (), config_dir: Path | None = None) -> Composed:
    """The configuration that `overrides` (`task=heart`, `rounds=20`) choose; raises ConfigError on anything else.

    `config_dir` may hold further options (`task/mine.yaml`); it cannot replace a packaged one.
    """
    folders = [*folders_found(), *([] if config_dir is None else [config_dir.resolve()])]
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"configuration folder {config_dir} does not exist")
    expanded = [pair for text in overrides for pair in _expanded(text, folders)]
    expanded.sort(key=lambda pair: pair[1] == OVERRIDE)  # what a task recommends never goes before what was asked for
    checked, by = dict[str, str](), dict[str, str]()
    for text, origin in expanded:  # the last of two for the same key counts
        key, checked_text = _check_override(text, folders)
        checked[key], by[key] = checked_text, origin
    values, choices = _hydra(list(checked.values()), folders)
    try:
        config = bind(Config, values)
    except ConfigError:
        recommended = [key for key in SCHEDULING if by.get(key, OVERRIDE) != OVERRIDE]
        if not recommended:
            raise
        for key in recommended:  # it gives way where the strategy, or the privacy, that was asked for has none
            del checked[key], by[key]
        values, choices = _hydra(list(checked.values()), folders)
        config = bind(Config, values)
    return Composed(config, _origins(config, choices, by, folders))


def folders_found() -> tuple[Path, ...]:
    """Our own settings, then those that installed packages bring."""
    return PACKAGED, *(_folder(point.value) for point in plugins.installed(GROUP).values())


@cache
def _folder(module: str) -> Path:
    from importlib.resources import files

    return Path(str(files(module)))


def _expanded(text: str, folders: Sequence[Path]) -> list[tuple[str, str]]:
    """`text`, or what it stands for: a task by its file, what a package brings without settings, or statistics.

    Beside each stands its origin: who asks for it, or the task that recommends it.
    """
    key, _, raw = text.partition("=")
    if key == START and raw:
        path = Path(raw).expanduser().absolute()
        path = path / "model.safetensors" if path.is_dir() else path
        return [(f"task.start={_quote(str(path) if path.exists() else raw)}", OVERRIDE)]
    if key == BASE and raw:
        return [(f"{BASE}={_quote(str(Path(raw).expanduser().absolute()))}", OVERRIDE)]
    if key == STATISTICS and raw:
        purpose = f"order.purpose={STATISTICS}: {raw[:400]}"
        return [(f"task.statistics={raw}", OVERRIDE), *((setting, text) for setting in (*COUNTING, purpose))]
    if key == SCORES and raw:
        models = [str(Path(model).expanduser().absolute()) for model in _listed(raw)]
        chosen = [f"task.candidates=[{','.join(map(_quote, models))}]", f"rounds={len(models)}"]
        purpose = f"order.purpose=evaluation of {len(models)} models"
        return [*((setting, OVERRIDE) for setting in chosen), *((setting, text) for setting in (*SCORING, purpose))]
    if raw in groups(folders).get(key, ()) and (key, raw) != ("task", OWN):
        return [(text, OVERRIDE)]
    if key in BROUGHT and raw in plugins.installed(BROUGHT[key]):
        brought = [(f"{key}.name={raw}", OVERRIDE)]
        if key == "strategy" and (half := _institution(raw)):
            brought.append((f"strategy.institution={half}", OVERRIDE))
        return brought
    if key != "task":
        return [(text, OVERRIDE)]
    if raw.endswith(SUFFIXES):
        from sovfed.federation.tasks.declared import read_task
        from sovfed.federation.tasks.registry import add

        task = read_task(Path(raw).expanduser())
        add(task)  # as the file is now, whatever this process read before
        file = Path(raw).expanduser().absolute()
        return _own(task.name, file, {name: json.dumps(value) for name, value in task.training.items()}, raw)
    from sovfed.federation.tasks.registry import names, offered

    if raw.endswith(ARCHIVE) or offered(raw):
        return _of_archive(offered(raw) or Path(raw).expanduser(), raw)
    return [(part, OVERRIDE) for part in ([f"task={OWN}", f"task.name={raw}"] if raw in names() else [text])]


def _listed(raw: str) -> list[str]:
    """The paths in `raw`: with commas between them, or a JSON list, where one may hold a comma. Raises ConfigError."""
    if not raw.startswith("["):
        return raw.split(",")
    try:
        paths: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{SCORES}={raw[:80]!r} is no JSON list of paths") from error
    if not (paths and all(isinstance(path, str) for path in paths)):
        raise ConfigError(f"{SCORES}={raw[:80]!r} is no JSON list of paths")
    return list(paths)


def _institution(strategy: str) -> str:
    """What institutions are to do under a strategy that a package brings, as its maker says; "" where it does not."""
    maker = plugins.load(STRATEGIES, "strategy", strategy, ())
    return str(getattr(maker, "institution", None) or "")


def _of_archive(path: Path, shown: str) -> list[tuple[str, str]]:
    """What choosing the task in the archive `path` stands for: as its manifest says, and nothing is imported."""
    from sovfed.federation.archive.archive import read_archive

    manifest = read_archive(path).manifest
    return _own(manifest.name, path.absolute(), manifest.settings, shown)


def _own(name: str, file: Path, recommended: Mapping[str, str], shown: str) -> list[tuple[str, str]]:
    """What choosing a task by its file stands for, and what it recommends: `rounds` is none of the task's settings."""
    chosen = [f"task={OWN}", f"task.name={name}", f"task.file={file}"]
    settings = [f"{key if key == 'rounds' else f'task.{key}'}={value}" for key, value in recommended.items()]
    return [*((text, OVERRIDE) for text in chosen), *((text, shown) for text in settings)]


def groups(folders: Iterable[Path] | None = None) -> dict[str, list[str]]:
    """Every configuration group and its options."""
    by_group: dict[str, set[str]] = {}
    for path in (path for folder in folders or folders_found() for path in folder.glob("*/*.yaml")):
        by_group.setdefault(path.parent.name, set()).add(path.stem)
    return {name: sorted(options) for name, options in sorted(by_group.items())}


def schema() -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    """Every dotted key with its type and dataclass field."""
    return dict(_fields(Config, ""))


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a configuration dataclass with its value, in the order of the dataclass."""
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _fields(cls: type[Any], prefix: str) -> Iterator[tuple[str, tuple[Any, dataclasses.Field[Any]]]]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _fields(typing.cast("type[Any]", kind), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, (kind, field)


def split_override(text: str, folders: Sequence[Path] = (PACKAGED,)) -> tuple[str, str]:
    """The key of the override `text`, a group (task=…) or a value (rounds=…), and what is chosen, as it was written.

    Raises ConfigError for any other form, and for a key or an option that there is not.
    """
    key, equals, raw = text.partition("=")
    if "_target_" in key:
        raise ConfigError(f"override {text!r} is refused: {_NO_CODE}")
    if not equals or not _KEY.fullmatch(key):
        raise ConfigError(f"override {text!r} is not of the form key=value, such as task=heart or rounds=20")
    options, settings = groups(folders), schema()
    if key in options and raw not in options[key]:
        brought = plugins.installed(BROUGHT[key]) if key in BROUGHT else {}
        meant = plugins.file_meant(raw) if key == "task" else ""
        raise ConfigError(f"unknown option '{raw}' of group '{key}'{meant or nearest(raw, [*options[key], *brought])}")
    if key not in options and key not in settings:
        raise ConfigError(f"unknown key '{key}'{_nearest_key(key, [*settings, *options])}")
    return key, raw


def takes_text(key: str) -> bool:
    """Whether the value of the setting `key` is text."""
    kind, _ = schema()[key]
    return str in (kind, *typing.get_args(kind)) and typing.get_origin(kind) is not tuple


def _check_override(text: str, folders: Sequence[Path]) -> tuple[str, str]:
    """The key of `text`, and the text as Hydra is to read it."""
    key, raw = split_override(text, folders)
    if key in groups(folders):
        return key, f"{key}={raw}"
    return key, f"++{key}={_quote(raw) if takes_text(key) else raw}"


def _nearest_key(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return nearest(key, close or [name for name in known if "." not in name])


def _quote(raw: str) -> str:
    """Text as given, so that paths, addresses and sites such as 0 need no quoting; null stays null."""
    if raw == "null" or (len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "'\""):
        return raw
    escaped = raw.replace("'", "\\'")
    return f"'{escaped}'"


def _hydra(overrides: list[str], folders: Sequence[Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """The composed plain values and the option chosen in each group."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    search = [f"'file://{folder}'" for folder in folders[1:]]
    more = [f"hydra.searchpath=[{','.join(search)}]"] if search else []
    try:
        with initialize_config_dir(str(folders[0].resolve()), version_base="1.3"):
            composed = hydra_compose("config", overrides=[*overrides, *more], return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        OmegaConf.set_struct(composed, False)
        del composed["hydra"]
        _refuse_resolvers(OmegaConf.to_container(composed, resolve=False))
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as problem:
        raise ConfigError(_plain(problem)) from problem
    if not isinstance(values, dict):
        raise ConfigError("the configuration is not a mapping")
    _refuse_code(values)
    return {str(key): value for key, value in values.items()}, {str(k): str(v) for k, v in choices.items() if v}


def _refuse_resolvers(values: object, where: str = "") -> None:
    """Raise ConfigError for `${oc.env:…}` and its like, which would bring in what the operator did not write."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            _refuse_resolvers(value, f"{where}.{key}" if where else str(key))
    elif isinstance(values, list):
        for value in values:
            _refuse_resolvers(value, where)
    elif isinstance(values, str) and "${" in values:
        from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
        from omegaconf.grammar_parser import parse

        pending = [parse(values)]
        while pending:
            node = pending.pop()
            if isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
                raise ConfigError(
                    f"'{where}' is {values[:80]!a}: only other settings may be named, as in ${{task.name}}; "
                    "write out what comes from anywhere else"
                )
            pending.extend(getattr(node, "children", None) or ())


def _plain(problem: Exception) -> str:
    """Hydra's error in one line, without its stack of wrapped causes and its internal prefixes."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    if override := getattr(problem, "override", None):
        return f"override '{override.removeprefix('++')}' cannot be read: {lines[0]}"
    if lines and lines[0].startswith("Missing mandatory value"):
        key = getattr(problem, "full_key", None) or lines[0].rpartition(" ")[2]
        return f"'{key}' must be given, as in {key}=…"
    return (lines[0] if lines else type(problem).__name__).replace("'++", "'")


def _refuse_code(values: object, where: str = "") -> None:
    if isinstance(values, Mapping):
        for key, value in values.items():
            if str(key) == "_target_":
                raise ConfigError(f"'{where}_target_' is refused: {_NO_CODE}")
            _refuse_code(value, f"{where}{key}.")
    elif isinstance(values, list):
        for value in values:
            _refuse_code(value, where)


def _origins(
    config: Config, choices: Mapping[str, str], overridden: Mapping[str, str], folders: Sequence[Path]
) -> dict[str, str]:
    """Who chose each key; later sources win, as in the defaults list: groups, config.yaml, experiment, overrides."""
    known = groups(folders)
    options = {group: f"{group}/{option}.yaml" for group, option in choices.items() if group in known}
    experiment = options.pop("experiment", None)
    files = [(f"{group}.", file) for group, file in options.items()] + [("", "config.yaml")]
    if experiment:
        files.append(("", experiment))
    origins = {key: DEFAULT for key, _ in leaves(config)}
    for prefix, name in files:
        folder = next(folder for folder in folders if (folder / name).exists())
        shown = f"conf/{name}" if folder == PACKAGED else str(folder / name)
        for key, value in _chosen(folder / name, prefix):
            by = f"{shown}: {value}" if isinstance(value, str) and "${" in value else shown
            origins |= {leaf: by for leaf in origins if leaf == key or leaf.startswith(f"{key}.")}
    return origins | {key: by for key, by in overridden.items() if key in origins}


def _chosen(path: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    """The dotted keys that the YAML file at `path` chooses, with their uninterpolated values."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if isinstance(content, dict):
        content.pop("defaults", None)
        yield from _dotted(content, prefix)


def _dotted(content: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
