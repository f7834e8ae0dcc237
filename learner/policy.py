"""The policy: a frozen base model with LoRA adapters, and the log-probabilities it gives.

It scores sequences and draws answers. How a base gets its adapters is in `learner.adapters`; of
rewards it knows nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from learner.body import Body, packed
from learner.buckets import Bucket, TokenSequence, bucket_of, bucketed
from learner.head import Head, scaling_of
from learner.ranks import ALONE, Ranks

Item = TypeVar("Item")


class Policy:
    """A causal model whose body and head are called apart, so that only response rows are scored.

    The body is run as the blocks of `learner.body` where the model is of a family known there,
    without padding; else by the model's own modules on padded buckets. ``base`` names the base
    model by the hash of its files, never by where it lies. Buckets come from the CPU and results go
    back to it, wherever the model is (``device``).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        base: str,
        rank: int,
        alpha: float,
        *,
        blocks: Body | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.base = base
        self.rank = rank
        self.alpha = alpha
        self.device: torch.device = model.get_base_model().get_input_embeddings().weight.device
        self._modules: nn.Module = model.get_base_model().get_decoder()
        self.blocks = blocks
        self.ranks = ranks
        scaling = scaling_of(model.get_base_model().config)
        self.head = Head(model.get_base_model().get_output_embeddings(), scaling)
        given = model.get_base_model().generation_config.eos_token_id
        ends = {*(given if isinstance(given, list) else [given]), tokenizer.eos_token_id}
        self._ends = sorted(ends - {None})

    @property
    def hidden_size(self) -> int:
        """Return the width of the hidden state that the head reads."""
        return self.head.hidden_size

    @property
    def vocabulary_size(self) -> int:
        """Return the number of token ids the model knows."""
        return int(self.model.get_base_model().get_input_embeddings().num_embeddings)

    def adapters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by name, sorted: A and B of every adapted module."""
        return {
            name.replace(".default", ""): parameter
            for name, parameter in sorted(self.model.named_parameters())
            if parameter.requires_grad
        }

    def score(self, bucket: Bucket, *, adapted: bool = True) -> tuple[Tensor, Tensor]:
        """Return (log-probabilities of the response tokens, hidden state at the end of the prompt).

        Logits are divided by each sequence's temperature. ``adapted`` False scores the frozen
        base. Padding positions hold 0 and must be masked by the caller.
        """
        rows_nh = self._rows(bucket, adapted=adapted)
        logp_n = self._logprobs(rows_nh, bucket, bucket.targets_bt[bucket.mask_bt])
        logp_bt = torch.zeros(bucket.rows_bt.shape).masked_scatter(bucket.mask_bt, logp_n)
        counts_b = bucket.mask_bt.sum(1)
        first_b = (counts_b.cumsum(0) - counts_b).to(self.device)
        return logp_bt, rows_nh[first_b].float().cpu()

    def answer_rows(self, bucket: Bucket, *, adapted: bool = True) -> Tensor:
        """Return the last hidden states of the response tokens themselves, answer by answer, nh."""
        # What predicts a token stands one place before it.
        return self._rows(replace(bucket, rows_bt=bucket.rows_bt + 1), adapted=adapted)

    def _logprobs(self, rows_nh: Tensor, bucket: Bucket, targets_n: Tensor) -> Tensor:
        """Return the tempered log-probability of each row's target, on the CPU."""
        temperature_n = bucket.temperature_b[:, None].expand_as(bucket.rows_bt)[bucket.mask_bt]
        given = (one.to(self.device) for one in (targets_n, temperature_n))
        logp_n: Tensor = self.head.logprobs(rows_nh, *given).cpu()
        return logp_n

    def _rows(self, bucket: Bucket, *, adapted: bool) -> Tensor:
        """Return the hidden states that predict response tokens, one after another."""
        if self.blocks is not None:
            return self.blocks.run(packed(bucket, self.device), adapted=adapted)
        ids_bl = bucket.ids_bl.to(self.device)
        with nullcontext() if adapted else self.model.disable_adapter():
            seen = self._modules(input_ids=ids_bl, use_cache=False)
        hidden_blh: Tensor = seen.last_hidden_state
        begin_b1 = torch.arange(len(bucket.members))[:, None] * hidden_blh.shape[1]
        rows_n = (begin_b1 + bucket.rows_bt)[bucket.mask_bt].to(self.device)
        return hidden_blh.flatten(0, 1)[rows_n]

    def logprobs(
        self, sequences: Sequence[TokenSequence], tokens: int, *, adapted: bool = True
    ) -> list[list[float]]:
        """Return the log-probability of every response token, in the order given.

        ``tokens`` bounds those of one pass.
        """
        found: dict[int, list[float]] = {}
        given = (sequences, tokens)
        with self.together("logprobs", *given, adapted=adapted), torch.no_grad():
            for group in self.share(bucketed(sequences, tokens)):
                logp_bt, _ = self.score(group, adapted=adapted)
                for place, row, mask in zip(group.members, logp_bt, group.mask_bt, strict=True):
                    found[place] = row[mask].tolist()
            found = self.ranks.gathered(found)
        return [found[place] for place in range(len(sequences))]

    def together(self, name: str, *given: Any, **named: Any) -> AbstractContextManager[None]:
        """Run a block on all processes of the learner; see `learner.ranks`."""
        return self.ranks.together(self.adapters, name, *given, **named)

    def share(self, items: Sequence[Item], *, with_gradient: bool = False) -> Iterator[Item]:
        """Yield what of the passes this process makes; with a sharded base all make as many."""
        yield from self.ranks.share(items)
        if self.ranks.sharded:
            for _ in range(self.ranks.missing(len(items))):
                logp_bt, _ = self.score(bucket_of([TokenSequence((0,), (0,))]))
                if with_gradient:
                    (0.0 * logp_bt).sum().backward()

    def branch_logprobs(
        self,
        sequences: Sequence[TokenSequence],
        branches: Sequence[int],
        tokens: int,
        *,
        adapted: bool = True,
    ) -> list[list[float]]:
        """Return log-probabilities of each response with each branch as its last token.

        The last token given is replaced by the branches; all responses have the same length.
        """
        found: dict[int, list[float]] = {}
        given = (sequences, branches, tokens)
        with self.together("branch_logprobs", *given, adapted=adapted), torch.no_grad():
            for group in self.share(bucketed(sequences, tokens)):
                rows_nh, shape = self._rows(group, adapted=adapted), group.rows_bt.shape
                logp_n = self._logprobs(rows_nh, group, group.targets_bt.flatten())
                last_bv = self.head.logits(rows_nh.unflatten(0, shape)[:, -1])
                last_bv.div_(group.temperature_b[:, None].to(self.device))
                last_bk = last_bv.log_softmax(-1)[:, list(branches)].cpu()
                joint_bk = last_bk + logp_n.unflatten(0, shape)[:, :-1].sum(1, keepdim=True)
                for place, row in zip(group.members, joint_bk, strict=True):
                    found[place] = row.tolist()
            found = self.ranks.gathered(found)
        return [found[place] for place in range(len(sequences))]

    def draw_each(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        generator: torch.Generator,
        temperature: float = 1.0,
    ) -> list[tuple[tuple[int, ...], bool]]:
        """Return one answer drawn to each prompt, all of one length, and whether it ended.

        The end is the answer's last token. Nothing but the generator chooses: no setting of
        sampling that came with the model has a part in it, nor has torch's own random state.
        """
        fed_bl = torch.tensor([list(prompt_ids) for prompt_ids in prompts])
        past, drawn = None, list[list[int]]()
        ended_b = torch.zeros(len(prompts), dtype=torch.bool)
        given = (prompts, max_tokens, generator, temperature)
        shared = self.together("draw_each", *given) if self.ranks.sharded else nullcontext()
        with shared, torch.no_grad():
            while len(drawn) < max_tokens and not bool(ended_b.all()):
                seen = self._modules(
                    input_ids=fed_bl.to(self.device), past_key_values=past, use_cache=True
                )
                past = seen.past_key_values
                logits_bv = self.head.logits(seen.last_hidden_state[:, -1]).cpu().div_(temperature)
                fed_bl = torch.multinomial(logits_bv.softmax(-1), 1, generator=generator)
                drawn.append(fed_bl[:, 0].tolist())
                ended_b |= torch.isin(fed_bl[:, 0], torch.tensor(self._ends))
        return [_up_to_end(row, self._ends) for row in zip(*drawn, strict=True)]

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Return an answer's text as an engine gives it: without special tokens."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


def _up_to_end(ids: tuple[int, ...], ends: Sequence[int]) -> tuple[tuple[int, ...], bool]:
    for place, token in enumerate(ids):
        if token in ends:
            return ids[: place + 1], True
    return ids, False
