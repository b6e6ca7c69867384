"""
Rewards that are no network: the embedded world's true score, and a function in a file of your own.

Both are reward functions as PPO wants them: reward_fn(prompt_ids, response_ids) -> (B,), called
with lists of lists of token ids. (A reward model as one: reward.scorer.) And the other way round,
for whoever has texts: a reward function, and a policy, as functions of texts.
"""

import importlib.util
import sys
from pathlib import Path

import torch

import data
import model as m


def named_reward(config, run):
    "The reward function that ppo.py's --reward names, if it is no reward model, else None."
    if config.reward == "gold":
        return gold(config.data, run.tokenizer)
    if config.reward.endswith(".py"):
        run.reads("reward", Path(config.reward).read_bytes())
        return of_file(config.reward)


def gold(name, tokenizer):
    """The world's true score, which no other policy may see: PPO's ceiling. In the unit of a reward
    model, references having mean 0 and standard deviation 1, so that beta means the same."""
    score = data.gold(name)
    if score is None:
        raise ValueError("--reward gold: only the embedded world knows the truth; give a reward "
                         "checkpoint or a .py file")
    of_people = torch.tensor([score(e.prompt, e.response) for e in data.load(name, "train", 500)])

    def reward_fn(prompt_ids, response_ids):
        found = torch.tensor([score(tokenizer.decode(p), tokenizer.decode(r).strip())
                              for p, r in zip(prompt_ids, response_ids)])
        return (found - of_people.mean()) / of_people.std()
    return reward_fn


def of_file(path):
    "`reward_fn` of a Python file. ValueError for whatever goes wrong in it, now or when called."
    spec = importlib.util.spec_from_file_location("custom_reward", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for the module that it is in
    sys.path.insert(0, str(Path(path).resolve().parent))  # and an import, for files beside it
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise ValueError(f"{path} is not Python: {error}") from error
    except Exception as error:  # whatever it does while it is read
        raise ValueError(f"{path} raised {type(error).__name__}: {error}") from error
    if not hasattr(module, "reward_fn"):
        raise ValueError(f"{path} defines no reward_fn(prompt_ids, response_ids) -> (B,) tensor")

    def reward_fn(prompt_ids, response_ids):
        try:
            return torch.as_tensor(module.reward_fn(prompt_ids, response_ids), dtype=torch.float32)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # or what it does for one batch in a hundred
            raise ValueError(f"{path} raised {type(error).__name__}: {error}") from error
    return reward_fn


def text_scorer(fn, tokenizer):
    """A reward function as a function of texts: prompts, responses -> (N,) numpy. Texts that are
    equal once they are cut have equal scores, to the last bit, wherever they stood in a batch."""
    def score(prompts, responses):
        ids = [tokenizer.prompt(p) for p in prompts], [tokenizer.response(r) for r in responses]
        first = {}
        places = [first.setdefault((*p, -1, *r), i) for i, (p, r) in enumerate(zip(*ids))]
        return fn(*ids).numpy()[places]
    return score


def text_sampler(policy, tokenizer):
    "A policy as a function of texts: prompts, temperature, n, seed -> n samples of each, in lists."
    def sample(prompts, temperature, n, seed):
        ids = [tokenizer.prompt(p) for p in prompts]
        ids = m.generate(policy, ids, tokenizer.response_tokens, temperature, n, seed)
        texts = [tokenizer.decode(r).strip() for r in ids]
        return [texts[i:i + n] for i in range(0, len(texts), n)]
    return sample
