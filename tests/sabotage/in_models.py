"""What a model says and learns follows from its weights, the row and the seed, on any ranks."""

from __future__ import annotations

from sabotage.patch import Patch

LOSSES, FITS = "tests/training/test_losses.py", "tests/training/test_fit.py"
TEMPLATES, SCHEDULER = "nemo_sdg/models/templates.py", "nemo_sdg/engine/scheduler.py"

PATCHES = [
    Patch(
        "Each sample of a prompt has a random stream of its own.", "nemo_sdg/parallel/random.py",
        'f"{seed}\\x00{prompt_id}\\x00{sample}"', 'f"{seed}\\x00{prompt_id}"',
        "tests/parallel/test_mesh.py::test_streams_belong_to_rows",
    ),
    Patch(
        "Each rank of a fit has a random stream of its own.", "nemo_sdg/training/randomness.py",
        "\\x00{mesh.pp_rank}\\x00{mesh.dp_rank}", "\\x00{mesh.pp_rank}",
        "tests/training/test_restart.py::test_it_goes_on_to_the_bit[bradley_terry-dp2]",
    ),
    Patch(
        "A fit that goes on draws the numbers that it would have drawn.", "nemo_sdg/training/randomness.py",
        "    _set(state)\n", "    _set(state)\n    torch.rand(1)\n",
        "tests/training/test_restart.py::test_it_goes_on_to_the_bit[sft-one]",
    ),
    Patch(
        "Keys and values are kept until the last row that reads them has ended.", SCHEDULER,
        "        if not group.alive:\n", "        if group.shared:\n",
        "tests/engine/test_scheduler.py::test_what_samples_share_is_kept_until_the_last_of_them_has_ended",
    ),
    Patch(
        "A block of the cache is known by all that stands before it, too.", "nemo_sdg/engine/blocks.py",
        "hashlib.blake2b(before + content,", "hashlib.blake2b(content,",
        "tests/engine/test_blocks.py::test_a_block_is_named_by_all_that_stands_before_it",
    ),
    Patch(
        "Logits that are not finite give no token.", "nemo_sdg/engine/sampling.py",
        "return torch.where(finite_R, token_R, -1), log_prob_R", "return token_R, log_prob_R",
        "tests/engine/test_sampling.py::test_what_is_not_finite_is_told_by_row",
    ),
    Patch(
        "A response has max_tokens tokens at most.", "nemo_sdg/engine/ending.py",
        "if len(row.tokens) == settings.max_tokens:", "if len(row.tokens) > settings.max_tokens:",
        "tests/engine/test_ending.py::test_most_tokens_and_the_context",
    ),
    Patch(
        "The reward model reads a conversation under the system text that it was trained with.", TEMPLATES,
        'return f"{_conversation(REWARD_SYSTEM_PROMPT, turns)}{LABEL}"', 'return f"{_conversation(\'\', turns)}{LABEL}"',
        "tests/models/test_templates.py::test_reward_prompt_has_the_fixed_system_text_and_ends_where_it_is_read",
    ),
    Patch(
        "The <extra_id_1> that ends an answer is in the loss.", TEMPLATES,
        "spans.append((begin, position + len(TURN)))", "spans.append((begin, position))",
        "tests/training/test_samples.py::test_the_assistant_and_the_turn_end_after_it_are_trained",
    ),
    Patch(
        "Samples that share a row do not see each other.", "nemo_sdg/models/attention.py",
        "cut = [x.split([*sizes, padding]) for x in", "cut = [x.split([sum(sizes), padding]) for x in",
        "tests/training/test_packing.py::test_attention_within_segments",
    ),
    Patch(
        "-100 is averaged into no loss.", "nemo_sdg/training/losses.py",
        "labelled_BA = label_BA != missing", "labelled_BA = label_BA == label_BA",
        f"{LOSSES}::test_attribute_regression_ignores_missing_entries",
    ),
    Patch(
        "RPO holds the policy's gap against the rewards', not the other way round.", "nemo_sdg/training/losses.py",
        "    won_B = b_B.sigmoid() * (F.logsigmoid(b_B) - F.logsigmoid(a_B))\n",
        "    a_B, b_B = b_B, a_B\n    won_B = b_B.sigmoid() * (F.logsigmoid(b_B) - F.logsigmoid(a_B))\n",
        f"{LOSSES}::test_rpo_is_zero_where_the_gaps_agree_and_dpo_where_the_reward_gap_is_endless",
    ),
    Patch(
        "A loss is normalised over the global batch, not over each micro batch.", "nemo_sdg/training/model.py",
        "calculate_per_token_loss: bool = True", "calculate_per_token_loss: bool = False",
        f"{FITS}::test_accumulation_changes_nothing[sft]",
    ),
    Patch(
        "Parameters that sequence-parallel ranks share have one gradient.", "nemo_sdg/models/nemotron.py",
        "            parameter.sequence_parallel = config.sequence_parallel\n", "            pass\n",
        f"{FITS}::test_sequence_parallelism_changes_nothing[sft]",
    ),
    Patch(
        "The norm that gradients are clipped by is that of the whole model.", "nemo_sdg/training/model.py",
        "            parameter.tensor_model_parallel = True\n", "",
        f"{FITS}::test_clipping_is_by_the_norm_over_all_ranks[fp64-1e-09]",
    ),
    Patch(
        "A loss that is not finite stops all ranks before the update.", "nemo_sdg/training/strategy.py",
        "if min(ranks[:3]) < world:", "if min(ranks[:3]) > world:",
        "tests/training/test_faults.py::test_a_loss_that_is_not_finite_stops_all_ranks",
    ),
    Patch(
        "Each epoch has an order of its own.", "nemo_sdg/training/batches.py",
        'f"order\\x00{seed}\\x00{epoch}"', 'f"order\\x00{seed}"',
        "tests/training/test_batches.py::test_epochs_are_shuffled_apart",
    ),
    Patch(
        "Every parameter comes from the checkpoint, or the model is not used.", "nemo_sdg/checkpoints/load.py",
        "            boxes.append(Box(tensor, box, layer, _destination(parameter, tensor)))\n",
        "            if layer != 3:\n                boxes.append(Box(tensor, box, layer, _destination(parameter, tensor)))\n",
        "tests/checkpoints/test_load.py::test_no_parameter_is_left_as_it_was",
    ),
    Patch(
        "Weights that are not finite are refused by name.", "nemo_sdg/checkpoints/load.py",
        "threads=threads, give_up=give_up)", "threads=threads, give_up=give_up, finite=False)",
        "tests/checkpoints/test_release.py::test_broken_folders_are_refused_by_name[not finite]",
    ),
    Patch(
        "Who is told to stop while it loads a model reads no further.", "nemo_sdg/checkpoints/load.py",
        "threads=threads, give_up=give_up)", "threads=threads)",
        "tests/parallel/test_stopping.py::test_who_is_told_while_it_loads_reads_no_further_and_all_end[{}-False]",
    ),
    Patch(
        "A replica that is told to stop while it loads what a fit trains ends all ranks.", "nemo_sdg/parallel/stopping.py",
        "(mesh.gather_objects if everyone else mesh.gather_in_replica)", "mesh.gather_in_replica",
        "tests/parallel/test_stopping.py::test_who_is_told_while_it_loads_reads_no_further_and_all_end[{'dp': 2}-True]",
    ),
]  # fmt: skip
