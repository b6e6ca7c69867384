"""
What else would do the benchmark's work: transformers' GPT-2 of the same shape, and TRL's trainers
around it. Each is a function that makes a call of the same work as ours beside it.
"""

import contextlib
import copy
import io
import tempfile

import torch


def tokens(config, rows, length, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(config.vocab_size, (rows, length), generator=random)


def gpt2(config, kind="GPT2LMHeadModel", **more):
    "transformers' GPT-2 of the same shape, with the same tanh GELU as one kernel."
    import transformers

    transformers.logging.set_verbosity_error()
    made = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context, n_embd=config.channels,
        n_layer=config.layers, n_head=config.heads, n_inner=config.hidden, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_pytorch_tanh",
        attn_implementation="sdpa", bos_token_id=None, eos_token_id=None, **more)
    return getattr(transformers, kind)(made)


def scalar(config):
    return gpt2(config, "GPT2ForSequenceClassification", num_labels=1, pad_token_id=0)


def tokenizer(config):
    "Of texts that `words` writes: the trainers want text. Token 0 is padding and end."
    import tokenizers
    import transformers

    known = {"<>": 0} | {f"t{k}": k for k in range(1, config.vocab_size)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="<>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<>",
                                                eos_token="<>", padding_side="left")


def words(ids):
    return [" ".join(f"t{k}" for k in row) for row in ids.clamp(min=1).tolist()]


def trained(trainer, flags, device, **parts):
    "A call that trains with one of TRL's trainers; what it prints is not shown."
    def call():
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            trainer(args=flags(output_dir=folder, report_to=[], save_strategy="no", bf16=False,
                               use_cpu=device == "cpu", disable_tqdm=True, learning_rate=1e-5,
                               gradient_checkpointing=False), **parts).train()
    return call


def ppo(config, device, rows, prompt, new, count):
    "`count` iterations of PPO with separate networks: two epochs of two minibatches each."
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    policy = gpt2(config, pad_token_id=0)
    known = tokenizer(config)
    known.save_pretrained = lambda *_, **__: None
    prompts = Dataset.from_dict({"input_ids": tokens(config, rows, prompt).clamp(min=1).tolist()})
    flags = lambda **more: PPOConfig(
        per_device_train_batch_size=rows // 2, gradient_accumulation_steps=2, num_mini_batches=2,
        num_ppo_epochs=2, total_episodes=count * rows, response_length=new, temperature=1.0,
        local_rollout_forward_batch_size=rows, num_sample_generations=0, **more)
    return trained(PPOTrainer, flags, device, processing_class=known, model=policy,
                   ref_model=copy.deepcopy(policy), reward_model=scalar(config),
                   value_model=scalar(config), train_dataset=prompts, eval_dataset=prompts,
                   data_collator=lambda some: {"input_ids": torch.tensor(
                       [row["input_ids"] for row in some])})


def rloo(config, device, rows, samples, prompt, new, count):
    "`count` iterations of RLOO with `samples` responses to a prompt, epochs and minibatches alike."
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    known, folder = tokenizer(config), tempfile.TemporaryDirectory()
    gpt2(config, pad_token_id=0).save_pretrained(folder.name)  # it makes its reference from files
    prompts = Dataset.from_dict({"prompt": words(tokens(config, rows // samples, prompt))})
    flags = lambda **more: RLOOConfig(
        per_device_train_batch_size=rows // 2, steps_per_generation=2, num_iterations=2,
        num_generations=samples, max_steps=4 * count, max_completion_length=new,
        generation_kwargs={"min_new_tokens": new}, logging_strategy="no", **more)
    call = trained(RLOOTrainer, flags, device, model=folder.name, reward_funcs=scalar(config),
                   train_dataset=prompts, processing_class=known, reward_processing_classes=known)
    call.folder = folder  # which goes when the call does
    return call


def dpo(config, device, prompts, chosen, rejected, count):
    """`count` steps of DPO on the same pairs, each response in its own row, behind its prompt. The
    end that is put behind a response is the last of its tokens."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy = gpt2(config, pad_token_id=0)
    short = lambda ids: [f" {text}" for text in words(ids[:, :-1])]
    rows = Dataset.from_dict({"prompt": words(prompts), "chosen": short(chosen),
                              "rejected": short(rejected)})
    flags = lambda **more: DPOConfig(per_device_train_batch_size=len(rows), max_steps=count,
                                     beta=0.1, max_length=None, logging_strategy="no", **more)
    return trained(DPOTrainer, flags, device, model=policy, ref_model=copy.deepcopy(policy),
                   train_dataset=rows, processing_class=tokenizer(config))
