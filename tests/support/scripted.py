"""A backend whose tokens are written down beforehand, and an artifact to go with it: no model, no framework."""

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pangu_convert.artifact import Artifact, Source, read_artifact, seal
from pangu_server.backends.sampling import Logits
from pangu_server.backends.schedule import Schedule, Ticket
from pangu_server.backends.seam import BackendInfo, CacheUse, Counts, Listener, SamplingOptions, TokenLogprobs

SPECIAL = ["<|endoftext|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<filename>"]
END, PREFIX, SUFFIX, MIDDLE, FILENAME = range(256, 261)
VOCABULARY_SIZE = 261
CONTEXT_LENGTH = 128


def byte_tokenizer() -> Tokenizer:
    """Token id = byte, then the end-of-text token: characters of several bytes span several tokens."""
    vocabulary = {_character(byte): byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def scripted_artifact(folder: Path, end: int = END, context_length: int = CONTEXT_LENGTH) -> Artifact:
    """An artifact with a tokenizer and nothing to run."""
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "model.bin").write_bytes(b"no weights")
    seal(
        folder,
        name="scripted",
        format="ctranslate2",
        architecture="GPTBigCodeForCausalLM",
        quantization="int8",
        dtype="float32",
        weight_files=["model.bin"],
        context_length=context_length,
        end_token_ids=[end],
        source=Source(name="scripted-checkpoint", sha256="0" * 64),
    )
    return read_artifact(folder)


# Generates for one ticket by calling `take` for each token, until it returns True.
Generate = Callable[[Ticket], None]


class SerialSchedule(Schedule):
    """Runs `generate` for one ticket after the other."""

    def __init__(self, generate: Generate) -> None:
        super().__init__()
        self._generate = generate
        self.start()

    def turn(self) -> None:
        """See `Schedule`."""
        with self.changed:
            head = list(self.waiting)[:1]
        for ticket in self.admit(head):
            self._generate(ticket)
            self.finish(ticket)


class ScriptedBackend:
    """Answers each prompt with the tokens of `script(prompt_ids)`; waits for `gate` before each token.

    With a grammar it draws from `logits` around each token of the script. Remembers every prompt: what two begin with
    alike is cached. A prediction's tokens are guesses, each at its place.
    """

    info = BackendInfo(
        name="scripted", engine="torch", device="cpu", compute_type="none", weight_bytes=10, threads=1
    )

    def __init__(self, script: Callable[[Sequence[int]], Iterable[int]]) -> None:
        self.script = script
        self.gate = threading.Event()
        self.gate.set()
        self.guesses: Sequence[int] = ()  # without a prediction
        self.reads = True  # a prompt that nothing is asked of, too
        self.emitted: list[int] = []
        self.prompts: list[Sequence[int]] = []
        self.logits = logits
        self.options: SamplingOptions | None = None
        self.seeds: list[int | None] = []
        self.tickets: list[Ticket] = []
        self.scheduler = SerialSchedule(self._generate)
        self.close = self.scheduler.close
        self.cancel = self.scheduler.cancel

    def submit(self, prompt_ids: Sequence[int], options: SamplingOptions, listener: Listener) -> Ticket:
        self.options = options
        self.seeds.append(options.seed)
        cached_tokens = max((shared(prompt_ids, earlier) for earlier in self.prompts), default=0)
        self.prompts.append(prompt_ids)
        ticket = self.scheduler.submit(prompt_ids, options, listener)
        ticket.cached_tokens = min(cached_tokens, len(prompt_ids) - 1)  # the last one's logits are wanted
        self.tickets.append(ticket)
        return ticket

    def cache_use(self) -> CacheUse:
        return CacheUse(held_bytes=0, used_fraction=0.0)

    def counts(self) -> Counts:
        return Counts(
            prefix_queries=sum(ticket.prompt_tokens for ticket in self.tickets),
            prefix_hits=sum(ticket.cached_tokens for ticket in self.tickets),
            drafted=sum(ticket.drafted for ticket in self.tickets),
            accepted=sum(ticket.accepted for ticket in self.tickets),
        )

    def _generate(self, ticket: Ticket) -> None:
        ticket.read = self.reads
        if ticket.prompt_due:
            ticket.listener.on_prompt([None, *[TokenLogprobs(-1.0)] * (ticket.prompt_tokens - 1)])
        if not ticket.options.max_tokens:
            return
        prediction = ticket.options.prediction or self.guesses
        for place, token_id in enumerate(self.script(ticket.tokens[: ticket.prompt_tokens])):
            self.gate.wait(timeout=30)
            if place < len(prediction):
                ticket.drafted += 1
                ticket.accepted += prediction[place] == token_id
            if ticket.options.constraint is not None:
                token_id = ticket.choose(self.logits(token_id))
            self.emitted.append(token_id)
            if ticket.take(token_id, self.logits(token_id)):
                return


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two prompts have in common at their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def logits(token_id: int) -> Logits:
    """Half for this token, a quarter for the next id, an eighth for the one after it, and so on."""
    distance = (np.arange(VOCABULARY_SIZE) - token_id) % VOCABULARY_SIZE
    values: Logits = (-np.log(2) * (distance + 1)).astype(np.float32)
    return values


def _character(byte: int) -> str:
    [(text, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("é")
    assert text == "Ã©"  # GPT-2's alphabet: printable Latin-1 stands for itself, the rest from U+0100 on
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = [other for other in range(256) if other not in printable]
    return chr(byte) if byte in printable else chr(256 + others.index(byte))
