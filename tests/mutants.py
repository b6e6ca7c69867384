"""
Classic bugs, planted one at a time in a copy of the project: each must turn a test red, by name.

    python -m tests.mutants               # all of them, about three minutes
    python -m tests.mutants kl            # those whose name has "kl" in it

The list is also a bug hunt: plant one in a student's tree, train, and let them find it from the
curves (`python -m tests.mutants --plant "reward one token early" FOLDER`).
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.handout import LEFT_OUT, ROOT


class Mutant(NamedTuple):
    name: str
    file: str
    right: str
    wrong: str
    test: str  # the test that must turn red, of tests/test_<first word>.py


MUTANTS = tuple(Mutant(*row) for row in (
    # ---- rewards and advantages
    ("reward one token early", "ppo.py",
     "last = is_response.sum(1, keepdim=True) - 1  # (B, 1) EOS",
     "last = is_response.sum(1, keepdim=True) - 2  # (B, 1) EOS",
     "ppo the_score_stands_on_the_last_token"),
    ("reward on every token", "ppo.py", "return rewards.scatter_add(1, last, score[:, None]",
     "return (rewards + score[:, None]) * is_response  # (score[:, None]",
     "ppo the_score_stands_on_the_last_token"),
    ("kl with the wrong sign", "ppo.py", "rewards = -beta * penalty", "rewards = beta * penalty",
     "ppo rewards_of_a_row_add_up"),
    ("kl clamped at zero", "ppo.py", '{"k1": lambda x: x,', '{"k1": lambda x: x.clamp(min=0),',
     "ppo rewards_of_a_row_add_up"),
    ("kl of the wrong pair", "ppo.py", "is_response, logp_old - logp_ref, 0.0)",
     "is_response, logp_ref - logp_old, 0.0)", "ppo rewards_of_a_row_add_up"),
    ("padding in the kl", "ppo.py",
     "log_ratio = torch.where(is_response, logp_old - logp_ref, 0.0)",
     "log_ratio = logp_old - logp_ref", "ppo rewards_of_a_row_add_up"),
    ("gae reads the padding", "ppo.py",
     "values = torch.where(is_response, values, 0.0)  # so V_{t+1}",
     "values = values  # so V_{t+1}", "ppo gae_never_looks_at_padding"),
    ("gae without lambda", "ppo.py", "delta + gamma * lam * ahead", "delta + gamma * ahead",
     "ppo gae_is_the_double_sum"),
    ("value of the state after its token", "ppo.py",
     "value(ids, bottom=bottom, at=before)", "value(ids, bottom=bottom, at=positions)",
     "ppo values_are_read_before_their_token"),
    ("returns are the advantages", "ppo.py", "return advantages, advantages + values",
     "return advantages, advantages", "ppo gae_worked_by_hand"),
    ("whitened with the padding", "ppo.py", "mean = masked_mean(advantages, is_response)",
     "mean = advantages.mean()", "ppo masked_statistics_are_those_of_the_slice"),
    ("no price for a missing eos", "ppo.py", "return torch.where(ended, scores, MISSING_EOS)",
     "return scores", "ppo missing_eos"),
    ("the price of a missing eos for all", "ppo.py", "ended = torch.tensor([r[-1] in eos",
     "ended = torch.tensor([r[0] in eos", "ppo missing_eos"),
    # ---- losses
    ("clip the wrong way", "ppo.py",
     "worse = torch.max(-advantages", "worse = torch.min(-advantages",
     "ppo policy_clip"),
    ("policy ascends the loss", "ppo.py",
     "torch.max(-advantages * ratio, -advantages * ratio.clamp",
     "torch.max(advantages * ratio, advantages * ratio.clamp",
     "ppo gradient_at_ratio_one_is_reinforce"),
    ("ratio upside down", "ppo.py", "log_ratio = torch.where(is_response, logp - logp_old, 0.0)",
     "log_ratio = torch.where(is_response, logp_old - logp, 0.0)",
     "ppo gradient_at_ratio_one_is_reinforce"),
    ("value loss not clipped", "ppo.py", "(values - values_old).clamp(-clip, clip)",
     "(values - values_old)", "ppo value_clip"),
    ("mean over micro-batches", "ppo.py", "vf, _ = value_loss(values, part[\"values_old\"], "
     "part[\"returns\"],\n                                   part[\"is_response\"], CLIP, tokens)",
     "vf, _ = value_loss(values, part[\"values_old\"], part[\"returns\"],\n"
     "                                   part[\"is_response\"], CLIP)",
     "ppo micro_batches_change_nothing"),
    ("old log-probs without the temperature", "ppo.py",
     "logp_old, values, entropy = act(policy, value, *part, config.temperature, bottom,",
     "logp_old, values, entropy = act(policy, value, *part, 1.0, bottom,",
     "ppo temperature_is_part_of_the_policy"),
    ("reference without the temperature", "ppo.py",
     "logp_ref = m.logprobs(reference, *part, config.temperature, bottom=bottom)",
     "logp_ref = m.logprobs(reference, *part, bottom=bottom)",
     "ppo temperature_is_part_of_the_policy"),
    ("sft learns the prompt's padding", "sft.py",
     "total = -torch.where(is_response, logp, 0.0).sum()",
     "total = -logp.sum()", "stages sft_loss_counts_response_tokens_only"),
    ("sft over all positions", "sft.py", "count = is_response.sum() if tokens",
     "count = is_response.numel() if tokens", "stages sft_loss_counts_response_tokens_only"),
    ("bradley-terry that overflows", "reward.py", "value = -F.logsigmoid(margin).mean()",
     "value = -torch.sigmoid(margin).log().mean()", "stages reward_loss_worked_by_hand"),
    ("chosen and rejected exchanged", "reward.py", "margin = chosen - rejected",
     "margin = rejected - chosen", "stages reward_loss_worked_by_hand"),
    ("score at the last column", "reward.py",
     "last = positions.gather(1, is_response.sum(1, keepdim=True) - 1)",
     "last = positions[:, -1:] * 0"
     " + ids.shape[1] - 1", "stages scores_are_read_at_the_last_response_token"),
    ("scores not centred", "reward.py", "model.shift += model.scale * scores.mean()", "pass",
     "stages normalised_references_have_mean_0_and_std_1"),
    # ---- the network and its samples
    ("probabilities of the token after", "model.py", "bottom=bottom, at=positions - 1)",
     "bottom=bottom, at=positions)", "model logprobs_and_gradients"),
    ("temperature forgotten in log-probs", "model.py",
     "logits if temperature == 1 else logits / temperature, dim=-1)", "logits, dim=-1)",
     "model logprobs_and_gradients"),
    ("temperature forgotten in sampling", "model.py",
     "probs = F.softmax(logits / temperature, dim=-1)",
     "probs = F.softmax(logits, dim=-1)",
     "model sampled_frequencies_are_the_softmax"),
    ("first token shared by the samples", "model.py",
     "choose(logits, temperature, uniform[rows, n], min_p)",
     "choose(logits, temperature, uniform[rows if n else which[rows], n], min_p)",
     "model samples_of_one_prompt_are_independent"),
    ("position stands still", "model.py", "position.add_(1)", "position.add_(0)",
     "model greedy_with_cache_is_the_full_forward"),
    ("left padding is seen", "model.py",
     "own = causal & (segment[:, :, None] == segment[:, None, :])",
     "own = causal.expand(len(segment), -1, -1)", "model left_padding_changes_nothing"),
    ("pad has an embedding", "model.py", "ids.where(ids < self.config.vocab_size, 0)",
     "ids.clamp(max=self.config.vocab_size - 1)", "model pad_is_fed_as_0_and_has_no_logit"),
    ("eos is cut off", "model.py", "out[row] = response[:end + 1]", "out[row] = response[:end]",
     "model responses_end_with_eos_once"),
    ("the future is seen", "model.py",
     "is_causal = is_visible is None and T > 1", "is_causal = False",
     "model logits_equal_llama_of_transformers"),
    ("keys are not turned", "model.py", "qk = rotate(qk, rotation)",
     "qk = torch.cat([rotate(qk[:, :, :self.heads], rotation), qk[:, :, self.heads:]], 2)",
     "model logits_equal_llama_of_transformers"),
    ("an embedding that moves though frozen", "model.py",
     '        "embed", "position", "project_in"',
     '        "position", "project_in"', "model frozen_parameters_get_no_gradient"),
    # ---- text
    ("eos before the cut", "data/__init__.py", "return ids[: max_tokens - 1] + [tokenizer.eos]",
     "return (ids + [tokenizer.eos])[:max_tokens]", "data eos_survives_truncation"),
    ("the cue is cut", "data/__init__.py", "ids = ids[:room] if keep is None else",
     "ids = ids[:room] if True else", "data cue_survives_truncation"),
    ("response starts one token late", "data/__init__.py",
     "positions = torch.minimum(start + step, start + length - 1)",
     "positions = torch.minimum(start + step + 1, start + length - 1)",
     "data masks_decode_to_the_response"),
    # ---- numbers
    ("ties are losses", "metrics.py", "return (a > b) + 0.5 * (a == b)", "return (a > b) + 0.0",
     "metrics win_rate_halves_ties"),
    ("per-input diversity over the inputs", "metrics.py",
     "return np.array([diversity(samples) for samples in outputs], dtype=np.float64)",
     "return np.array([diversity(samples) for samples in zip(*outputs)], dtype=np.float64)",
     "metrics per_input_and_across_inputs_slice_differently"),
    ("ead without its expectation", "metrics.py",
     "values.append(len(set(found)) / expected if found",
     "values.append(len(set(found)) / len(found) if found", "metrics ead_matches_the_paper"),
    ("similarity with itself counted", "metrics.py", "- np.sum(vectors**2)) / (n * (n - 1))",
     ") / (n * n)", "metrics embedding_diversity_equals_the_pairwise_definition"),
    ("k3 from the wrong side", "metrics.py", "(np.expm1(-d) + d).sum(axis=1)",
     "(np.expm1(d) - d).sum(axis=1)", "metrics kl_estimators_match_exact_kl_on_five_tokens"),
    ("samples of a prompt as draws", "metrics.py", "random.permutation(n)[:n // 2]",
     "random.integers(n, size=n // 2)", "metrics across_interval_covers_the_expected_diversity"),
    ("the worst of n", "bon.py", "return scores[:, :n].argmax(1)", "return scores[:, :n].argmin(1)",
     "bon the_choice_is_of_the_own_prompt"),
    ("the best of n of the whole pool", "bon.py", "return scores[:, :n].argmax(1)",
     "return scores.argmax(1)", "bon the_best_of_one_is_the_policy"),
    ("rank weights shifted", "bon.py", "math.comb(i, n - 1) / math.comb(m, n) for i in range(m)",
     "math.comb(i + 1, n - 1) / math.comb(m, n) for i in range(m)",
     "bon expected_best_is_full_enumeration"),
))


def plant(mutant, folder):
    "Put one bug into a tree -> the file's text as it was."
    path = Path(folder) / mutant.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.right) != 1:
        raise ValueError(f"{path} has {source.count(mutant.right)} places for {mutant.name!r}, not "
                         f"one: it is not this version's tree")
    path.write_text(source.replace(mutant.right, mutant.wrong), encoding="utf-8")
    return source


def survivors(mutants):
    "The mutants that their test does not see, each tried in a copy of the project."
    found = []
    with tempfile.TemporaryDirectory() as folder:
        tree = shutil.copytree(ROOT, Path(folder) / "tree", ignore=LEFT_OUT)
        for mutant in mutants:
            source, (file, test) = plant(mutant, tree), mutant.test.split()
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                 f"tests/test_{file}.py", "-k", f"test_{test}"], cwd=tree, capture_output=True,
                text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
            (tree / mutant.file).write_text(source, encoding="utf-8")
            red = done.returncode == 1 and " failed" in done.stdout
            print(f"{'red' if red else 'GREEN':6}{mutant.name}", flush=True)
            if not red:
                found.append(mutant.name)
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only mutants with one of these in their name")
    parser.add_argument("--plant", metavar="NAME", help="put this one into the folder named")
    args = parser.parse_args(argv)
    if args.plant:
        chosen = [mutant for mutant in MUTANTS if mutant.name == args.plant]
        if not chosen or len(args.words) != 1:
            parser.error(f"give one folder and a name of these: "
                         f"{'; '.join(mutant.name for mutant in MUTANTS)}")
        try:
            plant(chosen[0], args.words[0])
        except (ValueError, OSError) as error:
            parser.error(str(error))
        return
    chosen = [m for m in MUTANTS if not args.words or any(word in m.name for word in args.words)]
    alive = survivors(chosen)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants caught")
    sys.exit(1 if alive else 0)


if __name__ == "__main__":
    main()
