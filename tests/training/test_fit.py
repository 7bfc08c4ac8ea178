"""The training loop: it learns, is exactly repeatable, stops and resumes, and says what is wrong."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxmerge.errors import DataError, OptionError
from fxmerge.training.fit import fit, one_cycle, score
from fxmerge.training.labels import Labels, Mask, Targets, Teachers
from fxmerge.training.pool import Inputs, Pool, parts
from fxmerge.training.resume import Interrupted
from fxmerge.training.settings import Group, Log, Settings, groups_of

FAST = Settings(steps=60, batch_size=16, lr=2e-2)


class Pair(nn.Module):
    """Two features of one trunk."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk, self.a, self.b = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.relu(self.trunk(x))
        return self.a(y), self.b(y)


def rows(count: int = 100) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(0))


def pool(count: int = 100) -> Pool:
    return Pool.of((rows(count),))


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Stop:
    """Progress that presses Ctrl-C at a step."""

    def __init__(self, step: int, real: bool = False) -> None:
        self.at, self.real = step, real

    def __call__(self, done: int, total: int, message: str, **values: float) -> None:
        if message.startswith("train") and done == self.at:
            if not self.real:
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)


def test_the_student_learns_and_the_log_says_so() -> None:
    student, teacher = Pair(1), Pair(2)
    seen: list[tuple[int, int]] = []
    log = fit(
        student, None, pool(), Targets(teacher), FAST, lambda done, total, message, **_: seen.append((done, total))
    )
    assert log.steps == 60
    assert len(log.losses) == 60
    assert log.loss_first == log.losses[0]
    assert log.loss_first > 1 > 0.5 > log.loss_last
    assert log.untouched == ()
    assert log.samples_per_second > 0
    assert log.seconds > 0
    assert seen[0] == (100, 100)
    assert seen[-1] == (60, 60)
    assert min(score(student, pool(), Targets(teacher), FAST)) > 0.5


def test_same_seed_same_bits_and_another_seed_other_bits() -> None:
    runs = []
    for seed in (3, 3, 4):
        student = Pair(1)
        fit(student, None, pool(), Targets(Pair(2)), Settings(steps=20, batch_size=16, seed=seed))
        runs.append(weights(student))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_loss_is_the_share_of_each_features_own_spread() -> None:
    """Scaling one feature of the teacher and the student alike changes no loss."""

    class Scaled(Pair):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = super().forward(x)
            return a * 1000, b

    plain = fit(Pair(1), None, pool(), Targets(Pair(2)), Settings(steps=1, batch_size=50))
    scaled = fit(Scaled(1), None, pool(), Targets(Scaled(2)), Settings(steps=1, batch_size=50))
    assert scaled.loss_first == pytest.approx(plain.loss_first, rel=1e-5)


class Constant(nn.Module):
    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        self.values = nn.ParameterList(values)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.expand(len(x), -1) for value in self.values)


def test_the_best_constant_answer_scores_zero() -> None:
    teacher = Pair(2)
    means = [value.mean(0, keepdim=True) for value in teacher(rows())]
    best = Constant(*(mean.detach() for mean in means))
    assert score(best, pool(), Targets(teacher), FAST) == pytest.approx((0.0, 0.0), abs=1e-5)
    assert score(teacher, pool(), Targets(teacher), FAST) == pytest.approx((1.0, 1.0), abs=1e-6)


def test_weights_of_features() -> None:
    student = Pair(1)
    before = student.b.weight.detach().clone()
    log = fit(student, [Group(tuple(student.parameters()), decay=False)], pool(), Targets(Pair(2), (1.0, 0.0)), FAST)
    assert torch.equal(student.b.weight, before)
    assert log.untouched == ("b.weight", "b.bias")
    assert log.loss_last < 0.5


def test_groups_train_at_their_own_rate_and_the_rest_stays() -> None:
    student = Pair(1)
    old = weights(student)
    fit(student, [Group((student.a.weight,), 0.0), Group((student.b.weight,))], pool(), Targets(Pair(2)), FAST)
    moved = [not torch.equal(x, y) for x, y in zip(old, weights(student), strict=True)]
    assert moved == [name == "b.weight" for name, _ in student.named_parameters()]


def test_default_groups_decay_matrices_only() -> None:
    student = Pair(1)
    student.trunk.weight.requires_grad_(False)
    matrices, vectors = groups_of(student)
    assert [p.dim() for p in matrices.parameters] == [2, 2]
    assert matrices.decay
    assert [p.dim() for p in vectors.parameters] == [1, 1, 1]
    assert not vectors.decay


class PerToken(nn.Module):
    """A feature for every position, which also reads padding."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.table = nn.Embedding(9, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor]:
        return (self.table(ids),)


def test_masked_positions_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(8) < torch.randint(3, 8, (64, 1), generator=generator)).long()
    ids = torch.randint(1, 9, (64, 8), generator=generator) * mask
    student, teacher = PerToken(1), PerToken(2)
    before = student.table.weight[0].detach().clone()
    groups, targets = [Group((student.table.weight,), decay=False)], Targets(teacher, masks=(Mask(1),))
    log = fit(student, groups, Pool.of((ids, mask)), targets, Settings(steps=400, batch_size=16, lr=3e-2))
    assert log.loss_last < 3e-2
    assert torch.equal(student.table.weight[0], before), "the padding id never received a gradient"
    with torch.no_grad():
        teacher.table.weight[0] = 1e6
    assert score(student, Pool.of((ids, mask)), Targets(teacher, masks=(Mask(1),)), FAST)[0] > 0.96


@dataclass(frozen=True)
class Cut:
    """Rows in blocks of 32; it remembers which were made."""

    inputs: Inputs
    block: int = 32
    made: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.inputs[0])

    def identity(self) -> int:
        return self.rows

    def read(self, number: int) -> Inputs:
        self.made.append(number)
        return tuple(value[number * self.block : (number + 1) * self.block] for value in self.inputs)


def test_blocks_that_do_not_fit_are_made_again_with_the_same_bits() -> None:
    x, students, made = rows(200), [], []
    for memory in (1 << 30, 32 * 13 * 4 * 2):
        table, student = Cut((x,)), Pair(1)
        fit(student, None, Pool((table,)), Targets(Pair(2)), Settings(steps=40, batch_size=16, memory=memory))
        students.append(weights(student))
        made.append(len(table.made))
    assert same(*students)
    assert made[0] == 7, "every block once"
    assert made[1] > 10, "one block is kept, the others are made again"


def test_memory_that_holds_no_batch_is_refused_and_the_advice_works() -> None:
    with pytest.raises(OptionError, match=r"a batch of 16 inputs .* takes .*\nuse --batch-size 9 or less") as refused:
        fit(Pair(1), None, pool(), Targets(Pair(2)), Settings(steps=2, batch_size=16, memory=500))
    assert refused.value.todo
    fit(Pair(1), None, pool(), Targets(Pair(2)), Settings(steps=2, batch_size=9, memory=500))


def test_every_time_through_reads_every_row_once_in_a_new_order() -> None:
    tables = (Cut((torch.zeros(100, 1),)), Cut((torch.zeros(50, 2),)))
    read: dict[int, list[int]] = {0: [], 1: []}
    for step in range(10):
        taken = parts(Pool(tables), step, 15, 3)
        assert [sum(len(p.rows) for p in taken if p.table == t) for t in (0, 1)] == [10, 5]
        for part in taken:
            read[part.table] += (part.rows + 32 * part.number).tolist()
    assert sorted(read[0]) == list(range(100))
    assert sorted(read[1]) == list(range(50))
    again = [row for step in range(10, 20) for part in parts(Pool(tables), step, 15, 3) for row in part.rows.tolist()]
    assert again != read[0] + read[1]


def test_a_feature_that_never_varies_is_measured_by_its_own_size() -> None:
    still = Constant(torch.full((1, 4), 1e4), torch.zeros(1, 3))
    labels = Labels(pool(), Targets(still), torch.device("cpu"), torch.float32, 1 << 30)
    labels.measure()
    assert labels.constant == (True, True)
    assert [measure.spread for measure in labels.measures] == pytest.approx([1e8, 1.0])


@pytest.mark.parametrize("real", [False, True], ids=["raised", "signal"])
def test_interrupted_and_resumed_is_as_if_never_stopped(tmp_path: Path, real: bool) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    through, parts = Pair(1), Pair(1)
    whole = fit(through, None, pool(), Targets(Pair(2)), FAST)
    state = tmp_path / "state" / "train.pt"
    with pytest.raises(Interrupted, match=r"interrupted at step 25 of 60; state kept in .*train.pt") as stopped:
        fit(parts, None, pool(), Targets(Pair(2)), FAST, Stop(25, real), state)
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert state.exists()
    fresh = Pair(7)
    log = fit(fresh, None, pool(), Targets(Pair(2)), FAST, state=state)
    assert log.losses == whole.losses
    assert log.steps == 60
    assert same(weights(fresh), weights(through))
    assert not state.exists(), "a finished run leaves no state"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_a_state_file_nothing_is_kept() -> None:
    with pytest.raises(Interrupted, match="interrupted at step 5 of 60; no state kept"):
        fit(Pair(1), None, pool(), Targets(Pair(2)), FAST, Stop(5))


def test_another_runs_state_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "train.pt"
    with pytest.raises(Interrupted):
        fit(Pair(1), None, pool(), Targets(Pair(2)), FAST, Stop(5), state)
    with pytest.raises(OptionError, match="kept by a run with other settings"):
        fit(Pair(1), None, pool(), Targets(Pair(2)), Settings(steps=61, batch_size=16), state=state)
    with pytest.raises(OptionError, match="kept by a run with other samples"):
        fit(Pair(1), None, pool(99), Targets(Pair(2)), FAST, state=state)
    state.write_bytes(b"not a state")
    with pytest.raises(OptionError, match="is not a kept training state"):
        fit(Pair(1), None, pool(), Targets(Pair(2)), FAST, state=state)


def test_a_payload_in_a_state_file_does_not_run(tmp_path: Path) -> None:
    state, proof = tmp_path / "train.pt", tmp_path / "proof"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(proof),)

    torch.save({"identity": {}, "state": Payload()}, state)
    with pytest.raises(OptionError, match="is not a kept training state"):
        fit(Pair(1), None, pool(), Targets(Pair(2)), FAST, state=state)
    assert not proof.exists()


def test_refusals() -> None:
    teacher = Targets(Pair(2))
    with pytest.raises(DataError, match="12 inputs are fewer than one batch of 16"):
        fit(Pair(1), None, pool(12), teacher, FAST)
    with pytest.raises(OptionError, match="train nothing"):
        fit(Pair(1), None, pool(), teacher, Settings(steps=0))
    with pytest.raises(OptionError, match="nothing to train"):
        fit(Pair(1).requires_grad_(False), None, pool(), teacher, FAST)
    with pytest.raises(OptionError, match=r"training diverged: the loss of step \d+ is (nan|inf)"):
        fit(Pair(1), None, pool(), teacher, Settings(steps=60, batch_size=16, lr=1e38))


def test_an_optimizer_of_ones_own() -> None:
    made: list[torch.optim.Optimizer] = []

    def sgd(groups: list[dict[str, object]]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(groups))
        return made[-1]

    log = fit(Pair(1), None, pool(), Targets(Pair(2)), Settings(steps=60, batch_size=16, lr=0.02, optimizer=sgd))
    assert made
    assert log.loss_last < 0.5 * log.loss_first


def test_several_teachers_run_as_one() -> None:
    x = rows(4)
    together = Teachers([Pair(1), nn.Linear(6, 2), Pair(2)])(x)
    assert [tuple(value.shape) for value in together] == [(4, 4), (4, 3), (4, 2), (4, 4), (4, 3)]


def test_one_cycle_rises_then_falls() -> None:
    rates = [one_cycle(step, 100, 0.3) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == pytest.approx(1)
    assert rates.index(max(rates)) == 30
    assert rates[-1] < 0.01
    assert one_cycle(0, 1, 0.3) > 0
    assert one_cycle(0, 5, 0.0) > 0.9


def test_bfloat16_trains(recwarn: pytest.WarningsRecorder) -> None:
    log: Log = fit(Pair(1), None, pool(), Targets(Pair(2)), Settings(**{**FAST.__dict__, "dtype": torch.bfloat16}))
    assert log.loss_last < 0.5
    assert not recwarn.list
