#!/bin/bash
# What one node does: torchrun starts its ranks, and the signal to stop reaches them. `run.sbatch` calls it with the words
# that follow `nemo-sdg`.

# Node-local scratch, for what each node makes for itself. On a shared file system these caches are slow, and some are locked
# or half written while another node reads them. Nothing of a run lies here.
scratch=${LOCAL_SCRATCH:-${TMPDIR:-/tmp}}/nemo-sdg-$SLURM_JOB_ID-$SLURM_NODEID
mkdir -p "$scratch"
export TRITON_CACHE_DIR=$scratch/triton               # compiled Triton kernels
export TORCHINDUCTOR_CACHE_DIR=$scratch/inductor      # what torch.compile makes
export TORCH_EXTENSIONS_DIR=$scratch/torch_extensions # C++ extensions that are built at first use
export MPLCONFIGDIR=$scratch/matplotlib               # fonts that matplotlib has found
export NUMBA_CACHE_DIR=$scratch/numba
# Models and datasets by hf:// are fetched once and kept for all nodes: on the shared file system, not in a home that some
# nodes lack. `nemo-sdg download` fetches them before the job, where compute nodes have no way out.
export HF_HOME=${HF_HOME:-$SLURM_SUBMIT_DIR/.cache/huggingface}

# NCCL finds InfiniBand and its interfaces by itself. Only where it takes the wrong ones
# (https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html):
#   export NCCL_SOCKET_IFNAME=eth0   # the interface of the first contact, and of the data where there is no InfiniBand
#   export NCCL_IB_HCA=mlx5          # the adapters that carry data
#   export NCCL_DEBUG=INFO           # says what it has chosen; not for every day
# gloo takes the interface towards the first node; GLOO_SOCKET_IFNAME says another.
# A rank whose collective fails or exceeds run.timeout_s must end, not hang: PyTorch's default
# (https://docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html), written down so that no site turns it off.
export TORCH_NCCL_ASYNC_ERROR_HANDLING=${TORCH_NCCL_ASYNC_ERROR_HANDLING:-3}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# After SIGTERM (scancel, preemption) torchrun gives its ranks 30 s. As long as the site's KillWait, or longer, does no harm.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-30}

ranks=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}

# USR1 would end torchrun itself, and leave its ranks behind: it ignores it, and this shell tells the ranks. Slurm may have
# told them too; within a second that counts as one signal.
(
    trap '' USR1
    exec "${PYTHON:-python3}" -m torch.distributed.run \
        --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$ranks" \
        --rdzv_backend c10d --rdzv_endpoint "$RENDEZVOUS" --rdzv_id "$SLURM_JOB_ID" \
        -m nemo_sdg "$@"
) &
agent=$!
trap : TERM # torchrun and its ranks have had it too; when this shell ends, Slurm kills what is left
trap 'kill -USR1 $(cat "/proc/$agent/task/$agent/children") 2>/dev/null' USR1
# A signal ends `wait` before its time.
while :; do
    wait "$agent"
    status=$?
    kill -0 "$agent" 2>/dev/null || break
done
rm -rf "$scratch"
exit "$status"
