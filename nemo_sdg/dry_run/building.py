"""One rank's models on the meta device, and what is checked of them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from nemo_sdg.checkpoints.load import Wanted, wants
from nemo_sdg.checkpoints.names import HEAD, TensorPlace, region, released_key, tensor_places
from nemo_sdg.checkpoints.runs import Run, runs
from nemo_sdg.config import RunConfig
from nemo_sdg.dry_run.findings import Findings
from nemo_sdg.engine.cache import KeyValueCache
from nemo_sdg.engine.fitting import model_budget
from nemo_sdg.engine.load import build_chunks
from nemo_sdg.errors import UserError
from nemo_sdg.models.lora import attach
from nemo_sdg.models.nemotron import DTYPES, NemotronModel
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.phases import Phases
from nemo_sdg.plan import Plan
from nemo_sdg.plan.memory import ModelPlan, training_of
from nemo_sdg.plan.units import bytes_text
from nemo_sdg.training.forward import interleaved

Box = tuple[tuple[int, int], ...]
"""First and last + 1 on each axis of a whole tensor."""


class Builder:
    """Builds what each rank of a run holds, and remembers what all of them hold together."""

    def __init__(self, config: RunConfig, plan: Plan, findings: Findings) -> None:
        self.config, self.plan, self.findings = config, plan, findings
        self._saved: dict[str, dict[str, dict[Box, list[int]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
        """By role and tensor, the boxes that a checkpoint would be written from, each with the ranks that write it."""
        self._built, self._read = 0, 0

    def rank(self, job: Mesh, phases: Phases) -> None:
        """Builds and checks all models that a rank of the job holds in its phases; replicas are alike, so one is built."""
        for model in self.plan.models:
            mesh = self._mesh(model, job, phases)
            if mesh is None or mesh.dp_rank:
                continue
            grid = mesh.tp, mesh.pp, mesh.dp
            planned = model.grid.tp, model.grid.pp, model.grid.dp
            if grid != planned:
                self._say(model, f"runs on tp, pp, dp {grid}, planned are {planned}", job.rank)
                continue
            try:
                self._model(model, mesh, job.rank)
            except UserError as error:
                self._say(model, str(error), job.rank)

    def _mesh(self, model: ModelPlan, job: Mesh, phases: Phases) -> Mesh | None:
        phase = model.role.split()[0]
        if phase == "train" or model.grid == self.plan.grids.train:
            return job
        return getattr(phases, phase).mesh

    def _model(self, model: ModelPlan, mesh: Mesh, rank: int) -> None:
        stage, virtual = model.stages[mesh.pp_rank], len(model.chunks[mesh.pp_rank])
        dtype = DTYPES[self.plan.dtype]
        with interleaved(virtual), torch.device("meta"):
            # On a machine with a GPU Megatron's layers would name that one.
            chunks = build_chunks(
                model.shape, mesh, dtype=dtype, reward=model.reward, head_bias=model.contents.head_bias, spec="local",
                virtual_stages=virtual, use_cpu_initialization=True,
            )  # fmt: skip
        self._built += 1
        places = tensor_places(model.shape, reward=model.reward, head_bias=model.contents.head_bias)
        wanted = [
            one
            for chunk in chunks
            for one in wants(chunk, model.contents, mesh, fresh_head=HEAD not in model.contents.tensors)
        ]
        self._check_names(model, mesh, rank, places, wanted)
        self._check_reads(model, mesh, rank, wanted)
        if model.role.startswith("train"):  # the others are never saved
            for chunk in chunks:
                self._check_saved(model, mesh, rank, places, chunk)
        settings = training_of(self.config, model.role)
        if settings is not None and settings.lora.rank is not None:
            for chunk in chunks:
                attach(chunk, model.shape, settings.lora, self.config.run.seed, mesh)
        held = [parameter for chunk in chunks for parameter in chunk.parameters()]
        self._expect(model, rank, "parameters", sum(parameter.numel() for parameter in held), stage.parameters)
        self._expect(model, rank, "bytes of weights", sum(parameter.nbytes for parameter in held), stage.weights)
        self._expect(model, rank, "bytes of keys and values", self._keys_and_values(model, mesh, chunks), stage.kv_cache)

    def _check_names(
        self, model: ModelPlan, mesh: Mesh, rank: int, places: dict[str, TensorPlace], wanted: Sequence[Wanted]
    ) -> None:
        """The rank holds the tensors and the layers that the plan gives to its stage, each once."""
        layers = [layer for chunk in model.chunks[mesh.pp_rank] for layer in chunk]
        here = {"layers": layers, "first": [None] * mesh.first_stage, "last": [None] * mesh.last_stage}
        held = sorted({one.layer for one in wanted if one.layer is not None})
        if held != layers:
            self._say(model, f"it holds the layers {held}, planned are {layers}", rank)
            return
        expected = Counter((key, layer) for key, place in places.items() for layer in here[place.stage])
        found = Counter((one.place.key, one.layer) for one in wanted)
        for said, odd in (("planned and not built", expected - found), ("built and not planned", found - expected)):
            for key in dict.fromkeys(key for key, _ in odd):
                self._say(model, f"{key} is {said}", rank)

    def _check_reads(self, model: ModelPlan, mesh: Mesh, rank: int, wanted: Sequence[Wanted]) -> None:
        """The loader would read the byte ranges that the plan says, no more and no fewer."""
        planned = sorted(map(_range, model.loading.ranks[mesh.pp_rank * mesh.tp + mesh.tp_rank].runs))
        found = sorted(
            _range(run) for one in wanted if one.tensor for run in runs(one.tensor, one.region, one.layer)
        )
        self._read += sum(bytes_ * count for _, _, bytes_, _, count in found)
        if found != planned:
            odd = next(one for one in [*found, *planned] if (one in found) != (one in planned))
            who = "reads" if odd in found else "is planned to read and does not read"
            self._say(model, f"it {who} {odd[2] * odd[4]:,} bytes at {odd[1]:,} of {odd[0]}", rank)

    def _check_saved(
        self, model: ModelPlan, mesh: Mesh, rank: int, places: dict[str, TensorPlace], chunk: NemotronModel
    ) -> None:
        """Megatron would save each shard to the place that the table of tensors gives it."""
        first_layer = chunk.decoder.layers[0].layer_number - 1
        for name, entry in chunk.sharded_state_dict().items():
            if not isinstance(entry, ShardedTensor):
                continue
            key, layer = released_key(name, first_layer)
            place, stacked = places.get(key), entry.prepend_axis_num == 1
            if place is None or place.stacked != stacked or key != f"model.{entry.key}":
                self._say(model, f"Megatron would save {name} as {entry.key}, expected {key}", rank)
                continue
            expected = region(place, layer, mesh.tp, mesh.tp_rank)
            local = (1, *entry.local_shape) if stacked else entry.local_shape
            found = tuple(
                slice(start, min(start + size, whole))
                for start, size, whole in zip(entry.global_offset, local, place.shape)
            )
            # Shards of a padded vocabulary that lie behind its end hold nothing.
            if found != expected and all(slab.start < slab.stop for slab in expected):
                self._say(model, f"Megatron would save {_text(found)} of {key}, expected {_text(expected)}", rank)
            if set(_flat(entry.replica_id)) == {0}:
                self._saved[model.role][key][tuple((slab.start, slab.stop) for slab in found)].append(rank)

    def _keys_and_values(self, model: ModelPlan, mesh: Mesh, chunks: Sequence[NemotronModel]) -> int:
        if not model.role.startswith(("generate", "judge")):
            return 0
        settings = self.config.generate
        budget = model_budget(chunks[0], mesh, settings.slots, settings.prefill_tokens, settings.kv_cache_bytes)
        return budget.lanes * KeyValueCache(chunks[0], budget.blocks + budget.store).nbytes

    def check_whole(self) -> None:
        """All ranks together would write each element of a checkpoint exactly once."""
        for model in (model for model in self.plan.models if model.role.startswith("train")):
            places = tensor_places(model.shape, reward=model.reward, head_bias=model.contents.head_bias)
            for key, place in places.items():
                boxes = self._saved[model.role][key]
                for box, ranks in boxes.items():
                    if len(ranks) > 1:
                        self._say(model, f"{len(ranks)} ranks would write the same part of {key}", *ranks)
                written = sum(math.prod(max(0, stop - start) for start, stop in box) for box in boxes)
                if written != math.prod(place.shape):
                    said = f"a checkpoint would hold {written:,} of the {math.prod(place.shape):,} numbers of {key}"
                    self._say(model, said)

    def lines(self) -> Iterator[tuple[str, str]]:
        """What was looked at, in words."""
        grid = self.plan.grids.train
        replica = ", one replica of each model" if grid.dp > 1 else ""
        yield "built", f"{self._built:,} models on meta tensors, of {len(self.plan.models)} kinds on {grid} ranks{replica}"
        yield "shards", "names, layers, shapes, parameters, weights, keys and values of each rank are those of the plan"
        yield "read", f"{bytes_text(self._read)} in byte ranges that are those of the plan, for one replica of each"
        yield "saved", "each number of what is trained by exactly one rank, at the place that its name gives it"

    def _expect(self, model: ModelPlan, rank: int, what: str, found: int, planned: int) -> None:
        if found != planned:
            self._say(model, f"it holds {found:,} {what}, planned are {planned:,}", rank)

    def _say(self, model: ModelPlan, what: str, *ranks: int) -> None:
        for rank in ranks or (None,):
            self.findings.add(f"{model.role}: {what}", rank)


def _range(run: Run) -> tuple[str, int, int, int, int]:
    return str(run.file), run.offset, run.row_bytes, run.stride, run.count


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, tuple):
        for one in value:
            yield from _flat(one)
    else:
        yield value


def _text(box: Sequence[slice]) -> str:
    return "[" + ", ".join(f"{slab.start}:{slab.stop}" for slab in box) + "]"
