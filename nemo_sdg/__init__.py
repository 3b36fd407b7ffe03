"""nemo_sdg extends NVIDIA NeMo: generate with an Instruct model, score with a Reward model, filter, and train your own."""

__version__ = "0.1.0"
