"""
An Apple GPU, of which this project has none: a stand-in that computes on the CPU, but holds its
tensors apart from the CPU's, and has neither float64 nor complex numbers. After each test's name
stands the bug that turns it red.
"""

import contextlib
import copy

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import bon
import model as m
import sft
from data import files, lineage, optim, run
from tests import chaos

NAME = "lazy"  # a device that torch knows the name of, and nothing of this build uses


class Held(torch.Tensor):
    "A tensor of the stand-in, and the CPU's with its numbers."

    @staticmethod
    def __new__(cls, inside):
        made = torch.Tensor._make_wrapper_subclass(
            cls, inside.size(), strides=inside.stride(), storage_offset=inside.storage_offset(),
            dtype=inside.dtype, device=NAME)
        made.inside = inside
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None):
        raise AssertionError(f"{op} outside of the stand-in")

    def tolist(self):
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol):  # as torch saves a GPU's, to be read on any machine
        return self.cpu().__reduce_ex__(protocol)


class Apple(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        leaves, kwargs = tree_leaves((args, kwargs)), kwargs or {}
        held = {id(x.inside): x for x in leaves if isinstance(x, Held)}
        if "index" in op._schema.name:  # places may come from the CPU; what stands there may not
            leaves = tree_leaves((args[:1], args[2:], kwargs))
        mixed = held and any(torch.is_tensor(x) and not isinstance(x, Held) and x.dim()
                             for x in leaves)
        assert not mixed or op._schema.name == "aten::copy_", f"{op} of tensors on two devices"

        def inside(x):
            if isinstance(x, torch.device):
                return torch.device("cpu") if x.type == NAME else x
            return x.inside if isinstance(x, Held) else x

        def outside(x):
            if not torch.is_tensor(x) or not here:
                return x
            assert x.dtype != torch.float64 and not x.is_complex(), f"{op} gives {x.dtype}"
            return held.get(id(x)) if id(x) in held else Held(x)
        device = kwargs.get("device")
        here = bool(held) if device is None else device.type == NAME
        return tree_map(outside, op(*tree_map(inside, args), **tree_map(inside, kwargs)))


class Made(TorchFunctionMode):
    "What makes tensors of Python's numbers makes them on the CPU first."

    def __torch_function__(self, make, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if make is torch.Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        if make is torch.tensor:
            return make(*args, **kwargs | {"device": "cpu"}).to(kwargs.get("device") or "cpu")
        return make(*args, **kwargs)


@pytest.fixture
def apple(monkeypatch):
    "A context in which --device mps is the stand-in."
    adamw = torch.optim.AdamW
    monkeypatch.setattr(optim.torch.optim, "AdamW", lambda *args, **more: adamw(
        *args, **more | {"fused": False, "foreach": True}))  # whose numbers are the same everywhere
    monkeypatch.setattr(run, "curve", lambda *args: None)

    @contextlib.contextmanager
    def inside():
        with monkeypatch.context() as patch, Apple(), Made():
            for module in (run, bon, lineage):
                patch.setattr(module, "pick_device", lambda name: NAME)
            patch.setattr(torch, NAME, torch.cpu, raising=False)
            patch.setattr(torch, "autocast", lambda *args, **more: contextlib.nullcontext())
            patch.setattr(m, "FLOAT64", {NAME: "cpu"})
            yield
    return inside


STEPS = dict(steps=2, every=1)


@pytest.mark.parametrize("stage, flags", [
    ("sft", STEPS), ("sft", STEPS | {"micro": 2, "freeze": 0.5}), ("reward", STEPS),
    ("reward", STEPS | {"implicit": 1}), ("ppo", STEPS), ("bon", {}),
    ("ppo", STEPS | {"value": "shared", "samples": 2, "minibatches": 2}),
    pytest.param("rlhf", {}, marks=pytest.mark.slow)])
def test_a_stage(stage, flags, toy, tmp_path, apple):
    # float64 on a device without, a tensor left on the CPU, other samples or numbers than there
    with sdpa_kernel(SDPBackend.MATH):  # the one that the stand-in has
        cpu = chaos.go(stage, toy, tmp_path / "cpu", **flags)
        with apple():
            there = chaos.go(stage, toy, tmp_path / "apple", **flags)
    logs = sorted(path.name for path in cpu.parent.glob("*.jsonl"))
    assert logs == sorted(path.name for path in there.parent.glob("*.jsonl"))
    for name in logs:
        here, apart = (files.read_log(path.parent / name) for path in (cpu, there))
        for a, b in zip(here, apart, strict=True):
            for key in a.keys() - {*run.TIMING}:
                assert b[key] == (pytest.approx(a[key], rel=1e-2, abs=1e-4)
                                  if isinstance(a[key], float) else a[key]), (name, key)


def test_who_gets_it(monkeypatch):  # auto, before anybody has tried; a traceback without one
    there = {"mps": False, "cuda": False}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    for name in ("mps", "cuda"):
        with pytest.raises(ValueError, match=f"--device {name}: torch finds no such GPU here"):
            run.pick_device(name)
    with pytest.raises(ValueError, match="give auto, cpu, cuda or mps"):
        run.pick_device("mpss")
    there["mps"] = True
    assert [run.pick_device(name) for name in ("auto", "cpu", "mps")] == ["cpu", "cpu", "mps"]


def test_the_sampler_leaves_float64_to_the_cpu(apple):  # other random numbers, half a number
    policy = m.Transformer(m.ModelConfig(vocab_size=50, layers=1, channels=16, hidden=44, heads=2,
                                         kv_heads=2))
    for options in ({}, {"temperature": 0}, {"min_p": 0.1, "num_samples": 3}):
        with sdpa_kernel(SDPBackend.MATH):
            here = m.generate(policy, [[1, 2, 3], [4]], 9, **options)
            with apple():
                there = m.generate(copy.deepcopy(policy).to(NAME), [[1, 2, 3], [4]], 9, **options)
        assert here == there


def test_the_stand_in_has_what_it_claims(apple):  # which would let everything pass
    with apple():
        x = torch.ones(3, device=NAME)
        for wrong in (x.double, lambda: x + torch.ones(3), lambda: torch.view_as_complex(
                torch.ones(3, 2, device=NAME))):
            with pytest.raises(AssertionError):
                wrong()
        assert (x + torch.tensor(2.0))[torch.tensor([0, 2])].tolist() == [3, 3]


def test_out_of_its_memory(mistake):  # a traceback: it raises no class of its own
    def train(config):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB, max allowed: 9 GB)")
    assert "out of memory: try --micro 16" in mistake(run.cli, sft.Config, train, [])
