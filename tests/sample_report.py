"""A small report with everything in it."""

from lightning_compress.plan import Journal
from lightning_compress.report import FileResult, Layer, Network, Report, SizeStep, to_report_entries


def make_network(stage, epochs, kept, metrics):
    cost = {
        "parameters": 110,
        "nonzero_parameters": kept + 10,
        "macs": 100,
        "dense_bytes": 440,
        "peak_memory_bytes": 500,
    }
    return Network(stage, epochs, cost, metrics, (Layer("fc", (10, 10), 100, kept),))


def make_journal():
    journal = Journal()
    journal.add("start", "stage 'dense': 2 epochs", epoch=0.0, stage="dense", epochs=2)
    journal.add("measurement", "validation", epoch=1.0, val_acc=0.5)
    journal.add("measurement", "validation", epoch=2.0, val_acc=0.97)
    journal.add("start", "stage 'prune': 4 epochs", epoch=0.0, stage="prune", epochs=4)
    journal.add("decision", "val_acc is 0.97 before the first cut", epoch=0.0, reference=0.97)
    journal.add("cut", "sparsity 0% -> 50%", epoch=0.0, callback="WeightPruning", before=0.0, target=0.5, reached=0.5)
    journal.add("measurement", "validation", epoch=1.0, val_acc=0.968)
    journal.add("recovery", "val_acc is back", epoch=1.0, reached=0.5, value=0.968)
    journal.add("cut", "sparsity 50% -> 80%", epoch=1.0, callback="WeightPruning", before=0.5, target=0.8, reached=0.8)
    journal.add("measurement", "validation", epoch=3.0, val_acc=0.9)
    journal.add("rollback", "back from 80% to 50%", epoch=3.0, callback="WeightPruning", before=0.8, reached=0.5)
    journal.add("stop", "cutting stops; 50% is the ceiling", epoch=3.0, reached=0.5)
    journal.add("finish", "asked for 80% sparsity, reached 50%", epoch=4.0, asked=0.8, reached=0.5)
    return journal


def make_file():
    layer = {
        "name": "fc.weight", "weights": 100, "kept": 50, "value_bits": 3, "index_bits": 2, "counted_bytes": 40,
        "coded_value_bits": 2.5, "coded_index_bits": 1.5, "coded_bytes": 31,
    }  # fmt: skip
    steps = (SizeStep("dense, fp32", 440, False), SizeStep("model.lcz", 44, True))
    return FileResult("model.lcz", 44, 10.0, steps, (layer,), {"test_acc": 0.955})


def make_report(seed=0, recipe="trial", before=None, after=None, file=None):
    networks = (
        make_network("dense", 2, 100, before or {"val_acc": 0.97, "test_acc": 0.96}),
        make_network("prune", 4, 50, after or {"val_acc": 0.968, "test_acc": 0.955}),
    )
    return Report(
        recipe=recipe,
        seed=seed,
        monitor="val_acc",
        mode="max",
        networks=networks,
        journal=to_report_entries(make_journal()),
        plan=(),
        environment={"python": "3.11"},
        config={"seed": seed},
        command="lightning-compress",
        file=file,
    )
