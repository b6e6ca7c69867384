"""
Small pictures of PPO runs for the bug hunt of tests/PROBLEMS.md, from their logs.

    python -m tests.bughunt healthy/out/summarise/ppo.jsonl healthy.png
    python -m tests.bughunt healthy/out/summarise/ppo.jsonl broken/out/summarise/ppo.jsonl a.png

The last log is drawn in colour, the first behind it in grey.
"""

import argparse

from matplotlib.figure import Figure

from data import files

PANELS = (("proxy and gold score", ("proxy", "gold")), ("KL to SFT, nats", ("kl",)),
          ("length, tokens", ("length",)), ("entropy, nats a token", ("entropy",)),
          ("value loss", ("value_loss",)), ("clip fraction", ("clip_fraction",)))
COLOURS = ("#0072B2", "#D55E00")  # Okabe and Ito's


def draw(path, healthy, rows):
    "Six panels of a run over its iterations, in colour, with a healthy one in grey."
    made = Figure(figsize=(8.4, 4.4))
    for k, (title, names) in enumerate(PANELS, 1):
        axis = made.add_subplot(2, 3, k)
        for name, colour, dash in zip(names, COLOURS, ("-", "--")):
            for log, own, style in ((healthy, "#aaaaaa", {}), (rows, colour, {"label": name})):
                axis.plot([row["step"] for row in log], [row[name] for row in log], dash,
                          color=own, lw=1.6, **style)
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axis.legend(frameon=False, fontsize=8)
        if k > 3:
            axis.set_xlabel("iteration", fontsize=8)
    made.tight_layout()
    made.savefig(path, format="png", dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bughunt", description=__doc__,
                                     allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", nargs="+", metavar="LOG", help="ppo.jsonl of one run or of two")
    parser.add_argument("picture", help="the PNG to write")
    args = parser.parse_args()
    logs = [files.read_log(log) for log in args.logs]
    draw(args.picture, logs[0], logs[-1])
