"""The SuperNet as written, hoisted and folded is one function, for every family, form and shape."""

from collections.abc import Callable

import pytest
import torch

import passes
from fxmerge.errors import LineUpError
from fxmerge.ir.difference import compare, largest
from fxmerge.ir.merge import merge, unmerge
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet

Parents = Callable[[str, int], list[Program]]
Double = Callable[[Program], Program]
FAMILIES = ("mlp", "vit", "vit-fused", "bert", "gpt")


def net_of(programs: list[Program], template: int = 0, form: object = "full", scale: float | None = None) -> SuperNet:
    """A SuperNet whose maps are far from their start."""
    normal = [passes.cleanup(passes.normalize(p)) for p in programs]
    net = passes.insert_merge(normal, passes.BUILTIN.rules, template, scale).start([1.0] * len(programs), form)
    generator = torch.Generator().manual_seed(1)
    for _, block in net.maps():
        for parameter in block.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return net


def inputs_of(program: Program, samples: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {port.name: samples[port.name].to(port.dtype) for port in program.inputs}


def task_outputs(net: SuperNet) -> list[str]:
    return [f"{p.task}.{port.name}" for p in net.parents for port in p.outputs]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_three_forms_of_one_function(parents: Parents, double: Double, family: str, count: int) -> None:
    programs = parents(family, count)
    for template, form in ((0, "full"), (1, 3))[count == 3 :]:  # what a template changes, two parents show
        net = net_of(programs, template, form)
        written = double(net.program)
        samples = inputs_of(written, dict(programs[0].samples))
        hoisted = passes.hoist(written)
        assert not any(node.target is merge for node in hoisted.graph.nodes)
        assert largest(compare(written, hoisted, samples, [p.name for p in written.outputs])) < 1e-12
        folded = passes.fold_merge(hoisted.only(task_outputs(net)), net.tasks, template)
        assert not folded.maps and not any(n.target is unmerge for n in folded.graph.nodes)
        assert largest(compare(written, folded, samples, task_outputs(net))) < 1e-12


@pytest.mark.parametrize("family", ["vit", "gpt"])
def test_both_orders_have_the_same_gradients(parents: Parents, double: Double, family: str) -> None:
    net = net_of(parents(family, 2), form=2)
    written = double(net.program)
    samples = inputs_of(written, dict(net.parents[0].samples))
    hoisted = passes.hoist(written)  # shares the maps with `written`
    gradients = []
    for program in (written, hoisted):
        program.module.zero_grad()
        total = sum(value.square().sum() for value in program.run(samples).values())
        torch.autograd.backward(total)
        gradients.append({n: p.grad.clone() for n, p in program.module.named_parameters() if p.grad is not None})
        for parameter in program.module.parameters():
            parameter.grad = None
    one, two = gradients
    assert one.keys() == two.keys() and len(one) > 20
    for name in one:
        scale = float(one[name].abs().max())
        assert float((one[name] - two[name]).abs().max()) <= 1e-12 * max(scale, 1.0), name


@pytest.mark.parametrize("family", FAMILIES)
def test_starting_from_the_first_parent_is_that_parent(parents: Parents, double: Double, family: str) -> None:
    programs = parents(family, 2)
    net = net_of(programs).start([1.0, 0.0], "full")
    written, alone = double(net.program), double(programs[0])
    samples = inputs_of(written, dict(programs[0].samples))
    with torch.no_grad():
        mine, wanted = written.run(samples), alone.run(samples)
    for name, value in wanted.items():
        torch.testing.assert_close(mine[f"a.{name}"], value, rtol=1e-10, atol=1e-10)


def test_averaging_a_parent_with_itself_is_that_parent(parents: Parents) -> None:
    for family in FAMILIES:
        (program,) = parents(family, 1)
        twins = [program, program.evolve(task="twin")]
        normal = [passes.cleanup(passes.normalize(p)) for p in twins]
        net = passes.insert_merge(normal, passes.BUILTIN.rules)
        folded = passes.fold_merge(passes.hoist(net.program.only(task_outputs(net))), net.tasks, 0)
        with torch.no_grad():
            mine, wanted = folded.run(dict(program.samples)), program.run(dict(program.samples))
        for name, value in wanted.items():
            for task in net.tasks:
                torch.testing.assert_close(mine[f"{task}.{name}"], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wider_or_narrower_result(parents: Parents, family: str, scale: float) -> None:
    programs = parents(family, 2)
    net = net_of(programs, scale=scale)
    samples = dict(programs[0].samples)
    folded = passes.fold_merge(passes.hoist(net.program.only(task_outputs(net))), net.tasks, 0)
    assert largest(compare(net.program, folded, samples, task_outputs(net))) < 1e-5
    assert (folded.count() > programs[0].count()) == (scale > 1)


def test_weights_keep_the_names_of_the_template_and_heads_those_of_their_task(parents: Parents) -> None:
    net = net_of(parents("vit", 2))
    folded = passes.fold_merge(passes.hoist(net.program.only(task_outputs(net))), net.tasks, 0)
    own = set(net.parents[0].tensors)
    assert {n for n in folded.tensors if not n.startswith(("a.", "b."))} == own - {"head.weight", "head.bias"}
    assert {"a.head.weight", "b.head.weight", "a.head.bias", "b.head.bias"} <= set(folded.tensors)
    assert folded.tensors["b.head.weight"].shape == (5, 16)


def test_parents_of_different_depth_part_where_they_part(parents: Parents) -> None:
    from benchmarks.models import MLP
    from fxmerge.capturing import capture

    deep = capture(MLP(20, (16, 12, 40, 40), 3), (torch.randn(2, 20),), task="deep")  # most of it is behind that
    shallow = parents("mlp", 1)[0]
    with pytest.raises(LineUpError, match=r"a and deep do not line up: x \(models.py:\d+\) and aten\.relu.*\(models"):
        net_of([shallow, deep])


def test_one_linear_layer_has_nothing_to_merge() -> None:
    from fxmerge.capturing import capture

    programs = [capture(torch.nn.Linear(4, 3), (torch.randn(2, 4),), task=t) for t in "ab"]
    with pytest.raises(LineUpError, match="nothing to merge"):
        net_of(programs)


APART = {
    "mlp": lambda MLP, **_: [
        (MLP(20, (16, 12), 3), (torch.randn(5, 20),)),
        (MLP(30, (24, 10), 3), (torch.randn(4, 30),)),
    ],
    "vit": lambda ViT, **_: [
        (
            ViT(image=i, patch=2, width=w, heads=h, hidden=m, depth=2, classes=5, channels=c),
            (torch.randn(4, c, i, i),),
        )
        for i, w, h, m, c in ((8, 16, 2, 24, 1), (12, 24, 3, 40, 3))
    ],
    "gpt": lambda GPT, **_: [
        (GPT(v, width=w, heads=h, hidden=m, depth=2, positions=32), (torch.randint(0, v, (4, t)),))
        for v, w, h, m, t in ((50, 16, 2, 24, 9), (60, 24, 3, 40, 6))
    ],
}


@pytest.mark.parametrize("family", APART)
def test_parents_with_inputs_of_their_own_keep_their_stems(family: str, double: Double) -> None:
    """Another vocabulary, image size or number of channels: stems and heads per task, one trunk."""
    from benchmarks import models
    from fxmerge.capturing import capture

    torch.manual_seed(0)
    made = APART[family](**{name: getattr(models, name) for name in models.__all__})
    net = net_of([capture(model, inputs, task="ab"[k]) for k, (model, inputs) in enumerate(made)])
    assert not net.together
    written = double(net.program)
    samples = {name: value for k, p in enumerate(net.parents) for name, value in net.given(k, p.samples).items()}
    samples = inputs_of(written, samples)
    hoisted = passes.hoist(written)
    assert largest(compare(written, hoisted, samples, [p.name for p in written.outputs])) < 1e-12
    folded = passes.cleanup(passes.fold_merge(hoisted.only(task_outputs(net)), net.tasks, 0))
    assert largest(compare(written, folded, samples, task_outputs(net))) < 1e-12
    alone = folded.only(["b.logits"], inputs=True)
    assert all(port.name.startswith("b.") for port in alone.inputs)
    start = double(net.start([1.0, 0.0], "full").program)
    with torch.no_grad():
        mine = start.run(samples)["a.logits"]
        wanted = double(net.parents[0]).run(inputs_of(double(net.parents[0]), dict(net.parents[0].samples)))["logits"]
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)
