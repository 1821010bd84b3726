"""Configs by name: read the files, merge them, validate strictly.

Later layers win: cluster < bases < file < preset < overrides. A file may hold ``presets``, named
differences from itself, of which ``preset`` chooses one.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pretrain.config.schema import RunConfig
from pretrain.credentials import redact
from pretrain.errors import ConfigError
from pretrain.location import is_remote

RESULTS = "results"
"""In the place of a config's name: evaluate and convert what the run before it has learnt."""
CONFIGS_DIR = Path(__file__).resolve().parents[2] / "configs"
"""Where names are looked up: the ``configs/`` of the source tree that is running."""


@dataclass(frozen=True)
class _Source:
    """One layer of a config: where it was written and what it says."""

    where: str
    values: dict[str, Any]
    lines: Mapping[str, int]


def config_names() -> list[str]:
    """Return the names that ``--config`` accepts, sorted."""
    return sorted(path.stem for path in CONFIGS_DIR.glob("*.yaml"))


def expand_chain(names: Sequence[str]) -> list[str]:
    """Replace each name of a chain (a config that only says ``chain: […]``) by its parts.

    Raises:
        ConfigError: a name that does not exist, or a chain that says anything else.
    """
    parts: list[str] = []
    for name in names:
        if name == RESULTS:
            parts.append(name)
            continue
        source = _read_file(_find(name, "--config"))
        if "chain" not in source.values:
            parts.append(name)
            continue
        chain = source.values["chain"]
        if len(source.values) > 1 or not _is_list_of_text(chain):
            raise ConfigError(
                f"{source.where}: a chain holds nothing but 'chain: [NAME, NAME, …]', "
                f"got the keys {sorted(source.values)}"
            )
        parts.extend(chain)
    return parts


def results_of(config: RunConfig) -> RunConfig:
    """Derive the run that evaluates and converts the weights of another, on one node."""
    return config.model_copy(
        update={
            "name": f"{config.name}_{RESULTS}",
            "task": RESULTS,
            "init_from": config.name,
            "init_classes": None,
            "init_weights": None,
            "init_image_size": None,
            "init_window_size": None,
            "cluster": config.cluster.model_copy(update={"nodes": 1}),
        }
    )


def load_run(
    name: str,
    overrides: Sequence[str] = (),
    *,
    cluster: str | None = None,
    run_name: str | None = None,
) -> RunConfig:
    """Load one run's config; relative paths become absolute from the working directory.

    Args:
        name: a file name in ``configs/`` without its suffix, or a path to a YAML file.
        overrides: ``section.field=value`` items, values in YAML; the last of a kind wins.
        cluster: a name in ``configs/clusters/``, whose fields lie under the config's own.
        run_name: name of the run directory; null takes the config's name.

    Raises:
        ConfigError: everything that is wrong, one line each.
    """
    path = _find(name, "--config")
    sources = [_Source("the config's name", {"name": path.stem}, {})]
    if cluster is not None:
        site = _read_file(_find(cluster, "--cluster", CONFIGS_DIR / "clusters"))
        lines = {f"cluster.{key}": line for key, line in site.lines.items()}
        sources.append(_Source(site.where, {"cluster": site.values}, lines))
    parsed = [_parse_override(item) for item in overrides]
    sources += _with_preset(_with_bases(path), parsed)
    sources += parsed
    if run_name is not None:
        sources.append(_Source("--name", {"name": run_name}, {}))
    return _absolute_paths(_validate(sources, f"config '{name}'"))


def rename(config: RunConfig, name: str) -> RunConfig:
    """The same config for a run of another name.

    Raises:
        ConfigError: it is no name of a run.
    """
    values = config.model_dump(mode="json") | {"name": name}
    return _validate([_Source(f"the run's name '{name}'", values, {})], "config")


def vary(config: RunConfig, overrides: Sequence[str], where: str) -> RunConfig:
    """The same config with some fields changed.

    Raises:
        ConfigError: an override does not fit.
    """
    source = _Source(where, config.model_dump(mode="json"), {})
    return _validate([source, *map(_parse_override, overrides)], where)


def read_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a resolved config that `to_yaml` wrote.

    Args:
        path: of the file.
        overrides: ``section.field=value`` items that change it, values in YAML.

    Raises:
        ConfigError: the file is missing, damaged or of another version of the schema, or an
            override does not fit it.
    """
    parsed = [_parse_override(item) for item in overrides]
    config = _validate([_read_file(path), *parsed], str(path))
    return _absolute_paths(config) if parsed else config


def to_yaml(config: RunConfig) -> str:
    """Return the whole config as YAML that `read_run` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _find(name: str, option: str, folder: Path | None = None) -> Path:
    folder = CONFIGS_DIR if folder is None else folder
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"{option} {name}: no such file ({path.absolute()})")
        return path
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = sorted(
            str(file.relative_to(folder).with_suffix("")) for file in folder.glob("*.y*")
        )
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"{option} {name}: no such config in {folder}; {hint}")
    return path


def _read_file(path: Path) -> _Source:
    try:
        text = path.read_text(encoding="utf-8")
        if "${" in text:
            raise ConfigError(f"{path}: '${{…}}' is not supported; write the value")
        tree = OmegaConf.create(text) if text.strip() else OmegaConf.create()
        values = OmegaConf.to_container(tree, resolve=False)
        lines = _key_lines(yaml.compose(text))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{line}: {problem}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got {type(values).__name__}")
    for key in values:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: {key}: unknown key; expected text, got {key!r}")
        if "." in key:
            section, _, field = key.partition(".")
            raise ConfigError(
                f"{path}:{lines[key]}: {key}: dots are for the command line; "
                f"in a file write '{section}:' and '{field}:' indented below it"
            )
    return _Source(str(path), values, lines)  # pyright: ignore[reportArgumentType]


def _key_lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    """Return the line of every dotted key, counted from 1."""
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            lines[dotted] = key.start_mark.line + 1
            lines |= _key_lines(value, f"{dotted}.")
    return lines


def _with_bases(path: Path) -> list[_Source]:
    """Return the chain of bases of a file, the outermost first and the file last."""
    chain: list[_Source] = []
    seen: list[Path] = []
    while True:
        if path in seen:
            raise ConfigError(f"{seen[0]}: 'base' runs in a circle through {path}")
        seen.append(path)
        source = _read_file(path)
        base = source.values.pop("base", None)
        if "chain" in source.values:
            raise ConfigError(f"{path}: a chain cannot be loaded as one run; name its parts")
        chain.insert(0, source)
        if base is None:
            return chain
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base: expected the name of a config, got {base!r}")
        path = _find(base, f"{path}: base")


def _with_preset(files: Sequence[_Source], overrides: Sequence[_Source]) -> list[_Source]:
    """Return the files without their presets, then what each says in the chosen one."""
    sections = [(file, _presets_of(file)) for file in files]
    layers = [source.values for source in (*files, *overrides)]
    chosen = next((layer["preset"] for layer in layers[::-1] if "preset" in layer), None)
    if not isinstance(chosen, str):
        return list(files)
    layer = [
        _Source(file.where, presets[chosen], _below(file.lines, f"presets.{chosen}."))
        for file, presets in sections
        if chosen in presets
    ]
    if not layer:
        names = sorted({name for _, presets in sections for name in presets})
        there_are = f"there are {', '.join(names)}" if names else "this config has none"
        where = _written_at("preset", [*files, *overrides])
        raise ConfigError(f"{where}: preset: no preset '{chosen}'; {there_are}")
    return [*files, *layer]


def _presets_of(file: _Source) -> dict[str, dict[str, Any]]:
    presets = file.values.pop("presets", {})
    sound = isinstance(presets, dict) and all(isinstance(v, dict) for v in presets.values())
    if not sound or any(isinstance(v, dict) and "preset" in v for v in presets.values()):
        raise ConfigError(
            f"{file.where}:{file.lines['presets']}: presets: expected 'NAME:' and fields below "
            "each, 'NAME: {}' for none"
        )
    return presets


def _below(lines: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {key.removeprefix(prefix): line for key, line in lines.items() if key.startswith(prefix)}


def _parse_override(item: str) -> _Source:
    key, separator, _ = item.partition("=")
    if not separator or not all(part.isidentifier() for part in key.split(".")):
        raise ConfigError(f"override '{item}': expected section.field=value, such as optim.lr=1e-3")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([item]), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override '{item}': {str(error).splitlines()[0]}") from None
    where = f"override '{redact([item], {})[0]}'"
    return _Source(where, values, {})  # pyright: ignore[reportArgumentType]


def _validate(sources: Sequence[_Source], what: str) -> RunConfig:
    try:
        merged = OmegaConf.merge(*[OmegaConf.create(source.values) for source in sources])
        values = OmegaConf.to_container(merged, resolve=False)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{what}: {str(error).splitlines()[0]}") from None
    try:
        # JSON mode is as strict as Python mode, but takes lists for tuples.
        return RunConfig.model_validate_json(json.dumps(values))
    except ValidationError as error:
        lines = [_explain(detail, sources, what) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _explain(detail: ErrorDetails, sources: Sequence[_Source], what: str) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    where = _written_at(key, sources) or what
    if detail["type"] == "extra_forbidden":
        return f"{where}: {key}: unknown key{_suggest(detail['loc'])}"
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], int):
        given = json.dumps(detail["input"], default=str)
        return f"{where}: {key.rpartition('.')[0]}: too few values, got {given}"
    if detail["type"] == "missing":
        return f"{where}: {key}: not set; add it to the config or give {key}=VALUE"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{where}: {key}: {message}" if key else f"{where}: {message}"
    if key == "name" and detail["type"] == "string_pattern_mismatch":
        message = (
            "expected up to 150 letters, digits, '.', '_', '-', '=' or '+' (--name gives another)"
        )
    problem = f"{message[0].lower()}{message[1:]}"
    return f"{where}: {key}: {problem}, got {json.dumps(detail['input'], default=str)}"


def _written_at(key: str, sources: Sequence[_Source]) -> str | None:
    """Name the last layer that says anything about this key, with its line if it is a file."""
    parts = key.split(".")
    for depth in range(len(parts), 0, -1):
        for source in reversed(sources):
            if _lookup(source.values, parts[:depth]):
                line = source.lines.get(".".join(parts[:depth]))
                return f"{source.where}:{line}" if line else source.where
    return None


def _lookup(values: Any, parts: Sequence[str]) -> bool:
    for part in parts:
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _suggest(location: Sequence[int | str]) -> str:
    """Return the nearest key that exists, looked for beside the unknown one and then anywhere."""
    known = _all_keys(RunConfig)
    unknown = ".".join(str(part) for part in location)
    section = unknown.rpartition(".")[0]
    beside = [key for key in known if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(unknown, beside, n=1, cutoff=0.6)
    if not near:
        leaf = unknown.rpartition(".")[2]
        leaves = {key.rpartition(".")[2]: key for key in known}
        near = [leaves[leaf] for leaf in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)]
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; there are {', '.join(key.rpartition('.')[2] for key in beside)}" if beside else ""


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(f"{prefix}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += _all_keys(field.annotation, f"{prefix}{name}.")
    return keys


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _absolute_paths(config: RunConfig) -> RunConfig:
    """Make paths independent of the directory that a rank will start in."""
    values = config.model_dump(mode="json")
    values["runs_dir"] = _absolute(config.runs_dir)
    if not is_remote(config.data.path):
        values["data"]["path"] = _absolute(config.data.path)
    probe = config.eval.probe
    if probe is not None and not is_remote(probe.path):
        values["eval"]["probe"]["path"] = _absolute(probe.path)
    if config.data.cache_dir is not None:
        values["data"]["cache_dir"] = _absolute(config.data.cache_dir)
    if config.init_from is not None and "/" in config.init_from:
        values["init_from"] = _absolute(config.init_from)
    if config.init_classes is not None:
        values["init_classes"] = _absolute(config.init_classes)
    if config.tuned not in ("auto", "none"):
        values["tuned"] = _absolute(config.tuned)
    results = config.results
    values["results"]["evaluate"] = [
        path if is_remote(path) else _absolute(path) for path in results.evaluate
    ]
    if results.real_labels is not None:
        values["results"]["real_labels"] = _absolute(results.real_labels)
    return RunConfig.model_validate_json(json.dumps(values))


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
