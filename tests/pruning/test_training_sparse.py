"""Patterns, rewinding, regrowth and penalties, in real fits."""

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from support import User, digits, fit, loader
from torch import nn

import lightning_compress as lc
from lightning_compress.errors import CompressionError
from lightning_compress.plan import Record
from lightning_compress.pruning import SparsityRegularization, sensitivity
from lightning_compress.registry import names
from lightning_compress.training import Schedule

INNER = ["network.0", "network.4"]


class EveryStep(Callback):
    """Calls ``look`` after each training batch."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(self.look(trainer, pl_module))


# -- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8"])
def test_n_of_m_holds_in_each_group_at_each_step_and_is_exact_in_the_end(pattern, allocation):
    keep, group = map(int, pattern.split(":"))
    module = User("conv")

    def most(trainer, module):
        weight = module.network.branch.weight.movedim(1, -1)
        return int((weight.reshape(-1, group) == 0).sum(1).max())

    look = EveryStep(most)
    pruning = lc.WeightPruning(pattern=pattern, allocation=allocation, exclude=["network.stem"])
    fit(module, pruning, look, max_epochs=3)
    assert max(look.seen) == group - keep
    assert pruning.reached == 1 - keep / group
    for weight in (module.network.branch.weight.movedim(1, -1), module.network.head.weight):
        assert ((weight.reshape(-1, group) != 0).sum(1) == keep).all()


def units(weight, pattern):
    if pattern == "rows":
        return weight.flatten(1)
    if pattern == "columns":
        return weight.transpose(0, 1).flatten(1)
    if pattern == "kernels":
        return weight.reshape(weight.shape[0] * weight.shape[1], -1)
    matrix = weight.flatten(1)
    return matrix.reshape(len(matrix) // 2, 2, -1, 4).transpose(1, 2).reshape(-1, 8)


@pytest.mark.parametrize("allocation", names("lightning_compress.pruning.allocations"))
@pytest.mark.parametrize("pattern", ["rows", "columns", "kernels", "2x4"])
def test_whole_units_go_and_the_share_is_the_nearest(pattern, allocation):
    module = User("conv")
    options = {"exclude": ["network.stem"], "allocation": allocation}
    pruning = lc.WeightPruning(0.4, pattern=pattern, **options)
    fit(module, pruning, max_epochs=3)
    sizes = []
    for weight in (module.network.branch.weight, module.network.head.weight):
        zeros = (units(weight, pattern) == 0).float().mean(1)
        assert set(zeros.tolist()) <= {0.0, 1.0}
        sizes.append(units(weight, pattern).shape[1])
    total = module.network.branch.weight.numel() + module.network.head.weight.numel()
    assert abs(pruning.reached - 0.4) * total <= max(sizes) / 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "needs a sparsity"),
        ({"pattern": "4:2"}, "keeps 4 of 2"),
        ({"pattern": "2-4"}, "2-4"),
        ({"pattern": "2:4", "sparsity": 0.9}, "leave sparsity out"),
        ({"sparsity": 0.5, "rewind": "start"}, "rewind='start'"),
        ({"sparsity": 0.5, "rewind": 1.5}, "rewind=1.5"),
        ({"sparsity": 0.5, "regrow": "riggl"}, "Did you mean 'rigl'"),
        ({"sparsity": 0.5, "regrow": {"share": 2}}, "share=2"),
        ({"sparsity": 0.5, "regrow": {"shar": 2}}, "no field 'shar'"),
        ({"sparsity": 0.5, "regrow": {"every": "1"}}, "every='1'"),
        ({"sparsity": 0.5, "regrow": {"end": None}}, "end=None"),
        ({"sparsity": 0.5, "allocation": {3: 0.5}}, r"in \[0, 1\)"),
        ({"sparsity": 0.5, "regrow": "rigl", "pattern": "rows"}, "would break pattern"),
        ({"sparsity": 0.5, "allocation": {"fc": 2}}, r"in \[0, 1\)"),
        ({"sparsity": 0.5, "data": iter([])}, "reads it anew"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, says):
    with pytest.raises(CompressionError, match=says):
        lc.WeightPruning(**arguments)


@pytest.mark.parametrize(("pattern", "says"), [("2:4", "has 1 inputs"), ("3x4", "do not tile")])
def test_weights_that_a_pattern_does_not_fit_are_refused_before_the_fit(pattern, says):
    sparsity = None if ":" in pattern else 0.5
    with pytest.raises(CompressionError, match=rf"'network.stem.weight'.*{says}.*exclude"):
        fit(User("conv"), lc.WeightPruning(sparsity, pattern=pattern), max_epochs=1)


def test_shares_by_name_are_met():
    module = User()
    shares = {"network.0": 0.9, "network.6": 0.25, "default": "uniform"}
    pruning = lc.WeightPruning(0.8, allocation=shares)
    fit(module, pruning, max_epochs=3)
    zeros = [int((module.network[k].weight == 0).sum()) for k in (0, 4, 6)]
    assert zeros[0] == round(0.9 * 2048)
    assert zeros[2] == 40
    assert sum(zeros) == round(0.8 * 2720)
    with pytest.raises(CompressionError, match="'network.9' matches no weight"):
        fit(User(), lc.WeightPruning(0.8, allocation={"network.9": 0.5}), max_epochs=1)


# -- sensitivity ------------------------------------------------------------------------------------------------------


def test_the_scan_finds_the_layer_that_does_nothing_and_leaves_the_module_alone(tmp_path):
    module = User()
    fit(module, max_epochs=3)
    with torch.no_grad():
        module.network[6].weight[:, :8] = 0  # half of the last hidden layer is not read
        module.network[6].weight[:, :8] += 1e-6
    before = copy.deepcopy(module.state_dict())
    found = sensitivity(module, loader(), shares=(0.4, 0.9))
    assert found.costs["network.6.weight"][0.4] < 1e-6
    assert all(own[0.4] <= own[0.9] for own in found.costs.values())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert found.__rich__().row_count == 3
    found.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert type(found).from_state(found.to_state()) == found


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"data": []}, "no data"), ({"shares": (1.0,)}, "in \\(0, 1\\)"), ({"criterion": "taylor"}, "use 'magnitude'")],
)
def test_scans_without_what_they_need_are_refused(arguments, says):
    with pytest.raises(CompressionError, match=says):
        sensitivity(User(), **{"data": [digits()[0][:10]], **arguments})


# -- rewinding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rewind", "step"), [("init", 0), (1, 10), (0.25, 10)])
def test_after_each_cut_weights_moments_and_learning_rate_are_what_they_were(rewind, step):
    states = {}

    class Record_(Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            moment = trainer.global_step
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            states[moment] = copy.deepcopy(pl_module.state_dict()), rate, len(trainer.optimizers[0].state)

    class After(lc.WeightPruning):
        def cut(self, target):
            reached = super().cut(target)
            trainer, module = self.session.trainer, self.session.module
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            after.append((copy.deepcopy(module.state_dict()), rate, len(trainer.optimizers[0].state)))
            kept.append({name: self.masks.keep(name, p).clone() for name, p in module.named_parameters()})
            return reached

    after, kept = [], []
    schedule = Schedule("linear", start=2, end=3, every=0.5)
    fit(User(), Record_(), After(0.5, rewind=rewind, schedule=schedule, max_step=0.5), max_epochs=4)
    assert len(after) > 1
    for (state, rate, moments), keep in zip(after, kept, strict=True):
        early, early_rate, early_moments = states[step]
        assert (rate, moments) == (early_rate, early_moments)
        for name, value in state.items():
            assert torch.equal(value, early[name] * keep[name] if name in keep else early[name])


def test_the_learning_rate_takes_its_course_again_after_a_rewind():
    rates = EveryStep(lambda trainer, _: trainer.optimizers[0].param_groups[0]["lr"])
    schedule = Schedule("linear", start=2, rounds=1)
    fit(User(), lc.WeightPruning(0.2, rewind="init", schedule=schedule), rates, max_epochs=4)
    assert rates.seen[20:40] == rates.seen[:20]
    assert rates.seen[19] < rates.seen[0]


def test_a_rewind_point_behind_the_first_cut_is_refused():
    with pytest.raises(CompressionError, match="first cut is at epoch 0, before epoch 1"):
        fit(User(), lc.WeightPruning(0.5, rewind=1), max_epochs=3)
    with pytest.raises(CompressionError, match="another callback changes"):
        fit(User(), lc.WeightPruning(0.5, rewind="init"), lc.NeuronPruning(0.2), max_epochs=3)


# -- regrowth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grow", ["rigl", "set", "taylor"])
def test_weights_are_exchanged_at_a_share_that_stays(grow):
    module = User()
    regrow = {"grow": grow, "every": 0.5, "share": 0.3}
    pruning = lc.WeightPruning(0.8, schedule="one_shot", max_step=0.8, allocation="uniform", regrow=regrow)
    zeros = EveryStep(lambda *_: [pruning.masks.zeros_in([f"network.{k}.weight"]) for k in (0, 4, 6)])
    masks = EveryStep(lambda _, module: pruning.masks.keep("network.0.weight", module.network[0].weight).clone())
    fit(module, pruning, zeros, masks, max_epochs=4)
    first = next(k for k, own in enumerate(zeros.seen) if own[0])
    assert all(own == zeros.seen[first] for own in zeros.seen[first:])
    changes = [int((one & ~two).sum()) for one, two in zip(masks.seen[first:], masks.seen[first + 1 :], strict=False)]
    changes = [number for number in changes if number]
    assert len(changes) >= 4
    assert changes == sorted(changes, reverse=True)  # the share falls along a cosine
    assert pruning.reached == 0.8


def test_what_comes_back_is_zero_has_no_moments_and_the_largest_gradient():
    class Look(lc.WeightPruning):
        def _exchange(self, trainer, regrow, horizon):
            weight = self.session.module.network[0].weight
            keep = self.masks.keep("network.0.weight", weight).clone()
            gradient = (
                self._gathering.gradients.evidence()["gradient"]["network.0.weight"].abs() if self._seen else None
            )
            super()._exchange(trainer, regrow, horizon)
            back = self.masks.keep("network.0.weight", weight) & ~keep
            if back.any():
                found.append(back)
                assert not weight[back].any()
                state = trainer.optimizers[0].state[weight]
                assert not state["exp_avg"][back].any()
                assert not state["exp_avg_sq"][back].any()
                assert state["exp_avg"][~back].any()
                assert gradient[back].min() >= gradient[~keep & ~back].max()

    found = []
    regrow = {"grow": "rigl", "every": 0.5}
    fit(User(), Look(0.6, schedule="one_shot", max_step=0.6, regrow=regrow), max_epochs=3)
    assert len(found) > 2


def test_dense_sparse_dense_ends_dense_and_trains_what_came_back():
    module = User()
    schedule = Schedule("linear", end=0.3, every=0.25)
    pruning = lc.WeightPruning(0.5, regrow="dense", schedule=schedule, max_step=0.5)
    shares = EveryStep(lambda _, module: float((module.network[0].weight == 0).float().mean()))
    fit(module, pruning, shares, max_epochs=4)
    assert max(shares.seen) > 0.3
    assert shares.seen[-1] < 0.1  # dead inputs keep their zeros: the digits' borders have no gradient
    assert pruning.masks.zeros == 0
    assert "all weights are back" in [e.text for e in Record.of(module).journal if e.kind == "decision"][-1]
    with pytest.raises(CompressionError, match="last cut is at epoch"):
        fit(User(), lc.WeightPruning(0.5, regrow={"grow": "dense", "end": 0.25}), max_epochs=4)


@pytest.mark.parametrize("options", [{"regrow": "set"}, {"rewind": "init"}, {"criterion": "taylor"}], ids=str)
def test_the_gate_rolls_back_with_them_too(options):
    recover = lc.Recovery("val_acc", tolerance=0.0, patience=1, on_failure="stop")

    class Worse(User):
        def validation_step(self, batch, batch_idx):
            self.log("val_acc", float(not any((p == 0).float().mean() > 0.1 for p in self.network[0].parameters())))

    module, pruning = Worse(), lc.WeightPruning(0.8, recover=recover, **options)
    fit(module, pruning, max_epochs=4)
    assert pruning.reached < 0.2
    assert "rollback" in [entry.kind for entry in Record.of(module).journal]
    assert pruning.masks.zeros == int((module.network[0].weight == 0).sum()) + sum(
        int((module.network[k].weight == 0).sum()) for k in (4, 6)
    )


# -- penalties --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", names("lightning_compress.pruning.penalties"))
def test_penalties_shrink_what_they_are_for(penalty):
    sizes = {}
    for strength in (0.0, 0.05):
        L.seed_everything(0)
        module = User("conv", optimizer="sgd", schedule=False)
        fit(module, SparsityRegularization(penalty, strength), max_epochs=3)
        network = module.network
        groups = {"batch_norm": network.norm.weight, "group_lasso": network.branch.weight, "l1": network.head.weight}
        sizes[strength] = float(groups[penalty].detach().abs().mean())
    assert sizes[0.05] < 0.8 * sizes[0.0]


def test_the_group_lasso_is_the_gradient_of_the_norms_over_whole_groups():
    from lightning_compress.pruning.penalties.group_lasso import group_lasso
    from lightning_compress.surgery import TracingInput, find_groups

    module = User("conv")
    groups = find_groups(module, TracingInput("", (digits()[0][:2],), {}))
    total = torch.zeros(())
    parameters = dict(module.named_parameters())
    for group in groups:
        for unit in range(group.size):
            squares = [
                parameters[part.tensor].movedim(part.dim, 0)[part.units == unit].square().sum()
                for part in group.coupled
                if part.tensor in parameters
            ]
            total = total + torch.stack(squares).sum().sqrt()
    total.backward()
    for name, value in group_lasso(module, groups).items():
        torch.testing.assert_close(value, parameters[name].grad, rtol=1e-4, atol=1e-6)


def test_strength_grows_and_ends_and_neurons_may_go_meanwhile():
    growing = SparsityRegularization("group_lasso", 0.01, growth="linear", until=0.5)
    look = EveryStep(lambda *_: growing.strength_now())
    module = User()
    fit(module, lc.NeuronPruning(0.4), growing, look, max_epochs=4)
    assert look.seen[5] < look.seen[15] < 0.01
    assert look.seen[-1] == 0
    assert module.network[0].out_features < 32


@pytest.mark.parametrize("arguments", [{"penalty": "l3"}, {"strength": -1}, {"until": "1"}, {"growth": "cubicc"}])
def test_penalties_with_bad_arguments_are_refused(arguments):
    with pytest.raises(CompressionError):
        SparsityRegularization(**arguments)


def test_a_penalty_with_nothing_to_act_on_is_refused():
    class Plain(User):
        def __init__(self):
            super().__init__()
            self.network = nn.Sequential(nn.Linear(64, 10))

    with pytest.raises(CompressionError, match="nothing in this network"):
        fit(Plain(), SparsityRegularization("batch_norm"), max_epochs=1)
