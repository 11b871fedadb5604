"""What holds for every verb of every command: a function of one options object, which makes the flags."""

import argparse
import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from pangu_bench import cli as bench
from pangu_bench.options import AnswerOptions, CostOptions, UsageError
from pangu_convert import cli as convert
from pangu_convert.gptq import GptqOptions
from pangu_server import cli as serve
from pangu_training import cli as train
from pangu_training.rrtf.options import Options, TrainingOptions
from pangu_training.stage.command import Verb, add_verb, options_class, parsed
from pangu_training.stage.errors import OptionError
from pangu_training.stage.options import options_of

COMMANDS = {"pangu-train": train, "pangu-convert": convert, "pangu-bench": bench}
VERBS: dict[str, tuple[Any, list[str], Verb]] = {"pangu-serve": (serve, [], serve.serve)} | {
    f"{command} {name}": (cli, [name], verb)
    for command, cli in COMMANDS.items()
    for name, (verb, _) in cli.VERBS.items()
}
verbs = pytest.mark.parametrize("name", VERBS)


def fields_of(cls: Any) -> Iterator[dataclasses.Field[Any]]:
    """The fields that are flags, those of nested dataclasses too."""
    for field in dataclasses.fields(cls):
        if "nested" in field.metadata:
            yield from fields_of(field.metadata["nested"])
        else:
            yield field


def flags_of(verb: Verb) -> list[argparse.Action]:
    parser = argparse.ArgumentParser(add_help=False)
    add_verb(parser, verb)
    return parser._actions


@verbs
def test_a_verb_takes_one_frozen_dataclass(name: str) -> None:
    verb = VERBS[name][2]
    assert len(inspect.signature(verb).parameters) == 1
    cls = options_class(verb)
    assert vars(cls)["__dataclass_params__"].frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    assert "__slots__" in vars(cls)


@verbs
def test_each_field_is_a_flag_that_says_what_it_is(name: str) -> None:
    verb = VERBS[name][2]
    fields, flags = list(fields_of(options_class(verb))), flags_of(verb)
    assert [field.name for field in fields] == [flag.dest for flag in flags]
    assert all(flag.help for flag in flags)


@verbs
def test_help_needs_nothing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli, words, verb = VERBS[name]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert all(option in told for flag in flags_of(verb) for option in flag.option_strings)


@verbs
def test_python_and_the_command_line_have_the_same_defaults(name: str) -> None:
    cli, words, verb = VERBS[name]
    for flag in flags_of(verb):
        if flag.required:
            words = [*words, *flag.option_strings[-1:], next(iter(flag.choices or ["x"]))]
    assert parsed(cli.parser(), words) == (verb, least(options_class(verb)))


def least(cls: Any) -> Any:
    """`cls` with only what it requires, made as one makes any dataclass."""
    values, hints = {}, get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "nested" in field.metadata:
            inner = field.metadata["nested"]
            if any(one.default is dataclasses.MISSING for one in fields_of(inner)):
                values[field.name] = least(inner)
        elif field.default is dataclasses.MISSING:
            value = next(iter(field.metadata.get("choices", ["x"])))
            kinds = {Path: Path(value), tuple[Path, ...]: (Path(value),), str: value}
            values[field.name] = kinds[hints[field.name]]
    return cls(**values)


def test_options_from_names_fill_what_is_nested() -> None:
    options = options_of(GptqOptions, checkpoint=Path("c"), output=Path("o"), bits=8, seed=3)
    assert (options.bits, options.conversion.output) == (8, Path("o"))
    assert (options.calibration.seed, options.calibration.samples) == (3, 32), "the verb's own default"


def test_options_that_are_wrong_are_named() -> None:
    paths = {"checkpoint": Path("c"), "output": Path("o")}
    with pytest.raises(TypeError, match="GptqOptions has no option bites"):
        options_of(GptqOptions, **paths, bites=8)
    with pytest.raises(TypeError, match="checkpoint"):
        options_of(GptqOptions, output=Path("o"))
    with pytest.raises(OptionError, match="bits: 3 is none of 4, 8"):
        options_of(GptqOptions, **paths, bits=3)


def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="--samples above 1"):
        AnswerOptions(samples=2)
    assert bench.main(["humaneval", "--output", str(tmp_path), "--gold", "--samples", "2"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_results_and_runs_record_keeps_its_names() -> None:
    """Result folders and runs of earlier versions go on: their configurations must not change."""
    assert dataclasses.asdict(AnswerOptions()) == {
        "suite": "humaneval",
        "style": "completion",
        "samples": 1,
        "temperature": 0.0,
        "top_p": 0.95,
        "max_tokens": 512,
        "seed": None,
        "concurrency": 1,
        "limit": None,
        "unsafe": False,
    }
    assert dataclasses.asdict(CostOptions(prompt_tokens=(64, 64, 512))) == {
        "context": 2048,
        "prompt_tokens": (64, 512),
        "new_tokens": 64,
        "warmup": 3,
        "repeats": 10,
    }
    assert TrainingOptions().options == Options()
    assert dataclasses.asdict(Options()) == {
        "rank_loss": "score-gap",
        "fine_tuning_loss": "sum",
        "lora_rank": 0,
        "learning_rate": None,
        "warmup_steps": 30,
        "epochs": 6,
        "global_batch": 512,
        "micro_batch": 1,
        "max_length": 2048,
        "weight_decay": 0.0,
        "max_gradient_norm": 1.0,
        "precision": "auto",
        "attention": "sdpa",
        "gradient_checkpointing": True,
        "save_steps": 50,
        "held_out_max_tokens": 512,
        "held_out_batch": 8,
        "seed": 0,
    }
