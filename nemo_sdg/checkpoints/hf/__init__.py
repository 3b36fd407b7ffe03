"""Hugging Face folders of the Nemotron architecture: safetensors, config, tokenizer and chat template. No torch.

A language model is transformers' `NemotronForCausalLM`, a reward model its `NemotronForSequenceClassification`,
with the names that transformers gives them (N is the layer, from 0):

    model.embed_tokens.weight                           embedding
    model.layers.N.input_layernorm.{weight,bias}        norm before the attention; the scale is stored minus one
    model.layers.N.self_attn.{q,k,v}_proj.weight        rows of the fused projection: of each KV group its queries,
                                                        its key, its value
    model.layers.N.self_attn.o_proj.weight
    model.layers.N.post_attention_layernorm.{weight,bias}
    model.layers.N.mlp.{up_proj,down_proj}.weight
    model.norm.{weight,bias}
    lm_head.weight                                      output layer; a reward model may carry it along, unread
    score.weight                                        reward head [9, hidden], read at the last token; the rows are
                                                        `models.templates.OUTPUT_NAMES`, `id2label` in config.json
    score.bias                                          only where the head has a bias. transformers' class has no
                                                        bias and leaves it out: add it to what that class returns

Weights are read from `model.safetensors`, or from the shards that `model.safetensors.index.json` lists; several
files without an index are refused, as there is no telling which of them belong together.

Beside the weights a written folder holds config.json, generation_config.json (a turn ends at `<extra_id_1>` or at
`</s>`), tokenizer.json, tokenizer_config.json, chat_template.jinja and the SentencePiece file, tokenizer.model.
Source of the names: huggingface/transformers: src/transformers/models/nemotron/modeling_nemotron.py.
"""

from nemo_sdg.checkpoints.hf.contents import read, recognise

__all__ = ["read", "recognise"]  # `writer` has units and finish
