"""
Classic bugs, planted one at a time in a copy of the project: each must turn a test red, by name.

    python -m tests.mutants               # all of them, in a few minutes
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.handout import LEFT_OUT, ROOT


class Mutant(NamedTuple):
    name: str
    file: str
    test: str  # the test that must turn red, of tests/test_<first word>.py
    right: str
    wrong: str


MUTANTS = tuple(Mutant(*row) for row in (
    # ---- rewards and advantages
    ("reward one token early", "ppo.py", "handout the_solution_has_full_points",
     "last = is_response.sum(1, keepdim=True) - 1", "last = is_response.sum(1, keepdim=True) - 2"),
    ("reward on every token", "ppo.py", "handout the_solution_has_full_points",
     "rewards.scatter_add(1, last, score[", "(rewards + score[:, None]) * is_response  # (score["),
    ("kl with the wrong sign", "ppo.py", "handout the_solution_has_full_points",
     "rewards = -beta * penalty", "rewards = beta * penalty"),
    ("kl clamped at zero", "ppo.py", "handout the_solution_has_full_points",
     '{"k1": lambda x: x,', '{"k1": lambda x: x.clamp(min=0),'),
    ("kl of the wrong pair", "ppo.py", "handout the_solution_has_full_points",
     "is_response, logp_old - logp_ref, 0.0)", "is_response, logp_ref - logp_old, 0.0)"),
    ("padding in the kl", "ppo.py", "handout the_solution_has_full_points",
     "= torch.where(is_response, logp_old - logp_ref, 0.0)", "= logp_old - logp_ref"),
    ("gae reads the padding", "ppo.py", "handout the_solution_has_full_points",
     "= torch.where(is_response, values, 0.0)  # so V_{t+1}", "= values  # so V_{t+1}"),
    ("gae without lambda", "ppo.py", "ppo gae_worked_by_hand",
     "delta + gamma * lam * ahead", "delta + gamma * ahead"),
    ("value of the state after its token", "ppo.py", "ppo values_are_read_before_their_token",
     "bottom=bottom, segment=segment, columns=before)",
     "bottom=bottom, segment=segment, columns=positions)"),
    ("returns are the advantages", "ppo.py", "ppo gae_worked_by_hand",
     "return advantages, advantages + values", "return advantages, advantages"),
    ("whitened with the padding", "ppo.py", "ppo masked_statistics_are_those_of_the_slice",
     "mean = masked_mean(advantages, is_response)", "mean = advantages.mean()"),
    ("no price for a missing eos", "ppo.py", "ppo missing_eos",
     "return torch.where(ended, score, MISSING_EOS)", "return score"),
    ("a falling score is not said", "data/watch.py", "stages a_run_that_gets_worse_says_so",
     "now < before - 0.1", "now < before - 1e9"),
    ("the price of a missing eos for all", "ppo.py", "ppo missing_eos",
     "ended = torch.tensor([r[-1] in eos", "ended = torch.tensor([r[0] in eos"),
    ("a response in its own baseline", "ppo.py", "ppo advantages_against_a_group_by_hand",
     "scale = n / (n - 1) if", "scale = 1 if"),
    ("a group's variance for its std", "ppo.py", "ppo advantages_against_a_group_by_hand",
     "1 / (total.std(1, keepdim=True)", "1 / (total.var(1, keepdim=True)"),
    ("the whole batch for a group", "ppo.py", "ppo advantages_against_a_group_by_hand",
     "above = total - total.mean(1, keepdim=True)", "above = total - total.mean()"),
    # ---- losses
    ("clip the wrong way", "ppo.py", "ppo policy_clip",
     "worse = torch.max(-advantages", "worse = torch.min(-advantages"),
    ("policy ascends the loss", "ppo.py", "ppo gradient_at_ratio_one_is_reinforce",
     "torch.max(-advantages * ratio, -advantages *", "torch.max(advantages * ratio, advantages *"),
    ("ratio upside down", "ppo.py", "ppo gradient_at_ratio_one_is_reinforce",
     "= torch.where(is_response, logp - logp_old,", "= torch.where(is_response, logp_old - logp,"),
    ("value loss not clipped", "ppo.py", "ppo value_clip",
     "(values - values_old).clamp(-clip, clip)", "(values - values_old)"),
    ("dpo prefers the rejected", "reward.py", "stages dpo_of_exact_preferences",
     "scores = (model.read(hidden)[ends] if logp_ref is None else config.implicit * (",
     "scores = (model.read(hidden)[ends] if logp_ref is None else -config.implicit * ("),
    ("dpo without a reference", "reward.py", "stages a_response_scored_once_is_scored_right",
     "return logp - logp.new_tensor(", "return logp - 0 * logp.new_tensor("),
    ("dpo of half a response", "data/pools.py", "stages a_response_scored_once_is_scored_right",
     "number = segment[:, begin:].clamp(min=0)", "number = segment[:, begin:].clamp(min=0, max=1)"),
    ("dpo's mean for its sum", "data/pools.py", "stages a_response_scored_once_is_scored_right",
     "return sums[..., row, segment[row, end]]",
     "return (sums / sums.new_zeros(sums.shape).scatter_add(-1, number, torch.ones_like(logp))"
     ".clamp(min=1))[..., row, segment[row, end]]"),
    ("mean over micro-batches", "ppo.py", "ppo micro_batches_change_nothing",
     f'part["returns"],\n{44 * " "}part["is_response"], CLIP, tokens)',
     f'part["returns"],\n{44 * " "}part["is_response"], CLIP)'),
    ("old log-probs without the temperature", "ppo.py", "ppo temperature_is_part_of_the_policy",
     "policy, value, *part, config.temperature, bottom,", "policy, value, *part, 1.0, bottom,"),
    ("ref policy without the temperature", "ppo.py", "ppo temperature_is_part_of_the_policy",
     "ref_policy, *part, config.temperature, hidden", "ref_policy, *part, hidden"),
    ("sft learns the prompt's padding", "sft.py", "stages sft_loss_counts_response_tokens_only",
     "total = -torch.where(is_response, logp, 0.0).sum()", "total = -logp.sum()"),
    ("sft over all positions", "sft.py", "stages sft_loss_counts_response_tokens_only",
     "count = is_response.sum() if tokens", "count = is_response.numel() if tokens"),
    ("bradley-terry that overflows", "reward.py", "stages reward_loss_worked_by_hand",
     "nll = -F.logsigmoid(margin).mean()", "nll = -torch.sigmoid(margin).log().mean()"),
    ("chosen and rejected exchanged", "reward.py", "stages reward_loss_worked_by_hand",
     "margin = chosen - rejected", "margin = rejected - chosen"),
    ("score at the last column", "reward.py", "stages scores_are_read_at_the_last_response_token",
     "last = positions.gather(1, is_response.sum(1, keepdim=True) - 1)",
     "last = (positions[:, -1:] * 0 + ids.shape[1] - 1)"),
    ("scores not centred", "reward.py", "stages normalised_references_have_mean_0_and_std_1",
     "model.shift += model.scale * scores.mean()", "pass"),
    # ---- the network and its samples
    ("probabilities of the token after", "model.py", "model logprobs_and_gradients",
     "bottom=bottom, columns=positions - 1)", "bottom=bottom, columns=positions)"),
    ("temperature forgotten in log-probs", "model.py", "model logprobs_and_gradients",
     "logits if temperature == 1 else logits / temperature, dim=-1)", "logits, dim=-1)"),
    ("temperature forgotten in sampling", "model.py", "model sampled_frequencies_are_the_softmax",
     "probs = F.softmax(logits / temperature, dim=-1)", "probs = F.softmax(logits, dim=-1)"),
    ("first token shared by the samples", "model.py", "model samples_of_one_prompt_are_independent",
     "uniform[rows.to(uniform.device), n],", "uniform[rows if n else which[rows], n],"),
    ("a group sees each other", "model.py", "ppo a_row_of_several_responses_is_as_one_each",
     "causal & (segment[:, :, None] == segment[:, None, :]", "causal.expand(len(segment), -1, -1"),
    ("place stands still", "model.py", "model greedy_with_cache_is_the_full_forward",
     "        place = place + 1", "        place = place + 0"),
    ("left padding is seen", "model.py", "model left_padding_changes_nothing",
     "causal & (segment[:, :, None] == segment[:, None, :]", "causal.expand(len(segment), -1, -1"),
    ("pad has an embedding", "model.py", "model pad_is_fed_as_0_and_has_no_logit",
     "ids.where(ids < self.config.vocab_size, 0)", "ids.clamp(max=self.config.vocab_size - 1)"),
    ("eos is cut off", "model.py", "model responses_end_with_eos_once",
     "out[row] = response[:end + 1]", "out[row] = response[:end]"),
    ("the future is seen", "model.py", "weights logits_and_greedy_samples_equal_transformers",
     "is_causal = is_visible is None and T > 1", "is_causal = False"),
    ("keys are not turned", "model.py", "weights logits_and_greedy_samples_equal_transformers",
     "qk = rotate(qk, rotation)",
     "qk = torch.cat([rotate(qk[:, :, :self.heads], rotation), qk[:, :, self.heads:]], 2)"),
    ("an embedding that moves though frozen", "data/networks.py",
     "model frozen_parameters_get_no_gradient",
     '"embed", "position", "project_in"', '"position", "project_in"'),
    # ---- text
    ("eos before the cut", "data/tokenizer.py", "data eos_survives_truncation",
     "return ids[: max_tokens - 1] + [tokenizer.eos", "return (ids + [tokenizer.eos])[:max_tokens"),
    ("the cue is cut", "data/tokenizer.py", "data cue_survives_truncation",
     "if len(ids) > room >= len(cue) and end:", "if False:"),
    ("response starts one token late", "data/__init__.py", "data masks_decode_to_the_response",
     "positions = torch.minimum(start + step,", "positions = torch.minimum(start + step + 1,"),
    # ---- numbers
    ("ties are losses", "metrics.py", "metrics win_rate_halves_ties",
     "return (a > b) + 0.5 * (a == b)", "return (a > b) + 0.0"),
    ("per-input diversity over the inputs", "metrics.py",
     "metrics per_input_and_across_inputs_slice_differently",
     "samples in outputs], dtype=np.float64)", "samples in zip(*outputs)], dtype=np.float64)"),
    ("ead without its expectation", "metrics.py", "metrics ead_matches_the_paper",
     "values.append(len(set(found)) / expected", "values.append(len(set(found)) / len(found)"),
    ("similarity with itself counted", "metrics.py", "metrics embedding_diversity_by_hand",
     "- np.sum(vectors**2)) / (n * (n - 1))", ") / (n * n)"),
    ("k3 from the wrong side", "metrics.py", "metrics kl_estimators_match_exact_kl_on_five_tokens",
     "(np.expm1(-d) + d).sum(axis=1)", "(np.expm1(d) - d).sum(axis=1)"),
    ("bad answers among the different ones", "metrics.py",
     "metrics effective_diversity_and_utility_by_hand", "zip(kinds, good) if is_good}",
     "zip(kinds, good)}"),
    ("pass at k of draws with replacement", "metrics.py",
     "metrics pass_at_k_is_that_of_all_choices", "1 - math.comb(n - c, k) / math.comb(n, k)",
     "1 - (1 - c / n) ** k"),
    ("a tie is good", "data/good.py", "rlhf what_is_good_of_rows",
     '> row[f"reference_{score}"]', '>= row[f"reference_{score}"]'),
    ("samples of a prompt as draws", "data/claims.py",
     "metrics across_interval_covers_the_expected_diversity",
     "random.permutation(n)[:n // 2]", "random.integers(n, size=n // 2)"),
    ("an answer against one of the same random numbers", "rlhf.py",
     "rlhf shared_random_numbers_win_nothing", "won[:, ~np.eye(*won.", "won[:, np.eye(*won."),
    ("sft's noise as a slope", "data/claims.py", "rlhf the_noise_of_sft_is_no_slope",
     "(drops[0] * gains[1] + drops[1] * gains[0])", "(drops[0] * gains[0] + drops[1] * gains[1])"),
    ("validation prompts that were trained on", "data/world.py", "world no_prompt_has_two_uses",
     "shift, use)", 'shift, "train" if use == "validation" else use)'),
    ("a frontier without mixtures", "tests/tradeoff.py",
     "tradeoff a_mixture_of_the_frontier_is_not_beyond_it",
     "return points | mixtures(", "return points or mixtures("),
    ("the worst of n", "bon.py", "bon the_choice_is_of_the_own_prompt",
     "return scores[:, :n].argmax(1)", "return scores[:, :n].argmin(1)"),
    ("the best of n of the whole pool", "bon.py", "bon the_best_of_one_is_the_policy",
     "return scores[:, :n].argmax(1)", "return scores.argmax(1)"),
    ("rank weights shifted", "bon.py", "handout the_solution_has_full_points",
     "math.comb(i, n - 1) / math.comb(size, n)", "math.comb(i + 1, n - 1) / math.comb(size, n)"),
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


def is_seen(mutant):
    "Does its test turn red, with this bug in a copy of the project?"
    with tempfile.TemporaryDirectory() as folder:
        tree, (file, test) = Path(folder) / "tree", mutant.test.split()
        plant(mutant, shutil.copytree(ROOT, tree, ignore=LEFT_OUT))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
             f"tests/test_{file}.py", "-k", f"test_{test}"], cwd=tree, capture_output=True,
            text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"})
        return done.returncode == 1 and " failed" in done.stdout


def survivors(mutants):
    "The mutants that their test does not see; two are tried at once."
    found = []
    with ThreadPoolExecutor(2) as pool:
        for mutant, red in zip(mutants, pool.map(is_seen, mutants)):
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
