"""Token generation on transformers and peft: one model, adapters by name, batches of requests.

It knows nothing of HTTP; `transformers_engine` queues the requests. All of it runs in one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from peft import PeftModel
from safetensors import SafetensorError
from tokenizers.decoders import DecodeStream
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from contracts.errors import EngineError
from contracts.events import BASE_VERSION, Sampling
from contracts.processor import bound_kernels

GREEDY_BELOW = 1e-5
_DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16}


class Job(Struct):
    """One request to generate. ``emit`` takes (text, token id, logprob, finish reason or None).

    ``cancelled`` is asked before every token; a cancelled job ends without another emit.
    """

    prompt: list[int]
    sampling: Sampling
    emit: Callable[[str, int, float, str | None], None]
    cancelled: Callable[[], bool]


class LocalModel:
    """A causal language model from a directory with safetensors weights, on the CPU."""

    def __init__(self, path: str, max_len: int, dtype: str = "auto") -> None:
        bound_kernels()  # every length of a prompt has its own
        self.max_len = max_len
        self._tokenizer: Any = AutoTokenizer.from_pretrained(path)
        # Soft caps within attention are left out by every implementation but this one.
        capped = getattr(AutoConfig.from_pretrained(path), "attn_logit_softcapping", None)
        base: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=_DTYPES[dtype],
            use_safetensors=True,
            attn_implementation="eager" if capped else None,
        )
        self._base = base.eval()
        self._tuned: Any = None
        self._ends = _end_ids(base, self._tokenizer)

    def load_adapter(self, name: str, directory: Path) -> None:
        """Add a LoRA adapter; EngineError 404 unless it is there in safetensors."""
        for needed in ("adapter_config.json", "adapter_model.safetensors"):
            if not (directory / needed).is_file():
                raise EngineError(f"{directory} has no {needed}; only safetensors are loaded", 404)
        try:
            if self._tuned is None:
                self._tuned = PeftModel.from_pretrained(self._base, directory, adapter_name=name)
            else:
                self._tuned.load_adapter(directory, adapter_name=name)
            self._tuned.eval()
        except (ValueError, KeyError, RuntimeError, OSError) as error:
            raise EngineError(f"adapter {name} does not fit the model: {error}", 400) from error

    def reload_weights(self, directory: Path) -> None:
        """Replace the weights by those of a model of the same shape; EngineError 400 otherwise.

        All are looked at before the first is replaced. Adapters stay.
        """
        try:
            fresh: Any = AutoModelForCausalLM.from_pretrained(
                directory, dtype=self._base.dtype, use_safetensors=True
            )
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:
            raise EngineError(f"{directory} has no weights to load: {error}", 400) from error
        given = dict(fresh.named_parameters())
        held = {
            name.replace(".base_layer.", "."): tensor
            for name, tensor in self._base.named_parameters()
            if ".lora_" not in name
        }
        wrong = [
            name
            for name in given.keys() | held.keys()
            if name not in given or name not in held or given[name].shape != held[name].shape
        ]
        if wrong:
            raise EngineError(f"{directory} has another shape: {sorted(wrong)[:3]}", 400)
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(given[name])

    def unload_adapter(self, name: str) -> None:
        """Remove an adapter; removing the last leaves the bare model."""
        if len(self._tuned.peft_config) == 1:
            self._base = self._tuned.unload()
            self._tuned = None
        else:
            self._tuned.delete_adapter(name)

    def render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]
    ) -> tuple[list[int], int]:
        """Return (prompt token ids, room left for the answer); EngineError 400 when too long."""
        try:
            text = self._tokenizer.apply_chat_template(
                [_as_template(message) for message in messages],
                tools=[_tool_as_template(tool) for tool in tools] or None,
                add_generation_prompt=True,
                tokenize=False,
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise EngineError(f"the chat template refuses the messages: {error}", 400) from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        room = self.max_len - len(ids)
        if room < 1:
            raise EngineError(
                f"the prompt has {len(ids)} tokens, the model takes {self.max_len} with the "
                "answer; shorten the messages",
                400,
            )
        return ids, room

    @torch.inference_mode()
    def generate(self, model: str, jobs: Sequence[Job]) -> None:
        """Generate for several jobs of one model together, token by token.

        A job that has ended takes no part in the passes after it.
        """
        rows = [_Row(job, self._tokenizer.backend_tokenizer, self._ends) for job in jobs]
        width = max(len(job.prompt) for job in jobs)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for place, job in enumerate(jobs):
            ids[place, width - len(job.prompt) :] = torch.tensor(job.prompt)
            mask[place, width - len(job.prompt) :] = 1
        network = self._select(model)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        # A slice would not be contiguous, and a frozen head then be copied for every row.
        last = torch.tensor([-1])
        cache: Any = None
        while True:
            out = network(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=last,
            )
            cache = out.past_key_values
            drawn = [
                row.step(logits)
                for row, logits in zip(rows, out.logits[:, -1].float(), strict=True)
            ]
            going_on = [place for place, row in enumerate(rows) if not row.done]
            if not going_on:
                return
            if len(going_on) < len(rows) and _may_drop_rows(cache):
                kept = torch.tensor(going_on)
                cache.batch_select_indices(kept)
                rows = [rows[place] for place in going_on]
                drawn, mask = [drawn[place] for place in going_on], mask[kept]
                positions = positions[kept]
            ids = torch.tensor(drawn)[:, None]
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.long)], dim=1)

    def _select(self, model: str) -> Any:
        if self._tuned is None:
            return self._base
        if model == BASE_VERSION:
            self._tuned.base_model.disable_adapter_layers()
        else:
            self._tuned.base_model.enable_adapter_layers()
            self._tuned.set_adapter(model)
        return self._tuned


def _may_drop_rows(cache: Any) -> bool:
    """Return whether rows can be taken out of a cache: those of linear attention keep all."""
    return all(hasattr(layer, "batch_select_indices") for layer in cache.layers)


class _Row:
    """One job in a batch: how it draws, and what it has said so far."""

    def __init__(self, job: Job, tokenizer: Any, ends: frozenset[int]) -> None:
        self.done = False
        self._job = job
        self._tokenizer = tokenizer
        self._ends = ends
        self._text = DecodeStream(skip_special_tokens=True)
        self._count = 0
        self._random: torch.Generator | None = None
        if job.sampling.seed is not None:
            self._random = torch.Generator().manual_seed(job.sampling.seed)

    def step(self, logits: torch.Tensor) -> int:
        """Draw the next token from its logits [vocabulary] and emit it."""
        if self.done or self._job.cancelled():
            self.done = True
            return 0
        token, logprob = draw(logits, self._job.sampling, self._random)
        self._count += 1
        reason = None
        if token in self._ends:
            reason = "stop"
        elif self._count >= self._job.sampling.max_tokens:
            reason = "length"
        text = "" if reason == "stop" else self._text.step(self._tokenizer, token) or ""
        self.done = reason is not None
        self._job.emit(text, token, logprob, reason)
        return token


def draw(
    logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None
) -> tuple[int, float]:
    """Draw one token from logits [vocabulary]; return it and its log-probability.

    The log-probability is that under the distribution drawn from: after temperature, top_k and
    top_p (nucleus sampling, Holtzman et al. 2020). At temperature 0 the most likely token is taken
    and its log-probability is that of the untempered model, as vLLM reports it.
    """
    if sampling.temperature < GREEDY_BELOW:
        logprobs = logits.log_softmax(-1)
        best = int(logprobs.argmax())
        return best, float(logprobs[best])
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        least = logits.topk(sampling.top_k).values[-1]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logits.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        logits = logits.masked_fill(
            torch.zeros_like(outside).scatter(0, order, outside), -torch.inf
        )
    logprobs = logits.log_softmax(-1)
    token = int(torch.multinomial(logprobs.exp(), 1, generator=generator))
    return token, float(logprobs[token])


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    found = model.generation_config.eos_token_id
    ends = [found] if isinstance(found, int) else list(found or ())
    return frozenset([*ends, tokenizer.eos_token_id]) - {None}


def _as_template(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as chat templates read it: arguments of calls as an object, as in vLLM."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_call_as_template(call) for call in calls]}


def _call_as_template(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    try:
        arguments = msgspec.json.decode(function["arguments"] or "{}")
    except msgspec.DecodeError as error:
        raise EngineError(f"arguments of {function['name']} are not JSON: {error}", 400) from error
    return {**call, "function": {**function, "arguments": arguments}}


def _tool_as_template(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool with the fields vLLM gives to templates, so that both render one prompt."""
    function = tool["function"]
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": function.get("description"),
            "parameters": function.get("parameters"),
        },
    }
