"""A page for each command, made of its flags: name, help, legal values and default."""

from __future__ import annotations

import importlib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mobilenet import __main__ as program
from mobilenet.cli import Command, FlagSpec
from mobilenet.cli.flags import GROUPS
from mobilenet.configs import archs, recipes
from mobilenet.configs import dataset as datasets
from mobilenet.configs.base import Config, ImageSize
from mobilenet.configs.dataset import DatasetConfig
from mobilenet.configs.parameters import parameters_of, value_of
from mobilenet.configs.run import RunConfig

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = "commands"
# Pages on what a command is for.
GUIDES = {
    "trainer": "training.md",
    "evaluator": "evaluation.md",
    "converter": "tflite.md",
    "packer": "packed.md",
    "report": "report.md",
    "data": "input_speed.md",
    "tf1_loader": "tf1.md",
}
# Data sets whose recipes differ, by what a page calls them.
_RECIPES = {"digits": "digits", "imagenet2012": "ImageNet", "image_folder": "others"}
_FROM_DATA = {"num_classes": "the number of classes in the data"}  # whatever a recipe has
_TYPES = {
    int: "a whole number",
    float: "a number",
    ImageSize: "a whole number, or height,width",
}
_SPECIAL = re.compile(r"(`[^`]*`)|([\\*_`\[\]<>|])")


def commands() -> dict[str, Command]:
    """The commands by name, in the order of `python -m mobilenet`."""
    by_name = {}
    for name, module in program.COMMANDS.items():
        imported = importlib.import_module(module)
        if not hasattr(imported, "COMMAND"):  # of a package
            imported = importlib.import_module(f"{module}.__main__")
        by_name[name] = imported.COMMAND
    return by_name


def pages() -> dict[str, str]:
    """Markdown by path among the sources of the site: the list of commands, and each of them."""
    by_name = commands()
    texts = {f"{FOLDER}/index.md": _index(by_name)}
    return texts | {f"{FOLDER}/{name}.md": page(name, c) for name, c in by_name.items()}


def _index(by_name: Mapping[str, Command]) -> str:
    rows = [f"| [`{name}`]({name}.md) | {c.summary} |" for name, c in by_name.items()]
    lines = (
        "# Commands\n",
        "`python -m mobilenet.NAME`, `mobilenet NAME` and `mobilenet-NAME` run a command. `--help` "
        "lists its main flags, `--helpfull` all of them; `python -m mobilenet` lists the commands "
        "and the models.\n",
        *("| command | purpose |", "|---|---|", *rows),
    )
    return "\n".join(lines) + "\n"


def page(name: str, command: Command) -> str:
    """Markdown of a command's page: its main flags by group, then the others.

    Args:
        name: after `mobilenet`.
        command: with its flags.
    """
    usage = f"python -m {command.name} [flags] {command.arguments}".rstrip()
    lines = [f"# {name}\n", f"{command.summary}\n", f"```text\n{usage}\n```\n"]
    if name in GUIDES:
        title = (DOCS / GUIDES[name]).read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"Guide: [{title.removeprefix('# ')}](../{GUIDES[name]})\n")
    if command.config is RunConfig:
        lines.append(
            "A flag that is left out takes its value from the recipe of the model and data set. "
            "Where recipes differ, the defaults are those of the digits, of ImageNet and of other "
            "data sets. In brackets: the field of the config, for `--override`.\n"
        )
    defaults = defaults_of(command)
    for title, main in (("Main flags", True), ("Other flags", False)):
        specs = [spec for spec in command.flags() if spec.main is main]
        if specs:
            lines += [f"## {title}\n", *_groups(specs, title, defaults, command.config)]
    return "\n".join(lines)


def _groups(
    specs: Sequence[FlagSpec], title: str, defaults: Mapping[str, str], config: object
) -> Iterator[str]:
    for group in GROUPS:
        members = [spec for spec in specs if spec.group == group]
        if members:
            yield f"### {group.capitalize()} {{ #{title.split()[0].lower()}-{group} }}\n"
        for spec in members:
            yield _entry(spec, defaults[spec.name], spec.path if config else "")


def _entry(spec: FlagSpec, default: str, path: str) -> str:
    """A flag with its help, and a line of what may be typed; a heading, which the search finds."""
    typed = [f"--{spec.name}"]
    if spec.can_be_off:
        typed.append(f"--no{spec.name}")
    if spec.short:
        typed.append(f"-{spec.short}")
    facts = [
        values(spec),
        default and f"default: {default}",
        path and f"[{path}]",
    ]
    line = escaped("; ".join(fact for fact in facts if fact))
    text = ", ".join(f"`{form}`" for form in typed)
    text = f"#### {text} {{ .flag #{spec.name} }}\n\n{escaped(spec.help)}\n"
    return text + (f"\n<small>{line}</small>\n" if line else "")


def escaped(text: str) -> str:
    """Text whose characters mean nothing in Markdown, but for code in backticks."""
    return _SPECIAL.sub(lambda match: match[1] or f"\\{match[2]}", text)


def values(spec: FlagSpec) -> str:
    """What may be typed after a flag, in words; empty for a switch and for any text."""
    if spec.is_switch:
        return ""
    kind, optional = spec.type, ""
    inner = [option for option in typing.get_args(kind) if option is not types.NoneType]
    if types.NoneType in typing.get_args(kind):
        kind, optional = inner[0], ", or none" if spec.path else ""
    item = spec.rule.expected if spec.rule else ""
    if typing.get_origin(kind) is tuple:
        item = item or _TYPES.get(typing.get_args(kind)[0], "text")
        return f"{item}; several split by commas{optional}"
    if typing.get_origin(kind) is dict:
        item = item or _TYPES.get(inner[-1], "")
        return f"{item}; or name=number,name=number" if item else ""
    if kind == ImageSize or not item:
        item = _TYPES.get(kind, "")
    return f"{item}{optional}" if item else ""


def shown(value: Any) -> str:
    """A default as it is typed; empty for none."""
    if value is None or value in ((), {}, ""):
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, dict):
        return ",".join(f"{key}={shown(item)}" for key, item in value.items())
    if isinstance(value, tuple):
        return ",".join(map(shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def defaults_of(command: Command) -> dict[str, str]:
    """The default of each flag of a command, by name.

    Of a run it is that of the recipes, for each kind of data set where they differ; of a flag on
    data it is left out where data sets differ.
    """
    defaults = {
        spec.name: "" if spec.is_switch and not spec.can_be_off else shown(spec.default)
        for spec in command.flags()
    }
    by_path = {spec.path: spec.name for spec in command.flags() if spec.path}
    if command.config is RunConfig:
        configs = {
            label: [recipes.get(model, dataset) for model in archs.ALL]
            for dataset, label in _RECIPES.items()
        }
        of_recipes = {n: _joined(texts) for n, texts in _by_label(RunConfig, configs).items()}
        return defaults | of_recipes | _FROM_DATA
    of_data = _by_label(DatasetConfig, {name: [config] for name, config in datasets.KNOWN.items()})
    for parameter in parameters_of(DatasetConfig):
        texts = set(of_data[parameter.name].values())
        if by_path.get(parameter.path) == parameter.name and len(texts) > 1:
            defaults[parameter.name] = ""
    return defaults


def _by_label(
    kind: type[Config], configs: Mapping[str, Iterable[Config]]
) -> dict[str, dict[str, str]]:
    """What each parameter of a class of configs is under each label."""
    texts: dict[str, dict[str, str]] = {}
    for parameter in parameters_of(kind):
        for label, members in configs.items():
            of_members = dict.fromkeys(shown(value_of(parameter, config)) for config in members)
            text = " or ".join(text or "none" for text in of_members) + " by model"
            text = next(iter(of_members)) if len(of_members) == 1 else text
            texts.setdefault(parameter.name, {})[label] = text
    return texts


def _joined(texts: Mapping[str, str]) -> str:
    """One default, or each with its data sets."""
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    pairs = [
        (text, [label for label, other in texts.items() if other == text])
        for text in dict.fromkeys(texts.values())
    ]
    return ", ".join(f"{text or 'none'} ({', '.join(labels)})" for text, labels in pairs)
