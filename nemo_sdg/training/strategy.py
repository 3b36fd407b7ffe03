"""NeMo's MegatronStrategy on a process group and a rank grid that are already up, fit after fit."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Callable, NoReturn

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator
from megatron.core.utils import get_model_config
from nemo.lightning import MegatronStrategy
from nemo.lightning.pytorch.plugins.data_sampler import MegatronDataSampler
from nemo.lightning.pytorch.strategies.utils import setup_parallel_ranks
from nemo.utils import AppState
from torch import Tensor
from torch import distributed as dist

from nemo_sdg.errors import CheckpointError, UserError
from nemo_sdg.parallel import device, stopping
from nemo_sdg.parallel.mesh import Mesh
from nemo_sdg.parallel.watch import doing, is_lost_peer
from nemo_sdg.training.stopping import StopRequest

_MOST_LINES = 40
"""Lines of a file that a message names."""


class RunningGroup(ClusterEnvironment):
    """Tells Lightning that the ranks run already, and which one this is."""

    creates_processes_externally = True
    main_address = "localhost"
    main_port = 0

    @staticmethod
    def detect() -> bool:
        return dist.is_initialized()

    def world_size(self) -> int:
        return dist.get_world_size()

    def global_rank(self) -> int:
        return dist.get_rank()

    def local_rank(self) -> int:
        # On a CPU every rank counts as one device of a single node.
        return int(os.environ.get("LOCAL_RANK", "0")) if device.has_cuda() else dist.get_rank()

    def node_rank(self) -> int:
        return dist.get_rank() // local_world_size()

    def set_world_size(self, size: int) -> None:
        assert size == self.world_size()

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.global_rank()


def local_world_size() -> int:
    """Ranks that Lightning counts to one node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.has_cuda() else dist.get_world_size()


class FitStrategy(MegatronStrategy):
    """MegatronStrategy for one of several fits in one process group.

    NeMo's own returns early when the group exists and leaves half of its state unset; it also logs each step
    through tensors on "cuda", and it lets single ranks stop alone.
    """

    task = "sft"
    mesh: Mesh
    rows: Path
    """The file that the samples come from."""
    on_loss: Callable[[int, float], None]
    grad_norm: float
    """Of the last step, before clipping, over all ranks."""
    stop: StopRequest
    own_gradient_is_bad = False
    """What this rank has added up of its gradients, before replicas are added up, is not finite."""

    def setup_distributed(self) -> None:
        setup_parallel_ranks(self)
        self.set_world_ranks()
        self._process_group_backend = self._get_process_group_backend()
        state = AppState()
        state.tensor_model_parallel_group = parallel_state.get_tensor_model_parallel_group()
        state.pipeline_model_parallel_group = parallel_state.get_pipeline_model_parallel_group()
        state.data_parallel_group = parallel_state.get_data_parallel_group()
        state.data_parallel_rank = parallel_state.get_data_parallel_rank()
        state.data_parallel_size = parallel_state.get_data_parallel_world_size()
        # The previous fit's batch sizes; NeMo asserts that they never change.
        destroy_num_microbatches_calculator()

    def on_train_start(self) -> None:
        super().on_train_start()
        stopping.listen_again()
        config = get_model_config(self.lightning_module)
        reduce = config.finalize_model_grads_func

        def watched(*args: Any, **kwargs: Any) -> Any:
            # Afterwards all replicas hold the same sum, and nobody can tell whose rows spoilt it.
            self.own_gradient_is_bad = not self._gradients_are_finite()
            return reduce(*args, **kwargs)

        config.finalize_model_grads_func = watched

    def init_model_parallel(self) -> None:
        # NeMo builds the other virtual stages from what the first one was constructed with: neither start nor loss.
        first, *others = self.megatron_parallel
        for chunk in others:
            first.fill(chunk.module)
            chunk._training_loss_reduction = first.training_loss_reduction
        super().init_model_parallel()

    def load_checkpoint(self, checkpoint_path: Path | str, selective_restore: bool = False) -> dict[str, Any]:
        """What a fit has saved itself.

        Raises:
            CheckpointError: the disk gives it back torn or in part.
            Stopped: the run was told to stop meanwhile. The restart point stands, and a step more would write another.
        """
        try:
            found = super().load_checkpoint(checkpoint_path, selective_restore)
        except Exception as error:
            if is_lost_peer(error) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise CheckpointError(
                "what the fit has saved here cannot be read", where=checkpoint_path,
                found=str(error).strip().partition("\n")[0][:80],
                way_out="delete this folder; the fit goes on from the restart point before it, or begins again",
            ) from error  # fmt: skip
        stopping.heed_any(self.mesh, everyone=True)
        return found

    def training_step(self, dataloader_iter: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Forward, backward and gradient reduction of one global batch; returns its mean loss on every rank.

        Raises:
            UserError: the loss or a gradient is not finite; on all ranks at once, before the update.
        """
        with doing(f"step {self.trainer.global_step}"), self.precision_plugin.train_step_context():
            for chunk in self.model:
                chunk.zero_grad_buffer()
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            self.lightning_module.step_lines.clear()
            loss = self.model.training_step(dataloader_iter, *args, **kwargs)
        loss = self.mesh.broadcast_from_last_stage(loss.detach().double().clone())
        self._agree(loss.item())
        self.on_loss(self.trainer.global_step, loss.item())
        return loss

    def _agree(self, loss: float) -> None:
        """All ranks learn in one message whether one of them saw a number that is not finite, or was told to stop."""
        reduction = self.lightning_module.training_loss_reduction
        bad_loss = self.mesh.last_stage and not math.isfinite(reduction.local_loss)
        bad_sum = not self.own_gradient_is_bad and not self._gradients_are_finite()
        seen = (bad_loss, self.own_gradient_is_bad, bad_sum, self.stop.asked)
        # One number per kind: the lowest rank that saw it, so that all ranks name the same one.
        world = self.mesh.world_size
        first = torch.tensor([self.mesh.rank if one else world for one in seen], device=device.device())
        if world > 1:
            dist.all_reduce(first, op=dist.ReduceOp.MIN)
        ranks = first.tolist()
        self.stop.agreed = ranks[3] < world
        if min(ranks[:3]) < world:
            lines = self.mesh.gather_objects([reduction.bad_lines, sorted(set(self.lightning_module.step_lines))])
            if ranks[0] < world:
                self._refuse("the loss", loss, ranks[0], lines[ranks[0]][0])
            if ranks[1] < world:
                self._refuse("a gradient", "nan or inf", ranks[1], lines[ranks[1]][1])
            together = sorted({line for _, own in lines for line in own})
            self._refuse("the sum of the replicas' gradients", "nan or inf", ranks[2], together)

    def _refuse(self, what: str, found: object, rank: int, lines: list[int]) -> NoReturn:
        raise UserError(
            f"{what} is not finite",
            where=f"{self.task} training, step {self.trainer.global_step}, rank {rank}, {self.rows} {_listed(lines)}",
            found=found,
            expected="a finite number",
            way_out=f"look at these rows, lower {self.task}.learning_rate or raise {self.task}.warmup_steps",
        )

    def _gradients_are_finite(self) -> bool:
        return all(_is_finite(buffer.grad_data) for chunk in self.model for buffer in chunk.buffers)

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        # Past MegatronStrategy's, which only adds logging of CUDA tensors.
        output = DDPStrategy.optimizer_step(self, optimizer, closure, model, **kwargs)
        if not isinstance(output, tuple):
            return output
        loss, self.grad_norm = output[:2]
        return loss


def _listed(lines: list[int]) -> str:
    shown = ", ".join(map(str, lines[:_MOST_LINES]))
    return f"lines {shown}" + (f" and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else "")


def _is_finite(values: Tensor) -> bool:
    # The sum is one pass without a copy; only when it overflows or is nan does each value matter.
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


class BatchSampler(MegatronDataSampler):
    """Tells Megatron the length of each step's rows, which its pipeline must know before it receives."""

    widths: list[int] = []

    def on_megatron_step_start(self, step: Any) -> Any:
        self.seq_len = self.widths[step.step_i]
        return super().on_megatron_step_start(step)
