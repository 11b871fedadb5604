"""The simplest schedule: one generation at a time, first come first served."""

from collections.abc import Callable

from pangu_server.backends.schedule import Schedule, Ticket

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
