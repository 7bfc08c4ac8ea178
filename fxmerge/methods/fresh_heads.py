"""Heads that nothing has trained yet start at the ridge regression of their teacher's outputs on the trunk."""

from __future__ import annotations

import torch
from torch import Tensor

from fxmerge.ir.fresh_head import FreshHead
from fxmerge.ir.program import Program
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.base import Job
from fxmerge.methods.regress import Moments, Rows
from fxmerge.methods.some import some

ROWS = 2000
"""Inputs that are looked at, of all tasks together."""
RIDGE = 1e-3
"""Penalty, as a share of the mean square of a feature."""


def with_heads(job: Job, supernet: SuperNet, program: Program) -> Program:
    """`program`, its trunk folded, with the fresh heads of all teachers fitted; as it is without inputs to fit on."""
    if job.pool is None:
        return program
    tensors = dict(program.tensors)
    for k, parent in enumerate(supernet.parents):
        for one in parent.teacher.heads if parent.teacher is not None else ():
            names = {origin.name: name for name, origin in program.origins.items() if origin.owner == k}
            weight, bias = _fitted(job, supernet, program, k, one)
            for name, value in ((names[one.weight], weight), (names[one.bias], bias)):
                tensors[name] = value.reshape(tensors[name].shape).to(tensors[name].dtype)
    return program.evolve(tensors=tensors)


@torch.no_grad()
def _fitted(job: Job, supernet: SuperNet, program: Program, k: int, one: FreshHead) -> tuple[Tensor, Tensor]:
    """(numbers × features, numbers): the head that comes nearest to the teacher's output, in float64."""
    assert job.pool is not None
    teacher = supernet.parents[k].teacher
    assert teacher is not None
    port = next(f.port for f in supernet.features if f.parent == k and f.node.name == one.node)
    trunk = program.only([port], inputs=True)
    output = teacher.program.outputs[one.output].name
    taught = teacher.program.only([output], inputs=True)
    own = {theirs.name: ours for theirs, ours in zip(supernet.parents[k].inputs, supernet.inputs[k], strict=True)}
    names = [each.name for each in supernet.program.inputs]
    batches = [dict(zip(names, part, strict=True)) for part in some(job.pool, ROWS, program.rows)]
    rows = Rows([[batch[names[i]] for i in job.pool.masks] for batch in batches])
    moments: Moments | None = None
    for number, batch in enumerate(batches):
        x = one.features(trunk.run({each.name: batch[each.name] for each in trunk.inputs})[port])
        y = one.targets(taught.run({each.name: batch[own[each.name]] for each in taught.inputs})[output])
        x, y = rows.of(x, -1, number), rows.of(y, -1, number)
        moments = moments or Moments.empty(x.shape[1], y.shape[1])
        moments.add(x, y)
    assert moments is not None
    return moments.ridge(RIDGE, intercept=True)
