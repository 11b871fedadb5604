"""Who draws a request's tokens: the library, or `Sampler` with the library's best token as its draft."""

from pangu_server.backends.sampling import Sampler
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions

TOP_P_CLASSES = {
    "cuda": 8192
}  # tokens among which the library's top-p can choose on a device; else any number


def can_cut(options: SamplingOptions, device: str, vocabulary: int) -> bool:
    """Whether the library can apply `top_p`. It applies top-k first, so that can leave it few enough tokens."""
    if options.temperature == 0 or options.top_p == 1:
        return True
    candidates = min(options.top_k or vocabulary, vocabulary)
    return candidates <= TOP_P_CLASSES.get(device, vocabulary)


def is_own(ticket: Ticket) -> bool:
    """Whether `Sampler` must draw: the engine has no seed of a request, no min_p, and changes no logits."""
    options = ticket.options
    drawn = options.temperature > 0 and (options.seed is not None or options.min_p > 0)
    return drawn or Sampler.changes_logits(options)


def native_sampling(ticket: Ticket) -> tuple[float, float, int] | None:
    """Temperature, top-p and top-k that the engine draws with; None: the best token.

    A batch shares them. What `Sampler` draws is drafted by the best token.
    """
    options = ticket.options
    if options.temperature == 0 or is_own(ticket):
        return None
    return options.temperature, options.top_p, options.top_k


def batch_kind(ticket: Ticket) -> object:
    """Tickets of equal kind can be rows of one batch.

    Prompts of one token have batches of their own: in a batch with one, CTranslate2 4.8 does not force the
    tokens of the longer prompts.
    """
    return native_sampling(ticket), len(ticket.tokens) == 1
