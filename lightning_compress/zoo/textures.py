"""Patches of real pictures as a classification task that can tell methods apart."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_compress.errors import CompressionError
from lightning_compress.zoo.tensors import TensorDataModule, check_shares

PICTURES = (
    "brick.png",
    "cell.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "text.png",
)
PATCH = 32
TILE = 48
STRIDE = 4
FLATTEST = 1e-3  # added to each standard deviation: noise in an empty patch is not blown up to a texture


class Textures(TensorDataModule):
    """32x32 grey patches of twelve pictures that the scikit-image wheel carries; the class is the picture.

    Each picture is cut into square tiles, every tile belongs to training, validation or test as a whole, and patches
    do not cross the edge of a tile: no pixel is in two parts. A patch has its own mean taken away and is divided by its
    own standard deviation, so brightness and contrast give nothing away. All classes have equally many patches in every
    part. Nothing is downloaded.

    Test accuracy after 25 epochs over three seeds: `SmallResNet` 0.87 to 0.91, `LeNet300` 0.29 to 0.31, a linear model
    0.14 to 0.17; chance is 0.08.

    Args:
        batch_size: patches in a batch.
        seed: of the division of tiles and the choice of patches.
        shares: of the tiles that go to training, validation and test; they sum to 1.
        patches: patches of each class in all three parts together, up to 625 with the default shares.
        num_workers: processes of each loader.

    Raises:
        CompressionError: an argument out of its range, or scikit-image is missing; in ``setup``, more patches than
            the smallest picture has.

    >>> textures = Textures(batch_size=16)
    >>> textures.setup()
    >>> patches, classes = next(iter(textures.train_dataloader()))
    >>> patches.shape, textures.num_classes
    (torch.Size([16, 1, 32, 32]), 12)
    """

    num_classes = len(PICTURES)
    input_shape = (1, PATCH, PATCH)

    def __init__(
        self,
        batch_size: int = 64,
        seed: int = 0,
        shares: Sequence[float] = (0.6, 0.2, 0.2),
        patches: int = 300,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if patches < 3:
            raise CompressionError(f"patches={patches} of a class cannot be divided into three parts; use at least 3.")
        self.seed = seed
        self.shares = check_shares(shares)
        self.patches = patches
        self.data_folder = _data_folder()

    def setup(self, stage: str | None = None) -> None:
        """Reads the pictures, divides their tiles and cuts the patches; the same for every stage."""
        generator = torch.Generator().manual_seed(self.seed)
        pictures = [_read_grey(self.data_folder / name) for name in PICTURES]
        parts = zip(*(cut_patches(picture, self.shares, self.patches, generator) for picture in pictures), strict=True)
        self.train, self.validation, self.test = (_labelled(patches) for patches in parts)


def cut_patches(
    picture: Tensor, shares: tuple[float, float, float], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Patches of one picture (height, width) for training, validation and test, from different tiles.

    Args:
        picture: at least a few tiles high and wide.
        shares: of the tiles, and of the patches, that go to each part.
        count: patches in all three parts together.
        generator: of the division of tiles and the choice of patches.

    Returns:
        Three tensors of shape (round(count * share), 1, 32, 32), not normalised.

    Raises:
        CompressionError: a part has fewer patches than asked for.

    >>> parts = cut_patches(torch.rand(480, 480), (0.6, 0.2, 0.2), 50, torch.Generator().manual_seed(0))
    >>> [len(part) for part in parts]
    [30, 10, 10]
    """
    tiles = picture.unfold(0, TILE, TILE).unfold(1, TILE, TILE).reshape(-1, TILE, TILE)
    tiles = tiles[torch.randperm(len(tiles), generator=generator)]
    ends = [round(len(tiles) * shares[0]), round(len(tiles) * (shares[0] + shares[1]))]
    train, validation, test = (
        _choose(part, round(count * share), generator)
        for part, share in zip(tiles.tensor_split(ends), shares, strict=True)
    )
    return train, validation, test


def _choose(tiles: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` of the patches inside tiles (N, TILE, TILE)."""
    patches = tiles.unfold(1, PATCH, STRIDE).unfold(2, PATCH, STRIDE).reshape(-1, 1, PATCH, PATCH)
    if not 0 < count <= len(patches):
        raise CompressionError(
            f"One part of a picture has {len(patches)} patches and {count} are asked for; choose patches= and shares= "
            "so that every part gets at least one and the smallest picture has enough."
        )
    return patches[torch.randperm(len(patches), generator=generator)[:count]]


def _data_folder() -> Path:
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise CompressionError(
            "Textures are cut from pictures of scikit-image, which is missing. "
            'Install it: pip install "lightning-compress[recipes]".'
        )
    return Path(package.origin).parent / "data"


def _read_grey(path: Path) -> Tensor:
    """The picture of a file as brightness; shape (height, width), float32."""
    if not path.is_file():
        raise CompressionError(f"This scikit-image does not carry {path.name}; install a release from 0.22 to 0.26.")
    from skimage.color import rgb2gray
    from skimage.io import imread

    picture = imread(path)
    grey = rgb2gray(picture) if picture.ndim == 3 else picture / 255
    return torch.from_numpy(grey).float()


def _labelled(patches_by_class: Sequence[Tensor]) -> TensorDataset:
    """All patches, each normalised by itself, with the number of its picture."""
    patches = torch.cat(list(patches_by_class))
    std, mean = torch.std_mean(patches, dim=(1, 2, 3), keepdim=True)
    classes = torch.cat([torch.full((len(part),), number) for number, part in enumerate(patches_by_class)])
    return TensorDataset((patches - mean) / (std + FLATTEST), classes)
