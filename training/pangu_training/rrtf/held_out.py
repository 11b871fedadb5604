"""Held-out pass@1: how many problems the model in training solves, of those that it is not trained on.

It answers greedily, in the very tokens that it is trained with; programs come out of the answers by the rules of the
style `pangu`, and the sandbox judges them. Nothing random is drawn and no gradient is kept, so that the training is
the same with and without.

Tokens come from a loop of our own over the whole wrapped model: transformers' `generate` belongs to the model inside,
past the hooks of FSDP and the autocast of accelerate, and takes sampling defaults from the checkpoint.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm

from pangu_training.data.ranked import RankedFile
from pangu_training.evaluation.judging import judge, policy_of, sandbox_configuration
from pangu_training.evaluation.styles import STYLES
from pangu_training.evaluation.suites import own_problems
from pangu_training.evaluation.words import read_problems
from pangu_training.rrtf.options import Options
from pangu_training.rrtf.pairs import PairTokenizer
from pangu_training.rrtf.run import Run
from pangu_training.sandbox.execution import Outcome
from pangu_training.stage.checkpoint import Checkpoint
from pangu_training.stage.errors import DataError
from pangu_training.stage.output import write_json_lines


class HeldOutProblems:
    """The problems of a file that have tests, and whose prompt and longest answer fit the model's context.

    Raises:
        DataError, SuiteError: the file is damaged, none of its problems can be used, or one is in `trained_on`.
        SandboxError: programs cannot be confined here.
    """

    def __init__(
        self,
        path: Path,
        trained_on: RankedFile,
        checkpoint: Checkpoint,
        options: Options,
        run: Run,
        *,
        unsafe: bool,
    ) -> None:
        suite = own_problems(path)
        self._policy = policy_of(suite, unsafe=unsafe)
        sandbox_configuration(self._policy)
        self._tokenizer, self._options, self._run = PairTokenizer(checkpoint), options, run
        self._end_ids = checkpoint.end_token_ids
        prompts = {problem.task_id: problem.words or "" for problem in suite.problems}
        learnt = {row.prompt.strip() for row in trained_on.rows}
        for task_id, words in prompts.items():
            if words.strip() in learnt:
                raise DataError(
                    f"{path}: problem {task_id!r} is in {trained_on.path} too: take it out of one"
                )
        space = checkpoint.context_length - options.held_out_max_tokens
        self._prompts = {
            task_id: tokens
            for task_id, words in prompts.items()
            if len(tokens := self._tokenizer.prompt(words)) <= space
        }
        if not self._prompts:
            raise DataError(
                f"no problem of {path} with an answer of {options.held_out_max_tokens} tokens fits the "
                f"checkpoint's {checkpoint.context_length}: lower --held-out-max-tokens"
            )
        self._problems = [problem for problem in suite.problems if problem.task_id in self._prompts]
        self.description = {
            "name": path.name,
            "sha256": suite.sha256,
            "used": len(self._problems),
            "without_tests": len(read_problems(path).rows) - len(suite.problems),
            "too_long": len(suite.problems) - len(self._problems),
        }

    def evaluate(self, model: Any, accelerator: Any, epoch: int) -> dict[str, Any]:
        """`held_out_pass_at_1`, the number of problems and of each outcome; the answers go into the run's folder.

        Every process calls it: each answers its share, the first one judges. `model` is in evaluation mode.
        """
        answers = dict(gather_object(self._answers(model, accelerator)))
        metrics = [self._judge(answers, epoch) if accelerator.is_main_process else {}]
        broadcast_object_list(metrics)
        return metrics[0]

    def _answers(self, model: Any, accelerator: Any) -> list[tuple[str, list[int]]]:
        """(id, tokens) of the answers to this process' share of the problems."""
        ids, world, batch = list(self._prompts), accelerator.num_processes, self._options.held_out_batch
        # All shares have one size, some problems are answered twice: the processes take their steps together.
        places = range(accelerator.process_index, -(-len(ids) // world) * world, world)
        share = [ids[place % len(ids)] for place in places]
        answers: list[tuple[str, list[int]]] = []
        with (
            torch.no_grad(),
            accelerator.autocast(),
            tqdm(
                total=len(share),
                desc="answering held-out problems",
                unit="problem",
                leave=False,
                disable=None if accelerator.is_main_process else True,
            ) as bar,
        ):
            for start in range(0, len(share), batch):
                asked = share[start : start + batch]
                tokens = greedy(
                    model,
                    [self._prompts[task_id] for task_id in asked],
                    end_ids=self._end_ids,
                    most=self._options.held_out_max_tokens,
                    accelerator=accelerator,
                )
                answers += zip(asked, tokens, strict=True)
                bar.update(len(asked))
        return answers

    def _judge(self, answers: Mapping[str, Sequence[int]], epoch: int) -> dict[str, Any]:
        ended = {task_id: tokens[-1] in self._end_ids for task_id, tokens in answers.items()}
        texts = {
            task_id: self._tokenizer.text(tokens[:-1] if ended[task_id] else tokens)
            for task_id, tokens in answers.items()
        }
        programs = [
            (problem, STYLES["pangu"].program(problem, texts[problem.task_id])) for problem in self._problems
        ]
        results = dict(judge(programs, self._policy, leave=False))
        rows = [
            {
                "id": problem.task_id,
                "outcome": results[at].outcome,
                "reason": results[at].reason,
                "ended": ended[problem.task_id],
                "answer": texts[problem.task_id],
            }
            for at, problem in enumerate(self._problems)
        ]
        file = self._run.held_out_answers(epoch)
        file.parent.mkdir(exist_ok=True)
        write_json_lines(file, rows)
        outcomes = Counter(result.outcome for result in results.values())
        return {
            "held_out_pass_at_1": outcomes[Outcome.PASSED] / len(rows),
            "held_out_problems": len(rows),
            "held_out_outcomes": {str(outcome): outcomes[outcome] for outcome in Outcome},
        }


def greedy(
    model: Any, prompts: Sequence[Sequence[int]], *, end_ids: Collection[int], most: int, accelerator: Any
) -> list[list[int]]:
    """The likeliest next tokens of each of `prompts`, to an end token, which is the last, or `most` of them.

    It goes on until this is so in every process of `accelerator`, as a sharded model needs all of them at each step.
    """
    device, longest = accelerator.device, max(map(len, prompts))
    # Padded on the left: the next token of every row is at the right.
    inputs = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts], device=device)
    ends = torch.tensor(list(end_ids), device=device)
    running = torch.ones(len(prompts), dtype=torch.bool, device=device)
    cache = None
    steps: list[Tensor] = []
    while len(steps) < most and accelerator.reduce(running.any().float(), "sum") > 0:
        output = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, -inputs.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache, inputs = output.past_key_values, output.logits.argmax(dim=-1)
        mask = torch.cat([mask, torch.ones_like(inputs)], dim=1)
        running &= ~torch.isin(inputs[:, 0], ends)
        steps.append(inputs)
    answers = torch.cat(steps, dim=1).tolist()
    return [_to_end(answer, end_ids) for answer in answers]


def _to_end(tokens: list[int], end_ids: Collection[int]) -> list[int]:
    end = next((at for at, token in enumerate(tokens, start=1) if token in end_ids), len(tokens))
    return tokens[:end]
