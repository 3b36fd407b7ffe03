"""NeMo 2 checkpoints: `weights/` in Megatron's torch_dist format, `context/` with NeMo's objects. No torch to read."""

from nemo_sdg.checkpoints.nemo2.contents import read, recognise

__all__ = ["read", "recognise"]
