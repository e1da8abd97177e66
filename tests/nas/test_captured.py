"""Recorded weight steps: on a tape instead of a GPU, with all that a recording must not freeze."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tape import TapeRecorder
from tiny_supernets import NOISY, TINY, FakeStream, setup
from torch import Tensor, nn
from torch.nn import functional as F

from zoopt_nas.nas.networks.darts_supernet import DartsSupernet
from zoopt_nas.nas.networks.operations import seed_noise
from zoopt_nas.nas.networks.spaces import SPACES
from zoopt_nas.nas.search import inner
from zoopt_nas.nas.search.inner import InnerTraining
from zoopt_nas.nas.steps.cuda_graph import WARM_UP_STEPS, CudaGraphStep, CudaRecorder
from zoopt_nas.nas.steps.execution import Execution
from zoopt_nas.nas.steps.weight_step import Losses, WeightStep, cross_entropy_of

CPU = torch.device("cpu")
# A tape holds operators of PyTorch, as a CUDA graph holds kernels of the GPU.
pytestmark = pytest.mark.usefixtures("no_kernels")


class Twins:
    """The same supernet twice: one takes plain steps, the other recorded ones.

    Learning rates are powers of two, as the tensor that holds them is float32.
    """

    def __init__(self, space=TINY, grad_clip: float | None = 0.5) -> None:
        torch.manual_seed(0)
        net = DartsSupernet(space, 3, 2, 2, in_channels=1).double()
        self.nets = [net, copy.deepcopy(net)]
        self.noises = [torch.Generator().manual_seed(3) for _ in self.nets]
        self.optimizers, self.steps = [], []
        for one, noise in zip(self.nets, self.noises, strict=True):
            seed_noise(one, noise)
            sgd = torch.optim.SGD(one.parameters(), lr=0.125, momentum=0.9, weight_decay=1e-2)
            self.optimizers.append(sgd)
            self.steps.append(WeightStep(cross_entropy_of(one), one, sgd, grad_clip))
        self.recorder = TapeRecorder(self.noises[1:], list(self.nets[1].buffers()))
        self.captured = capture(self.steps[1], self.optimizers[1], self.recorder)
        self.streams = [FakeStream(1), FakeStream(1)]
        self.generator = torch.Generator().manual_seed(9)

    def step(self, n_images: int = 6, lr: float | None = None) -> None:
        """A step of both, with another alpha each time; the results must agree."""
        dim = self.nets[0].space.dim
        alpha = torch.randn(dim, generator=self.generator, dtype=torch.float64)
        results = []
        for step, optimizer, stream in zip(self.steps, self.optimizers, self.streams, strict=True):
            if lr is not None:
                optimizer.param_groups[0]["lr"] = lr
            images, labels = stream.next_batch()
            results.append(step(images[:n_images], labels[:n_images], alpha))
        for plain, recorded in zip(*results, strict=True):
            torch.testing.assert_close(recorded, plain, rtol=1e-9, atol=1e-12)

    def difference(self) -> float:
        """The largest difference between the twins' states, buffers of the momentum included."""
        plain, recorded = (
            [
                *net.state_dict().values(),
                *(sgd.state[p]["momentum_buffer"] for p in net.parameters()),
            ]
            for net, sgd in zip(self.nets, self.optimizers, strict=True)
        )
        return max(
            float((x.double() - y.double()).abs().max())
            for x, y in zip(plain, recorded, strict=True)
        )


def capture(step: WeightStep, optimizer: torch.optim.SGD, recorder) -> CudaGraphStep:
    step._graph = CudaGraphStep(step.eager, optimizer, CPU, recorder)
    return step._graph


def test_recorded_steps_train_as_plain_ones_with_fresh_alpha_batch_and_learning_rate():
    twins = Twins()
    for k in range(10):
        twins.step(lr=0.125 * 0.5**k)
    assert WARM_UP_STEPS == 3
    assert (twins.recorder.n_warm, twins.recorder.n_recorded, twins.recorder.n_replayed) == (
        3,
        1,
        7,
    )
    assert twins.difference() < 1e-12
    # The comparison can fail: one step at another learning rate tells the twins apart.
    twins.optimizers[1].param_groups[0]["lr"] = 0.5
    twins.step()
    assert twins.difference() > 1e-4


def test_the_optimizer_is_left_as_it_was():
    twins = Twins()
    for _ in range(6):
        twins.step()
    plain, recorded = (sgd.state_dict()["param_groups"] for sgd in twins.optimizers)
    assert recorded == plain
    assert type(recorded[0]["lr"]) is float


def test_a_batch_of_another_shape_is_a_plain_step_and_the_recording_stays():
    twins = Twins()
    for _ in range(3):  # three epochs of four batches and a smaller one
        for n_images in (6, 6, 6, 6, 4):
            twins.step(n_images)
    assert twins.recorder.n_recorded == 1
    assert twins.recorder.n_warm == 3
    assert twins.recorder.n_replayed == 4 * 3 - 3
    assert twins.difference() < 1e-11


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_recorded_fits_of_candidates_at_once_are_the_plain_ones(momentum: float):
    made = setup(NOISY, momentum=momentum)
    made.optimizer.param_groups[0]["lr"] = 0.125
    plain = made.objective(inner_steps=6)
    recorded = made.objective(inner_steps=6)
    recorder = TapeRecorder([recorded._noise])
    build = recorded._training.group._build

    def build_recorded(start: Tensor, n: int):
        stack = build(start, n)
        capture(stack.step, stack.optimizer, recorder)
        return stack

    recorded._training.group._build = build_recorded
    for seed in range(3):  # other weights, momentum, alphas, batches and noise each time
        draw, alphas = plain.draw(), made.alphas(3, seed)
        expected, got = (o.fit_together(alphas, draw) for o in (plain, recorded))
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
        assert float(expected.std(dim=0).max()) > 1e-3
        made.train()
        made.optimizer.param_groups[0]["lr"] /= 2
    assert (recorder.n_warm, recorder.n_recorded, recorder.n_replayed) == (3, 1, 3 * 6 - 3)


def test_only_the_same_shape_in_a_row_warms_up():
    twins = Twins()
    for n_images in (4, 6, 6, 4, 6, 6, 6):
        twins.step(n_images)
    assert (twins.recorder.n_warm, twins.recorder.n_recorded) == (7, 0)
    twins.step(6)
    assert (twins.recorder.n_warm, twins.recorder.n_recorded) == (7, 1)


def test_other_buffers_of_the_momentum_are_recorded_anew():
    twins = Twins()
    for _ in range(5):
        twins.step()
    for optimizer in twins.optimizers:  # as a checkpoint does
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(5):
        twins.step()
    assert (twins.recorder.n_warm, twins.recorder.n_recorded) == (6, 2)
    assert twins.difference() < 1e-12


@pytest.mark.parametrize(
    ("setting", "value"), [("momentum", 0.5), ("weight_decay", 0.3), ("nesterov", True)]
)
def test_other_settings_of_the_optimizer_are_recorded_anew(setting: str, value: float):
    twins = Twins()
    for _ in range(5):
        twins.step()
    for optimizer in twins.optimizers:
        optimizer.param_groups[0][setting] = value
    for _ in range(5):
        twins.step()
    assert twins.recorder.n_recorded == 2
    assert twins.difference() < 1e-12


def test_a_recorded_step_draws_on_from_where_the_generator_is():
    twins = Twins(NOISY)
    for k in range(8):
        if k == 6:
            for noise in twins.noises:
                noise.manual_seed(77)
        twins.step()
    assert twins.recorder.n_replayed == 5
    assert torch.equal(*(noise.get_state() for noise in twins.noises))
    assert twins.difference() < 1e-12


def test_reset_records_what_python_has_changed():
    model = nn.Linear(3, 2).double()
    factor = [1.0]

    def compute(images: Tensor, labels: Tensor) -> Losses:
        logits = model(images) * factor[0]
        loss = F.cross_entropy(logits, labels)
        return Losses(loss, loss, logits)

    sgd = torch.optim.SGD(model.parameters(), lr=0.0)
    step = WeightStep(compute, model, sgd, None)
    recorder = TapeRecorder()
    capture(step, sgd, recorder)
    images, labels = torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    before = step(images, labels)[1].clone()
    for _ in range(4):
        step(images, labels)
    factor[0] = 2.0
    assert torch.equal(step(images, labels)[1], before)  # frozen
    step.reset()
    for _ in range(5):
        torch.testing.assert_close(step(images, labels)[1], 2.0 * before, rtol=1e-12, atol=0)
    assert recorder.n_recorded == 2


def test_a_step_that_cannot_be_recorded_goes_on_plainly_after_one_warning():
    twins = Twins()
    net, stream = twins.nets[1], twins.streams[1]

    def compute(images, labels, alpha) -> Losses:
        losses = cross_entropy_of(net)(images, labels, alpha)
        float(losses.loss.detach())  # waits for the device
        return losses

    twins.steps[1]._compute = compute
    for _ in range(3):
        twins.step()
    with pytest.warns(UserWarning, match="weight steps are not compiled: operation not") as caught:
        twins.step()
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            twins.step()
    assert stream.n_taken == 7
    assert twins.recorder.n_recorded == 0
    assert twins.difference() < 1e-12


@pytest.mark.parametrize("inner_momentum", [True, False])
@pytest.mark.parametrize("trained", [True, False])
def test_candidates_share_one_recording_of_the_inner_steps(inner_momentum: bool, trained: bool):
    values = []
    for recorder in (None, TapeRecorder()):
        made = setup(TINY, trained=trained, lr=0.0625)
        objective = made.objective(inner_momentum=inner_momentum, inner_steps=4)
        if recorder is not None:
            recorder.generators = [objective._noise]
            capture(objective._training._step, objective._training._inner_optimizer, recorder)
        values.append([objective(made.alphas(3)) for _ in range(2)])
    # Six candidates of four inner steps: the momentum of one must not reach the next.
    assert (recorder.n_warm, recorder.n_recorded, recorder.n_replayed) == (3, 1, 21)
    for plain, recorded in zip(*values, strict=True):
        torch.testing.assert_close(recorded, plain, rtol=1e-10, atol=0)


PATHS = ((3, 2, 3, 1, 0, 0), (3, 4, 2, 1, 3, 3), (0, 0, 0, 0, 2, 0))


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_each_path_with_enough_inner_steps_is_recorded(average: float, monkeypatch):
    monkeypatch.setattr(inner, "MIN_RECORDED_STEPS", 8)
    values = []
    for recorder in (None, TapeRecorder()):
        made = setup(SPACES["nasbench201"], trained=False, lr=0.0625)
        objective = made.objective(single_path=True, inner_steps=8, inner_average=average)
        if recorder is not None:
            recorder.generators = [objective._noise]
            capture(objective._training._step, objective._training._inner_optimizer, recorder)
        draw = objective.draw()
        short = draw._replace(train=draw.train[:7])
        losses = [
            objective.val_loss(objective.fit(path, on), path, draw)
            for path, on in [*((path, draw) for path in PATHS), (PATHS[0], short)]
        ]
        values.append([loss.detach() for loss in losses])
    plain, recorded = values
    assert len({round(float(value), 6) for value in plain}) == 4
    torch.testing.assert_close(recorded, plain, rtol=1e-10, atol=0)
    # Three warm-up steps and five replays for each path; seven steps are not worth a recording.
    assert (recorder.n_warm, recorder.n_recorded, recorder.n_replayed) == (9, 3, 15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_path_trains_in_a_cuda_graph_as_in_plain_steps():
    device = torch.device("cuda")
    weights = []
    for is_captured in (False, True):
        made = setup(SPACES["nasbench201"], trained=False, lr=0.0625)
        net = made.net.to(device)
        training = InnerTraining(
            net,
            torch.optim.SGD(net.parameters(), lr=0.0625, momentum=0.9),
            torch.Generator(device),
            lr=None,
            average=0.5,
            execution=Execution(device, compile=is_captured),
            single_path=True,
        )
        stream = FakeStream(1)
        batches = [[x.to(device) for x in stream.next_batch()] for _ in range(60)]
        for path in PATHS:
            network = training.fit(path, batches, 0)
            weights.append([parameter.detach().clone() for parameter in network.parameters()])
        graph = training._step._graph
        assert (graph is not None and graph._replay is not None) == is_captured
    for plain, recorded in zip(weights[:3], weights[3:], strict=True):
        torch.testing.assert_close(recorded, plain, rtol=1e-6, atol=1e-8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("space", [TINY, NOISY], ids=["tiny", "noisy"])
def test_a_cuda_graph_trains_as_plain_steps(space):
    """float64, so that only a wrong recording, and no other kernel, makes a difference."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    net = DartsSupernet(space, 3, 2, 2, in_channels=1).double()
    nets = [copy.deepcopy(net).to(device) for _ in range(2)]
    losses = []
    for one, is_captured in zip(nets, (False, True), strict=True):
        noise = torch.Generator(device).manual_seed(3)
        seed_noise(one, noise)
        sgd = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        execution = Execution(device, compile=is_captured)
        step = WeightStep(
            cross_entropy_of(one), one, sgd, 0.5, execution=execution, generators=(noise,)
        )
        assert isinstance(step._graph, CudaGraphStep) == is_captured
        stream = FakeStream(1)
        generator = torch.Generator().manual_seed(9)
        for k in range(12):
            sgd.param_groups[0]["lr"] = 0.125 * 0.5**k
            alpha = torch.randn(space.dim, generator=generator, dtype=torch.float64)
            images, labels = stream.next_batch()
            n_images = 4 if k == 7 else 6
            batch = (images[:n_images].to(device), labels[:n_images].to(device))
            losses.append(step(*batch, alpha.to(device))[0].clone())
        if is_captured:
            assert step._graph._replay is not None
            assert isinstance(step._graph._recorder, CudaRecorder)
    torch.testing.assert_close(losses[12:], losses[:12], rtol=1e-8, atol=0)
    for plain, recorded in zip(
        nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True
    ):
        torch.testing.assert_close(recorded, plain, rtol=1e-7, atol=1e-9)
