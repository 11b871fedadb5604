"""The one loop that asks: workers share tasks among the connections to one or several servers.

A request is retried in `endpoint.post`; what becomes of a task when that was in vain is decided in `_Sharing.failed`.
"""

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tqdm import tqdm

from pangu_training.asking.endpoint import Endpoint, RefusedError, ServedError

if TYPE_CHECKING:
    import httpx

Task = TypeVar("Task")


@dataclass(frozen=True, slots=True)
class Connection:
    """A server, and the client that speaks to it."""

    endpoint: Endpoint
    client: "httpx.AsyncClient"


@contextlib.asynccontextmanager
async def connect(*endpoints: Endpoint) -> AsyncIterator[list[Connection]]:
    """A connection to each of `endpoints`; a client sets no limit of its own to the requests at a time."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with contextlib.AsyncExitStack() as stack:
        connections = []
        for endpoint in endpoints:
            client = httpx.AsyncClient(**endpoint.client_options(), limits=limits)
            connections.append(Connection(endpoint, await stack.enter_async_context(client)))
        yield connections


def progress_bar(total: int, description: str, unit: str = "answer") -> "tqdm[Any]":
    """A bar on a terminal; nothing elsewhere."""
    return tqdm(total=total, desc=description, unit=unit, disable=None)


async def share(
    connections: Sequence[Connection],
    tasks: Iterable[Task],
    ask: Callable[[Connection, Task], Awaitable[None]],
    *,
    concurrency: int,
    on_refusal: Callable[[Task, RefusedError], None] | None = None,
    bar: "tqdm[Any] | None" = None,
    name: str = "",
) -> None:
    """`ask` every task once, `concurrency` at a time at each connection; whoever is free takes the next.

    `ask` keeps what comes. A refusal belongs to its task: it goes to `on_refusal`, and without one it ends the whole. A
    server that is gone, stays busy or fails is left out, with a warning about `name`, while another lives, and its
    tasks are asked there. `bar` moves a step when a task is answered or refused: an `ask` that counts the parts of a
    task moves a bar of its own.

    Raises:
        ServedError: no server is left; what is under way then is dropped, and what was kept stays.
        RefusedError: a task is refused, and there is no `on_refusal`.
    """
    assert connections
    sharing = _Sharing(ask, on_refusal, bar, name, waiting=deque(tasks), living=list(connections))
    await sharing.run(concurrency)


@dataclass(slots=True)
class _Sharing(Generic[Task]):
    """What `share` was given, the tasks that wait, and the connections that live."""

    ask: Callable[[Connection, Task], Awaitable[None]]
    on_refusal: Callable[[Task, RefusedError], None] | None
    bar: "tqdm[Any] | None"
    name: str
    waiting: deque[Task]
    living: list[Connection]

    async def run(self, concurrency: int) -> None:
        while self.waiting:  # again when a server gave tasks back after the others had ended
            # In the beginning all servers are asked alike.
            workers = [
                asyncio.create_task(self.work(connection))
                for _ in range(concurrency)
                for connection in self.living
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def work(self, connection: Connection) -> None:
        while self.waiting and connection in self.living:
            task = self.waiting.popleft()
            try:
                await self.ask(connection, task)
            except ServedError as error:
                self.failed(connection, task, error)
            else:
                self.done()

    def failed(self, connection: Connection, task: Task, error: ServedError) -> None:
        """Decide what becomes of a task whose request failed for good: refused, asked elsewhere, or the end of all.

        The one place where that is decided. A breaker whose probes let a server join again, a request that runs out of
        time, and a quarantine for a task that fails at every server belong here.

        Raises:
            ServedError: nobody else can be asked, or the task is refused and nobody takes the refusal.
        """
        if isinstance(error, RefusedError):
            if self.on_refusal is None:
                raise error
            self.on_refusal(task, error)
            self.done()
            return
        self.waiting.appendleft(task)
        if self.living == [connection]:
            raise error
        if connection in self.living:
            self.living.remove(connection)
            who = self.name or connection.endpoint.model
            tqdm.write(f"warning: {who}: left out: {error}", file=sys.stderr)

    def done(self) -> None:
        if self.bar is not None:
            self.bar.update()
