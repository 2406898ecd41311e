"""Command-line flags with plain argparse: value types, help with one line a flag, and a file of flags."""

import argparse
import re

import yaml


def boolean(text: str) -> bool:
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return values[text.lower()]


def positive_int(text: str) -> int:
    return _checked(int(text), lambda value: value > 0, "has to be above 0")


def positive_float(text: str) -> float:
    return _checked(float(text), lambda value: value > 0, "has to be above 0")


def non_negative_int(text: str) -> int:
    return _checked(int(text), lambda value: value >= 0, "has to be 0 or more")


def non_negative_float(text: str) -> float:
    return _checked(float(text), lambda value: value >= 0, "has to be 0 or more")


def fraction(text: str) -> float:
    return _checked(float(text), lambda value: 0 <= value <= 1, "has to be between 0 and 1")


def _checked(value, is_valid, message: str):
    if not is_valid(value):
        raise argparse.ArgumentTypeError(f"{value} {message}")
    return value


class OneLineHelp(argparse.RawDescriptionHelpFormatter):
    """`--flag   what it does (default)`, one line a flag. All flags fit on one screen."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=36, width=160)

    def format_help(self) -> str:
        """Without blank lines between the groups of flags."""
        return re.sub(r"(\n  .*)\n\n(\w+:\n)", r"\1\n\2", super().format_help())

    def _format_action_invocation(self, action) -> str:
        return ", ".join(action.option_strings) or action.dest

    def _get_help_string(self, action) -> str:
        has_default = action.default not in (None, False, argparse.SUPPRESS)
        return action.help + (" (%(default)s)" if has_default else "")


class ArgumentParser(argparse.ArgumentParser):
    """Raises ValueError for an unknown flag or an invalid value, instead of printing the usage."""

    def error(self, message: str):
        raise ValueError(message)


def make_parser(description: str) -> ArgumentParser:
    parser = ArgumentParser(
        description=description,
        formatter_class=OneLineHelp,
        usage=argparse.SUPPRESS,  # the description shows the commands
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    return parser


def add_switch(group, name: str, help: str) -> None:
    """A flag that is off by default: `--name`, `--name true` or, in a file of flags, `name: true`."""
    group.add_argument(name, type=boolean, nargs="?", const=True, default=False, help=help)


def expand_flag_file(argv: list[str]) -> list[str]:
    """Replaces a YAML or JSON file of flags in first position by its flags. Flags after it override it."""
    if not argv or not argv[0].endswith((".yaml", ".yml", ".json")):
        return argv
    with open(argv[0], encoding="utf-8") as file:
        try:
            settings = yaml.safe_load(file)  # JSON is a subset of YAML
        except yaml.YAMLError as error:
            raise ValueError(f"{argv[0]}: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{argv[0]}: not a mapping of flags to values")
    flags = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    return flags + argv[1:]


def name_data_file(argv: list[str]) -> list[str]:
    """`data.py train.conll` means `data.py --train_file train.conll`. A YAML file is one of flags."""
    if not argv or argv[0].startswith("-") or argv[0].endswith((".yaml", ".yml")):
        return argv
    return ["--train_file", *argv]
