"""What the package logs under ``compress/``, to any logger: names and units."""

from __future__ import annotations

SCALARS = {
    "sparsity": "share of the targeted weights that are zero, in [0, 1]",
    "channels_removed": "share of the channels (neurons, heads) that were taken out, in [0, 1]",
    "params_removed": "share of the parameters that were taken out, in [0, 1]",
    "macs_removed": "share of the multiply-accumulates that were taken out, in [0, 1]",
    "layers_clustered": "share of the targeted layers whose values are shared, in [0, 1]",
    "layers_replaced": "share of the layers to be factored that are, in [0, 1]",
    "bits_per_weight": "bits of a clustered weight after ideal entropy coding, zeros counted",
    "parameters": "number of the network's parameters, while layers are replaced",
    "penalty": "strength of the sparsity penalty, in units of the loss per unit of the penalty",
    "weight_bits": "mean bits of a weight over all entries; 32 before quantization starts",
    "activation_bits": "mean bits of what layers read; 32 before quantization starts",
    "distillation_loss": "loss against the teachers, nats for soft targets",
    "temperature": "of the soft targets; no unit",
    "alpha": "weight of the labels' loss against the teachers', in [0, 1]",
    "agreement": "share of validation samples that student and teacher answer alike, in [0, 1]",
    "kl_to_teacher": "Kullback-Leibler divergence on validation data, nats",
    "student_nll": "negative log-likelihood on validation data, nats; teacher_nll likewise",
    "student_ece": "expected calibration error on validation data, in [0, 1]; teacher_ece likewise",
    "exitN_acc": "accuracy of exit N on validation data, in [0, 1]",
    "exitN_weight": "weight of exit N in the loss; no unit",
    "relative_macs": "multiply-accumulates of an average test sample, relative to the whole network's",
    "network_sparsity": "summary: share of all parameters that are zero, in [0, 1]",
    "file_bytes": "summary: size of the compressed file on the disk, bytes",
    "file_ratio": "summary: bytes of the first network in fp32 over file_bytes",
    "same_answers": "summary: share of validation samples answered alike before and after, in [0, 1]",
}
"""Name behind ``compress/`` -> meaning and unit. A callback's own ``name`` comes last: ``compress/sparsity_mine``."""
