"""One completion on its way through a backend: tokens in, pieces of text out.

Listener methods run on the backend's thread. Nothing here cancels: that is the `Generation`'s.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pangu_server.backends.seam import SamplingOptions, Submitted, TokenLogprobs
from pangu_server.encoding import Encoder
from pangu_server.errors import DeadlineExceeded, GenerationFailed, NotReady, RequestError
from pangu_server.metrics import Metrics
from pangu_server.text import Detokenizer, StopStrings, TextOptions
from pangu_server.timings import Timings

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token that is reported because log-probabilities were asked for."""

    id: int
    offset: int  # in characters of the choice's text
    logprobs: TokenLogprobs | None  # nothing precedes a prompt's first token: it has none
    first: bool = False  # it begins the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a choice's text. Its last one, and only it, has a finish reason."""

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    token_ids: tuple[int, ...] = ()  # generated since the last one, whether the text shows them or not
    finish_reason: FinishReason | None = None


Publish = Callable[[Delta | Exception], None]


class Load:
    """How many completions wait and run, and the memory they may take."""

    def __init__(self) -> None:
        self.waiting = self.running = self.held_bytes = 0
        self._lock = threading.Lock()

    def add(self, *, waiting: int, running: int) -> None:
        """Adjust both; from any thread."""
        with self._lock:
            self.waiting += waiting
            self.running += running

    def hold(self, held_bytes: int) -> None:
        """Adjust the memory that requests in flight may take; from any thread."""
        with self._lock:
            self.held_bytes += held_bytes


class Completion:
    """The `Listener` of one sequence. Publishes its text piece by piece, or as one piece at the end."""

    def __init__(
        self,
        index: int,
        prompt_ids: Sequence[int],
        sampling: SamplingOptions,
        *,
        text: TextOptions,
        decode_seconds: float,
        echo: str | None,
        stream: bool,
        encoder: Encoder,
        metrics: Metrics,
        load: Load,
        publish: Publish,
    ) -> None:
        self.index, self.prompt_ids, self.sampling = index, prompt_ids, sampling
        self.ticket: Submitted  # set once it is submitted
        self.completion_tokens = 0
        self.logprob_sum = 0.0
        self.expired = self.ended = False
        self._arrived = time.perf_counter()
        self._started: float | None = None
        self._first_token: float | None = None
        self._last_token: float | None = None
        self._encoder, self._metrics, self._load, self._publish = encoder, metrics, load, publish
        self._stream, self._decode_seconds = stream, decode_seconds
        self._detokenizer = Detokenizer(encoder.pieces, prompt_ids, skip_special=text.skip_special)
        self._include_stop = text.include_stop
        self._stops = StopStrings(text.stop, include=text.include_stop)
        self._finish_reason: FinishReason | None = None
        self._late = self._scored = self._refused = False
        constraint = sampling.constraint
        self._matcher = None if constraint is None else constraint.matcher(sampling.end_token_ids)
        # Text that is decided but not published, and how much text there is up to its end.
        self._text = self._echo = echo or ""
        self._length = len(self._text)
        self._tokens: list[Token] = []  # those that belong to `_text`
        self._held: list[Token] = []  # those whose text may yet turn out to be a stop string
        self._token_ids: list[int] = []

    @property
    def timings(self) -> Timings:
        """What has happened up to now."""
        return Timings(
            arrived=self._arrived,
            prompt_tokens=len(self.prompt_ids),
            started=self._started,
            first_token=self._first_token,
            last_token=self._last_token,
            completion_tokens=self.completion_tokens,
        )

    @property
    def stopping_word(self) -> str:
        """The stop string that ended it; empty: none did."""
        return self._stops.word

    def on_start(self) -> None:
        """See `Listener`."""
        self._started = time.perf_counter()
        self._load.add(waiting=-1, running=+1)
        self._metrics.started(self.timings)
        if self._stream and self._echo and self.sampling.prompt_logprobs is None:
            self._flush()

    def on_prompt(self, logprobs: Sequence[TokenLogprobs | None]) -> None:
        """See `Listener`."""
        text = Detokenizer(self._encoder.pieces, [], skip_special=False)
        for token_id, entry in zip(self.prompt_ids, logprobs, strict=True):
            self._tokens.append(Token(token_id, text.length, entry, text.first))
            text.push(token_id)
        self._scored = True
        if self._stream:
            self._flush()

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """See `Listener`."""
        if self._matcher is not None and not self._matcher.accept(token_id):
            self._refused = True
            return True
        now = time.perf_counter()
        if self._first_token is None:
            self._first_token = now
            self._metrics.first_token(now - self._arrived)
        elif self._last_token is not None:
            self._metrics.next_token(now - self._last_token)
        self._last_token = now
        self.completion_tokens += 1
        self._token_ids.append(token_id)
        if logprobs is not None:
            self.logprob_sum += logprobs.logprob
            offset = len(self._echo) + self._detokenizer.length
            self._held.append(Token(token_id, offset, logprobs, self._detokenizer.first))
        if token_id in self.sampling.end_token_ids:
            self._finish_reason = "stop"
            if self._include_stop:
                self._add(self._stops.push(self._detokenizer.push(token_id)))
            return True
        if name := self._detokenizer.left_out(token_id):
            self._add(self._stops.push(name, hidden=True))
        text = self._detokenizer.push(token_id)
        self._add(self._stops.push(text))
        complete = self._stops.found or (self._matcher is not None and self._matcher.over)
        if complete:
            self._finish_reason = "stop"
        elif self._stream and self._text:
            self._flush()
        # llama.cpp's `t_max_predict_ms`: whole lines only.
        self._late = now - self._first_token > self._decode_seconds and "\n" in text
        return complete or self._late

    def on_end(self, error: Exception | None) -> None:
        """See `Listener`."""
        self.ended = True
        started = self._started is not None
        self._load.add(waiting=0 if started else -1, running=-1 if started else 0)
        self._add(self._stops.push(self._detokenizer.flush()) + self._stops.flush())
        if self._stops.found:
            self._finish_reason = "stop"
        if not self._stops.found or self._include_stop:
            self._tokens += self._held
        if self._refused and error is None:
            error = RequestError(
                f"the grammar allows nothing behind the {self.completion_tokens} tokens that there are, or takes too "
                "much to follow: no answer can match it"
            )
        reason, stage = self._finish_reason, None
        if reason is None and not self._cut_short(started):
            reason = "length"
        elif reason is None and error is None:
            stage = "deadline" if self.expired else "running" if started else "queued"
        ended = "error" if error else reason or ("length" if self.expired else "abort")
        self._metrics.ended(self.timings, ended, cancelled=stage)
        if error is not None:
            failed = GenerationFailed("the model failed on this request; the server's log has the cause")
            self._publish(error if self._refused else failed)
        elif reason is None and not self.completion_tokens:
            self._publish(
                DeadlineExceeded("the request's time was over before its first token")
                if self.expired
                else NotReady("the server shut down before this request had its first token: try another one")
            )
        else:
            self._flush(reason or "length")

    def _cut_short(self, started: bool) -> bool:
        """Whether it was ended before it had all that was asked for."""
        scored = self.sampling.prompt_logprobs is None or self._scored
        complete = started and scored and self.completion_tokens >= self.sampling.max_tokens
        return not (self._late or complete)

    def _add(self, text: str) -> None:
        """`text` is decided, and so are the tokens that begin before its end."""
        self._text += text
        self._length += len(text)
        decided = sum(token.offset < self._length for token in self._held)
        self._tokens += self._held[:decided]
        del self._held[:decided]

    def _flush(self, finish_reason: FinishReason | None = None) -> None:
        delta = Delta(
            index=self.index,
            text=self._text,
            tokens=tuple(self._tokens),
            token_ids=tuple(self._token_ids),
            finish_reason=finish_reason,
        )
        self._text, self._tokens, self._token_ids = "", [], []
        self._publish(delta)
