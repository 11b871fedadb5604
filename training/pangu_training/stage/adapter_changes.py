"""What an adapter does to the weights of its base: W + alpha / r · B A for each pair, and rows and weights of its own.

Every tensor of the adapter is used once and has the shape that its base asks for, or the adapter is refused by name.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from pangu_training.stage.adapter import MERGE_ELSEWHERE, PREFIX, Adapter
from pangu_training.stage.adapter_targets import by_pattern, targets
from pangu_training.stage.architecture import Located, same_numbers
from pangu_training.stage.errors import CheckpointError
from pangu_training.stage.finite import all_finite
from pangu_training.stage.rewriting import Change, Changes
from pangu_training.stage.tensors import FLOATING, StoredTensor

MakeChange = Callable[[], Change]
LINEAR = torch.nn.Linear | Conv1D


def changes_of(adapter: Adapter, base: Located) -> Changes:
    """How each stored tensor of `base` changes. Numbers are read when a change is made.

    Raises:
        CheckpointError: the adapter and the base do not fit together, or what comes out is not one plain model.
    """
    collected = _Collected(adapter, base.model)
    collected.pairs()
    collected.saved_modules()
    collected.trained_tokens()
    collected.embeddings()
    collected.require_empty()
    return collected.by_stored_name(base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What an adapter adds to a linear module: scale * B (A x)."""

    module: str
    a: StoredTensor  # (rank, inputs)
    b: StoredTensor  # (outputs, rank)
    scale: float


def pairs_of(adapter: Adapter, model: Any) -> list[Pair]:
    """The pairs of an adapter that is nothing but pairs, for modules inside the blocks of `model`.

    Raises:
        CheckpointError: it changes something else too, or does not fit the model.
    """
    collected = _Collected(adapter, model)
    collected.pairs()
    head = model.get_output_embeddings()
    linear = {name for name, one in model.named_modules() if isinstance(one, LINEAR) and one is not head}
    changed = (name.rpartition(".")[0] for name in (*collected._added, *collected._whole))
    more = [name for name in changed if name not in linear] + list(adapter.saved)
    more += ["rows of the embedding"] * bool(adapter.tokens) + ["biases"] * adapter.with_bias
    if more:
        raise CheckpointError(
            f"{adapter.path} changes {more[0]}, and while it is served only pairs of matrices inside the blocks can be "
            "added: pangu-convert import merges the others"
        )
    collected.require_empty()
    return collected.linear


class _Collected:
    """The changes so far, by the names of the model's state, and the adapter's tensors that are not used yet."""

    def __init__(self, adapter: Adapter, model: Any) -> None:
        self._adapter, self._model = adapter, model
        self._modules: dict[str, Any] = dict(model.named_modules())
        self._shapes = {name: tuple(one.shape) for name, one in model.state_dict().items()}
        self.linear: list[Pair] = []
        self._left = dict(adapter.tensors)
        self._added: dict[str, MakeChange] = {}  # to a weight
        self._whole: dict[str, StoredTensor] = {}  # in a weight's place
        self._rows: dict[str, MakeChange] = {}  # in the place of some of its rows

    def pairs(self) -> None:
        """A and B of every target."""
        adapter, names = self._adapter, targets(self._adapter, self._model)
        ranks = by_pattern(adapter, adapter.rank_pattern, adapter.rank, names)
        alphas = by_pattern(adapter, adapter.alpha_pattern, adapter.alpha, names)
        for name in names:
            rank = ranks[name]
            scale = alphas[name] / (rank**0.5 if adapter.by_root else rank)
            self._pair(name, self._modules[name], rank, scale)

    def _pair(self, name: str, module: Any, rank: int, scale: float) -> None:
        weight = f"{name}.weight"
        if isinstance(module, torch.nn.Embedding):
            count, width = module.weight.shape
            a = self._take(f"{name}.lora_embedding_A", (rank, count))
            b = self._take(f"{name}.lora_embedding_B", (width, rank))
        elif isinstance(module, LINEAR):
            outputs, inputs = (
                module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.shape[::-1]
            )
            a = self._take(f"{name}.lora_A.weight", (rank, inputs))
            b = self._take(f"{name}.lora_B.weight", (outputs, rank))
        else:
            raise CheckpointError(
                f"{self._adapter.path} adapts {name}, a {type(module).__name__}: only linear layers and embeddings can "
                f"be merged here; {MERGE_ELSEWHERE}"
            )
        for (
            key,
            value,
        ) in module.state_dict().items():  # of embedding and head peft keeps the base's weights too
            if (kept := f"{name}.base_layer.{key}") in self._left:
                self._whole[f"{name}.{key}"] = self._take(kept, tuple(value.shape))
        self.linear.append(Pair(module=name, a=a, b=b, scale=scale))
        transposed = not isinstance(module, torch.nn.Linear)
        self._added[weight] = partial(_product, a, b, scale, transposed)
        if self._adapter.with_bias:
            if getattr(module, "bias", None) is None:
                raise CheckpointError(
                    f"{self._adapter.path} has lora_bias, and {name} of its base has no bias to add it to: "
                    f"{MERGE_ELSEWHERE}"
                )
            bias = self._take(f"{name}.lora_B.bias", tuple(module.bias.shape))
            self._added[f"{name}.bias"] = partial(_sum, bias, scale)

    def saved_modules(self) -> None:
        """What `modules_to_save` trained in full."""
        modules: list[str] = []
        for saved in self._adapter.saved:
            found = [name for name in self._modules if name and name.endswith(saved)]
            if not found:
                raise CheckpointError(
                    f"{self._adapter.path} names {saved} in modules_to_save, which its base has not: give the "
                    "adapter's own base, or delete the name there"
                )
            modules += found
        for name in self._state_of(*modules):
            self._whole[name] = self._take(name, self._shapes[name])

    def trained_tokens(self) -> None:
        """Rows of embeddings, by token id."""
        for end, ids in self._adapter.tokens.items():
            embedding = self._name_of(self._model.get_input_embeddings())
            if not embedding.endswith(end):
                raise CheckpointError(
                    f"{self._adapter.path} trained tokens of {end}, which is not the input embedding of its base: "
                    f"{MERGE_ELSEWHERE}"
                )
            count, width = self._shapes[f"{embedding}.weight"]
            if len(set(ids)) < len(ids) or not 0 <= min(ids) <= max(ids) < count:
                raise CheckpointError(
                    f"{self._adapter.path}: trainable_token_indices have to be different token ids from 0 to "
                    f"{count - 1}"
                )
            rows = self._take(f"{embedding}.token_adapter.trainable_tokens_delta", (len(ids), width))
            self._rows[f"{embedding}.weight"] = partial(_replace_rows, rows, ids)

    def embeddings(self) -> None:
        """Embedding and head, which peft may store whole without a setting that says so."""
        for module in (self._model.get_input_embeddings(), self._model.get_output_embeddings()):
            for name in self._state_of(self._name_of(module)) if module is not None else ():
                if name in self._left:
                    self._whole[name] = self._take(name, self._shapes[name])

    def require_empty(self) -> None:
        """Refuse a tensor that nothing asked for."""
        for name in self._left:
            raise CheckpointError(
                f"{self._adapter.path} has a tensor {PREFIX}{name}, which its settings and its base have no place for: "
                "give the adapter's own base, or export the adapter again"
            )

    def by_stored_name(self, base: Located) -> dict[str, MakeChange]:
        """The changes, by the names of the tensors in the base's files."""
        self._require_tied()
        changes: dict[str, MakeChange] = {}
        for name in {**self._whole, **self._added, **self._rows}:
            if name in self._rows and (name in self._whole or name in self._added):
                raise CheckpointError(
                    f"{self._adapter.path} trains {name} in two ways, as tokens and as a module: {MERGE_ELSEWHERE}"
                )
            if name not in base.tensors:
                raise CheckpointError(
                    f"{self._adapter.path} changes {name}, which its base stores an expert at a time: {MERGE_ELSEWHERE}"
                )
            makers: list[MakeChange] = (
                [partial(replaced_by, self._whole[name])] if name in self._whole else []
            )
            makers += [more[name] for more in (self._added, self._rows) if name in more]
            changes[base.tensors[name].name] = partial(_chain, makers)
        return changes

    def _require_tied(self) -> None:
        """What is one weight in the base has to stay one: peft itself may part them."""
        for target, source in self._model.all_tied_weights_keys.items():
            pair = target, source
            for name, other in (pair, pair[::-1]):
                if name in self._rows:
                    self._rows.setdefault(other, self._rows[name])
            changed = [name for name in pair if name in self._whole or name in self._added]
            whole = [self._whole[name] for name in pair if name in self._whole and name not in self._added]
            if changed and not (len(whole) == 2 and same_numbers(*whole)):
                raise CheckpointError(
                    f"{self._adapter.path} changes {changed[0]}, and in its base {target} and {source} are one: save "
                    "the base with tie_word_embeddings false and both of them, and give that with --base"
                )

    def _take(self, name: str, shape: tuple[int, ...]) -> StoredTensor:
        tensor = self._left.pop(name, None)
        if tensor is None:
            used = name in self._adapter.tensors
            raise CheckpointError(
                f"{self._adapter.path} {'needs' if used else 'has no tensor'} {PREFIX}{name}"
                f"{' twice' if used else ''}: its settings and its files differ; export the adapter again"
            )
        if tensor.dtype not in FLOATING:
            raise CheckpointError(
                f"{tensor.name} in {tensor.file} is of type {tensor.dtype}: an adapter is {', '.join(FLOATING)}"
            )
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.name} in {tensor.file} has shape {list(tensor.shape)}, and its base and settings ask for "
                f"{list(shape)}: give the adapter's own base (with as many tokens), or export it again"
            )
        return tensor

    def _state_of(self, *modules: str) -> list[str]:
        starts = tuple(f"{name}." for name in modules)
        return [name for name in self._shapes if name.startswith(starts)]

    def _name_of(self, module: Any) -> str:
        return next(name for name, one in self._modules.items() if one is module)


def replaced_by(tensor: StoredTensor) -> Change:
    """The weight gives way to a stored one. No more than a block of it is read at a time."""
    return lambda block, start: read_floats(tensor, start, start + len(block))


def read_floats(tensor: StoredTensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
    """Some of a stored tensor's rows, or all of them, in float32; `CheckpointError` for NaN or infinity."""
    rows, *rest = tensor.shape
    stop = rows if stop is None else stop
    row_bytes = tensor.num_bytes // rows if rows else 0
    with tensor.file.open("rb") as source:
        source.seek(tensor.start + start * row_bytes)
        numbers = bytearray(source.read((stop - start) * row_bytes))
    dtype = getattr(torch, FLOATING[tensor.dtype])
    values = torch.frombuffer(numbers, dtype=dtype) if numbers else torch.empty(0, dtype=dtype)
    if not all_finite(values):
        raise CheckpointError(
            f"{tensor.name} in {tensor.file} holds NaN or infinity: what was trained is broken; train it again with a "
            "lower learning rate, or download it again"
        )
    return values.view(stop - start, *rest).float()


def _product(a: StoredTensor, b: StoredTensor, scale: float, transposed: bool) -> Change:
    """A [r, in] and B [out, r] of a weight [out, in], or `transposed` [in, out]."""
    first, second = read_floats(a), read_floats(b)

    def change(block: torch.Tensor, start: int) -> torch.Tensor:
        rows = slice(start, start + len(block))
        product = (second @ first[:, rows]).T if transposed else second[rows] @ first
        return block + product * scale

    return change


def _sum(bias: StoredTensor, scale: float) -> Change:
    values = read_floats(bias)
    return lambda block, start: block + values[start : start + len(block)] * scale


def _replace_rows(tensor: StoredTensor, ids: Iterable[int]) -> Change:
    values, places = read_floats(tensor), torch.tensor(list(ids))

    def change(block: torch.Tensor, start: int) -> torch.Tensor:
        here = (places >= start) & (places < start + len(block))
        return block.index_copy(0, places[here] - start, values[here])

    return change


def _chain(makers: Iterable[MakeChange]) -> Change:
    changes = [make() for make in makers]

    def change(block: torch.Tensor, start: int) -> torch.Tensor:
        for one in changes:
            block = one(block, start)
        return block

    return change
