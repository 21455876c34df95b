import subprocess
import sys

import pytest

HELP = """
import sys
from lightning_compress.app.main import main
sys.argv = ["lightning-compress", "--help"]
try:
    main()
finally:
    print("torch" in sys.modules)
"""


def test_help_lists_groups_and_recipes_without_importing_torch():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    (recipes,) = (line.partition(":")[2].split(", ") for line in done.stdout.splitlines() if "recipe: " in line)
    assert {"deep_compression", "iterative_pruning", "bits", "search"} <= {name.strip() for name in recipes}
    assert "lightning-compress -m seed=0,1,2" in done.stdout
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sede=3"], ["'sede'", "Did you mean 'seed'?"]),
        (["callbacks.weights.sparsty=0.3"], ["'sparsty' in callbacks.weights", "Did you mean 'sparsity'?"]),
        (["recipe=neuron_pruning", "callbacks.neurons.amont=0.3"], ["'amont'", "Did you mean 'amount'?"]),
        (["+module.learning_rate=1"], ["no argument 'learning_rate'"]),
        (["+stages.prune.module.widht=1"], ["No 'widht' in module"]),
        (["recipe=iterativ_pruning"], ["'iterativ_pruning'", "Did you mean 'iterative_pruning'?"]),
        (["data=digit"], ["'digit'", "Did you mean 'digits'?"]),
        (["callbacks.weights.criterion=magnitud"], ["'magnitud'", "Did you mean 'magnitude'?"]),
        (["callbacks.weights.sparsity=1.5"], ["1.5 is not a share in [0, 1)"]),
        (["callbacks.weights.max_step=7"], ["max_step=7"]),
        (["stages.prune.epochs=0"], ["stages.prune.epochs=0"]),
        (["stages.prune.callbacks=[weight]"], ["'weight'", "Did you mean 'weights'?"]),
        (["+stages.prune.epoch=3"], ["unknown field 'epoch'", "Did you mean 'epochs'?"]),
    ],
)
def test_mistake_is_told_in_one_line_before_anything_is_trained(command, capfd, tmp_path, arguments, words):
    assert command(*arguments, "logger=csv") == 1
    output = capfd.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert all(word in line for word in words), line
    assert not list(tmp_path.rglob("*.ckpt"))


def test_error_of_ours_keeps_its_traceback(command, monkeypatch):
    monkeypatch.setattr("lightning_compress.app.run.read_stages", lambda config: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command()


def test_reader_that_goes_away_leaves_no_traceback():
    code = "import sys; from lightning_compress.app.main import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_help_composes_once_and_shows_the_recipe_that_is_asked_for(command, capfd):
    assert command("--help", "recipe=neuron_pruning") == 0
    output = capfd.readouterr().out
    assert "Values (name=value), recipe=neuron_pruning" in output
    assert "neurons:" in output
    for word in ("dry_run=true", "search", "pareto", "summarize", "hydra/launcher=joblib"):
        assert f"lightning-compress {word}" in output or word in output
