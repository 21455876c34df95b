"""The ledger of a sweep that nobody ran."""

from lightning_compress.app.ledger import Ledger


def cost(number, accuracy):
    return {
        "parameters": number,
        "macs": 3 * number,
        "dense_bytes": 4 * number,
        "val_acc": accuracy,
        "test_acc": accuracy,
    }


def write_point(folder, sparsity, parameters, accuracy, *, file_bytes, seeds=(0, 1, 2), callbacks=True):
    """One job for each seed; accuracies are 0.002 apart."""
    ledger = Ledger(folder)
    for place, seed in enumerate(seeds):
        config = {
            "seed": seed,
            "callbacks": {"weights": {"sparsity": sparsity}} if callbacks else {},
            "width": sparsity,
        }
        ledger.write(
            "finished",
            job=f"{sparsity}-{callbacks}-{seed}",
            seed=seed,
            recipe="trial",
            monitor="val_acc",
            mode="max",
            before=cost(1000, 0.97),
            after=cost(parameters, accuracy + 0.002 * (place - 1)),
            file=None if file_bytes is None else {"name": "model.lcz", "bytes": file_bytes},
            config=config,
            command=[f"sparsity={sparsity}", f"seed={seed}"],
            environment={},
        )


def write_sweep(folder):
    """A front of three points, one that is beaten, two rivals, and a job that failed."""
    write_point(folder, 0.5, 500, 0.972, file_bytes=1200)
    write_point(folder, 0.8, 200, 0.968, file_bytes=500)
    write_point(folder, 0.9, 100, 0.94, file_bytes=260)
    write_point(folder, 0.7, 300, 0.95, file_bytes=800)
    write_point(folder, 8, 400, 0.93, file_bytes=1500, callbacks=False)
    write_point(folder, 4, 150, 0.90, file_bytes=600, callbacks=False)
    Ledger(folder).write("failed", job="wrong", seed=0, error="no neurons")
