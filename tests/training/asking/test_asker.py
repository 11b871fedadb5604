"""The one loop that asks, over servers whose answers are written down."""

import asyncio
import io
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.answering import Answer, Answering, answering
from tqdm import tqdm

from pangu_training.asking import endpoint
from pangu_training.asking.asker import Connection, connect, share
from pangu_training.asking.endpoint import Endpoint, RefusedError, ServedError, running
from pangu_training.asking.questions import CHAT, Choice, Question, Reply, answer, ask
from pangu_training.stage.line_file import Journal


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_WAIT_SECONDS", 0.01)


def body(words: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": words}]}


def echo(body: dict[str, Any]) -> Answer:
    return words_of(body)


def words_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def question(words: str) -> Question:
    return Question(key=words, path=CHAT, body=body(words), what=words)


def words_asked(server: Answering) -> list[str]:
    return [words_of(body) for body in server.bodies]


class Kept:
    """What came of tasks, which are words: `at` says by which server."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.at: list[str] = []
        self.refused: dict[str, str] = {}

    async def ask(self, connection: Connection, words: str) -> None:
        reply = await answer(connection.client, question(words))
        self.texts.append(reply.choices[0].text)
        self.at.append(connection.endpoint.base_url)

    def refuse(self, words: str, error: RefusedError) -> None:
        self.refused[words] = str(error)

    def share(
        self, servers: Sequence[Answering], tasks: Sequence[str], concurrency: int = 1, **options: Any
    ) -> None:
        async def all_of_them() -> None:
            endpoints = [Endpoint(base_url=server.address, model="m", card={}) for server in servers]
            async with connect(*endpoints) as connections:
                await share(connections, tasks, self.ask, concurrency=concurrency, **options)

        asyncio.run(all_of_them())


@pytest.fixture
def kept() -> Kept:
    return Kept()


def test_replies_are_in_the_questions_order_and_a_refusal_is_its_questions(tmp_path: Path) -> None:
    later = threading.Event()

    def answer_backwards(body: dict[str, Any]) -> Answer:
        match words_of(body):
            case "0":
                assert later.wait(30)  # the first question is answered last
            case "2":
                return 400
            case "3":
                later.set()
        return words_of(body)

    with answering(answer_backwards) as server, Journal(tmp_path / "journal") as journal:
        questions = [question(str(number)) for number in range(4)]
        replies = ask(running(server.address), questions, journal, concurrency=2, progress="asking")
        assert [reply.refused or reply.choices[0].text for reply in replies] == [
            *("0", "1", "2: the server said 400: not now", "3")
        ]
        assert set(journal.rows) == {"0", "1", "3"}, "a refusal is not kept"
        server.answer = echo
        again = ask(running(server.address), questions, journal, concurrency=2, progress="asking")
        assert again[2] == Reply(
            choices=(Choice(text="2", finish_reason="stop"),),
            prompt_tokens=3,
            completion_tokens=5,
            asked_at=again[2].asked_at,
            seconds=again[2].seconds,
        )
        assert again[:2] + again[3:] == replies[:2] + replies[3:]
        assert words_asked(server)[4:] == ["2"], "nothing else is asked again"


def test_a_refusal_belongs_to_its_task_and_the_bar_counts_it(kept: Kept) -> None:
    bar = tqdm(total=4, file=io.StringIO())
    with answering(lambda body: 413 if words_of(body) == "b" else words_of(body)) as server:
        kept.share([server], ["a", "b", "c", "d"], on_refusal=kept.refuse, bar=bar)
    assert kept.texts == ["a", "c", "d"]
    assert kept.refused == {"b": "b: the server said 413: not now"}
    assert bar.n == 4
    bar.close()


def test_a_refusal_that_nobody_takes_ends_the_whole(kept: Kept) -> None:
    with answering(lambda body: 400 if words_of(body) == "b" else words_of(body)) as server:
        with pytest.raises(RefusedError, match="b: the server said 400"):
            kept.share([server], ["a", "b", "c"])
        assert words_asked(server) == ["a", "b"]
    assert kept.texts == ["a"]


def dying(after: int, died: threading.Event) -> Callable[[dict[str, Any]], Answer]:
    """Answers `after` requests, then hangs up on each."""
    left = iter(range(after))

    def answer(body: dict[str, Any]) -> Answer:
        if next(left, None) is not None:
            return words_of(body)
        died.set()
        return None

    return answer


@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_of_two_servers_one_dies_and_nothing_is_lost_or_kept_twice(
    kept: Kept, capsys: pytest.CaptureFixture[str], after: int, concurrency: int
) -> None:
    died, tasks = threading.Event(), [str(number) for number in range(12)]

    def answer_when_the_other_is_dead(body: dict[str, Any]) -> Answer:
        assert died.wait(30)
        return words_of(body)

    with answering(dying(after, died)) as mortal, answering(answer_when_the_other_is_dead) as living:
        kept.share([mortal, living], tasks, concurrency, name="big")
        assert Counter(kept.texts) == Counter(tasks)
        assert kept.at.count(living.address) == len(living.bodies) == 12 - after
        assert set(words_asked(mortal)) & set(words_asked(living)), "what it died on is asked at the other"
    errors = capsys.readouterr().err
    assert errors.startswith(f"warning: big: left out: the server at {mortal.address} is gone")
    assert errors.count("\n") == 1


def test_a_task_that_is_given_back_is_asked_before_those_that_wait() -> None:
    asked: list[str] = []

    async def all_of_them() -> None:
        given_back = asyncio.Event()

        async def ask(connection: Connection, words: str) -> None:
            if connection.endpoint.model == "mortal":
                asyncio.get_running_loop().call_soon(given_back.set)
                raise ServedError("dead")
            await given_back.wait()
            asked.append(words)

        both = (Endpoint(base_url="http://127.0.0.1:9", model=name, card={}) for name in ("living", "mortal"))
        async with connect(*both) as connections:
            await share(connections, ["0", "1", "2", "3"], ask, concurrency=1)

    asyncio.run(all_of_them())
    assert asked == ["0", "1", "2", "3"]


def test_the_last_server_that_dies_ends_it_and_what_was_answered_stays(kept: Kept) -> None:
    died = threading.Event()
    with answering(dying(2, died)) as first, answering(dying(3, died)) as last:
        with pytest.raises(ServedError, match="run the same command again to go on"):
            kept.share([first, last], [str(number) for number in range(9)])
        assert len(kept.texts) == len(set(kept.texts)) == 5


@pytest.mark.parametrize("concurrency", [1, 3])
def test_each_server_has_so_many_requests_at_a_time_and_no_more(kept: Kept, concurrency: int) -> None:
    full = threading.Barrier(2 * concurrency)  # passed only when all are there
    lock, under_way, most = threading.Lock(), Counter[str](), Counter[str]()

    def counted(name: str) -> Callable[[dict[str, Any]], Answer]:
        def answer(body: dict[str, Any]) -> Answer:
            with lock:
                under_way[name] += 1
                most[name] = max(most[name], under_way[name])
            full.wait(30)
            with lock:
                under_way[name] -= 1
            return words_of(body)

        return answer

    with answering(counted("a")) as first, answering(counted("b")) as second:
        kept.share([first, second], [str(number) for number in range(4 * concurrency)], concurrency)
    assert most == {"a": concurrency, "b": concurrency}
    assert len(kept.texts) == 4 * concurrency


def test_an_error_of_our_own_stops_the_other_workers_at_once(kept: Kept) -> None:
    ended = threading.Event()

    async def ask(connection: Connection, words: str) -> None:
        if words == "wrong":
            raise ValueError(words)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            ended.set()
            raise

    async def all_of_them() -> None:
        async with connect(Endpoint(base_url="http://127.0.0.1:9", model="m", card={})) as connections:
            with pytest.raises(ValueError, match="wrong"):
                await share(connections, ["waits", "wrong"], ask, concurrency=2)
            assert ended.is_set(), "before the client is closed"

    asyncio.run(all_of_them())
