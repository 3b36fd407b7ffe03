"""Any sequence-classification reward model that transformers can load, as a scorer.

Its outputs become attributes by their names or, where they have none, by their number:

* named helpfulness, correctness, coherence, complexity and verbosity in `id2label`: these, wherever they stand;
* nine without names: the last five, as Nemotron's reward head has them; five without names: in that order;
* one, as most reward models have: it is the helpfulness. The other four are `MISSING`: selection weighs and limits
  what there is, and training learns from it alone.

The folder is data: no code of it runs, and weights are read from safetensors only.
Axes: B rows of a batch, S tokens, A outputs.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_sdg.config import ATTRIBUTES, MISSING
from nemo_sdg.engine.backends import Refusal
from nemo_sdg.errors import CheckpointError, RowError
from nemo_sdg.models.templates import ATTRIBUTE_SLOTS, OUTPUT_NAMES, check_messages
from nemo_sdg.parallel import device
from nemo_sdg.records import Response, Scored
from nemo_sdg.resources import resolve

_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
_FILES = (".json", ".safetensors", ".jinja", ".model", ".txt")
_ENDS = 1 << 16
_SORTED = 512
"""Rows that are looked at together, so that those of similar length share a batch."""


class HfScorer:
    """A reward model on this process's device; it is loaded with the first row.

    Rows of one call share batches, whose padding decides the last digits: call it with a row group.

    Args:
        dtype: fp64, fp32 or bf16; None is the checkpoint's own on a GPU and fp32 on a CPU.
        batch_tokens: tokens of a batch at most, padding included; a longer conversation goes alone.
    Raises:
        CheckpointError: the folder holds no model, or its weights are pickled.
        HubError: the hub does not give it.
    """

    def __init__(
        self, path: Path | str, *, dtype: str | None = None, batch_tokens: int = 4096, own: Sequence[str] = ()
    ) -> None:
        self.path = resolve(path)
        self._dtype, self._batch_tokens, self._own = dtype, batch_tokens, own
        for pattern in ("config.json", "*.safetensors"):
            if not any(self.path.glob(pattern)):
                found = ", ".join(sorted(file.name for file in self.path.glob("*")))[:120] or "nothing"
                raise CheckpointError(
                    "the folder is no model that transformers can load", where=self.path, found=found,
                    expected="config.json and *.safetensors", way_out="a pickle can run code and is never opened",
                )  # fmt: skip
        self._loaded: tuple[Any, Any, dict[str, int]] | None = None

    @cached_property
    def identity(self) -> dict[str, str]:
        """The digest of the folder: of each file its name, its size and both ends."""
        whole = hashlib.sha256()
        for file in sorted(file for file in self.path.iterdir() if file.suffix in _FILES):
            size = file.stat().st_size
            whole.update(f"{file.name}\0{size}\0".encode())
            with open(file, "rb") as data:
                for start in (0, max(0, size - _ENDS)):
                    data.seek(start)
                    whole.update(data.read(min(_ENDS, size)))
        return {"reward": whole.hexdigest()[:16]}

    def score(self, responses: Iterable[Response]) -> Iterator[Scored | Refusal]:
        """As `Scorer.score`."""
        responses = iter(responses)
        while some := list(islice(responses, _SORTED)):
            encoded: list[tuple[Response, list[int]]] = []
            for row in some:
                try:
                    encoded.append((row, self._encode(row)))
                except RowError as error:
                    yield Refusal(row.id, error)
            encoded.sort(key=lambda pair: (len(pair[1]), pair[0].id))
            for batch in self._batches(encoded):
                rewards_BA = self._forward([ids for _, ids in batch])
                for (row, _), rewards_A in zip(batch, rewards_BA):
                    yield self._scored(row, rewards_A)

    def close(self) -> None:
        self._loaded = None

    def _load(self) -> tuple[Any, Any, dict[str, int]]:
        """The model, its tokenizer and the output of each attribute."""
        if self._loaded is None:
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            dtype = _DTYPES[self._dtype] if self._dtype else "auto" if device.has_cuda() else torch.float32
            given = dict(local_files_only=True, trust_remote_code=False)
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.path, **given)
                model, report = AutoModelForSequenceClassification.from_pretrained(
                    self.path, torch_dtype=dtype, use_safetensors=True, output_loading_info=True, **given
                )
            except Exception as error:  # of many kinds, by what is missing or broken
                raise CheckpointError(
                    "transformers cannot load it for sequence classification", where=self.path,
                    found=" ".join(f"{type(error).__name__}: {error}".split())[:200],
                ) from error  # fmt: skip
            absent = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
            if absent:  # transformers would go on with random numbers
                raise CheckpointError(
                    "the checkpoint lacks weights of a reward model", where=self.path, found=f"no {absent[0]}",
                    way_out="give a model that was trained for sequence classification",
                )  # fmt: skip
            if tokenizer.chat_template is None:
                raise CheckpointError(
                    "the tokenizer has no chat template, so nobody knows how a conversation is written for this model",
                    where=self.path, expected="chat_template in tokenizer_config.json, or chat_template.jinja",
                )  # fmt: skip
            names = [model.config.id2label[slot] for slot in range(model.config.num_labels)]
            outputs = outputs_of(names, self.path, self._own)
            self._loaded = model.eval().to(device.device()), tokenizer, outputs
        return self._loaded

    def _encode(self, row: Response) -> list[int]:
        from jinja2 import TemplateError

        messages = [*row.messages, {"role": "assistant", "content": row.response}]
        check_messages(messages, last="assistant")
        model, tokenizer, _ = self._load()
        try:
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        except TemplateError as error:
            raise RowError("the chat template cannot express the conversation", found=str(error)[:120]) from None
        limits = (getattr(model.config, "max_position_embeddings", None), tokenizer.model_max_length)
        longest = min(limit for limit in limits if limit is not None)
        if len(ids) > longest:
            raise RowError(
                "the conversation is longer than the context", found=f"{len(ids)} tokens",
                expected=f"at most {longest}", way_out="shorten it",
            )  # fmt: skip
        return ids

    def _batches(self, encoded: Sequence[tuple[Response, list[int]]]) -> Iterator[list[tuple[Response, list[int]]]]:
        """Rows in order of length, cut where the padded batch would get too large."""
        batch: list[tuple[Response, list[int]]] = []
        # Without a padding token the model cannot tell where a row of a batch ends.
        most = self._batch_tokens if encoded and self._load()[0].config.pad_token_id is not None else 0
        for pair in encoded:
            if batch and len(pair[1]) * (len(batch) + 1) > most:
                yield batch
                batch = []
            batch.append(pair)
        if batch:
            yield batch

    @torch.no_grad()
    def _forward(self, rows: list[list[int]]) -> np.ndarray:
        """Outputs float32 [B, A]. Padding stands at the right, where no causal token sees it."""
        model = self._load()[0]
        ids_BS = torch.full((len(rows), max(map(len, rows))), model.config.pad_token_id or 0)
        mask_BS = torch.zeros_like(ids_BS)
        for index, row in enumerate(rows):
            ids_BS[index, : len(row)] = torch.tensor(row)
            mask_BS[index, : len(row)] = 1
        at = device.device()
        return model(input_ids=ids_BS.to(at), attention_mask=mask_BS.to(at)).logits.float().cpu().numpy()

    def _scored(self, row: Response, rewards_A: np.ndarray) -> Scored | Refusal:
        values = {name: float(str(rewards_A[slot])) for name, slot in self._load()[2].items()}
        if not all(map(math.isfinite, values.values())):
            return Refusal(row.id, RowError("the scores are not finite"))
        return Scored(**vars(row), scores={**dict.fromkeys(ATTRIBUTES, MISSING), **values})


def outputs_of(labels: Sequence[str], where: object = None, own: Sequence[str] = ()) -> dict[str, int]:
    """The output of each attribute that a model gives, by the names of all its outputs.

    Raises:
        CheckpointError: nothing says which attributes they are: a classifier of another kind, most likely.
    """
    names = [str(label).strip().lower() for label in labels]
    if set(ATTRIBUTES) <= set(names) or set(own) & set(names):
        return {name: names.index(name) for name in (*ATTRIBUTES, *own) if name in names}
    if len(names) == 1:
        return {ATTRIBUTES[0]: 0}
    unnamed = all(re.fullmatch(r"label_\d+", name) for name in names)
    if unnamed and len(names) == len(OUTPUT_NAMES):
        return dict(ATTRIBUTE_SLOTS)
    if unnamed and len(names) == len(ATTRIBUTES):
        return {name: slot for slot, name in enumerate(ATTRIBUTES)}
    raise CheckpointError(
        "the outputs of the model are no HelpSteer attributes", where=where,
        found=f"{len(names)} outputs: {', '.join(names)[:120]}",
        expected=f"one output, or in id2label of config.json the names {', '.join(ATTRIBUTES)}",
    )  # fmt: skip
