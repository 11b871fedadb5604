"""An argument parser whose options can come from the environment too: a container sets variables."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

FLAGS = {"1": True, "true": True, "0": False, "false": False}


class EnvironmentParser(argparse.ArgumentParser):
    """Reads `PREFIX_NAME` for `--name`; the command line wins.

    A list is separated by spaces, a flag is 1, true, 0 or false. A value is checked as the option's own is,
    and the error names the variable.
    """

    def __init__(self, *, prefix: str, **options: Any) -> None:
        super().__init__(**options)
        self._prefix = prefix

    def variables(self) -> dict[str, argparse.Action]:
        """Each variable's name and its option."""
        options = [action for action in self._actions if action.option_strings and action.dest != "help"]
        names = [action.option_strings[0].removeprefix("--") for action in options]
        return {
            self._prefix + name.replace("-", "_").upper(): action
            for name, action in zip(names, options, strict=True)
        }

    def format_help(self) -> str:
        """With the variables at the end."""
        self.epilog = (
            "Each option can come from the environment, under its name in capitals; the command line wins: "
            + " ".join(self.variables())
        )
        return super().format_help()

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See `argparse.ArgumentParser`."""
        for variable, action in self.variables().items():
            if variable in os.environ:
                self.set_defaults(**{action.dest: self._value(variable, action)})
        return super().parse_known_args(args, namespace)

    def _value(self, variable: str, action: argparse.Action) -> Any:
        text = os.environ[variable]
        if action.nargs == 0:
            if text.lower() not in FLAGS:
                self.error(f"environment variable {variable}: {text!r} is none of {', '.join(FLAGS)}")
            return FLAGS[text.lower()]
        try:
            return self._get_values(action, text.split() if action.nargs == "+" else [text])
        except argparse.ArgumentError as error:
            self.error(f"environment variable {variable}: {error.message}")
