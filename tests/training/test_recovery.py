"""The gate: waits, recovers, gives up, rolls back, halves the step, stops; and the Journal tells it."""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import DummyLogger
from support import User, every_epoch, fit, same

import lightning_compress as lc
from lightning_compress.training import Gate, Schedule


class Scripted(User):
    """Logs what the script says: first at the reference, then validation by validation."""

    script = ()
    seen = 0

    def validation_step(self, batch, batch_idx):
        if batch_idx == 0 and not self.sanity:
            position, type(self).seen = type(self).seen, type(self).seen + 1
            self.log("score", self.script[min(position, len(self.script) - 1)])

    @property
    def sanity(self) -> bool:
        return self.trainer.sanity_checking

    @classmethod
    def of(cls, *script: float) -> "Scripted":
        kind = type("Scripted", (cls,), {"script": script, "seen": 0})
        return kind(schedule=False)


def journal(module, *kinds):
    return [entry for entry in lc.plan.Record.of(module).journal if entry.kind in kinds]


SCHEDULE = Schedule("linear", rounds=3, end=0.9)
PRUNINGS = {
    "weights": lambda recover: lc.WeightPruning(0.45, schedule=SCHEDULE, recover=recover, max_step=0.5),
    "neurons": lambda recover: lc.NeuronPruning(0.45, schedule=SCHEDULE, recover=recover, max_step=0.5),
}


@pytest.mark.parametrize("pruning", PRUNINGS)
def test_each_recovery_releases_the_next_cut(pruning):
    module = Scripted.of(1.0, 0.5, 1.0, 0.5, 0.5, 0.996, 1.0, 1.0)
    callback = PRUNINGS[pruning](lc.Recovery("score", patience=3))
    fit(module, callback, max_epochs=8)
    assert [entry.epoch for entry in journal(module, "cut")] == [0, 2, 5]
    assert [entry.epoch for entry in journal(module, "recovery")] == [2, 5, 6]
    assert callback.on_target
    assert callback.reached == pytest.approx(0.45, abs=0.02)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_a_cut_that_never_recovers_is_rolled_back_bit_for_bit(pruning, optimizer):
    kept = {}

    class Keep(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            kept[trainer.current_epoch] = copy_of(trainer, pl_module)

    def copy_of(trainer, module):
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        moments = {
            names[id(p)]: {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
            for p, values in trainer.optimizers[0].state.items()
        }
        return state, moments, lc.Plan.of(module)

    module = Scripted.of(1.0, 1.0, 0.2, 0.2)
    module.hparams.optimizer = optimizer
    recover = lc.Recovery("score", patience=2, on_failure="stop")
    schedule = Schedule("linear", rounds=2, start=1, end=4)
    callback = type(PRUNINGS[pruning](recover))(0.4, schedule=schedule, recover=recover, max_step=0.5)
    restored = {}

    class Behind(type(callback)):
        """Looks right after the callback's own hook of the batch."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            restored[trainer.current_epoch, batch_idx] = copy_of(trainer, pl_module)

    callback.__class__ = Behind
    fit(module, callback, Keep(), max_epochs=4)
    assert same(restored[3, 0][:2], kept[0][:2])
    assert restored[3, 0][2] == kept[0][2]
    assert len(restored[2, 0][2]) == (1 if pruning == "neurons" else 0)
    texts = [entry.kind for entry in journal(module, "cut", "rollback", "stop", "recovery")]
    assert texts == ["cut", "rollback", "stop"]
    assert callback.reached == 0.0


def test_failures_halve_the_step_until_cutting_stops():
    module = Scripted.of(1.0, 0.2)
    callback = lc.WeightPruning(
        0.4, schedule=Schedule("linear", rounds=2), recover=lc.Recovery("score", patience=1), max_step=0.5
    )
    fit(module, callback, max_epochs=8)
    assert [round(entry.data["target"], 6) for entry in journal(module, "cut")] == [0.2, 0.1, 0.05, 0.025]
    assert len(journal(module, "rollback")) == 4
    assert len(journal(module, "stop")) == 1
    assert callback.on_target
    assert callback.reached == 0
    assert not any((parameter == 0).all() for parameter in module.parameters() if parameter.dim() > 1)


def test_after_a_failure_smaller_steps_reach_the_target():
    module = Scripted.of(1.0, 0.2, 1.0)
    callback = lc.WeightPruning(
        0.3, schedule=Schedule("linear", rounds=1), recover=lc.Recovery("score", patience=1), max_step=0.5
    )
    fit(module, callback, max_epochs=6)
    assert [round(entry.data["target"], 6) for entry in journal(module, "cut")] == [0.3, 0.15, 0.3]
    assert callback.reached == pytest.approx(0.3, abs=1e-3)


def test_keeping_a_cut_that_did_not_recover_is_possible():
    module = Scripted.of(1.0, 0.2)
    recover = lc.Recovery("score", patience=1, on_failure="continue")
    callback = lc.WeightPruning(0.3, schedule=Schedule("linear", rounds=3), recover=recover)
    fit(module, callback, max_epochs=5)
    assert len(journal(module, "cut")) == 3
    assert not journal(module, "rollback")
    assert callback.reached == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("pruning", PRUNINGS)
def test_a_cut_that_the_fit_leaves_no_time_to_recover_is_taken_back_at_its_end(pruning):
    module = Scripted.of(1.0, 0.2)
    callback = PRUNINGS[pruning](lc.Recovery("score", patience=10))
    fit(module, callback, max_epochs=2)
    assert callback.reached == 0
    assert module.network[0].out_features == 32
    assert "ended before the metric was back" in journal(module, "rollback")[0].text


def test_a_lower_score_can_be_the_better_one():
    module = Scripted.of(0.1, 0.5, 0.1)
    fit(module, lc.WeightPruning(0.3, recover=lc.Recovery("score", mode="min")), max_epochs=4)
    assert journal(module, "recovery")[0].epoch == 2


def test_a_metric_that_is_nan_has_not_recovered():
    module = Scripted.of(1.0, float("nan"))
    callback = lc.WeightPruning(0.3, recover=lc.Recovery("score", patience=1, on_failure="stop"))
    fit(module, callback, max_epochs=3)
    assert callback.reached == 0


def test_only_one_cut_at_a_time_waits_for_its_recovery():
    module = Scripted.of(1.0, 0.5, 1.0, 1.0, 0.5, 1.0)
    weights, neurons = PRUNINGS["weights"](lc.Recovery("score")), PRUNINGS["neurons"](lc.Recovery("score"))
    fit(module, weights, neurons, max_epochs=12)
    waiting = None
    for entry in journal(module, "cut", "recovery"):
        assert (waiting is None) == (entry.kind == "cut")
        waiting = entry if entry.kind == "cut" else None
    assert weights.on_target
    assert neurons.on_target


def test_a_metric_that_is_not_logged_is_an_error_before_the_first_cut():
    module = User()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(lc.CompressionError, match="'val_ac', which validation does not log. Did you mean 'val_acc'"):
        fit(module, lc.NeuronPruning(0.5, recover=lc.Recovery("val_ac")))
    assert same(before, dict(module.state_dict()))


def test_a_gate_without_validation_data_is_an_error():
    with pytest.raises(lc.CompressionError, match="needs validation data"):
        fit(User(), lc.WeightPruning(0.5, recover=lc.Recovery("val_acc")), validation=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "maximum"}, "Did you mean 'max'"),
        ({"on_failure": "rolback"}, "Did you mean 'rollback'"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_a_recovery_refuses_bad_values(arguments, message):
    with pytest.raises(lc.CompressionError, match=message):
        lc.Recovery("val_acc", **arguments)


def test_the_state_of_a_gate_goes_through_primitives():
    gate = Gate(lc.Recovery("score", patience=2))
    gate.reference = 0.9
    gate.cut()
    gate.observe(0.1)
    other = Gate(lc.Recovery("score", patience=2))
    other.from_state(gate.to_state())
    assert other.observe(0.1) == gate.observe(0.1) == "failed"


def test_a_waiting_gate_resumes_and_rolls_back_from_the_snapshot_in_the_checkpoint(tmp_path):
    script = (1.0, 0.2, 0.2, 0.2, 0.2)
    recover = lc.Recovery("score", patience=3)
    L.seed_everything(1)
    whole = Scripted.of(*script)
    fit(whole, PRUNINGS["neurons"](recover), every_epoch(tmp_path), max_epochs=5)
    L.seed_everything(2)
    resumed = Scripted.of(*script)
    type(resumed).seen = 2
    fit(resumed, PRUNINGS["neurons"](recover), max_epochs=5, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert same(dict(whole.state_dict()), dict(resumed.state_dict()))
    assert lc.explain(whole) == lc.explain(resumed)
    assert journal(resumed, "rollback")


def test_the_reference_is_measured_as_the_fit_validates():
    class Looking(User):
        def on_validation_epoch_end(self):
            assert self.trainer.max_epochs == 4
            self.logger.log_metrics({"seen": 1.0})

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            assert batch_idx == 0
            self.log("epoch_now", float(self.current_epoch))

    module = Looking()
    schedule = Schedule("linear", rounds=1, start=2, end=4)
    recover = lc.Recovery("epoch_now", tolerance=0.0)
    fit(
        module,
        lc.WeightPruning(0.1, schedule=schedule, recover=recover),
        max_epochs=4,
        limit_val_batches=1,
        logger=DummyLogger(),
    )
    assert journal(module, "decision")[0].data["reference"] == 2.0


def test_a_reference_that_is_nan_is_refused():
    with pytest.raises(lc.CompressionError, match="score is nan before the first cut"):
        fit(Scripted.of(float("nan")), lc.WeightPruning(0.3, recover=lc.Recovery("score")))


def test_rollback_of_a_module_that_keeps_a_part_out_of_its_state_dict():
    class Filtered(Scripted):
        def state_dict(self, *args, **kwargs):
            return {key: value for key, value in super().state_dict(*args, **kwargs).items() if "network.6" not in key}

    module = Filtered.of(1.0, 0.2)
    pruning = PRUNINGS["neurons"](lc.Recovery("score", patience=1))
    fit(module, pruning, max_epochs=3)
    assert journal(module, "rollback")


@pytest.mark.parametrize(
    "recover", ["val_acc", {"monitr": "val_acc"}, {"patience": 3}, {"monitor": 3}, {"monitor": ""}]
)
def test_a_recovery_that_is_none_is_refused_at_once(recover):
    with pytest.raises(lc.CompressionError, match="monitor|Recovery"):
        lc.WeightPruning(0.5, recover=recover)
