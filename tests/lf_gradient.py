"""LLaMA-Factory's own SFT loss and its gradient on one batch: template, data set, collator, model and trainer are its own, as
llamafactory.train.sft.workflow.run_sft makes them. A program, started by test_within_update.py: ``lf_gradient.py YAML OUT``.

Its template ends a response with the end of turn and a line break, which the policy never generates: the line break is no label
here. OUT: the batch, the loss, and the gradients by name.
"""

from __future__ import annotations

import sys

import torch
from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args, read_args
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer


def main(out: str) -> None:
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(read_args())
    module = load_tokenizer(model_args)
    tokenizer = module["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)
    model = load_model(tokenizer, model_args, finetuning_args, training_args.do_train)
    collator = SFTDataCollatorWith4DAttentionMask(
        template=template, model=model, pad_to_multiple_of=8, label_pad_token_id=-100,
        attn_implementation=model.config._attn_implementation, compute_dtype=model_args.compute_dtype, **module,
    )  # fmt: skip
    trainer = CustomSeq2SeqTrainer(
        model=model, args=training_args, finetuning_args=finetuning_args, data_collator=collator, gen_kwargs={},
        **data, **module,
    )  # fmt: skip
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    line_break = tokenizer.encode("\n", add_special_tokens=False)
    for labels in inputs["labels"]:
        last = labels.ne(-100).nonzero()[-1]
        assert [int(labels[last])] == line_break
        labels[last] = -100
    items = inputs["labels"].ne(-100).sum()
    batch = {name: value.clone() for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    loss = trainer.compute_loss(model, inputs, num_items_in_batch=items)
    loss.backward()
    grads = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    torch.save({"batch": batch, "loss": float(loss.detach()), "grads": grads}, out)


if __name__ == "__main__":
    main(sys.argv.pop())
