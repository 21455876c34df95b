"""What other people's implementations say of the networks: costs for 1000 classes, names and shapes of tensors."""

from pathlib import Path

KEYS = Path(__file__).parent / "keys"
NORM = ("weight", "bias", "running_mean", "running_var")

CHECK_VALUES = [
    ("squeezenet1_0", {}, 1_248_424, 818_924_576),
    ("squeezenet1_1", {}, 1_235_496, 349_151_936),
    ("mobilenet_v1", {}, 4_231_976, 568_740_352),
    ("mobilenet_v1", {"width": 0.75}, 2_585_560, 325_400_448),
    ("mobilenet_v1", {"width": 0.5}, 1_331_592, 149_497_088),
    ("mobilenet_v1", {"width": 0.25}, 470_072, 41_030_272),
    ("mobilenet_v2", {}, 3_504_872, 300_774_272),
    ("mobilenet_v2", {"width": 0.75}, 2_636_424, 209_069_792),
    ("mobilenet_v2", {"width": 0.5}, 1_968_680, 97_131_840),
    ("mobilenet_v2", {"width": 0.35}, 1_677_128, 59_285_808),
    ("mobilenet_v2", {"width": 1.4}, 6_108_776, 582_195_824),
    ("mobilenet_v3_large", {}, 5_483_032, 216_589_760),
    ("mobilenet_v3_small", {}, 2_542_856, 56_510_400),
    ("shufflenet_v1", {"groups": 1}, 1_531_936, 143_078_976),
    ("shufflenet_v1", {"groups": 2}, 1_733_848, 140_836_512),
    ("shufflenet_v1", {"groups": 3}, 1_865_728, 137_460_672),
    ("shufflenet_v1", {"groups": 4}, 1_968_344, 134_339_776),
    ("shufflenet_v1", {"groups": 8}, 2_434_768, 138_365_952),
    ("shufflenet_v1", {"groups": 1, "width": 0.75}, 975_214, 82_542_672),
    ("shufflenet_v1", {"groups": 3, "width": 0.75}, 1_238_266, 79_740_144),
    ("shufflenet_v1", {"groups": 1, "width": 0.5}, 534_484, 38_517_408),
    ("shufflenet_v1", {"groups": 3, "width": 0.5}, 718_324, 37_589_856),
    ("shufflenet_v1", {"groups": 3, "width": 0.25}, 305_902, 11_009_808),
    ("shufflenet_v2", {"width": 0.5}, 1_366_792, 40_476_448),
    ("shufflenet_v2", {}, 2_278_604, 144_907_992),
    ("shufflenet_v2", {"width": 1.5}, 3_503_624, 295_759_392),
    ("shufflenet_v2", {"width": 2.0}, 7_393_996, 583_253_464),
    ("xception", {}, 22_855_952, 8_357_403_496),
    ("resnet18", {}, 11_689_512, 1_814_073_344),
    ("resnet34", {}, 21_797_672, 3_663_761_408),
    ("resnet50", {}, 25_557_032, 4_089_184_256),
    ("resnet101", {}, 44_549_160, 7_801_405_440),
    ("resnet152", {}, 60_192_808, 11_513_626_624),
    ("vgg11", {}, 132_863_336, 7_609_090_048),
    ("vgg11_bn", {}, 132_868_840, 7_609_090_048),
    ("vgg13", {}, 133_047_848, 11_308_466_176),
    ("vgg13_bn", {}, 133_053_736, 11_308_466_176),
    ("vgg16", {}, 138_357_544, 15_470_264_320),
    ("vgg16_bn", {}, 138_365_992, 15_470_264_320),
    ("vgg19", {}, 143_667_240, 19_632_062_464),
    ("vgg19_bn", {}, 143_678_248, 19_632_062_464),
]
"""Network, options, parameters, multiply-accumulates at 224 pixels (Xception: 299)."""

WITH_KEYS = {path.stem: (path.stem, {}) for path in sorted(KEYS.glob("*.txt")) if not path.stem.startswith("shuffle")}
WITH_KEYS |= {
    f"shufflenet_v2_x{width}": ("shufflenet_v2", {"width": float(width.replace("_", "."))})
    for width in ("0_5", "1_0", "1_5", "2_0")
}
"""File of keys -> network and options."""


def side(name):
    """Pixels that the network was drawn for."""
    return 299 if name == "xception" else 224


def shapes(file):
    """Name -> shape of every tensor that the other library's ``state_dict`` has."""
    found = {}
    for line in (KEYS / f"{file}.txt").read_text().splitlines():
        layer, kind, sizes = line.split()
        shape = tuple(map(int, sizes.split("x")))
        if kind == "norm":
            found |= {f"{layer}.{leaf}": shape for leaf in NORM} | {f"{layer}.num_batches_tracked": ()}
        else:
            found[f"{layer}.weight"] = shape
            if kind == "affine":
                found[f"{layer}.bias"] = shape[:1]
    return found
