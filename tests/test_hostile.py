"""A hostile file in a folder that others made: each command that reads it says so in one line, exits with 2 in seconds,
takes less than 1 GB, writes nothing and runs nothing."""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.commands import pangu_convert
from support.corpus import (
    BOMBS,
    GGUFS,
    INDICES,
    PLACES,
    TEMPLATES,
    TOKENIZERS,
    WEIGHTS,
    Attack,
    changed_keys,
    gguf_of_bytes,
    replaced,
)
from support.hostile import READY, Ended, ended
from support.ranked_rows import write_rows
from support.scripted import byte_tokenizer
from support.served_bombs import MODEL_BINS, sealed, written
from support.tiny import save_tiny

from pangu_training import cli as training

SHORT = ("--max-length", "128", "--global-batch", "4", "--micro-batch", "4", "--epochs", "1")
SAMPLES = ("--samples", "2")
MODEL = "model.safetensors"
# Keys that a file of the kind may have, each tried with values of all kinds.
CONFIG_KEYS = {
    "num_labels": 2,
    "id2label": {"0": "a"},
    "attn_implementation": "sdpa",
    "layer_types": ["full_attention"] * 2,
    "text_config": {"num_hidden_layers": 2},
    "n_layer": 2,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "auto_map": {"AutoConfig": "code.Config"},
    "pruned_heads": {"0": [1]},
    "torch_dtype": "float32",
}
TOKENIZER_KEYS = {
    "auto_map": {"AutoTokenizer": ["code.Config", None]},
    "added_tokens_decoder": {"5": {"content": "a", "special": True}},
    "additional_special_tokens": ["a"],
    "extra_special_tokens": {"x": "a"},
    "chat_template": "{{ messages }}",
    "tokenizer_file": "/etc/passwd",
    "fast_tokenizer_files": ["a.json"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Good:
    """Folders with nothing wrong."""

    checkpoint: Path
    transformers: Path
    ctranslate2: Path
    rows: Path
    run: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command that gets something hostile. `taken`: it may also be taken for what it says."""

    name: str
    command: list[object]
    folder: Path  # in which nothing may be left
    taken: bool = False


Command = Callable[[Good, Path, Path], list[object]]  # the good ones, what is hostile, the output
CHECKPOINT_COMMANDS: dict[str, Command] = {
    "import": lambda _, source, output: ["pangu-convert", "import", source, "--output", output],
    "transformers": lambda _, source, output: ["pangu-convert", "transformers", source, "--output", output],
    "ctranslate2": lambda _, source, output: [
        *("pangu-convert", "ctranslate2", source, "--output", output),
        *SAMPLES,
    ],
    "verify": lambda good, source, _: ["pangu-convert", "verify", good.transformers, "--against", source],
    "fit": lambda good, source, output: [
        *("pangu-train", "fit", good.rows, "--checkpoint", source, "--output", output, "--plan-only"),
        *SHORT,
    ],
    "export": lambda good, source, output: [
        *("pangu-train", "export", good.run, "--checkpoint", source, "--output", output)
    ],
    "gptq": lambda _, source, output: ["pangu-convert", "gptq", source, "--output", output, *SAMPLES],
}
ARTIFACT_COMMANDS: dict[str, Command] = {
    "inspect": lambda _, source, __: ["pangu-convert", "inspect", source, "--verify"],
    "verify": lambda _, source, __: ["pangu-convert", "verify", source],
    "serve": lambda _, source, __: ["pangu-serve", source, "--port", 0, "--threads", 1],
}


class Corpus:
    """Cases in the making, in folders of their own."""

    def __init__(self, folder: Path, good: Good) -> None:
        self.folder, self.good = folder, good
        self.cases: list[Case] = []

    def add(
        self,
        source: Path,
        file: str,
        attack: Attack,
        command: Command,
        name: str,
        *more: object,
        taken: bool = False,
    ) -> None:
        folder = self.folder / str(len(self.cases))
        hostile = folder / "in"
        shutil.copytree(source, hostile)
        (hostile / "code.py").write_text(f"open({str(self.folder / 'ran')!r}, 'w')\nConfig = 1\n")
        attack(hostile / file)
        words = [*command(self.good, hostile, folder / "out"), *more]
        self.cases.append(Case(name=name, command=words, folder=folder, taken=taken))


def sampled(file: Path, keys: dict[str, object], count: int) -> Iterator[tuple[str, Attack]]:
    """Some of all changes of a file's keys, and of `keys`, the same ones each time."""
    old = json.loads(file.read_text())
    every = [
        (name, written(value))
        for name, value in changed_keys(old)
        if not name.startswith("library_versions.")
    ]
    for key, value in keys.items():
        every += [
            (name, written(new)) for name, new in changed_keys({**old, key: value}) if name.startswith(key)
        ]
    return iter(random.Random(0).sample(every, count))


def checkpoints(corpus: Corpus) -> None:
    good, commands = corpus.good.checkpoint, CHECKPOINT_COMMANDS
    turns = itertools.cycle(commands.items())
    provenance = written({"source": "x"})
    for file in (
        "config.json",
        "tokenizer_config.json",
        "generation_config.json",
        "tokenizer.json",
        "import.json",
    ):
        for name, attack in (PLACES if file == "import.json" else BOMBS).items():
            verb, command = next(turns)

            def change(path: Path, file: str = file, attack: Attack = attack) -> None:
                if file == "import.json":
                    provenance(path)
                attack(path)

            corpus.add(good, file, change, command, f"{file} {name} {verb}")
    for file, attacks in ((MODEL, WEIGHTS), (f"{MODEL}.index.json", INDICES)):
        for name, attack in attacks.items():
            verb, command = next(turns)
            corpus.add(good, file, attack, command, f"{file} {name} {verb}")
    for name, attack in TOKENIZERS.items():
        corpus.add(good, "tokenizer.json", attack, commands["ctranslate2"], f"tokenizer {name}")
    for name, text in TEMPLATES.items():
        template = replaced(text.encode())
        corpus.add(
            good, "chat_template.jinja", template, commands["ctranslate2"], f"template {name}", "--chat"
        )


def keys_of_checkpoints(corpus: Corpus) -> None:
    good = corpus.good.checkpoint
    turns = itertools.cycle(
        [item for item in CHECKPOINT_COMMANDS.items() if item[0] not in ("gptq", "verify")]
    )
    files = (("config.json", CONFIG_KEYS, 40), ("tokenizer_config.json", TOKENIZER_KEYS, 30))
    for file, keys, count in (*files, ("generation_config.json", {}, 10)):
        for name, attack in sampled(good / file, dict(keys), count):
            verb, command = next(turns)
            corpus.add(good, file, attack, command, f"{file} {name} {verb}", taken=True)


def artifacts(corpus: Corpus) -> None:
    good, turns = corpus.good, itertools.cycle(ARTIFACT_COMMANDS.items())
    for name, attack in BOMBS.items():
        verb, command = next(turns)
        corpus.add(good.ctranslate2, "manifest.json", attack, command, f"manifest.json {name} {verb}")
    for name, attack in sampled(good.ctranslate2 / "manifest.json", {}, 40):
        verb, command = next(turns)
        corpus.add(
            good.ctranslate2, "manifest.json", attack, command, f"manifest.json {name} {verb}", taken=True
        )
    serve = ARTIFACT_COMMANDS["serve"]
    for source, file in (
        *((good.transformers, name) for name in ("config.json", "tokenizer_config.json")),
        *((good.ctranslate2, name) for name in ("config.json", "vocabulary.json")),
    ):
        engine = () if source == good.transformers else ("--engine", "ctranslate2")
        for name in ("empty", "deep", "wide", *PLACES):
            attack = sealed(file, BOMBS[name])
            corpus.add(source, "manifest.json", attack, serve, f"served {file} {name}", *engine)
    for name in ("header of 2^63", "overlapping", "shape of a million sizes", "fifo"):
        corpus.add(good.transformers, "manifest.json", sealed(MODEL, WEIGHTS[name]), serve, f"served {name}")
    for name, attack in MODEL_BINS.items():
        for one in ("ctranslate2", "torch"):
            bomb = sealed("model.bin", attack)
            corpus.add(good.ctranslate2, "manifest.json", bomb, serve, f"{one} {name}", "--engine", one)
    for name, attack in sampled(good.transformers / "config.json", dict(CONFIG_KEYS), 6):
        bomb = sealed("config.json", attack)
        corpus.add(good.transformers, "manifest.json", bomb, serve, f"served {name}", taken=True)


def ggufs(corpus: Corpus) -> None:
    for name, attack in (*GGUFS.items(), ("bytes", gguf_of_bytes), *PLACES.items()):

        def command(_: Good, source: Path, output: Path) -> list[object]:
            return ["pangu-convert", "import", source / "a.gguf", "--output", output]

        corpus.add(corpus.good.rows.parent / "nothing", "a.gguf", attack, command, name)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("good")
    checkpoint = save_tiny(folder / "checkpoint", byte_tokenizer(), "llama")
    rows, run = write_rows(folder / "rows.jsonl", 4), folder / "run"
    words = ("fit", rows, "--checkpoint", checkpoint, "--output", run, *SHORT)
    assert training.main([str(word) for word in words]) == 0
    (folder / "nothing").mkdir()
    for verb in ("transformers", "ctranslate2"):
        pangu_convert(
            verb, checkpoint, "--output", folder / verb, *(SAMPLES if verb == "ctranslate2" else ())
        )
    return Good(
        checkpoint=checkpoint,
        transformers=folder / "transformers",
        ctranslate2=folder / "ctranslate2",
        rows=rows,
        run=run,
    )


@pytest.fixture(scope="module")
def outcomes(good: Good, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Case, Ended]]:
    """Of all cases, from one process, which loads the libraries once."""
    folder = tmp_path_factory.mktemp("warm")
    verbs = ("import", "transformers", "ctranslate2", "fit", "export")
    corpus = Corpus(tmp_path_factory.mktemp("hostile"), good)
    for part in (checkpoints, keys_of_checkpoints, artifacts, ggufs):
        part(corpus)
    found = ended(
        [case.command for case in corpus.cases],
        warm=[CHECKPOINT_COMMANDS[verb](good, good.checkpoint, folder / verb) for verb in verbs],
    )
    assert not (corpus.folder / "ran").exists(), "code of a checkpoint was run"
    return list(zip(corpus.cases, found, strict=True))


def test_each_is_one_line(outcomes: list[tuple[Case, Ended]]) -> None:
    wrong = [
        f"{case.name}: {one.complaint}"
        for case, one in outcomes
        if one.complaint and not (case.taken and (one.code == 0 or READY in one.stdout))
    ]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(outcomes)}", *wrong])


def test_each_that_is_refused_writes_nothing(outcomes: list[tuple[Case, Ended]]) -> None:
    left = [
        f"{case.name}: {sorted(path.name for path in case.folder.iterdir())}"
        for case, one in outcomes
        if one.code and {path.name for path in case.folder.iterdir()} != {"in"}
    ]
    assert not left
