"""No request within the limits costs the others the event loop, or much memory. See docs/operations.md.

PANGU_HARM_EXAMPLES sets how many histories are tried: 2 by default, thousands for an hour.
"""

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.harm import ATTACKS, FINE, Attack, Pulse, Victim, victims

EXAMPLES = int(os.environ.get("PANGU_HARM_EXAMPLES", "2"))
STEPS = 8
LOOP_SECONDS = 0.5
CALM_SECONDS = 0.005  # of a server that nobody attacks, on a machine with nothing else to do
REQUEST_BYTES = 256 << 20
SLACK_BYTES = 96 << 20  # what an allocator keeps, and the body itself


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Victim, Victim]]:
    with victims(tmp_path_factory.mktemp("victims")) as found:
        yield found


def test_no_client_harms_the_others(servers: tuple[Victim, Victim]) -> None:
    victim, calm = servers

    class Clients(RuleBasedStateMachine):
        """Those that attack, one after the other or together, and one that behaves."""

        def __init__(self) -> None:
            super().__init__()
            self.running: list[tuple[Attack, threading.Thread]] = []
            self.statuses: list[tuple[Attack, int | None]] = []
            victim.forget()
            self.before = victim.memory()
            self.pulse = Pulse(victim, calm)

        @rule(attack=ATTACKS)
        def alone(self, attack: Attack) -> None:
            self.statuses.append((attack, attack.run(victim)))

        @rule(attack=ATTACKS)
        def meanwhile(self, attack: Attack) -> None:
            thread = threading.Thread(target=lambda: self.statuses.append((attack, attack.run(victim))))
            thread.start()
            self.running.append((attack, thread))

        @rule()
        def all_end(self) -> None:
            for _, thread in self.running:
                thread.join()
            self.running.clear()

        @rule()
        def one_behaves(self) -> None:
            assert victim.behaves(), "it was not answered right"

        @invariant()
        def statuses_are_documented(self) -> None:
            for attack, status in self.statuses:
                assert status is None or status in FINE, (attack.name, status)

        @invariant()
        def memory_is_bounded(self) -> None:
            together = max(1, len(self.running))
            grown = victim.memory("VmHWM") - self.before
            assert grown < together * REQUEST_BYTES + SLACK_BYTES, f"{grown >> 20} MiB"

        def teardown(self) -> None:
            self.all_end()
            self.pulse.stop()
            assert victim.behaves(), "it was not answered right"
            allowed = LOOP_SECONDS * max(1, self.pulse.worst_calm / CALM_SECONDS)
            assert self.pulse.worst < allowed, (
                f"/health took {self.pulse.worst:.2f} s, elsewhere {allowed:.2f}"
            )

    run_state_machine_as_test(
        Clients,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize="PANGU_HARM_EXAMPLES" not in os.environ,
        ),
    )
